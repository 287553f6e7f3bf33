"""From encoded examples to tensors: which trajectories an optimizer step sees, in which rows.

A batch says for every target token which logits predict it and which example it belongs to. So
the loss needs no label mask, a token that several examples of a packed row share can be a target
in some and not in others, and logits are computed at those places only.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from steper.attention import TRIE, Layout
from steper.loss import example_losses
from steper.packing import Tree, fill, pack, unique_tokens

Packing = Literal["trie", "rows", "none"]


class Encoded(NamedTuple):
    """One example as token ids; the first ``prompt`` of them are no targets."""

    ids: Sequence[int]
    prompt: int
    task: int
    id: str = ""


Group = Sequence[Encoded]
"""Examples that are packed into one trie: those of one trajectory, or a single one."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one forward pass of one process needs.

    Attributes:
        ids: (rows, width).
        mask: (rows, width), 0 where padded; ``None`` for a packed row.
        positions: (1, width) of a packed row.
        ends: (width,) of a packed row, see ``packing.Row``.
        trees: of a packed row.
        columns: (places,) where logits are needed, in every row.
        sources: (targets,) which of the rows × places logits predicts each target token.
        targets: (targets,) token ids.
        examples: (targets,) example of each target token.
        tasks: (examples,) 0, 1 or 2 as in ``steper.types.TASKS``.
        names: ids of the examples.
    """

    ids: Tensor
    mask: Tensor | None
    positions: Tensor | None
    ends: Tensor | None
    trees: tuple[Tree, ...]
    columns: Tensor
    sources: Tensor
    targets: Tensor
    examples: Tensor
    tasks: Tensor
    names: tuple[str, ...]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {n: v.to(device) for n, v in values.items() if hasattr(v, "to")}
        return Batch(**(values | moved))


def collate(groups: Sequence[Group], *, packing: Packing, pad_id: int) -> Batch:
    """Make one batch of some groups.

    Args:
        groups: what goes into the forward pass. None at all gives a batch of one token without
            targets, for a process that has to take part in a pass and has nothing to do.
        packing: ``none`` pads every example to a row of its own; otherwise each group is a trie.
        pad_id: token that fills up.
    """
    examples = [example for group in groups for example in group]
    if packing == "none" and examples:
        places = [list(range(len(example.ids))) for example in examples]
        rows = range(len(examples))
        ids = pad_sequence(
            [torch.tensor(list(example.ids)) for example in examples],
            batch_first=True,
            padding_value=pad_id,
        )
        lengths = torch.tensor([len(example.ids) for example in examples])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        shape: dict[str, Any] = {"mask": mask, "positions": None, "ends": None, "trees": ()}
    else:
        row = pack([[example.ids for example in group] for group in groups] or [[[pad_id]]])
        places, rows = row.places, [0] * len(examples)  # type: ignore[assignment]
        ids = torch.tensor([row.ids])
        shape = {
            "mask": None,
            "positions": torch.tensor([row.positions]),
            "ends": torch.tensor(row.ends),
            "trees": tuple(row.trees),
        }
    targets = [
        (number, place[at - 1], example.ids[at], count)
        for count, (number, place, example) in enumerate(zip(rows, places, examples, strict=False))
        for at in range(example.prompt, len(example.ids))
    ]
    table = torch.tensor(targets, dtype=torch.long).reshape(-1, 4)
    columns, source = table[:, 1].unique(return_inverse=True)
    return Batch(
        ids=ids,
        **shape,
        columns=columns,
        sources=table[:, 0] * len(columns) + source,
        targets=table[:, 2],
        examples=table[:, 3],
        tasks=torch.tensor([example.task for example in examples], dtype=torch.long),
        names=tuple(example.id for example in examples),
    )


def forward(model: nn.Module, batch: Batch) -> Tensor:
    """ℓ of each example, (examples,). A packed batch wants the model's attention to be ``TRIE``."""
    arguments: dict[str, Any] = {"attention_mask": batch.mask}
    if batch.positions is not None and batch.ends is not None:
        layout = Layout(batch.trees, batch.positions[0], batch.ends)
        arguments = {"position_ids": batch.positions, "layout": layout}
    logits = model(
        input_ids=batch.ids, use_cache=False, logits_to_keep=batch.columns, **arguments
    ).logits
    if logits.shape[1] != len(batch.columns):  # an architecture that knows no logits_to_keep
        logits = logits[:, batch.columns]
    return example_losses(
        logits.flatten(0, 1),
        batch.sources,
        batch.targets,
        batch.examples,
        count=len(batch.tasks),
    )


