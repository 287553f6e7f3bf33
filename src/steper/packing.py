"""Put the examples of a trajectory into one row that holds every shared prefix once.

Prompts are append-only, so the S examples of a trajectory repeat each other's beginnings. Their
token sequences form a trie; its nodes are laid out depth-first in one row. A token's position is
its depth, and it sees itself and its ancestors only, so every sequence gets exactly the logits it
would get alone, at a fraction of the tokens. Sharing is found token by token: a template or
tokenizer that shares less costs speed, never correctness.

>>> row = pack([[5, 6, 7], [5, 6, 8, 9]])
>>> row.ids, row.positions, row.ends
([5, 6, 7, 8, 9], [0, 1, 2, 2, 3], [5, 5, 3, 5, 5])
>>> row.places
[[0, 1, 2], [0, 1, 3, 4]]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Row:
    """Several sequences, shared prefixes once.

    Attributes:
        ids: token of each node, (nodes,).
        positions: depth of each node, its position in every sequence it belongs to.
        ends: one past the last descendant of each node: key k is visible to query i iff
            k <= i < ends[k].
        places: for each sequence, the node of each of its tokens.
    """

    ids: list[int]
    positions: list[int]
    ends: list[int]
    places: list[list[int]]


def pack(sequences: Sequence[Sequence[int]]) -> Row:
    """Merge sequences into one row.

    Args:
        sequences: token ids, each of at least one token. Equal sequences share all nodes.
    """
    # Sorted, the trie's depth-first order is the order in which new nodes appear, and a
    # sequence shares with the trie exactly what it shares with the one before it.
    order = sorted(range(len(sequences)), key=lambda index: list(sequences[index]))
    ids: list[int] = []
    positions: list[int] = []
    ends: list[int] = []
    places: list[list[int]] = [[] for _ in sequences]
    path: list[int] = []
    previous: Sequence[int] = ()
    for index in order:
        sequence = sequences[index]
        shared = 0
        while shared < min(len(previous), len(sequence)) and previous[shared] == sequence[shared]:
            shared += 1
        for node in path[shared:]:
            ends[node] = len(ids)
        path = path[:shared]
        for depth in range(shared, len(sequence)):
            path.append(len(ids))
            ids.append(sequence[depth])
            positions.append(depth)
            ends.append(0)
        places[index] = list(path)
        previous = sequence
    for node in path:
        ends[node] = len(ids)
    return Row(ids, positions, ends, places)


def stack(rows: Sequence[Row], *, pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of different lengths as one batch.

    Returns:
        Ids and positions, (rows, nodes), padded on the right; and the boolean attention mask,
        (rows, 1, nodes, nodes), True where the query (second to last) may see the key (last).
    """
    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), pad_id)
    positions = torch.zeros((len(rows), width), dtype=torch.long)
    # A padding token sees only itself: a row of the mask without any key would give NaN.
    ends = torch.arange(1, width + 1).repeat(len(rows), 1)
    for number, row in enumerate(rows):
        length = len(row.ids)
        ids[number, :length] = torch.tensor(row.ids)
        positions[number, :length] = torch.tensor(row.positions)
        ends[number, :length] = torch.tensor(row.ends)
    node = torch.arange(width)
    mask = (node[None, None, :] <= node[None, :, None]) & (node[None, :, None] < ends[:, None, :])
    return ids, positions, mask[:, None]
