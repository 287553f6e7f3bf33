"""The three abilities on a gold chain, rule by rule."""

from __future__ import annotations

import pytest

from steper.evaluate import score_trajectory, step_accuracies
from steper.types import Hop, Passage, Question, Step, Trajectory

CHAIN = (
    Hop(
        "director", "Amber Quill", "Silver Harbor", "The director of Silver Harbor is Amber Quill."
    ),
    Hop("mentor", "Red Lantern", "Amber Quill", "The mentor of Amber Quill is Red Lantern."),
)
QUESTION = Question(
    "q", "Who?", "Red Lantern", supporting_titles=("Silver Harbor", "Amber Quill"), chain=CHAIN
)
FIRST, SECOND, OTHER = (
    Passage(title, title, "text") for title in ("Silver Harbor", "Amber Quill", "Other")
)
ANSWER = "So the answer is: Red Lantern."


def accuracies(
    *steps: tuple[tuple[Passage, ...], str], answer: str = "Red Lantern"
) -> tuple[float | None, float | None, float | None]:
    made = tuple(Step("query", passages, reasoning) for passages, reasoning in steps)
    return step_accuracies(Trajectory(QUESTION, made, answer))


def test_stating_facts_that_were_read_is_right() -> None:
    facts = [hop.statement for hop in CHAIN]
    steps = (((FIRST,), facts[0]), ((SECOND,), facts[1]), ((), ANSWER))
    assert accuracies(*steps) == (1.0, 1.0, 1.0)


def test_stating_a_fact_that_was_not_read_is_wrong() -> None:
    assert accuracies(((OTHER,), CHAIN[0].statement), ((), ANSWER))[0] == 0.0


def test_a_search_that_brings_the_missing_passage_is_right() -> None:
    found = accuracies(((OTHER,), "I need to find it."), ((FIRST,), "x"), ((), ANSWER))
    assert found == (1.0, 0.0, 1.0)


def test_a_search_that_brings_nothing_is_wrong() -> None:
    assert accuracies(((OTHER,), "I need to find it."), ((), ANSWER))[0] == 0.0


def test_not_stating_what_was_read_is_wrong() -> None:
    assert accuracies(((FIRST,), "I need to find it."), ((SECOND,), "x"), ((), ANSWER))[0] == 0.0


def test_a_word_that_merely_contains_the_answer_does_not_count() -> None:
    steps = (((FIRST,), "It is Amber Quills."), ((), ANSWER))
    assert accuracies(*steps)[0] == 0.0


def test_a_run_of_one_step_began_wrong() -> None:
    assert accuracies(((FIRST, SECOND), ANSWER)) == (0.0, None, 1.0)


def test_a_wrong_answer_is_a_wrong_last_step() -> None:
    assert accuracies(((FIRST,), CHAIN[0].statement), ((), "x"), answer="Amber Quill")[2] == 0.0


def test_a_question_without_chain_has_no_step_accuracy() -> None:
    run = Trajectory(Question("q", "Who?", "A"), (Step("x", (), "So the answer is: A."),), "A")
    found = score_trajectory(run, "hotpotqa")
    assert (found.em, found.recall, found.first_step_acc) == (1.0, None, None)


def test_recall_counts_every_passage_of_the_run() -> None:
    run = Trajectory(QUESTION, (Step("x", (OTHER, SECOND), "y"),), "")
    assert score_trajectory(run, "hotpotqa").recall == pytest.approx(0.5)
