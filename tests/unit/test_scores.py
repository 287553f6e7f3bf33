"""Measures of a run: the abilities on a gold chain rule by rule, and what it took."""

from __future__ import annotations

from dataclasses import replace

import pytest

from steper.protocols import Usage
from steper.scores import (
    QuestionScore,
    breakdown,
    gold_steps,
    recall_by_step,
    score_trajectory,
    summarise,
)
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


def abilities(run: Trajectory) -> tuple[float | None, float | None]:
    """Initialization and expansion."""
    found = score_trajectory(run, "hotpotqa")
    return found.initialization, found.expansion


def accuracies(*steps: tuple[tuple[Passage, ...], str]) -> tuple[float | None, float | None]:
    made = tuple(Step("query", passages, reasoning) for passages, reasoning in steps)
    return abilities(Trajectory(QUESTION, made, "Red Lantern"))


def test_stating_facts_that_were_read_is_right() -> None:
    facts = [hop.statement for hop in CHAIN]
    steps = (((FIRST,), facts[0]), ((SECOND,), facts[1]), ((), ANSWER))
    assert accuracies(*steps) == (1.0, 1.0)


def test_stating_a_fact_that_was_not_read_is_wrong() -> None:
    assert accuracies(((OTHER,), CHAIN[0].statement), ((), ANSWER))[0] == 0.0


def test_a_search_that_brings_the_missing_passage_is_right() -> None:
    found = accuracies(((OTHER,), "I need to find it."), ((FIRST,), "x"), ((), ANSWER))
    assert found == (1.0, 0.0)


def test_a_search_that_brings_nothing_is_wrong() -> None:
    assert accuracies(((OTHER,), "I need to find it."), ((), ANSWER))[0] == 0.0


def test_not_stating_what_was_read_is_wrong() -> None:
    assert accuracies(((FIRST,), "I need to find it."), ((SECOND,), "x"), ((), ANSWER))[0] == 0.0


def test_a_word_that_merely_contains_the_answer_does_not_count() -> None:
    steps = (((FIRST,), "It is Amber Quills."), ((), ANSWER))
    assert accuracies(*steps)[0] == 0.0


def test_a_run_of_one_step_began_wrong() -> None:
    assert accuracies(((FIRST, SECOND), ANSWER)) == (0.0, None)


def test_a_question_without_chain_has_no_step_accuracy() -> None:
    run = Trajectory(Question("q", "Who?", "A"), (Step("x", (), "So the answer is: A."),), "A")
    found = score_trajectory(run, "hotpotqa")
    assert (found.em, found.recall, found.initialization) == (1.0, None, None)


def test_recall_counts_every_passage_of_the_run() -> None:
    run = Trajectory(QUESTION, (Step("x", (OTHER, SECOND), "y"),), "")
    assert score_trajectory(run, "hotpotqa").recall == pytest.approx(0.5)


def test_saying_a_fact_again_is_wrong() -> None:
    fact = CHAIN[0].statement
    steps = (((FIRST,), fact), ((OTHER,), fact), ((), ANSWER))
    assert accuracies(*steps) == (1.0, 0.0)


def test_going_on_after_the_last_fact_is_wrong() -> None:
    facts = [hop.statement for hop in CHAIN]
    steps = (((FIRST, SECOND), facts[0]), ((), facts[1]), ((), "Well."), ((), ANSWER))
    assert accuracies(*steps) == (1.0, 0.5)


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
    assert accuracies(*steps) == (0.0, 0.8)


def test_two_facts_in_one_sentence_are_one_right_step() -> None:
    both = " ".join(hop.statement for hop in CHAIN)
    assert accuracies(((FIRST, SECOND), both), ((), ANSWER)) == (1.0, None)


def test_facts_may_be_stated_in_any_order() -> None:
    steps = (
        Step("q", (FIRST, SECOND), YEARS[1].statement),
        Step("q", (), YEARS[0].statement),
        Step("q", (), ANSWER),
    )
    assert abilities(Trajectory(COMPARISON, steps, "Amber Quill")) == (1.0, 1.0)


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
    assert abilities(Trajectory(COMPARISON, steps, "Amber Quill")) == (0.0, 0.5)


def test_case_articles_and_punctuation_do_not_matter() -> None:
    assert accuracies(((FIRST,), "It was the AMBER, quill!"), ((), ANSWER))[0] == 1.0


def test_hops_without_answer_or_title_are_left_out() -> None:
    chain = (Hop("", "", "Silver Harbor", "x"), Hop("", "y", "", "y"), CHAIN[0])
    question = Question("q", "Who?", "Red Lantern", chain=chain)
    steps = (Step("q", (FIRST,), CHAIN[0].statement), Step("q", (), ANSWER))
    assert abilities(Trajectory(question, steps, "Red Lantern")) == (1.0, None)
    bare = Question("q", "Who?", "Red Lantern", chain=chain[:2])
    assert abilities(Trajectory(bare, steps, "Red Lantern")) == (None, None)


