"""The three abilities on a gold chain, rule by rule."""

from __future__ import annotations

from pathlib import Path

import pytest

from steper.evaluate import (
    MEASURES,
    QuestionScore,
    evaluation_table,
    score_trajectory,
    step_accuracies,
)
from steper.store import write_json
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
YEARS = (
    Hop("year", "1950", "Silver Harbor", "The year of Silver Harbor is 1950."),
    Hop("year", "1940", "Amber Quill", "The year of Amber Quill is 1940."),
)
COMPARISON = Question("c", "Which came first?", "Amber Quill", chain=YEARS)


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


def test_the_table_has_a_row_a_label_with_the_mean_over_its_runs(tmp_path: Path) -> None:
    for number, (label, em) in enumerate((("a", 0.25), ("b", 1.0), ("a", 0.75))):
        metrics = dict.fromkeys(MEASURES) | {"em": {"value": em}, "steps": {"value": 3.0}}
        result = {"label": label, "metrics": metrics, "seconds": 2.0, "n": 7, "failed": number}
        write_json(tmp_path / str(number) / "evaluation.json", result)
    lines = evaluation_table([tmp_path / str(number) for number in range(3)]).splitlines()
    found = [line.split()[:4] for line in lines[2:]]
    assert found == [["a", "14", "2", "50.0"], ["b", "7", "1", "100.0"]]
    assert lines[2].split()[-2:] == ["3.0", "2"]


def test_recall_counts_every_passage_of_the_run() -> None:
    run = Trajectory(QUESTION, (Step("x", (OTHER, SECOND), "y"),), "")
    assert score_trajectory(run, "hotpotqa").recall == pytest.approx(0.5)


def test_saying_a_fact_again_is_wrong() -> None:
    fact = CHAIN[0].statement
    steps = (((FIRST,), fact), ((OTHER,), fact), ((), ANSWER))
    assert accuracies(*steps) == (1.0, 0.0, 1.0)


def test_going_on_after_the_last_fact_is_wrong() -> None:
    facts = [hop.statement for hop in CHAIN]
    steps = (((FIRST, SECOND), facts[0]), ((), facts[1]), ((), "Well."), ((), ANSWER))
    assert accuracies(*steps) == (1.0, 0.5, 1.0)


def test_the_middle_is_the_mean_of_all_steps_between() -> None:
    steps = (
        ((OTHER,), "I need to find Silver Harbor."),  # brings nothing
        ((), "I need to find Silver Harbor again."),  # brings it
        ((FIRST,), CHAIN[0].statement),
        ((OTHER,), "Well."),  # neither
        ((), "I need to find Amber Quill."),  # brings it
        ((SECOND,), CHAIN[1].statement),
        ((), ANSWER),
    )
    assert accuracies(*steps) == (0.0, 0.8, 1.0)


def test_two_facts_in_one_sentence_are_one_right_step() -> None:
    both = " ".join(hop.statement for hop in CHAIN)
    assert accuracies(((FIRST, SECOND), both), ((), ANSWER)) == (1.0, None, 1.0)


def test_facts_may_be_stated_in_any_order() -> None:
    steps = (
        Step("q", (FIRST, SECOND), YEARS[1].statement),
        Step("q", (), YEARS[0].statement),
        Step("q", (), ANSWER),
    )
    assert step_accuracies(Trajectory(COMPARISON, steps, "Amber Quill")) == (1.0, 1.0, 1.0)


def test_the_passage_searched_for_is_that_of_the_next_unstated_hop() -> None:
    """A search that brings the passage after the next one does not help yet."""
    assert accuracies(((OTHER,), "I need it."), ((SECOND,), "x"), ((), ANSWER))[0] == 0.0


def test_a_fact_is_right_only_once_its_own_passage_has_come() -> None:
    """A guess does not count, and does not use the fact up either."""
    steps = (
        Step("q", (FIRST,), YEARS[1].statement),
        Step("q", (OTHER,), "Well."),
        Step("q", (SECOND,), YEARS[1].statement),
        Step("q", (), ANSWER),
    )
    assert step_accuracies(Trajectory(COMPARISON, steps, "Amber Quill")) == (0.0, 0.5, 1.0)


def test_case_articles_and_punctuation_do_not_matter() -> None:
    assert accuracies(((FIRST,), "It was the AMBER, quill!"), ((), ANSWER))[0] == 1.0


def test_hops_without_answer_or_title_are_left_out() -> None:
    chain = (Hop("", "", "Silver Harbor", "x"), Hop("", "y", "", "y"), CHAIN[0])
    question = Question("q", "Who?", "Red Lantern", chain=chain)
    steps = (Step("q", (FIRST,), CHAIN[0].statement), Step("q", (), ANSWER))
    assert step_accuracies(Trajectory(question, steps, "Red Lantern")) == (1.0, None, 1.0)
    bare = Question("q", "Who?", "Red Lantern", chain=chain[:2])
    assert step_accuracies(Trajectory(bare, steps, "Red Lantern")) == (None, None, None)


def test_a_run_without_steps_has_no_step_accuracy() -> None:
    assert step_accuracies(Trajectory(QUESTION, (), "")) == (None, None, None)


def test_two_hops_with_the_same_answer_are_two_facts() -> None:
    """Comparisons answered "yes": 3% of the offline world's questions, 6% of 2Wiki's chains."""
    chain = (
        Hop("seat", "Holly East", "Door Crane", "The seat of Door Crane is Holly East."),
        Hop("seat", "Holly East", "Sand Harbor", "The seat of Sand Harbor is Holly East."),
    )
    found = tuple(Passage(hop.title, hop.title, "text") for hop in chain)
    steps = (
        Step("q", found, chain[0].statement),
        Step("q", (), chain[1].statement),
        Step("q", (), "So the answer is: yes."),
    )
    run = Trajectory(Question("q", "Same seat?", "yes", chain=chain), steps, "yes")
    assert step_accuracies(run) == (1.0, 1.0, 1.0)


def test_every_measure_of_a_good_run() -> None:
    steps = (
        Step("q", (FIRST, OTHER), CHAIN[0].statement),
        Step("q", (SECOND,), CHAIN[1].statement),
        Step("q", (), ANSWER),
    )
    assert score_trajectory(Trajectory(QUESTION, steps, "the red lantern"), "hotpotqa") == (
        QuestionScore("q", 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 3)
    )


def test_an_answer_contained_is_accurate_but_not_exact() -> None:
    run = Trajectory(QUESTION, (Step("q", (), "x"),), "It is Red Lantern")
    found = score_trajectory(run, "hotpotqa")
    assert (found.em, found.acc, found.last_step_acc) == (0.0, 1.0, 0.0)
    assert found.f1 == pytest.approx(2 * (2 / 4) * 1 / (2 / 4 + 1))
