"""What must hold of the metrics for any input."""

from __future__ import annotations

from typing import get_args

from hypothesis import given, settings
from hypothesis import strategies as st

from steper.metrics import Rules, mean_interval, normalize, paired_p_value, score

WORDS = st.sampled_from(
    ["yes", "no", "noanswer", "the", "a", "Roy", "clark", "U.S.", "\u2013", "", "é"]
)
TEXTS = st.lists(WORDS, max_size=5).map(" ".join) | st.text(max_size=12)
RULES = st.sampled_from(get_args(Rules))
VALUES = st.lists(st.integers(-8, 8).map(lambda n: n / 8), min_size=1, max_size=16)


@given(TEXTS)
def test_normalized_text_is_folded_and_lower(text: str) -> None:
    folded = normalize(text)
    assert folded == " ".join(folded.split())
    assert folded == normalize(f"  {text}!")


@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=4), RULES)
def test_scores_are_bounded_and_ordered(prediction: str, answers: list[str], rules: Rules) -> None:
    scored = score(prediction, answers, rules=rules)
    assert 0 <= scored.f1 <= 1
    assert {scored.em, scored.acc} <= {0.0, 1.0}
    assert scored.em <= scored.acc
    if normalize(prediction):
        assert scored.em <= scored.f1


@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=4), TEXTS, RULES)
def test_another_answer_never_lowers_a_score(
    prediction: str, answers: list[str], alias: str, rules: Rules
) -> None:
    before = score(prediction, answers, rules=rules)
    after = score(prediction, [*answers, alias], rules=rules)
    assert (before.em <= after.em, before.f1 <= after.f1, before.acc <= after.acc) == (True,) * 3


@given(TEXTS, TEXTS, RULES)
def test_em_and_f1_are_symmetric(one: str, other: str, rules: Rules) -> None:
    there, back = score(one, [other], rules=rules), score(other, [one], rules=rules)
    assert there.em == back.em
    assert abs(there.f1 - back.f1) < 1e-12


@settings(max_examples=40)
@given(VALUES, st.integers(0, 2**32))
def test_interval_lies_within_the_values(values: list[float], seed: int) -> None:
    interval = mean_interval(values, seed=seed, resamples=100)
    assert min(values) <= interval.low <= interval.high <= max(values)
    assert interval == mean_interval(values, seed=seed, resamples=100)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=16))
def test_p_value_is_symmetric_and_positive(pairs: list[tuple[int, int]]) -> None:
    a, b = [float(x) for x, _ in pairs], [float(y) for _, y in pairs]
    p = paired_p_value(a, b, seed=1, resamples=200)
    assert 0 < p <= 1
    assert p == paired_p_value(b, a, seed=1, resamples=200)