# ---- optimizer steps -------------------------------------------------------------------------


class Step(NamedTuple):
    """One process's share of an optimizer step.

    Attributes:
        batches: its forward passes, as many as every other process has.
        trajectories: n of Eq. 3; this and what follows, those of *all* processes.
        tokens: of all examples, shared or not.
        forward_tokens: what runs through the model, padding included.
    """

    batches: list[Batch]
    trajectories: int
    tokens: int
    forward_tokens: int


@dataclass(slots=True)
class Steps(Dataset[Step]):
    """The optimizer steps of a whole training, in order.

    Which trajectories belong to a step depends on ``batch``, ``seed`` and nothing else. Every
    process works out the whole distribution over rows and takes its own, so that no process has
    to ask another, and all have the same number of forward passes.

    Attributes:
        groups: the trajectories.
        batch: trajectories per step.
        epochs: passes over the trajectories.
        seed: of the order; ``None`` keeps that of the file.
        packing: see ``collate``.
        row_tokens: most tokens of a forward pass.
        pad_id: token that fills up.
        rank: number of this process.
        processes: how many there are.
    """

    groups: Sequence[Group]
    batch: int
    epochs: float
    seed: int | None
    packing: Packing
    row_tokens: int
    pad_id: int
    rank: int = 0
    processes: int = 1

    def __len__(self) -> int:
        # Rounded first: 0.1 × 30 is a little more than 3.
        return max(1, math.ceil(round(self.epochs * self.per_epoch, 6)))

    def __getitem__(self, step: int) -> Step:
        if not 0 <= step < len(self):
            raise IndexError(step)
        epoch, part = divmod(step, self.per_epoch)
        order = _order(len(self.groups), self.seed, epoch)
        chosen = [self.groups[i] for i in order[part * self.batch : (part + 1) * self.batch]]
        rows = distribute(
            chosen, packing=self.packing, row_tokens=self.row_tokens, multiple=self.processes
        )
        own = rows[self.rank :: self.processes]
        return Step(
            [collate(row, packing=self.packing, pad_id=self.pad_id) for row in own],
            trajectories=len(chosen),
            tokens=sum(len(example.ids) for group in chosen for example in group),
            forward_tokens=sum(_size(row, self.packing) for row in rows),
        )

    @property
    def per_epoch(self) -> int:
        """Optimizer steps of one pass over the trajectories."""
        return -(-len(self.groups) // self.batch)


@lru_cache(maxsize=1)
def _order(count: int, seed: int | None, epoch: int) -> Sequence[int]:
    """The order of an epoch's trajectories; every step of the epoch asks for it."""
    order = list(range(count))
    if seed is not None:
        random.Random(f"{seed}/{epoch}").shuffle(order)
    return order


def distribute(
    groups: Sequence[Group], *, packing: Packing, row_tokens: int, multiple: int = 1
) -> list[list[Group]]:
    """Spread trajectories over forward passes of at most ``row_tokens`` tokens.

    Returns:
        The groups of each pass; the number of passes is a multiple of ``multiple``, some may be
        empty.
    """
    if packing == "none":
        return _padded([example for group in groups for example in group], row_tokens, multiple)
    whole = _units(groups, packing)
    sizes = [_size([unit], packing) for unit in whole]
    rows = fill(sizes, capacity=row_tokens, multiple=multiple)
    return [[whole[item] for item in row] for row in rows]


def _units(groups: Sequence[Group], packing: Packing) -> Sequence[Group]:
    """What stays together in a pass: trajectories in a trie, single examples otherwise."""
    return groups if packing == "trie" else [[example] for group in groups for example in group]


def _size(row: Sequence[Group], packing: Packing) -> int:
    """Tokens that a row of groups runs through the model."""
    if packing == "none":
        return sum(map(len, row)) * max((len(e.ids) for group in row for e in group), default=0)
    if packing == "rows":
        return sum(len(example.ids) for group in row for example in group)
    return sum(unique_tokens([example.ids for example in group]) for group in row)


def largest_pass(
    groups: Sequence[Group], *, batch: int, packing: Packing, row_tokens: int
) -> tuple[int, int]:
    """Tokens of the largest forward pass to expect, and its places with logits.

    That of the largest trajectories in one step, as far as they fit into it, or of the longest
    one alone.
    """
    sizes = [_size([group], packing) for group in groups]
    order = sorted(range(len(groups)), key=lambda number: -sizes[number])
    largest = [groups[number] for number in order[:batch]]
    # The longest trajectory is the first of them; the longest example may be anywhere.
    longest = sizes[order[0]]
    if packing != "trie":
        longest = max(len(example.ids) for group in groups for example in group)
    tokens = max(longest, min(row_tokens, _size(largest, packing)))
    rows = distribute(largest, packing=packing, row_tokens=row_tokens)
    batches = [collate(row, packing=packing, pad_id=0) for row in rows]
    return tokens, max(len(batch.ids) * len(batch.columns) for batch in batches)


def _padded(examples: Group, row_tokens: int, multiple: int) -> list[list[Group]]:
    """Examples of like length together, so that little is padded."""
    rows: list[list[Group]] = [[]]
    width = 0
    for example in sorted(examples, key=lambda example: -len(example.ids)):
        width = width if rows[-1] else len(example.ids)
        if rows[-1] and (len(rows[-1]) + 1) * width > row_tokens:
            rows.append([])
            width = len(example.ids)
        rows[-1].append([example])
    return rows + [[] for _ in range(-len(rows) % multiple)]


# ---- whether a model can be packed ------------------------------------------------------------


@torch.no_grad()
def packing_error(
    model: nn.Module, groups: Sequence[Group], *, packing: Packing, pad_id: int, base: Any
) -> float:
    """Largest difference between ℓ from one packed row and from each sequence run alone.

    A model whose layers look at row positions instead of the layout (state-space and linear
    attention layers, absolute distances) shows itself here, whatever its name.

    Args:
        model: what is called; may be wrapped for several processes.
        groups: what goes into the row.
        packing: ``trie`` or ``rows``.
        pad_id: token that fills up.
        base: the ``transformers`` model inside, whose attention is switched.

    Raises:
        Exception: whatever a model that does not take packed rows at all raises.
    """
    training, attention = model.training, base.config._attn_implementation
    device = next(model.parameters()).device
    model.eval()
    try:
        use_attention(base, TRIE)
        row = collate(_units(groups, packing), packing=packing, pad_id=pad_id)
        packed = forward(model, row.to(device))
        use_attention(base, attention)
        alone = [
            forward(model, collate([[example]], packing="none", pad_id=pad_id).to(device))
            for group in groups
            for example in group
        ]
    finally:
        use_attention(base, attention)
        model.train(training)
    return float((packed - torch.cat(alone)).abs().max())


def use_attention(model: Any, name: str) -> None:
    """Switch the attention of a ``transformers`` model, plain or under an adapter.

    Raises:
        ValueError: if the architecture does not let its attention be chosen.
    """
    if model.config._attn_implementation == name:
        return
    model.set_attn_implementation(name)
    if model.config._attn_implementation != name:
        raise ValueError("this architecture has attention layers of its own")