def test_a_run_without_steps_has_no_step_accuracy() -> None:
    assert abilities(Trajectory(QUESTION, (), "")) == (None, None)


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
    assert abilities(run) == (1.0, 1.0)


def test_every_measure_of_a_good_run() -> None:
    steps = (
        Step("q", (FIRST, OTHER), CHAIN[0].statement),
        Step("q", (SECOND,), CHAIN[1].statement),
        Step("q", (), ANSWER),
    )
    used = Usage(prompt_tokens=100, cached_tokens=40, completion_tokens=9, seconds=7.0, cost=0.5)
    run = Trajectory(QUESTION, steps, "the red lantern")
    assert score_trajectory(run, "hotpotqa", usage=used, seconds=2.5) == QuestionScore(
        id="q",
        type="",
        hops=2,
        em=1.0,
        f1=1.0,
        acc=1.0,
        recall=1.0,
        recall_by_step=(0.5, 1.0, 1.0),
        initialization=1.0,
        expansion=1.0,
        aggregation=1.0,
        subquestion_acc=1.0,
        steps=3,
        searches=3,
        prompt_tokens=100,
        cached_tokens=40,
        completion_tokens=9,
        seconds=2.5,
        cost=0.5,
    )


def test_an_answer_contained_is_accurate_but_not_exact() -> None:
    run = Trajectory(QUESTION, (Step("q", (), "x"),), "It is Red Lantern")
    found = score_trajectory(run, "hotpotqa")
    assert (found.em, found.acc) == (0.0, 1.0)
    assert found.f1 == pytest.approx(2 * (2 / 4) * 1 / (2 / 4 + 1))


# ---- aggregation, sub-questions, what a run took -----------------------------------------------


@pytest.mark.parametrize("answer, right", [("Red Lantern", 1.0), ("Amber Quill", 0.0), ("", 0.0)])
def test_aggregation_is_the_answer_where_all_evidence_was_there(answer: str, right: float) -> None:
    run = Trajectory(QUESTION, (Step("q", (FIRST, SECOND), "x"), Step("", (), "y")), answer)
    assert score_trajectory(run, "hotpotqa").aggregation == right


def test_aggregation_is_unknown_where_evidence_is_missing() -> None:
    """A right answer without its evidence was guessed, a wrong one is the search's fault."""
    run = Trajectory(QUESTION, (Step("q", (FIRST,), "x"),), "Red Lantern")
    assert score_trajectory(run, "hotpotqa").aggregation is None


def test_aggregation_is_unknown_without_gold_passages() -> None:
    assert score_trajectory(Trajectory(COMPARISON, (), "x"), "hotpotqa").aggregation is None


def test_subquestions_answered_need_whole_words() -> None:
    steps = (Step("q", (FIRST,), "The director is Amber Quill."), Step("", (), "Red Lanterns."))
    run = Trajectory(QUESTION, steps, "")
    assert score_trajectory(run, "hotpotqa").subquestion_acc == 0.5


def test_an_answer_does_not_stretch_over_two_sentences() -> None:
    steps = (Step("q", (FIRST,), "It is Amber"), Step("", (), "Quill it is."))
    assert score_trajectory(Trajectory(QUESTION, steps, ""), "hotpotqa").subquestion_acc == 0.0


def test_a_teacher_without_tokens_has_no_usage() -> None:
    run = Trajectory(QUESTION, (Step("q", (), "x"), Step("", (), "y")), "")
    found = score_trajectory(run, "hotpotqa", usage=Usage(), seconds=0.0)
    assert (found.prompt_tokens, found.cost, found.seconds, found.searches) == (None, None, 0.0, 1)


def scored(name: str, *recalls: float, em: float = 0.0) -> QuestionScore:
    run = score_trajectory(Trajectory(Question(name, "Who?", "A", hops=2), (), ""), "hotpotqa")
    return replace(run, em=em, recall_by_step=recalls)


def test_recall_by_step_keeps_what_ended_runs_had() -> None:
    scores = [scored("a", 0.5, 1.0, 1.0), scored("b", 0.5), scored("c")]
    assert recall_by_step(scores) == [0.5, 0.75, 0.75]
    assert recall_by_step([scored("c")]) == []


def test_a_breakdown_has_each_group_with_its_interval() -> None:
    scores = [scored("a", em=1.0), scored("b", em=0.0), scored("c", em=1.0)]
    found = breakdown(scores, lambda s: "last" if s.id == "c" else "first", seed=0)
    assert {name: (group["n"], group["em"]["value"]) for name, group in found.items()} == {
        "first": (2, 0.5),
        "last": (1, 1.0),
    }


def test_a_measure_without_questions_is_unknown_in_the_summary() -> None:
    summary = summarise([scored("a", em=1.0)], seed=0)
    assert summary["initialization"] is None and summary["em"]["n"] == 1


def test_gold_steps_leave_the_last_step_out() -> None:
    steps = (Step("q", (FIRST,), CHAIN[0].statement), Step("q", (), "x"), Step("q", (), ANSWER))
    assert gold_steps(Trajectory(QUESTION, steps, "")) == [1.0, 0.0]
