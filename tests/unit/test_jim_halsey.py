"""The paper's own example, from rollout to the tokens that are labels in each task."""

from __future__ import annotations

import pytest
import torch

from fakes import ListRetriever, ScriptedLM
from models import tiny_tokenizer
from steper.batches import Collator, Packing, encode
from steper.driver import run
from steper.examples import step_examples
from steper.prompts import ANSWER_CUE
from steper.setting import Setting
from steper.templates import load_template
from steper.types import TASKS, Passage, Question, Trajectory

R1 = "Jim Halsey managed Roy Clark."
R2 = "Roy Clark hosted Hee Haw."
R3 = "Hee Haw was an American country variety show."
ANSWER = "So the answer is: Hee Haw."
QUESTION = Question(
    id="halsey",
    question="Jim Halsey guided the career of the musician who hosted what country variety show?",
    answer="Hee Haw",
)
CORPUS = [
    Passage("p1", "Jim Halsey", "Jim Halsey guided the career of the musician Roy Clark ."),
    Passage("p2", "Roy Clark", "Roy Clark was a singer who hosted Hee Haw ."),
    Passage("p3", "Hee Haw", "Hee Haw was an American country variety show ."),
    Passage("p4", "Glenn Ash", "Glenn Ash was a comedian ."),
]


@pytest.fixture(scope="module")
def trajectory() -> Trajectory:
    setting = Setting("ircot", load_template("ircot"), k=2, max_steps=5)
    lm = ScriptedLM([f"{line}\nand more" for line in (R1, R2, R3, ANSWER)])
    retriever = ListRetriever(CORPUS)
    (result,) = run([QUESTION], setting=setting, retriever=retriever, lm=lm)
    assert retriever.queries == [QUESTION.question, R1, R2, R3]
    return result


def test_rollout(trajectory: Trajectory) -> None:
    assert [step.reasoning for step in trajectory.steps] == [R1, R2, R3, ANSWER]
    assert trajectory.answer == "Hee Haw" and trajectory.stopped == "answer"
    found = [[passage.id for passage in step.passages] for step in trajectory.steps]
    assert found == [["p1", "p3"], ["p2"], [], []]


def test_examples(trajectory: Trajectory) -> None:
    template = load_template("ircot")
    examples = step_examples(trajectory, template)
    assert [e.task for e in examples] == [TASKS[0], TASKS[1], TASKS[1], TASKS[2]]
    assert [e.target for e in examples] == [
        f"{R1}\n",
        f"{R1}\n{R2}\n",
        f"{R1}\n{R2}\n{R3}\n",
        f"{R1}\n{R2}\n{R3}\n{ANSWER}\n",
    ]
    for number, example in enumerate(examples, start=1):
        seen = [p for step in trajectory.steps[:number] for p in step.passages]
        assert example.prompt == template.render(QUESTION.question, seen, [])
    incremental = step_examples(trajectory, template, targets="incremental")
    assert [e.target for e in incremental] == [f"{s}\n" for s in (R1, R2, R3, ANSWER)]
    for cumulative, single in zip(examples, incremental, strict=True):
        assert cumulative.prompt + cumulative.target == single.prompt + single.target


@pytest.mark.parametrize("packing", ["trie", "none"])
def test_labels(trajectory: Trajectory, packing: Packing) -> None:
    examples = step_examples(trajectory, load_template("ircot"))
    tokenizer = tiny_tokenizer([e.prompt + e.target for e in examples])
    data = encode(examples, tokenizer, max_length=4096)
    batch = Collator(tokenizer.pad_token_id, packing)([data[0]])
    assert batch["tasks"].tolist() == [0, 1, 1, 2]
    assert int(batch["trajectories"]) == 1
    assert batch["input_ids"].shape[0] == (1 if packing == "trie" else 4)
    for number, example in enumerate(examples):
        of_example = batch["examples"] == number
        labels = batch["targets"][of_example]
        # A newline ends a step; only the whole run ends with the end-of-sequence token.
        end = tokenizer.eos_token if example.task == "aggregation" else ""
        assert tokenizer.decode(labels) == example.target + end
        # The first label is predicted from the last token of the prompt.
        rows, columns = batch["rows"][of_example], batch["columns"][of_example]
        before = batch["input_ids"][rows[0], columns[0]]
        assert before == tokenizer(example.prompt)["input_ids"][-1]
        # Every later label is predicted from the label before it.
        assert torch.equal(batch["input_ids"][rows[1:], columns[1:]], labels[:-1])


def test_the_answer_is_asked_for_at_the_last_allowed_step() -> None:
    setting = Setting("ircot", load_template("ircot"), k=1, max_steps=2)
    lm = ScriptedLM([R1, " Roy Clark.\n"])
    (result,) = run([QUESTION], setting=setting, retriever=ListRetriever(CORPUS), lm=lm)
    assert lm.requests[1].prompt.endswith(f"{R1}\n{ANSWER_CUE}") and lm.requests[1].final
    assert result.steps[1].reasoning == f"{ANSWER_CUE} Roy Clark."
    assert result.answer == "Roy Clark" and result.stopped == "limit"
