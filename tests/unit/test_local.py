"""The in-process model: batches change nothing, a newline ends a sentence, limits are said."""

from __future__ import annotations

from pathlib import Path

import pytest

from models import save_tiny_model
from steper.errors import SteperError
from steper.lm.local import LocalLM
from steper.models import build_lm
from steper.protocols import Request
from steper.types import Question

PROMPTS = ["One.\n", "A much longer prompt about Silver Harbor and its film.\n", "Two words\n"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"), PROMPTS * 20, positions=256)


def request(prompt: str) -> Request:
    return Request(prompt, Question("q", "Who?", "A"), (), (), False)


def test_a_batch_gives_what_each_prompt_gives_alone(folder: Path) -> None:
    lm = LocalLM(folder, device="cpu", max_tokens=12)
    alone = [lm.complete([request(prompt)])[0] for prompt in PROMPTS]
    assert lm.complete([request(prompt) for prompt in PROMPTS]) == alone
    small = LocalLM(folder, device="cpu", max_tokens=12, batch_size=2)
    assert small.complete([request(prompt) for prompt in PROMPTS]) == alone


def test_a_newline_ends_a_sentence() -> None:
    lm = build_lm("base-reader", device="cpu", max_tokens=60)
    prompt = (
        "Question: Who directed Silver Harbor?\n"
        "Passage: Silver Harbor. Silver Harbor is a film directed by Amber Quill.\nReasoning:\n"
    )
    (text,) = lm.complete([request(prompt)])
    # Which name it reads is the world's evidence, not this test's matter; that it stops is.
    assert text.startswith("The director of Silver Harbor is ")
    assert text.count("\n") == 1 and text.endswith("\n")


def test_a_prompt_beyond_the_models_positions_is_refused(folder: Path) -> None:
    lm = LocalLM(folder, device="cpu", max_tokens=12)
    with pytest.raises(SteperError, match=r"exceed the model's 256 positions.*Lower --k"):
        lm.complete([request("word " * 400)])


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(SteperError, match="no causal language model could be loaded"):
        LocalLM(tmp_path)
