"""Answer containment, recall, the two kinds of interval and the paired test."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest

from steper.metrics import mean_interval, paired_p_value, recall, score, t_interval
from steper.types import Interval, Score


def test_score_of_the_paper_example() -> None:
    assert score("Hee Haw", ["Hee Haw"]) == Score(em=1.0, f1=1.0, acc=1.0)


@pytest.mark.parametrize(
    ("prediction", "answers", "acc"),
    [
        ("It was the Hee-Haw show", ["Hee Haw"], 0.0),  # the hyphen joins: "heehaw"
        ("the show was Hee Haw, of course", ["Hee Haw"], 1.0),
        ("Hee", ["Hee Haw"], 0.0),  # contained in the answer is not containing it
        ("August", ["US"], 1.0),  # plain substring, not whole words
        ("nothing", ["gone", "Nothing"], 1.0),  # any accepted answer
        ("anything", ["the"], 0.0),  # an answer of nothing is not in everything,
        ("A.", ["the"], 1.0),  # only in nothing
        ("", ["Hee Haw"], 0.0),
    ],
)
def test_acc_is_containment_of_normalized_strings(
    prediction: str, answers: list[str], acc: float
) -> None:
    assert score(prediction, answers).acc == acc


def test_score_needs_an_answer() -> None:
    with pytest.raises(ValueError, match="accepted answer"):
        score("x", [])


def test_recall_counts_distinct_gold_titles_among_the_first_k() -> None:
    found = ["a", "x", "a", "b"]
    assert recall(found, ["a", "b", "b"]) == 1.0
    assert recall(found, ["a", "b", "b"], 3) == 0.5
    assert recall(found, ["A"]) == 0.0
    assert recall(found, ["a"], 0) == 0.0
    assert recall([], ["a"], 5) == 0.0


def test_recall_refuses_no_gold_and_negative_k() -> None:
    with pytest.raises(ValueError, match="gold title"):
        recall(["a"], [])
    with pytest.raises(ValueError, match="negative"):
        recall(["a"], ["a"], -1)


# ---- bootstrap -------------------------------------------------------------------------------


def test_interval_of_one_value_has_no_width() -> None:
    assert mean_interval([0.25], seed=0) == Interval(value=0.25, low=0.25, high=0.25, n=1)


def test_interval_agrees_with_the_normal_approximation() -> None:
    values = [1.0] * 240 + [0.0] * 160
    half = 1.96 * math.sqrt(0.6 * 0.4 / 400)
    interval = mean_interval(values, seed=1)
    assert interval.value == pytest.approx(0.6)
    assert interval.n == 400
    assert interval.low == pytest.approx(0.6 - half, abs=0.006)
    assert interval.high == pytest.approx(0.6 + half, abs=0.006)


@pytest.mark.parametrize(
    ("distribution", "mean"), [("normal", 0.0), ("exponential", 1.0), ("bernoulli", 0.3)]
)
def test_interval_covers_the_true_mean_as_often_as_it_says(distribution: str, mean: float) -> None:
    rng = np.random.default_rng(5)
    shape = (600, 80)
    samples = {
        "normal": rng.normal(size=shape),
        "exponential": rng.exponential(size=shape),
        "bernoulli": (rng.random(shape) < 0.3).astype(float),
    }[distribution]
    intervals = [mean_interval(list(s), seed=i, resamples=400) for i, s in enumerate(samples)]
    covered = np.mean([i.low <= mean <= i.high for i in intervals])
    assert covered == pytest.approx(0.95, abs=0.03)


def test_interval_narrows_with_the_level() -> None:
    values = list(np.random.default_rng(2).random(100))
    wide, narrow = (mean_interval(values, seed=0, level=level) for level in (0.99, 0.5))
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


def test_interval_does_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    values = list(np.random.default_rng(3).random(50))
    whole = mean_interval(values, seed=4)
    monkeypatch.setattr("steper.metrics._BLOCK", 170)
    assert mean_interval(values, seed=4) == whole


@pytest.mark.parametrize(
    ("values", "options"),
    [
        ([], {}),
        ([1.0, math.nan], {}),
        ([1.0], {"resamples": 0}),
        ([1.0], {"level": 1.0}),
    ],
)
def test_interval_refuses(values: list[float], options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"need|finite"):
        mean_interval(values, seed=0, **options)  # type: ignore[arg-type]


# ---- Student's interval ----------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
def test_t_interval_of_two_and_three_values_in_closed_form(level: float) -> None:
    """With one and two degrees of freedom Student's quantile is elementary."""
    two, three = t_interval([0.0, 2.0], level=level), t_interval([1.0, 2.0, 3.0], level=level)
    assert (two.value, two.n, three.value, three.n) == (1.0, 2, 2.0, 3)
    assert two.high - 1 == pytest.approx(math.tan(math.pi * level / 2))
    assert three.high - 2 == pytest.approx(level * math.sqrt(2 / (1 - level**2)) / math.sqrt(3))
    assert two.low + two.high == pytest.approx(2) and three.low + three.high == pytest.approx(4)


