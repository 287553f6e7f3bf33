r"""An in-process ``transformers`` model: a student folder, a base model, anything on the hub.

Requests under way at the same time are answered together. What a run's last prompt and the new
one have in common is not prefilled again, so every passage of a run is prefilled once; nor is an
instruction that all runs share. Writing stops at the first newline after something was written,
because a newline ends a step's sentence, or at the end of the sequence.

>>> lm = LocalLM("folder-or-hub-id")  # doctest: +SKIP
>>> (await lm.complete(request)).text  # doctest: +SKIP
'Jim Halsey guided the career of Roy Clark.\n'
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from steper.batching import Batcher
from steper.errors import CompletionError, SteperError
from steper.lm.decoding import Decoder, Draft, draw
from steper.lm.rows import obstacle
from steper.memory import available
from steper.protocols import GREEDY, Completion, Request, Sampling, Usage


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
    try:
        if device:
            cast(torch.nn.Module, model).to(device)
    except (AssertionError, RuntimeError) as error:
        raise SteperError(
            f"the model cannot go there: {str(error).splitlines()[0]}",
            where=f"--device {device}",
            fix="Use auto, cpu or cuda:N; another GPU, or a smaller model, if memory ran out.",
        ) from None
    return cast(PreTrainedModel, model)


def _unloadable(name: str, error: Exception) -> SteperError:
    return SteperError(
        f"no causal language model could be loaded: {str(error).splitlines()[0]}",
        where=name,
        fix="Give a folder with config.json, weights and tokenizer, a hub id, or --base-url for a "
        "model at a server.",
    )


def end_tokens(model: PreTrainedModel) -> frozenset[int]:
    """The tokens that end a sequence."""
    ids = cast(Any, model.generation_config).eos_token_id
    return frozenset(ids if isinstance(ids, list) else [] if ids is None else [ids])


def too_long(model: PreTrainedModel, width: int, max_tokens: int) -> CompletionError | None:
    """An error where a prompt of ``width`` tokens and what is to be written do not fit."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is None or width + max_tokens <= limit:
        return None
    return CompletionError(
        f"a prompt of {width} tokens and {max_tokens} to write exceed the model's {limit} "
        "positions.",
        where=str(model.config.name_or_path),
        fix="Lower --k, --max-steps or the passages' length, or use a longer model.",
    )


