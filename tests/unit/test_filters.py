"""Filters keep or say why they drop."""

from __future__ import annotations

import pytest

from steper.filters import AnswerFilter, EmptyFilter, RepeatFilter, sift
from steper.types import Question, Step, Trajectory


def trajectory(answer: str, *reasoning: str) -> Trajectory:
    question = Question("q", "Who?", "Roy Clark", answer_aliases=("Clark",))
    return Trajectory(question, tuple(Step("", (), r) for r in reasoning), answer)


@pytest.mark.parametrize(
    ("measure", "threshold", "answer", "kept"),
    [
        ("em", 1.0, "the Roy Clark", True),
        ("em", 1.0, "clark", True),
        ("em", 1.0, "Roy Clarke", False),
        ("f1", 0.6, "singer Roy Clark", True),
        ("f1", 0.9, "singer Roy Clark", False),
        ("acc", 1.0, "It was Roy Clark.", True),
        ("acc", 1.0, "Hee Haw", False),
    ],
)
def test_answer_filter(measure: str, threshold: float, answer: str, kept: bool) -> None:
    drop = AnswerFilter(measure, threshold, "hotpotqa").check(trajectory(answer))  # type: ignore[arg-type]
    assert (drop is None) == kept
    if drop:
        assert repr(answer) in drop.reason and measure in drop.reason


def test_no_answer_is_its_own_reason() -> None:
    drop = AnswerFilter("f1", 0.1, "musique").check(trajectory(""))
    assert drop and drop.reason == "no answer"


def test_repeat_filter_names_both_steps() -> None:
    assert RepeatFilter().check(trajectory("A", "One.", "Two.")) is None
    drop = RepeatFilter().check(trajectory("A", "One.", "Two.", "ONE. "))
    assert drop and drop.reason == "step 3 repeats step 1"


def test_sift_names_the_first_filter_that_drops() -> None:
    runs = [trajectory("Roy Clark", "One."), trajectory("x", "One.", "One.")]
    kept, dropped = sift(runs, [AnswerFilter("em", 1.0, "hotpotqa"), RepeatFilter()])
    assert kept == runs[:1]
    assert [(run, drop.filter) for run, drop in dropped] == [(runs[1], "answer")]


def test_a_repeat_is_seen_through_white_space() -> None:
    drop = RepeatFilter().check(trajectory("A", "One  two.", " one two. "))
    assert drop and drop.filter == "repeat"


def test_sift_keeps_order_and_loses_nothing() -> None:
    runs = [trajectory(answer, "One.") for answer in ("x", "Clark", "y", "Roy Clark", "")]
    kept, dropped = sift(iter(runs), [AnswerFilter("em", 1.0, "hotpotqa")])
    assert kept == [runs[1], runs[3]] and [run for run, _ in dropped] == [runs[0], runs[2], runs[4]]
    assert sift(runs, []) == (runs, [])


def test_empty_filter_names_the_step() -> None:
    assert EmptyFilter().check(trajectory("A", "One.")) is None
    drop = EmptyFilter().check(trajectory("A", "One.", " "))
    assert drop and drop.reason == "step 2 is empty"
