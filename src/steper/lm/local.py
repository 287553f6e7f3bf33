"""An in-process ``transformers`` model: a student folder, a base model, anything on the hub.

Greedy decoding, batched with left padding, one line per call: generation stops at the first
newline or end-of-sequence token, because a newline ends a step's sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from steper.errors import SteperError
from steper.protocols import Request


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model folder or hub id; it can pad afterwards.

    Raises:
        SteperError: if there is none, with what ``transformers`` said.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise _unloadable(name, error) from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    name: str, *, device: str = "auto", dtype: str = "auto", **options: Any
) -> PreTrainedModel:
    """Load a causal language model, or an adapter with its base.

    Args:
        name: folder or hub id.
        device: a torch device; ``auto`` takes a GPU where there is one, empty leaves it where
            ``transformers`` puts it.
        dtype: of the weights; ``auto`` keeps that of the checkpoint.
        options: more of ``from_pretrained``.

    Raises:
        SteperError: if it cannot be loaded, with what ``transformers`` said.
    """
    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, **options)
    except (OSError, ValueError) as error:
        raise _unloadable(name, error) from None
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device:
        cast(torch.nn.Module, model).to(device)
    return cast(PreTrainedModel, model)


def _unloadable(name: str, error: Exception) -> SteperError:
    return SteperError(
        f"no causal language model could be loaded: {str(error).splitlines()[0]}",
        where=name,
        fix="Give a folder with config.json, weights and tokenizer, or a hub id.",
    )


class _LineEnd(StoppingCriteria):
    """Ends each sequence at its first generated newline (after something was written)."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt_width: int) -> None:
        self._tokenizer, self._width = tokenizer, prompt_width

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **_: Any) -> Any:
        # input_ids (batch, tokens); only a line's end matters, so the last two tokens would do
        # for most tokenizers, but not for one that splits a newline from what precedes it.
        texts = self._tokenizer.batch_decode(input_ids[:, self._width :], skip_special_tokens=True)
        done = ["\n" in text.lstrip() for text in texts]
        return torch.tensor(done, device=input_ids.device)


class LocalLM:
    """Implements ``steper.protocols.LM`` with a ``transformers`` model in this process.

    Args:
        name: model folder or hub id.
        max_tokens: most tokens of one sentence.
        batch_size: prompts decoded together.
    """

    def __init__(
        self, name: str | Path, *, device: str = "auto", max_tokens: int = 128, batch_size: int = 32
    ) -> None:
        self.tokenizer = load_tokenizer(str(name))
        self.model = load_model(str(name), device=device)
        self.model.eval()
        self.tokenizer.padding_side = "left"
        self.max_tokens, self.batch_size = max_tokens, batch_size

    def complete(self, requests: Sequence[Request]) -> list[str]:
        """Greedy continuations of the prompts, in order."""
        # Prompts of like length share a batch, so that little is padded.
        order = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt))
        texts = [""] * len(requests)
        for start in range(0, len(order), self.batch_size):
            group = order[start : start + self.batch_size]
            for index, text in zip(
                group, self._generate([requests[i].prompt for i in group]), strict=True
            ):
                texts[index] = text
        return texts

    @torch.inference_mode()
    def _generate(self, prompts: list[str]) -> list[str]:
        batch = self.tokenizer(prompts, return_tensors="pt", padding=True).to(self.model.device)
        width = batch["input_ids"].shape[1]
        limit = getattr(self.model.config, "max_position_embeddings", None)
        if limit is not None and width + self.max_tokens > limit:
            raise SteperError(
                f"a prompt of {width} tokens and {self.max_tokens} to write exceed the model's "
                f"{limit} positions.",
                where=str(self.model.config.name_or_path),
                fix="Lower --k, --max-steps or the passages' length, or use a longer model.",
            )
        output = cast(Any, self.model).generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=self.max_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=self.tokenizer.pad_token_id,
            stopping_criteria=StoppingCriteriaList([_LineEnd(self.tokenizer, width)]),
        )
        return self.tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)
