r"""A model in vLLM, in this process: for a GPU and large teachers.

vLLM keeps the pages of all prefixes, so what a run's prompts have in common is prefilled once.
Writing stops at a newline. A prompt that is too long fails alone: vLLM would fail all of its batch,
so tokens are counted before.

>>> lm = VllmLM("Qwen/Qwen3-8B", tensor_parallel_size=2)  # doctest: +SKIP
>>> (await lm.complete(request)).text  # doctest: +SKIP
'Jim Halsey guided the career of Roy Clark.'
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from steper.batching import Batcher
from steper.errors import CompletionError, SteperError
from steper.protocols import GREEDY, Completion, Request, Sampling, Usage


class VllmLM:
    """Implements ``steper.protocols.LM`` with ``vllm.LLM``.

    Args:
        name: model folder or hub id.
        sampling: how words are drawn. vLLM draws each request's words by its own seed.
        options: more of ``vllm.LLM``, as ``gpu_memory_utilization`` or ``max_model_len``.

    Raises:
        SteperError: if vLLM is not installed, or cannot load the model.
    """

    def __init__(self, name: str | Path, *, sampling: Sampling = GREEDY, **options: Any) -> None:
        try:
            vllm: Any = import_module("vllm")
        except ImportError as error:
            raise SteperError(
                f"vLLM cannot be imported: {error}.",
                where="vllm",
                fix="Install it on a machine with a GPU: pip install 'steper[vllm]'.",
            ) from None
        try:
            self._llm = vllm.LLM(model=str(name), enable_prefix_caching=True, **options)
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            raise SteperError(
                f"vLLM could not load the model: {error}",
                where=str(name),
                fix="Give a model folder or hub id that vLLM knows, and options of vllm.LLM.",
            ) from error
        self._params, self._tokenizer = vllm.SamplingParams, self._llm.get_tokenizer()
        self.name, self.sampling = str(name), sampling
        self._batcher: Batcher[Request, Completion] = Batcher(self._write)

    async def complete(self, request: Request) -> Completion:
        """Write a sentence; see ``steper.protocols.LM.complete``."""
        return await self._batcher(request)

    def _write(self, requests: Sequence[Request]) -> list[Completion | CompletionError]:
        """One result per request, in order."""
        begin = time.perf_counter()
        prompts = [self._tokenizer.encode(request.prompt) for request in requests]
        errors = [self._too_long(len(prompt)) for prompt in prompts]
        fitting = [index for index, error in enumerate(errors) if not error]
        outputs = (
            self._llm.generate(
                [{"prompt_token_ids": prompts[index]} for index in fitting],
                [self._sampling(requests[index]) for index in fitting],
                use_tqdm=False,
            )
            if fitting
            else []
        )
        seconds = (time.perf_counter() - begin) / len(requests)
        written = iter(outputs)
        return [error or _completion(next(written), seconds) for error in errors]

    def _too_long(self, width: int) -> CompletionError | None:
        limit = self._llm.model_config.max_model_len
        if width + self.sampling.max_tokens <= limit:
            return None
        return CompletionError(
            f"a prompt of {width} tokens and {self.sampling.max_tokens} to write exceed the "
            f"{limit} tokens that vLLM has room for.",
            where=self.name,
            fix="Lower --k, --max-steps or the passages' length, or raise max_model_len.",
        )

    def _sampling(self, request: Request) -> Any:
        return self._params(
            temperature=self.sampling.temperature,
            top_p=self.sampling.top_p,
            max_tokens=self.sampling.max_tokens,
            seed=request.seed(self.sampling.seed),
            stop=["\n"],
            # A newline as the very first token is no sentence's end: `stop` counts after it.
            min_tokens=1,
        )


def _completion(output: Any, seconds: float) -> Completion:
    """Of a ``vllm.RequestOutput``."""
    (written,) = output.outputs
    usage = Usage(
        prompt_tokens=len(output.prompt_token_ids or ()),
        cached_tokens=output.num_cached_tokens or 0,
        completion_tokens=len(written.token_ids),
        seconds=seconds,
    )
    return Completion(written.text, usage)
