"""From step examples to tensors: tokenise, group by trajectory, stack into a batch.

A batch says for every target token which row and column predicts it and which example it belongs
to. So the loss needs no label mask, and a token that several examples of a packed row share can
be a target in some and not in others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from steper.errors import SteperError
from steper.loss import example_losses
from steper.packing import Row, pack, stack
from steper.types import TASKS, StepExample

Packing = Literal["trie", "none"]


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example as token ids; the first ``prompt`` of them are no targets."""

    ids: list[int]
    prompt: int
    task: int


class Trajectories(Dataset[list[Encoded]]):
    """Examples grouped by trajectory, in the order of the file."""

    def __init__(self, groups: list[list[Encoded]]) -> None:
        self.groups = groups

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> list[Encoded]:
        return self.groups[index]


def encode(
    examples: Sequence[StepExample], tokenizer: PreTrainedTokenizerBase, *, max_length: int
) -> Trajectories:
    """Tokenise examples and group them by trajectory.

    Prompt and target are tokenised apart, as at inference, where the prompt comes alone. Only the
    aggregation target ends with the end-of-sequence token: a newline ends a step, the token ends
    the run. Were it taught after every step, a step whose search brought nothing new would have
    the prompt of the step before it and the opposite target, "stop" against "go on".

    Raises:
        SteperError: if an example is longer than ``max_length`` tokens or a target is empty.
    """
    prompts = tokenizer([e.prompt for e in examples])["input_ids"]
    targets = tokenizer([e.target for e in examples], add_special_tokens=False)["input_ids"]
    groups: dict[str, list[Encoded]] = {}
    too_long = []
    for example, prompt, target in zip(examples, prompts, targets, strict=True):
        if not target:
            raise SteperError(
                "target: is empty, so nothing could be learned from it.",
                where=f"example {example.id}",
                fix="Build the data again; a step without reasoning should have been filtered.",
            )
        end = [tokenizer.eos_token_id] if example.task == "aggregation" else []
        encoded = Encoded([*prompt, *target, *end], len(prompt), TASKS.index(example.task))
        if len(encoded.ids) > max_length:
            too_long.append((len(encoded.ids), example.id))
        groups.setdefault(example.trajectory_id, []).append(encoded)
    if too_long:
        longest, name = max(too_long)
        raise SteperError(
            f"{len(too_long)} of {len(examples)} examples are longer than {max_length} tokens; "
            f"the longest has {longest}. Cutting them would silently drop targets.",
            where=f"example {name}",
            fix=f"Raise --max-length to {longest}, or roll out with a smaller --k or --max-steps.",
        )
    return Trajectories(list(groups.values()))


def select(data: Trajectories, weights: Sequence[float]) -> Trajectories:
    """Leave out the examples of tasks that have weight 0: they would only cost time."""
    kept = [[e for e in group if weights[e.task] > 0] for group in data.groups]
    return Trajectories([group for group in kept if group])


@dataclass(frozen=True, slots=True)
class Collator:
    """Stack the examples of several trajectories into one batch.

    Attributes:
        pad_id: token that fills rows up.
        packing: ``trie`` puts a trajectory into one row, ``none`` each example into its own.
    """

    pad_id: int
    packing: Packing

    def __call__(self, groups: Sequence[list[Encoded]]) -> dict[str, Tensor]:
        """Make the batch of some trajectories.

        Returns:
            ``input_ids``, (rows, width), and ``attention_mask``: (rows, width), or for packed
            rows (rows, 1, width, width) with ``position_ids``, (rows, width). For each target
            token, (targets,): ``rows`` and ``columns`` of the token before it, ``targets`` its
            id, ``examples`` its example. For each example, (examples,): ``tasks``. And two
            numbers: ``trajectories``, and ``tokens``, those of all examples, shared or not.
        """
        if self.packing == "none":
            units = [[example] for group in groups for example in group]
        else:
            units = [list(group) for group in groups]
        rows = [pack([example.ids for example in unit]) for unit in units]
        if self.packing == "none":
            # Plain right padding, which every architecture understands.
            ids = pad_sequence(
                [torch.tensor(row.ids) for row in rows], batch_first=True, padding_value=self.pad_id
            )
            lengths = torch.tensor([len(row.ids) for row in rows])
            shape = {"attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long()}
        else:
            ids, positions, mask = stack(rows, pad_id=self.pad_id)
            shape = {"attention_mask": mask, "position_ids": positions}
        return {
            "input_ids": ids,
            **shape,
            **_targets(units, rows),
            "tasks": torch.tensor([example.task for unit in units for example in unit]),
            "trajectories": torch.tensor(len(groups)),
            "tokens": torch.tensor(sum(len(example.ids) for unit in units for example in unit)),
        }


def unique_share(data: Trajectories) -> float:
    """Tokens that packed rows run through the model, as a share of all examples' tokens."""
    unique = sum(len(pack([example.ids for example in group]).ids) for group in data.groups)
    return unique / sum(len(example.ids) for group in data.groups for example in group)


def _targets(units: Sequence[Sequence[Encoded]], rows: Sequence[Row]) -> dict[str, Tensor]:
    """Where each target token is predicted, and for which example."""
    found: list[tuple[int, int, int, int]] = []
    example_number = 0
    for number, (unit, row) in enumerate(zip(units, rows, strict=True)):
        for example, places in zip(unit, row.places, strict=True):
            for at in range(example.prompt, len(example.ids)):
                found.append((number, places[at - 1], example.ids[at], example_number))
            example_number += 1
    table = torch.tensor(found)  # (targets, 4)
    names = ("rows", "columns", "targets", "examples")
    return {name: table[:, column] for column, name in enumerate(names)}


def forward(model: torch.nn.Module, batch: Mapping[str, Tensor]) -> tuple[Any, Tensor]:
    """Run a batch; returns the model's output and ℓ of each example, (examples,)."""
    names = ("input_ids", "attention_mask", "position_ids")
    output = model(**{name: batch[name] for name in names if name in batch}, use_cache=False)
    logits = output.logits[batch["rows"], batch["columns"]]  # (targets, vocabulary)
    losses = example_losses(logits, batch["targets"], batch["examples"], count=len(batch["tasks"]))
    return output, losses


@torch.no_grad()
def packing_error(model: torch.nn.Module, group: Sequence[Encoded], *, pad_id: int) -> float:
    """Largest difference between ℓ from a packed row and from each sequence run alone.

    A model whose layers look at row positions instead of the mask (state-space, linear attention,
    sliding windows) shows itself here, whatever its name.
    """
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    batch = {k: v.to(device) for k, v in Collator(pad_id, "trie")([list(group)]).items()}
    _, packed = forward(model, batch)
    worst = 0.0
    for example, loss in zip(group, packed, strict=True):
        ids = torch.tensor([example.ids], device=device)
        logits = model(input_ids=ids, use_cache=False).logits[0, example.prompt - 1 : -1]
        targets = ids[0, example.prompt :]
        (alone,) = example_losses(logits, targets, torch.zeros_like(targets), count=1)
        worst = max(worst, abs(float(alone - loss)))
    model.train(training)
    return worst
