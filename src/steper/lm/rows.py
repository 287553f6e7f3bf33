"""Keys and values of a batch in memory taken once, as a cache that ``transformers`` models take.

All texts are aligned at the column where writing begins:

    row 0   . . . . p p p p p p | w w w        p: prompt, w: written, .: padding
    row 1   p p p p p p p p p p | w w

The cache of one forward pass is some rows and columns of that: one row's prompt while it is
prefilled, all columns up to the current one while sentences are written.

Sliding-window layers keep all their tokens, too, and their mask does the sliding: so they can be
cut anywhere, and come out as if nothing had been kept.

>>> rows = Rows(empty_cache, rows=2, columns=100)  # doctest: +SKIP
>>> logits = read(model, [[5, 6, 7]], rows.look(slice(0, 1), 10, 10), positions)  # doctest: +SKIP
"""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch
from transformers import Cache, DynamicCache, PreTrainedModel, cache_utils
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from steper.lm.prefix import States


class _Layer(DynamicLayer):
    """One layer's cache: some rows and columns of memory (rows, heads, columns, dimension)."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        cast(Any, super()).__init__()
        self.memory = (keys, values)
        self.is_initialized = True

    def look(self, rows: slice, begin: int, end: int) -> None:
        """Be the cache of these rows and columns; what comes next is written at ``end``."""
        self.rows, self.begin, self.end = rows, begin, end
        self.keys, self.values = (part[rows, :, begin:end] for part in self.memory)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        end = self.end + key_states.shape[-2]
        for part, states in zip(self.memory, (key_states, value_states), strict=True):
            part[self.rows, :, self.end : end] = states
        self.look(self.rows, self.begin, end)
        return cast(tuple[torch.Tensor, torch.Tensor], (self.keys, self.values))


def holds(layer: Any) -> bool:
    """Whether a cache layer has keys and values of its own."""
    return getattr(layer, "keys", None) is not None


class Rows:
    """The memory of a batch.

    Args:
        like: an empty or filled cache of the model; memory is shaped like its layers.
        rows: texts.
        columns: tokens of the longest one.
    """

    def __init__(self, like: Cache, rows: int, columns: int) -> None:
        def memory(states: torch.Tensor) -> torch.Tensor:
            _, heads, _, dimension = states.shape
            # Zeros, because masked garbage could be NaN, and 0 · NaN is NaN.
            return states.new_zeros(rows, heads, columns, dimension)

        # A layer that uses another one's keys and values has none of its own, and stays as it is.
        layers: list[Any] = [
            _Layer(memory(layer.keys), memory(layer.values)) if holds(layer) else layer
            for layer in cast(list[Any], like.layers)
        ]
        self._own = [layer for layer in layers if isinstance(layer, _Layer)]
        self.parts = [part for layer in self._own for part in layer.memory]
        self.cache = Cache(layers=layers)

    @property
    def bytes(self) -> int:
        """What it takes."""
        return sum(part.numel() * part.element_size() for part in self.parts)

    def look(self, rows: slice, begin: int, end: int) -> Cache:
        """The cache of these rows and columns."""
        for layer in self._own:
            layer.look(rows, begin, end)
        return self.cache

    def put(self, row: int, begin: int, states: States) -> None:
        """Write keys and values into a row, from a column on."""
        for part, state in zip(self.parts, states, strict=True):
            part[row, :, begin : begin + state.shape[1]] = state

    def get(self, row: int, begin: int, end: int) -> States:
        """A view of some of a row's columns."""
        return tuple(part[row, :, begin:end] for part in self.parts)


def read(
    model: PreTrainedModel,
    tokens: list[list[int]],
    cache: Cache | None,
    positions: torch.Tensor,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Logits of the next token, (rows, vocabulary), after reading some tokens.

    Args:
        model: which reads; its cache is extended.
        tokens: as many for each row.
        cache: of what was read before.
        positions: of the tokens in their texts, shaped like them.
        mask: (rows, columns) of the cache and the tokens; 0 for padding.
    """
    output = cast(Any, model)(
        input_ids=torch.tensor(tokens, device=model.device),
        attention_mask=None if mask is None else mask.to(model.device),
        position_ids=positions.to(model.device),
        past_key_values=cache,
        use_cache=cache is not None,
        logits_to_keep=1,
    )
    return cast(torch.Tensor, output.logits[:, -1])


@torch.inference_mode()
def tried_cache(model: PreTrainedModel) -> DynamicCache:
    """The model's cache after one token; it shows the shape of every layer's keys and values."""
    cache = DynamicCache(config=model.config)
    read(model, [[0]], cache, torch.zeros(1, 1, dtype=torch.long))
    return cache


@torch.inference_mode()
def obstacle(model: PreTrainedModel) -> str:
    """Why a model's prefixes cannot be kept and cut; empty where they can."""
    accepts = inspect.signature(model.forward).parameters
    if missing := {"past_key_values", "position_ids", "logits_to_keep"} - accepts.keys():
        return f"its forward takes no {' and no '.join(sorted(missing))}"
    if getattr(model, "_is_stateful", False):
        return "its state cannot go back to an earlier token"
    if getattr(model.config.get_text_config(), "attention_chunk_size", None):
        return "it attends in chunks"
    dummy = getattr(cache_utils, "DummyLayer", DynamicLayer)  # of layers that keep nothing
    try:
        cache = tried_cache(model)
    except (AttributeError, TypeError, ValueError) as why:
        return f"it wants a cache of its own kind ({why})"
    for layer in cache.layers:
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer, dummy):
            return f"its {type(layer).__name__} cannot be cut at a token"
    error = _difference(model, cache)
    # In bfloat16 the ways to compute the same differ by some hundredths; a wrong cache by about 1.
    return "" if error < 0.3 else f"its logits differ by {error:.2g} when a prefix is reused"


def _difference(model: PreTrainedModel, like: Cache) -> float:
    """Largest difference that padding, cutting and going on make, in standard deviations."""
    vocabulary = cast(torch.nn.Embedding, model.get_input_embeddings()).num_embeddings
    text = [(7 * index + 1) % vocabulary for index in range(8)]
    positions = torch.arange(8)[None]
    plain = read(model, [text], None, positions).float()
    rows = Rows(like, rows=1, columns=12)
    read(model, [text[::-1]], rows.look(slice(0, 1), 3, 3), positions)
    read(model, [text[:4]], rows.look(slice(0, 1), 3, 3), positions[:, :4])
    read(model, [text[4:7]], rows.look(slice(0, 1), 3, 7), positions[:, 4:7])
    mask = torch.tensor([[0] * 3 + [1] * 8])
    kept = read(model, [text[7:]], rows.look(slice(0, 1), 0, 10), positions[:, 7:], mask)
    return float((kept - plain).abs().max() / plain.std())
