"""Put the examples of trajectories into one row that holds every shared prefix once.

Prompts are append-only, so the S examples of a trajectory repeat each other's beginnings. Their
token sequences form a trie; its nodes are laid out depth-first in one row. A token's position is
its depth, and it sees itself and its ancestors only, so every sequence gets exactly the logits it
would get alone, at a fraction of the tokens. Sharing is found token by token: a template or
tokenizer that shares less costs speed, never correctness.

At every branching the deeper side comes first, so a trie begins with its deepest path, its *trunk*:
those tokens see each other in plain causal order, which attention kernels do fastest.

>>> row = pack([[[5, 6, 7], [5, 6, 8, 9]]])
>>> row.ids, row.positions, row.ends
([5, 6, 8, 9, 7], [0, 1, 2, 3, 2], [5, 5, 4, 4, 5])
>>> row.places
[[0, 1, 4], [0, 1, 2, 3]]
>>> row.trees
[Tree(begin=0, trunk=4, end=5)]
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import NamedTuple

Sequences = Sequence[Sequence[int]]


class Tree(NamedTuple):
    """One trie's nodes in a row: ``begin`` to ``end``, those before ``trunk`` its deepest path."""

    begin: int
    trunk: int
    end: int


@dataclass(frozen=True, slots=True)
class Row:
    """Several tries, one after the other.

    Attributes:
        ids: token of each node, (nodes,).
        positions: depth of each node, its position in every sequence it belongs to.
        ends: one past the last descendant of each node: key k is visible to query i iff
            k <= i < ends[k].
        places: for each sequence, the node of each of its tokens.
        trees: the tries, in order.
    """

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    places: list[list[int]] = field(default_factory=list)
    trees: list[Tree] = field(default_factory=list)


def pack(groups: Sequence[Sequences]) -> Row:
    """Merge the sequences of each group into one trie, and lay the tries out in one row.

    Args:
        groups: for each trie its sequences of token ids, each of at least one token. Equal
            sequences share all nodes. A group of one sequence is a plain path.
    """
    row = Row()
    for sequences in groups:
        begin, first = len(row.ids), len(row.places)
        row.places.extend([] for _ in sequences)
        order = sorted(range(len(sequences)), key=lambda index: list(sequences[index]))
        _lay(row, sequences, order, [], first)
        deepest = max(map(len, sequences))
        row.trees.append(Tree(begin, begin + deepest, len(row.ids)))
    return row


def _lay(row: Row, sequences: Sequences, order: list[int], path: list[int], first: int) -> None:
    """Lay out the sequences of ``order``, sorted, which all go through the nodes of ``path``."""
    depth, begin = len(path), len(row.ids)
    # Sorted, all of them share what the first and the last share.
    shared = _shared(sequences[order[0]], sequences[order[-1]], depth)
    row.ids.extend(sequences[order[0]][depth:shared])
    row.positions.extend(range(depth, shared))
    path = [*path, *range(begin, begin + shared - depth)]
    row.ends.extend([0] * (shared - depth))
    branches = []
    for done, members in groupby(order, key=lambda index: len(sequences[index]) == shared):
        if done:
            for index in members:
                row.places[first + index] = path
        else:
            branches = [
                list(branch) for _, branch in groupby(members, key=lambda i: sequences[i][shared])
            ]
    branches.sort(key=lambda branch: -max(len(sequences[index]) for index in branch))
    for branch in branches:
        _lay(row, sequences, branch, path, first)
    for node in range(begin, begin + shared - depth):
        row.ends[node] = len(row.ids)


def _shared(one: Sequence[int], other: Sequence[int], start: int) -> int:
    """Length of the common prefix of two sequences whose first ``start`` tokens are equal."""
    limit = min(len(one), len(other))
    while start < limit and one[start] == other[start]:
        start += 1
    return start


def unique_tokens(sequences: Sequences) -> int:
    """Nodes of the trie of the sequences.

    >>> unique_tokens([[5, 6, 7], [5, 6, 8, 9]])
    5
    """
    ordered = sorted(map(list, sequences))
    shared = (_shared(one, other, 0) for one, other in pairwise(ordered))
    return sum(map(len, ordered)) - sum(shared)


def fill(sizes: Sequence[int], *, capacity: int, multiple: int = 1) -> list[list[int]]:
    """Distribute items over rows of at most ``capacity`` so that the rows are about equally full.

    Args:
        sizes: tokens of each item; one larger than ``capacity`` gets a row of its own.
        capacity: most tokens of a row.
        multiple: the number of rows is a multiple of this, one row for each process in turn;
            rows may be empty.

    Returns:
        The items of each row.

    >>> fill([5, 3, 9, 2], capacity=10)
    [[2], [0, 1, 3]]
    """
    most = multiple * max(1, -(-len(sizes) // multiple))  # then every item has its own row
    count = min(most, multiple * max(1, -(-sum(sizes) // (capacity * multiple))))
    while True:
        rows = _spread(sizes, count)
        full = (sum(sizes[item] for item in row) > capacity and len(row) > 1 for row in rows)
        if not any(full):
            return rows
        count += multiple


def _spread(sizes: Sequence[int], count: int) -> list[list[int]]:
    """Largest items first, each to the emptiest of ``count`` rows."""
    rows: list[list[int]] = [[] for _ in range(count)]
    loads = [(0, number) for number in range(count)]
    for item in sorted(range(len(sizes)), key=lambda item: (-sizes[item], item)):
        load, number = heapq.heappop(loads)
        rows[number].append(item)
        heapq.heappush(loads, (load + sizes[item], number))
    return [sorted(row) for row in rows]
