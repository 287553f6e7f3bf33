"""vLLM is asked by the names that vLLM has; a stand-in with its signatures answers (0.33)."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from steper.errors import CompletionError, SteperError
from steper.lm.vllm import VllmLM
from steper.protocols import Completion, Request, Sampling, Turn
from steper.types import Question


@dataclass
class SamplingParams:
    """The fields of ``vllm.SamplingParams`` that matter here, with its defaults."""

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: str | list[str] | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0


class LLM:
    """``vllm.LLM``: says its prompt's tokens backwards, up to a newline."""

    def __init__(
        self,
        model: str,
        *,
        tensor_parallel_size: int = 1,
        max_model_len: int = 40,
        **kwargs: Any,
    ) -> None:
        if model == "nothing":
            raise OSError("nothing is not a local folder")
        self.options = {"tensor_parallel_size": tensor_parallel_size, **kwargs}
        self.model_config = SimpleNamespace(max_model_len=max_model_len)
        self.calls: list[tuple[list[str], list[SamplingParams]]] = []

    def get_tokenizer(self) -> Any:
        return SimpleNamespace(encode=lambda text: [ord(letter) for letter in text])

    def generate(
        self,
        prompts: Sequence[dict[str, list[int]]],
        sampling_params: Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[Any]:
        assert sampling_params is not None and len(prompts) == len(sampling_params) > 0
        texts = ["".join(map(chr, prompt["prompt_token_ids"])) for prompt in prompts]
        self.calls.append((texts, list(sampling_params)))
        return [
            SimpleNamespace(
                prompt_token_ids=prompt["prompt_token_ids"],
                num_cached_tokens=5 * number or None,
                outputs=[SimpleNamespace(text=text[::-1], token_ids=range(len(text) + 1))],
            )
            for number, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
        ]


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SamplingParams  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)


def request(prompt: str, **more: Any) -> Request:
    return Request((Turn("user", prompt),), Question("q", "Who?", "A"), (), (), False, **more)


def ask(lm: VllmLM, *requests: Request) -> list[Any]:
    async def all_of_them() -> list[Any]:
        asked = [lm.complete(one) for one in requests]
        return await asyncio.gather(*asked, return_exceptions=True)

    return asyncio.run(all_of_them())


@pytest.mark.usefixtures("vllm")
def test_requests_go_in_one_call_and_answers_come_back_in_order() -> None:
    sampling = Sampling(temperature=0.5, top_p=0.9, max_tokens=20, seed=7)
    lm = VllmLM("a-model", sampling=sampling, tensor_parallel_size=2)
    asked = [request("abc"), request("abcdef", candidate=1)]
    one, other = ask(lm, *asked)
    assert lm._llm.options == {"tensor_parallel_size": 2, "enable_prefix_caching": True}
    ((texts, params),) = lm._llm.calls
    assert texts == ["abc", "abcdef"]
    assert params == [
        SamplingParams(0.5, 0.9, item.seed(7), ["\n"], max_tokens=20, min_tokens=1)
        for item in asked
    ]
    assert params[0].seed != params[1].seed
    assert (one.text, other.text) == ("cba", "fedcba")
    assert (one.usage.prompt_tokens, other.usage.prompt_tokens) == (3, 6)
    assert (one.usage.cached_tokens, other.usage.cached_tokens) == (0, 5)
    assert (one.usage.completion_tokens, other.usage.completion_tokens) == (4, 7)


@pytest.mark.usefixtures("vllm")
def test_a_prompt_that_is_too_long_fails_alone() -> None:
    lm = VllmLM("a-model", sampling=Sampling(max_tokens=20))
    first, long, last = ask(lm, request("abc"), request("a" * 21), request("xyz"))
    assert isinstance(long, CompletionError)
    assert "41" not in str(long) and "21 tokens and 20 to write" in str(long)
    assert isinstance(first, Completion) and isinstance(last, Completion)
    assert (first.text, last.text) == ("cba", "zyx")
    (alone,) = ask(lm, request("a" * 21))
    assert isinstance(alone, CompletionError)
    assert len(lm._llm.calls) == 1, "nothing to generate, nothing asked"


def test_without_vllm_the_command_to_install_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(SteperError, match=r"pip install 'steper\[vllm\]'"):
        VllmLM("a-model")


@pytest.mark.usefixtures("vllm")
def test_a_model_that_vllm_cannot_load_is_named() -> None:
    with pytest.raises(SteperError, match="nothing: vLLM could not load the model: nothing is not"):
        VllmLM("nothing")
