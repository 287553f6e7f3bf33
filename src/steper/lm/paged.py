"""A ``transformers`` model with paged attention and continuous batching: for a GPU.

Where ``LocalLM`` lets the sentences of one batch wait for each other, here a finished one makes
room for the next prompt at once, and prompts share the pages of their common prefixes. Pages are
shared whole, so up to one page of a prefix is prefilled again.

What it cannot do: give each request a seed of its own, so with a temperature a sentence depends
on what else is under way; and tell how many tokens were cached, so ``Usage.cached_tokens`` is 0.

>>> lm = PagedLM("folder-or-hub-id", sampling=Sampling(max_tokens=64))  # doctest: +SKIP
>>> (await lm.complete(request)).text  # doctest: +SKIP
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from transformers import ContinuousBatchingConfig, GenerationConfig

from steper.batching import Batcher
from steper.errors import CompletionError, SteperError
from steper.lm.local import end_tokens, load_model, load_tokenizer, too_long
from steper.protocols import GREEDY, Completion, Request, Sampling, Usage


class PagedLM:
    """Implements ``steper.protocols.LM`` with ``transformers``' continuous batching.

    Args:
        name: model folder or hub id.
        device: a torch device; ``auto`` takes a GPU where there is one. It runs on a CPU, too,
            where ``LocalLM`` is faster.
        sampling: how words are drawn.
        options: more of ``transformers.ContinuousBatchingConfig``, as ``page_size`` (tokens).
    """

    def __init__(
        self,
        name: str | Path,
        *,
        device: str = "auto",
        sampling: Sampling = GREEDY,
        **options: Any,
    ) -> None:
        self.tokenizer = load_tokenizer(str(name))
        self.model = load_model(str(name), device=device)
        self.model.eval()
        self.sampling = sampling
        self._eos = end_tokens(self.model)
        # It ends at single tokens only. No token without a newline can bring one about.
        singles = self.tokenizer.batch_decode([[token] for token in range(len(self.tokenizer))])
        newlines = {token for token, text in enumerate(singles) if "\n" in text}
        self.model.generation_config = GenerationConfig(
            max_new_tokens=sampling.max_tokens,
            eos_token_id=sorted(self._eos | newlines) or None,
            pad_token_id=self.tokenizer.pad_token_id,
            do_sample=sampling.temperature > 0,
            temperature=sampling.temperature or None,
            top_p=sampling.top_p,
            top_k=0,
        )
        self._batching = ContinuousBatchingConfig(
            allow_block_sharing=True, seed=sampling.seed, **options
        )
        self._batcher: Batcher[Request, Completion] = Batcher(self._write)

    async def complete(self, request: Request) -> Completion:
        """Write a sentence; see ``steper.protocols.LM.complete``."""
        return await self._batcher(request)

    def _write(self, requests: Sequence[Request]) -> list[Completion | CompletionError]:
        """One result per request, in order."""
        begin = time.perf_counter()
        prompts = [
            cast(list[int], self.tokenizer(request.prompt)["input_ids"]) for request in requests
        ]
        most = self.sampling.max_tokens
        errors = [too_long(self.model, len(prompt), most) for prompt in prompts]
        written: list[list[int]] = [[] for _ in prompts]
        waiting = [index for index, error in enumerate(errors) if not error]
        # The manager's thread would keep the process from ending; its pages outlive it.
        with cast(Any, self.model).continuous_batching_context_manager(
            continuous_batching_config=self._batching, persistent_manager=True
        ) as manager:
            while waiting:
                self._go_on(manager, prompts, written, waiting)
                waiting = [index for index in waiting if self._is_blank(written[index])]
        seconds = (time.perf_counter() - begin) / len(requests)
        return [
            error or self._completion(prompt, tokens, seconds)
            for error, prompt, tokens in zip(errors, prompts, written, strict=True)
        ]

    def _go_on(
        self,
        manager: Any,
        prompts: Sequence[list[int]],
        written: Sequence[list[int]],
        waiting: Sequence[int],
    ) -> None:
        """Write on in the requests of these indices, up to a newline or the end."""
        names = {
            manager.add_request(
                prompts[index] + written[index],
                max_new_tokens=self.sampling.max_tokens - len(written[index]),
            ): index
            for index in waiting
        }
        while names:
            output = manager.get_result(timeout=1)
            if output is None and not manager.is_running():
                error = manager.background_thread_status.fatal_error
                raise SteperError(
                    f"continuous batching broke down: {error}",
                    where=str(self.model.config.name_or_path),
                    fix="Use `LocalLM`, or a smaller batch: max_batch_tokens, max_memory_percent.",
                )
            if output is None or not output.is_finished():
                continue
            index = names.pop(output.request_id)
            if output.error:
                raise SteperError(output.error, where=str(self.model.config.name_or_path))
            written[index].extend(output.generated_tokens)

    def _is_blank(self, written: list[int]) -> bool:
        """Whether only newlines were written so far, and there is room for more."""
        room = len(written) < self.sampling.max_tokens
        return room and written[-1] not in self._eos and not self._text(written).strip()

    def _text(self, tokens: list[int]) -> str:
        return cast(str, self.tokenizer.decode(tokens, skip_special_tokens=True))

    def _completion(self, prompt: list[int], written: list[int], seconds: float) -> Completion:
        own = [token for token in written if token not in self._eos]
        usage = Usage(len(prompt), 0, len(own), seconds)
        return Completion(self._text(own), usage)