def test_t_interval_covers_with_five_values_where_the_bootstrap_does_not() -> None:
    samples = np.random.default_rng(6).normal(size=(2000, 5))

    def covered(intervals: Sequence[Interval]) -> float:
        return float(np.mean([i.low <= 0 <= i.high for i in intervals]))

    assert covered([t_interval(list(s)) for s in samples]) == pytest.approx(0.95, abs=0.015)
    assert covered([mean_interval(list(s), seed=0, resamples=200) for s in samples[:500]]) < 0.88


@pytest.mark.parametrize("values", [[], [1.0], [1.0, math.inf]])
def test_t_interval_refuses(values: list[float]) -> None:
    with pytest.raises(ValueError, match=r"need at least|finite"):
        t_interval(values)


# ---- paired test -----------------------------------------------------------------------------


def test_p_value_of_equal_differences_is_the_sign_test() -> None:
    # Only the two patterns of one sign are as extreme: 2 of 2**n.
    assert paired_p_value([1.0] * 8, [0.0] * 8, seed=0) == 2 / 2**8


def test_p_value_without_a_difference_is_one() -> None:
    assert paired_p_value([1.0, 0.0], [1.0, 0.0], seed=0) == 1.0
    assert paired_p_value([1.0] * 20, [1.0] * 20, seed=0) == 1.0


def test_p_value_enumerates_small_samples_exactly() -> None:
    rng = np.random.default_rng(11)
    for n in (1, 2, 5, 12):
        a, b = rng.integers(0, 4, n) / 10, rng.integers(0, 4, n) / 10
        tenths = np.rint((a - b) * 10).astype(int)  # whole numbers: no rounding in the reference
        extreme = sum(
            abs(int(np.dot(signs, tenths))) >= abs(int(tenths.sum()))
            for signs in product((-1, 1), repeat=n)
        )
        assert paired_p_value(list(a), list(b), seed=0) == extreme / 2**n


def test_p_value_by_sampling_agrees_with_enumeration(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(12)
    a, b = list(rng.normal(0.5, 1, 12)), list(rng.normal(0, 1, 12))
    exact = paired_p_value(a, b, seed=0)
    monkeypatch.setattr("steper.metrics._EXACT_LIMIT", 0)
    monkeypatch.setattr("steper.metrics._BLOCK", 1000)
    sampled = paired_p_value(a, b, seed=3, resamples=20_000)
    assert sampled != exact
    assert sampled == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 20_000))


@pytest.mark.parametrize("n", [13, 40, 200])
def test_p_value_of_many_pairs_agrees_with_the_exact_distribution(n: int) -> None:
    """Of whole differences the signed sum has a distribution that can be counted for any n."""
    differences = [int(d) for d in np.random.default_rng(2).integers(-4, 6, n)]
    ways = Counter({0: 1})
    for difference in differences:
        after: Counter[int] = Counter()
        for total, count in ways.items():
            after[total + difference] += count
            after[total - difference] += count
        ways = after
    reached = [count for total, count in ways.items() if abs(total) >= abs(sum(differences))]
    exact = sum(reached) / 2**n
    assert 0.001 < exact < 0.9
    sampled = paired_p_value([float(d) for d in differences], [0.0] * n, seed=1)
    assert sampled == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 10_000))


def test_p_value_agrees_with_the_normal_approximation_of_large_samples() -> None:
    rng = np.random.default_rng(13)
    differences = rng.normal(0.12, 1.0, 300)
    z = differences.sum() / math.sqrt(float(np.sum(differences**2)))
    expected = math.erfc(abs(z) / math.sqrt(2))
    assert paired_p_value(list(differences), [0.0] * 300, seed=0) == pytest.approx(
        expected, abs=0.015
    )


@pytest.mark.parametrize("n", [10, 30])
def test_p_value_is_uniform_where_there_is_no_difference(n: int) -> None:
    """Counted and sampled."""
    draws = np.random.default_rng(14).normal(size=(300, n))
    p = [paired_p_value(list(d), [0.0] * n, seed=i, resamples=500) for i, d in enumerate(draws)]
    for level in (0.1, 0.5, 0.9):
        assert np.mean(np.array(p) <= level) == pytest.approx(level, abs=0.09)


def test_p_value_of_sampling_is_never_zero() -> None:
    assert paired_p_value([1.0] * 40, [0.0] * 40, seed=0, resamples=999) == 1 / 1000


def test_p_value_refuses() -> None:
    with pytest.raises(ValueError, match="equally many"):
        paired_p_value([1.0], [1.0, 2.0], seed=0)
    with pytest.raises(ValueError, match="at least one"):
        paired_p_value([], [], seed=0)
    with pytest.raises(ValueError, match="resamples"):
        paired_p_value([1.0], [1.0], seed=0, resamples=0)
