"""Arms: seeds of one label together, two labels compared question by question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest

from evaluations import evaluation
from steper.arms import Arm, Comparison, compare, read_arms
from steper.errors import SteperError
from steper.metrics import t_interval
from steper.types import Interval

Values = Sequence[float | None]


def arm(label: str, *seeds: Values, questions: Sequence[str] | None = None) -> Arm:
    """An arm with these values of EM, each seed on the questions 0, 1, … of its own file."""
    files = questions or ["q"] * len(seeds)
    results, scores = [], []
    for file, values in zip(files, seeds, strict=True):
        known = [value for value in values if value is not None]
        metrics = {"em": {"value": fmean(known)} if known else None}
        results.append({"questions_sha256": file, "metrics": metrics})
        scores.append({str(n): {"em": value} for n, value in enumerate(values)})
    return Arm(label, [], results, scores)


# ---- one arm -----------------------------------------------------------------------------------


def test_a_question_is_the_mean_over_the_seeds_that_know_it() -> None:
    one = arm("a", [1, None, None], [0, 1, None])
    assert one.by_question("em") == {("q", "0"): 0.5, ("q", "1"): 1.0}
    assert one.by_seed("em") == [1.0, 0.5]


def test_equal_ids_of_other_files_are_other_questions() -> None:
    one = arm("a", [1, 0], [0, 0], questions=["q", "r"])
    assert one.by_question("em") == {
        ("q", "0"): 1.0, ("q", "1"): 0.0, ("r", "0"): 0.0, ("r", "1"): 0.0
    }  # fmt: skip


def test_an_unknown_measure_has_no_mean() -> None:
    one = arm("a", [None, None])
    assert (one.by_question("em"), one.by_seed("em"), one.interval("em")) == ({}, [None], None)


def test_a_seed_without_the_measure_does_not_count_in_the_mean() -> None:
    """Three questions of one seed weigh as much as one of the other; the third knows none."""
    interval = arm("a", [0, 0, 0], [1, None, None], [None] * 3).interval("em")
    assert interval is not None
    assert interval.value == pytest.approx(0.5) and interval.n == 3


# ---- two arms ----------------------------------------------------------------------------------


def test_only_questions_that_both_know_are_compared() -> None:
    one = compare(arm("a", [1, None, 1, 0]), arm("b", [0, 0, None]), "em")
    assert one is not None
    assert (one.a, one.b, one.measure) == ("a", "b", "em")
    assert one.difference == Interval(1.0, 1.0, 1.0, 1)
    assert one.by_seed == (1.0,) and one.over_seeds is None


@pytest.mark.parametrize(
    "other",
    [arm("b", [None, 1]), arm("b", [1, 1], questions=["r"])],
    ids=["unknown", "other questions"],
)
def test_nothing_in_common_is_no_comparison(other: Arm) -> None:
    assert compare(arm("a", [1, None]), other, "em") is None


def test_a_comparison_turned_round_has_the_opposite_sign() -> None:
    a, b = arm("a", [1, 1, 0, 1] * 5), arm("b", [0, 1, 1, 0] * 5)
    there, back = compare(a, b, "em"), compare(b, a, "em")
    assert there and back
    assert there.difference.value == -back.difference.value == pytest.approx(0.25)
    assert there.difference.low == pytest.approx(-back.difference.high, abs=0.06)
    assert there.p == back.p


def test_seeds_of_the_same_questions_add_none() -> None:
    a, b = [1.0, 0.0, 1.0, 1.0] * 3, [0.0, 1.0, 0.0, 1.0] * 3
    once = compare(arm("a", a), arm("b", b), "em")
    thrice = compare(arm("a", a, a, a), arm("b", b, b, b), "em")
    assert once and thrice
    assert (thrice.difference, thrice.p) == (once.difference, once.p)
    assert len(thrice.by_seed) == 3


def test_seeds_are_paired_by_their_questions_whatever_their_order() -> None:
    """Paired in the order given, two of the differences would not be 0.25."""
    a = arm("a", [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], questions=["q", "r", "s"])
    b = arm("b", [1, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0], questions=["s", "q", "r"])
    one = compare(a, b, "em")
    assert one is not None
    assert one.by_seed == (0.25, 0.25, 0.25) and one.difference.n == 12
    assert one.over_seeds == Interval(0.25, 0.25, 0.25, 3)


def test_seeds_on_one_file_are_paired_first_with_first() -> None:
    one = compare(arm("a", [1, 1], [0, 1], [1, 1]), arm("b", [0, 0], [0, 0]), "em")
    assert one is not None
    assert one.by_seed == (1.0, 0.5)
    assert one.over_seeds == t_interval([1.0, 0.5])


def test_seeds_that_cannot_be_paired_are_left_out() -> None:
    a = arm("a", [1, 1], [1, 1], [1, None], questions=["q", "r", "s"])
    b = arm("b", [0, 1], [None, 0], questions=["q", "s"])
    one = compare(a, b, "em")
    assert one is not None
    assert one.by_seed == (0.5,) and one.over_seeds is None


EVEN = Comparison("a", "b", "em", Interval(0.1, -0.1, 0.3, 20), 0.04, (0.1,), None)


@pytest.mark.parametrize(
    ("low", "high", "p", "verdict"),
    [
        (0.01, 0.3, 0.049, "higher"),
        (-0.3, -0.01, 0.049, "lower"),
        (0.01, 0.3, 0.05, "open"),  # the interval alone excludes 0
        (-0.3, -0.01, 0.05, "open"),
        (0.0, 0.3, 0.01, "open"),  # the test alone finds something
        (-0.3, 0.0, 0.01, "open"),
    ],
)
def test_interval_and_test_must_agree(low: float, high: float, p: float, verdict: str) -> None:
    assert replace(EVEN, difference=Interval(0.1, low, high, 20), p=p).verdict == verdict


def test_five_wins_of_five_are_no_verdict() -> None:
    """The bootstrap sees no loss to draw; the exact test gives 2 of 32."""
    one = compare(arm("a", [1] * 5), arm("b", [0] * 5), "em")
    assert one is not None
    assert (one.difference.low, one.p, one.verdict) == (1.0, 1 / 16, "open")


# ---- from folders ------------------------------------------------------------------------------


def test_folders_of_one_label_are_one_arm_in_the_order_given(tmp_path: Path) -> None:
    folders = [
        evaluation(tmp_path / str(n), label, {"em": [n, 0]}, questions=f"q{n}")
        for n, label in enumerate(["b", "a", "b"])
    ]
    arms = read_arms(folders)
    assert list(arms) == ["b", "a"]
    assert arms["b"].folders == [folders[0], folders[2]]
    assert arms["b"].question_sets == ["q0", "q2"]
    assert [seed["q0"]["em"] for seed in arms["b"].scores] == [0, 2]
    assert arms["b"].by_seed("em") == [0, 1]


def test_what_is_no_finished_evaluation_is_refused(tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "a", "a", {"em": [1]})
    with pytest.raises(SteperError, match="is given twice"):
        read_arms([folder, tmp_path / "b" / ".." / "a"])
    with pytest.raises(SteperError, match=r"no manifest\.json"):
        read_arms([folder, tmp_path])
