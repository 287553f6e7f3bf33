"""The token audit counts what would spoil a training, and stops it."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from models import tiny_tokenizer
from steper.audit import encode
from steper.errors import SteperError
from steper.prompts import Template
from steper.types import StepExample, Task

TEMPLATE = Template(instruction="Reason.", passage="Passage: {text}")


def example(
    number: int, target: str, *, task: Task = "initialization", words: int = 4
) -> StepExample:
    prompt = f"Reason.\nQuestion: Who?\nPassage: {'sang ' * words}\nReasoning:\n"
    return StepExample(f"q{number}#1", f"q{number}", task, 1, prompt, target)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer([example(0, "He sang.\n").prompt, "He sang.\n"])


def test_a_clean_set(tokenizer: PreTrainedTokenizerFast) -> None:
    examples = [example(0, "He sang.\n"), example(0, "He sang.\nHe did.\n", task="aggregation")]
    groups, audit = encode(examples, tokenizer, template=TEMPLATE, max_length=200)
    assert not audit.findings and audit.examples == [1, 0, 1] and audit.trajectories == 1
    assert audit.tokens == sum(len(e.ids) for e in groups[0]) > audit.unique
    assert audit.longest == max(len(e.ids) for e in groups[0])
    assert audit.targets == sum(len(e.ids) - e.prompt for e in groups[0])
    audit.require([], where="data")
    assert "--packing trie skips" in audit.table()


def test_every_finding_is_counted_shown_and_stops_the_run(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    cut = example(4, "He sang.\n" * 40)
    masked = example(5, "He sang.\n", words=200)
    empty, blank = example(6, ""), example(7, " \n")
    other = StepExample("q8#1", "q8", "initialization", 1, "Who?\n", "He sang.\n")
    groups, audit = encode(
        [example(0, "He sang.\n"), cut, masked, empty, blank, other],
        tokenizer,
        template=TEMPLATE,
        max_length=100,
    )
    assert audit.findings == {
        "truncated": ["q4#1"],
        "fully-masked": ["q5#1"],
        "empty-target": ["q6#1", "q7#1"],
        "template-mismatch": ["q8#1"],
    }
    # What has no target left is left out; what is cut ends at the limit.
    assert [group[0].id for group in groups] == ["q0#1", "q4#1", "q8#1"]
    assert len(groups[1][0].ids) == 100 and audit.longest > 200
    for name in audit.findings:
        assert name in audit.table()
        with pytest.raises(SteperError, match=name):
            audit.require([n for n in audit.findings if n != name], where="data")
    audit.require(list(audit.findings), where="data")


def test_the_message_says_what_to_do(tokenizer: PreTrainedTokenizerFast) -> None:
    _, audit = encode([example(4, "He sang.\n" * 40)], tokenizer, template=TEMPLATE, max_length=100)
    with pytest.raises(SteperError) as error:
        audit.require([], where="runs/examples")
    text = str(error.value)
    assert text.startswith("runs/examples: the token audit stops the run: 1 truncated")
    assert "such as q4#1" in text
    assert f"Raise --max-length to {audit.longest}" in text and "--allow truncated" in text