class LocalLM:
    """Implements ``steper.protocols.LM`` with a ``transformers`` model in this process.

    Attributes:
        reuse: whether prefixes are kept.
        note: why not, where they cannot be; empty otherwise.

    Args:
        name: model folder or hub id.
        device: a torch device; ``auto`` takes a GPU where there is one.
        sampling: how words are drawn. What the checkpoint's own ``generation_config.json`` says
            about that is not used.
        batch_size: most sentences written together.
        reuse: whether to keep prefixes, in a quarter of the memory that is free now.
    """

    def __init__(
        self,
        name: str | Path,
        *,
        device: str = "auto",
        sampling: Sampling = GREEDY,
        batch_size: int = 32,
        reuse: bool = True,
    ) -> None:
        self.tokenizer = load_tokenizer(str(name))
        self.model = load_model(str(name), device=device)
        self.model.eval()
        self.sampling = sampling
        self._eos = end_tokens(self.model)
        # Penalties and the like of the checkpoint's own would make it write other than asked.
        self.model.generation_config = GenerationConfig(
            eos_token_id=sorted(self._eos) or None, pad_token_id=self.tokenizer.pad_token_id
        )
        why = obstacle(self.model) if reuse else ""
        self.reuse = reuse and not why
        self.note = f"{name}: every prompt is prefilled whole, because {why}." if why else ""
        self.decoder = (
            Decoder(
                self.model,
                ends=self._ends,
                eos=self._eos,
                kept_bytes=available(self.model.device) // 4,
            )
            if self.reuse
            else None
        )
        self._batcher: Batcher[Request, Completion] = Batcher(self._write, limit=batch_size)

    def remarks(self) -> list[str]:
        """What the user should know about how it went."""
        return [self.note] if self.note else []

    async def complete(self, request: Request) -> Completion:
        """Write a sentence; see ``steper.protocols.LM.complete``."""
        return await self._batcher(request)

    def _write(self, requests: Sequence[Request]) -> list[Completion | CompletionError]:
        """One result per request, in order."""
        begin = time.perf_counter()
        drafts = [
            Draft(
                self.tokenizer(request.prompt)["input_ids"],
                request.run_id,
                request.seed(self.sampling.seed),
            )
            for request in requests
        ]
        errors = [too_long(self.model, len(d.prompt), self.sampling.max_tokens) for d in drafts]
        fitting = [draft for draft, error in zip(drafts, errors, strict=True) if not error]
        if fitting and self.decoder:
            self.decoder.write(fitting, self.sampling)
        elif fitting:
            self._generate(fitting)
        if self.decoder:
            for request in requests:
                if request.final:
                    self.decoder.tree.forget(request.run_id)
        seconds = (time.perf_counter() - begin) / len(requests)
        return [
            error or self._completion(draft, seconds)
            for draft, error in zip(drafts, errors, strict=True)
        ]

    def _completion(self, draft: Draft, seconds: float) -> Completion:
        usage = Usage(len(draft.prompt), draft.cached, len(draft.written), seconds)
        return Completion(self._text(draft.written), usage)

    def _text(self, tokens: list[int]) -> str:
        return cast(str, self.tokenizer.decode(tokens, skip_special_tokens=True))

    def _ends(self, written: list[int]) -> bool:
        # The whole sentence, not its last token: some tokenizers split a newline from what
        # precedes it only when they see both.
        return "\n" in self._text(written).lstrip()

    @torch.inference_mode()
    def _generate(self, drafts: Sequence[Draft]) -> None:
        """Fill in ``written``, with nothing kept: one padded batch."""
        width = max(len(draft.prompt) for draft in drafts)
        pad = cast(int, self.tokenizer.pad_token_id)
        padding = [width - len(draft.prompt) for draft in drafts]
        ids = [[pad] * n + draft.prompt for n, draft in zip(padding, drafts, strict=True)]
        mask = [[0] * n + [1] * (width - n) for n in padding]
        draws = _Draws(drafts, self.sampling, self._eos, self._ends)
        cast(Any, self.model).generate(
            input_ids=torch.tensor(ids, device=self.model.device),
            attention_mask=torch.tensor(mask, device=self.model.device),
            max_new_tokens=self.sampling.max_tokens,
            logits_processor=LogitsProcessorList([draws]),
            stopping_criteria=StoppingCriteriaList([_AllDone(draws)]),
        )


class _Draws(LogitsProcessor):
    """Draws ``generate``'s tokens for it, so that each draft draws by its own seed."""

    def __init__(
        self,
        drafts: Sequence[Draft],
        sampling: Sampling,
        eos: frozenset[int],
        ends: Callable[[list[int]], bool],
    ) -> None:
        self._drafts, self._sampling, self._eos, self._ends = drafts, sampling, eos, ends
        self.done = [False] * len(drafts)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores (drafts, vocabulary) that leave only the token drawn."""
        tokens = draw(scores, self._drafts, self._sampling)
        for row, (draft, token) in enumerate(zip(self._drafts, tokens, strict=True)):
            if self.done[row]:
                continue
            if token not in self._eos:
                draft.written.append(token)
            self.done[row] = token in self._eos or self._ends(draft.written)
        only = torch.full_like(scores, -torch.inf)
        return only.scatter(-1, torch.tensor(tokens, device=scores.device)[:, None], 0.0)


class _AllDone(StoppingCriteria):
    """Tells ``generate`` which drafts are done."""

    def __init__(self, draws: _Draws) -> None:
        self._draws = draws

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> Any:
        return torch.tensor(self._draws.done, device=input_ids.device)
