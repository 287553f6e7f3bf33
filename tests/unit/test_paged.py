"""Paged attention writes what ``LocalLM`` writes, and reads a shared prefix once.

``transformers`` runs it on a CPU, too, so that is where it is tested.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from models import save_tiny_model
from steper.errors import CompletionError
from steper.lm.local import LocalLM
from steper.lm.paged import PagedLM
from steper.models import BASE_READERS
from steper.protocols import LM, Completion, Request, Sampling, Turn
from steper.types import Question

SMALL: dict[str, Any] = {"page_size": 16, "num_blocks": 64, "max_batch_tokens": 128}
PASSAGE = "Passage: Silver Harbor. Silver Harbor is a film directed by Amber Quill.\n"
PROMPTS = [
    f"Question: Who directed Silver Harbor?\n{PASSAGE}Reasoning:\n",
    f"Question: Who is the director of Silver Harbor?\n{PASSAGE}{PASSAGE}Reasoning:\n",
    f"Question: Who directed Silver Harbor?\n{PASSAGE}{PASSAGE}Reasoning:\n",
]


@pytest.fixture(scope="module")
def reader() -> Iterator[PagedLM]:
    lm = PagedLM(
        BASE_READERS["base-reader"], device="cpu", sampling=Sampling(max_tokens=40), **SMALL
    )
    yield lm
    lm.model.destroy_cached_continuous_batching_manager()


def request(prompt: str, **more: Any) -> Request:
    return Request((Turn("user", prompt),), Question("q", "Who?", "A"), (), (), False, **more)


def ask(lm: LM, *prompts: str) -> list[Any]:
    async def all_of_them() -> list[Any]:
        asked = [lm.complete(request(prompt)) for prompt in prompts]
        return await asyncio.gather(*asked, return_exceptions=True)

    return asyncio.run(all_of_them())


def test_it_writes_what_the_plain_way_writes(reader: PagedLM) -> None:
    plain = LocalLM(
        BASE_READERS["base-reader"], device="cpu", sampling=reader.sampling, reuse=False
    )
    for prompts in (PROMPTS, PROMPTS[::-1]):  # the second time, on the pages of the first
        ours, theirs = ask(reader, *prompts), ask(plain, *prompts)
        assert [answer.text for answer in ours] == [answer.text for answer in theirs]
        assert all(a.text.endswith("\n") and a.text.count("\n") == 1 for a in ours)
        for one, other in zip(ours, theirs, strict=True):
            assert one.usage.prompt_tokens == other.usage.prompt_tokens
            assert one.usage.completion_tokens == other.usage.completion_tokens


def test_pages_are_kept_between_batches(reader: PagedLM, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = f"Question: Who wrote Silver Harbor?\n{PASSAGE * 4}"
    ask(reader, f"{prompt}Reasoning:\n")
    matches: list[int] = []
    manager: Any = reader.model._cached_continuous_batching_manager
    cache = manager.batch_processor.cache
    search = cache.search_prefix_match

    def seen(name: str, ids: list[int]) -> int:
        matches.append(search(name, ids))
        return matches[-1]

    monkeypatch.setattr(cache, "search_prefix_match", seen)
    ask(reader, f"{prompt}{PASSAGE}Reasoning:\n")
    length = len(reader.tokenizer(prompt)["input_ids"])
    assert matches == [length // 16 * 16], "all whole pages of the common prefix"


def test_leading_newlines_are_no_sentence(reader: PagedLM, monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = [reader.tokenizer(text)["input_ids"] for text in ("\n", "He sang.\n")]
    asked: list[int] = []

    class Output:
        def __init__(self, name: str, tokens: list[int]) -> None:
            self.request_id, self.generated_tokens, self.error = name, tokens, None

        def is_finished(self) -> bool:
            return True

    class Manager:
        def add_request(self, ids: list[int], *, max_new_tokens: int) -> str:
            asked.append(max_new_tokens)
            return f"{len(asked)}"

        def get_result(self, timeout: float) -> Output:
            return Output(f"{len(asked)}", scripts[len(asked) - 1])

        def __enter__(self) -> Manager:
            return self

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(
        type(reader.model), "continuous_batching_context_manager", lambda *_, **__: Manager()
    )
    (answer,) = ask(reader, "Reasoning:\n")
    assert answer.text.strip() == "He sang."
    assert asked == [40, 40 - len(scripts[0])]


def test_a_prompt_beyond_the_models_positions_fails_alone(tmp_path: Path) -> None:
    save_tiny_model(tmp_path, ["word\n"] * 20, positions=256)
    lm = PagedLM(tmp_path, device="cpu", sampling=Sampling(max_tokens=12), **SMALL)
    long, short = ask(lm, "word " * 400, "word\n")
    lm.model.destroy_cached_continuous_batching_manager()
    assert isinstance(long, CompletionError) and "256 positions" in str(long)
    assert isinstance(short, Completion)


def test_temperature_draws(tmp_path: Path) -> None:
    save_tiny_model(tmp_path, ["word of a film\n"] * 20)
    sampling = Sampling(temperature=1.0, max_tokens=8)
    lm = PagedLM(tmp_path, device="cpu", sampling=sampling, **SMALL)
    answers = ask(lm, *["word\n"] * 6)
    lm.model.destroy_cached_continuous_batching_manager()
    assert len({answer.text for answer in answers}) > 3
