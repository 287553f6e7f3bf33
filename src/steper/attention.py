"""Attention over packed rows: each token sees itself and its ancestors in its trie only.

Registered with ``transformers.AttentionInterface``, so that any architecture whose layers take
their attention from there can be trained on packed rows without a change to its code.

On a CPU a trie takes one call for its trunk, the deepest path, which is plain causal attention
without a mask, and one for each branch, whose few tokens see themselves and the trunk up to where
it forks. On CUDA a row takes one FlexAttention call, whose block mask skips what no token sees. A
sliding window is measured in depth, as it would be in the separate sequences.

>>> model.set_attn_implementation(TRIE)  # doctest: +SKIP
>>> model(input_ids=ids, position_ids=positions, layout=layout)  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.flex_attention import flex_attention_forward

from steper.packing import Tree

TRIE = "steper_trie"
"""Name of this attention, for ``set_attn_implementation``."""


class Part(NamedTuple):
    """Nodes ``first`` to ``last`` of a row, whose ancestors are nodes ``begin`` to ``fork``."""

    begin: int
    fork: int
    first: int
    last: int


class Layout:
    """Who sees whom in one packed row.

    Attributes:
        trees: the tries of the row.
        positions: depth of each node, (nodes,).
        ends: one past the last descendant of each node, (nodes,).
    """

    def __init__(self, trees: Sequence[Tree], positions: Tensor, ends: Tensor) -> None:
        self.trees, self.positions, self.ends = trees, positions, ends
        self._parts: list[Part] = []
        self._masks: dict[tuple[Part, int | None, torch.dtype], Tensor] = {}
        self._blocks: dict[int | None, BlockMask] = {}

    def parts(self) -> list[Part]:
        """The row cut into trunks and what branches off them."""
        if not self._parts:
            ends, positions = self.ends.tolist(), self.positions.tolist()
            for begin, trunk, end in self.trees:
                self._parts.append(Part(begin, begin, begin, trunk))
                first = trunk
                while first < end:
                    # Its parent is on the trunk, so all that stands before that is an ancestor.
                    self._parts.append(Part(begin, begin + positions[first], first, ends[first]))
                    first = ends[first]
        return self._parts

    def mask(self, part: Part, window: int | None, dtype: torch.dtype) -> Tensor:
        """What is added to the scores of a part's nodes, (nodes, ancestors and nodes).

        0 where a node sees and -∞ where it does not: kernels turn True and False into that, too,
        but in every layer again.
        """
        name = (part, window, dtype)
        if name not in self._masks:
            device = self.ends.device
            nodes = torch.arange(part.first, part.last, device=device)
            ancestors = torch.arange(part.begin, part.fork, device=device)
            keys = torch.cat([ancestors, nodes])
            sees = self._sees(nodes[:, None], keys[None, :], window)
            mask = torch.zeros(sees.shape, dtype=dtype, device=device)
            self._masks[name] = mask.masked_fill_(~sees, -torch.inf)
        return self._masks[name]

    def blocks(self, window: int | None) -> BlockMask:
        """The whole row's mask for FlexAttention."""
        if window not in self._blocks:

            def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
                return self._sees(query, key, window)

            nodes = len(self.ends)
            self._blocks[window] = create_block_mask(
                sees, None, None, nodes, nodes, device=str(self.ends.device)
            )
        return self._blocks[window]

    def _sees(self, query: Tensor, key: Tensor, window: int | None) -> Tensor:
        sees = (key <= query) & (query < self.ends[key])
        if window is not None:
            sees = sees & (self.positions[query] - self.positions[key] < window)
        return sees


def trie_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention of one row, in the form that ``AttentionInterface`` wants.

    Args:
        module: the attention layer.
        query: (1, heads, nodes, width).
        key: (1, key heads, nodes, width); heads share keys in equal groups.
        value: like ``key``.
        attention_mask: unused; the layout says who sees whom.
        layout: the row's layout.
        scaling: of the scores; ``None`` is 1/√width.
        dropout: of the attention weights.
        sliding_window: how many positions a token sees, itself among them.
        **options: what other architectures add; ``softcap`` and ``s_aux`` only on CUDA.

    Returns:
        (1, nodes, heads, width), and no attention weights.

    Raises:
        ValueError: if this layer asks for something that cannot be had here.
    """
    if layout is None:
        raise ValueError("this architecture does not hand the row's layout to its attention layers")
    if query.device.type == "cuda":
        # Under autocast rotary embeddings make query and key float32; the kernel wants one type.
        query, key = query.to(value.dtype), key.to(value.dtype)
        mask = layout.blocks(sliding_window)
        mixed, _ = flex_attention_forward(
            module, query, key, value, mask, scaling=scaling, dropout=dropout, **options
        )
        return mixed, None
    for name in ("softcap", "s_aux", "position_bias"):
        if options.get(name) is not None:
            raise ValueError(f"attention with {name} is packed on CUDA only")
    parts = []
    for part in layout.parts():
        # A trunk sees all that stands before it, unless a window is shorter.
        length = part.last - part.first
        causal = part.first == part.begin and (sliding_window is None or length <= sliding_window)
        keys, values = (
            torch.cat(
                [tensor[:, :, part.begin : part.fork], tensor[:, :, part.first : part.last]], dim=2
            )
            for tensor in (key, value)
        )
        parts.append(
            scaled_dot_product_attention(
                query[:, :, part.first : part.last],
                keys,
                values,
                attn_mask=None if causal else layout.mask(part, sliding_window, query.dtype),
                is_causal=causal,
                dropout_p=dropout,
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        )
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(TRIE, trie_attention)
