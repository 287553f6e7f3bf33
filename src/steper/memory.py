"""How much memory a training needs, estimated from the model's shape before any weight is loaded.

==========  ====================================================================================
weights     4 bytes a parameter; 2 for a frozen base in bfloat16; 4.5 bits where it is in NF4
copies      2 bytes a weight of the linear layers: autocast's bfloat16 copies of float32 weights
gradients   4 bytes a trained parameter, kept from the first row of an optimizer step to its end
optimizer   8 bytes a trained parameter: AdamW's two moments
activations for each token, what every linear layer takes and gives, and 16 bytes for each element
            of a layer's hidden state: two norms, which keep what they take and give in float32.
            With gradient checkpointing one hidden state for every layer and, of a single layer,
            the activations and their gradients
logits      and their gradients where there is a target, with the float32 work copies of ``loss``
==========  ====================================================================================

Attention scores are not counted: no kernel in use here keeps them. Nor are activations inside the
experts of mixture models, which are no linear layers, nor the CUDA context (about 0.5 GiB).
Measured on a CPU, a training took between 0.8 and 1.3 times the estimate; leave a margin of a
fifth. On a GPU it is not measured yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.pytorch_utils import Conv1D

from steper.loss import CHUNK

NF4 = 0.5625
"""Bytes of a weight in NF4: half a byte, and a float32 scale for 64 of them."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that a training needs on each device, by what they are for."""

    weights: int
    copies: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(astuple(self))

    def table(self) -> str:
        """One line for each use and one for the total, in GiB."""
        rows = [(field.name, getattr(self, field.name)) for field in fields(self)]
        return "\n".join(
            f"{name:<12}{size / 2**30:>8.2f} GiB" for name, size in [*rows, ("total", self.total)]
        )


@dataclass(frozen=True, slots=True)
class Shape:
    """What of an architecture decides how much memory it needs.

    Attributes:
        parameters: all of them; tied ones once.
        linear: weights of the linear layers but the output layer, which LoRA adapts and NF4 holds.
        widths: what these layers take and give, summed: elements a token.
        hidden: elements of a token's hidden state.
        layers: how many.
        vocabulary: logits of one place.
    """

    parameters: int
    linear: int
    widths: int
    hidden: int
    layers: int
    vocabulary: int

    @classmethod
    def of(cls, config: PretrainedConfig) -> Shape:
        """Take it from a model without weights.

        Raises:
            ValueError: if the configuration is not that of a causal language model.
        """
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config)
        text = config.get_text_config()
        matrices = list(_matrices(model))
        return cls(
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            linear=sum(matrix.numel() for matrix in matrices),
            widths=sum(sum(matrix.shape) for matrix in matrices),
            hidden=text.hidden_size,
            layers=text.num_hidden_layers,
            vocabulary=text.vocab_size,
        )


def _matrices(model: Any) -> Iterator[torch.Tensor]:
    """Weights of the linear layers, except of the one that gives the logits."""
    output = model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, (nn.Linear, Conv1D)) and module is not output:
            yield module.weight


def estimate(
    config: PretrainedConfig,
    *,
    tokens: int,
    targets: int,
    lora_rank: int = 0,
    bf16: bool = False,
    qlora: bool = False,
    gradient_checkpointing: bool = False,
    shards: int = 1,
) -> Memory:
    """Estimate what a training needs on each device.

    Args:
        config: of the model.
        tokens: of the largest forward pass, padding included.
        targets: places of that pass where logits are computed.
        lora_rank: of the adapter on every linear layer; 0 trains all weights.
        bf16: bfloat16 autocast; a frozen base is bfloat16 itself.
        qlora: the linear layers of the frozen base are in NF4.
        gradient_checkpointing: activations are computed twice instead of kept.
        shards: processes that share weights, gradients and optimizer (ZeRO-3, FSDP).

    Raises:
        ValueError: if the configuration is not that of a causal language model.
    """
    shape = Shape.of(config)
    width = 2 if bf16 else 4
    frozen = lora_rank > 0
    trained = lora_rank * shape.widths if frozen else shape.parameters
    base = width if frozen else 4
    weights = shape.parameters * base + (4 * trained if frozen else 0)
    if qlora:
        weights -= int(shape.linear * (base - NF4))
    output = shape.vocabulary * shape.hidden
    return Memory(
        weights=weights // shards,
        copies=2 * (shape.linear + output) // shards if bf16 and not frozen else 0,
        gradients=4 * trained // shards,
        optimizer=8 * trained // shards,
        activations=_activations(
            shape, tokens, width, stream=base, checkpointing=gradient_checkpointing
        ),
        logits=_logits(targets * shape.vocabulary, width),
    )


def _activations(shape: Shape, tokens: int, width: int, *, stream: int, checkpointing: bool) -> int:
    """Bytes of activations; an element of the hidden state between layers has ``stream``."""
    all_layers = tokens * (shape.widths * width + shape.layers * shape.hidden * 16)
    if not checkpointing:
        return all_layers
    return tokens * shape.layers * shape.hidden * stream + 2 * all_layers // shape.layers


def _logits(count: int, width: int) -> int:
    """Bytes of so many logits and their gradients, and of the loss's two float32 work copies."""
    return 2 * count * width + 2 * min(count, CHUNK) * 4


# ---- what there is ----------------------------------------------------------------------------


def available(device: torch.device | str) -> int:
    """Bytes free on a device; for a CPU, those that the container may still take."""
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min([int(psutil.virtual_memory().available), *_container()])


def _container(
    groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> list[int]:
    """Bytes left under each limit on this process's control groups, version 1 or 2."""
    free = []
    for line in _lines(groups):
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            base, limit, used = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        elif not controllers:
            base, limit, used = root, "memory.max", "memory.current"
        else:
            continue
        # A limit holds for the groups below, too. Inside a container only the last may be there.
        own = base / path.lstrip("/")
        for folder in (own, *own.parents):
            most, now = _lines(folder / limit), _lines(folder / used)
            if most and now and most[0].isdigit():
                free.append(max(0, int(most[0]) - int(now[0]) + _cached(folder)))
            if folder == base:
                break
    return free


def _cached(folder: Path) -> int:
    """Bytes of files in a group's memory, which it gives up when it needs them."""
    values = dict(line.split() for line in _lines(folder / "memory.stat"))
    return int(values.get("total_inactive_file", values.get("inactive_file", 0)))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except OSError:  # another system, or another version of control groups
        return []
