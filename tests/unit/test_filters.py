"""Filters keep or say why they drop."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steper.filters import (
    AnswerFilter,
    EmptyFilter,
    GoldFilter,
    LengthFilter,
    NoGainFilter,
    RepeatFilter,
    UngroundedFilter,
    choose,
    sift,
)
from steper.protocols import Filter
from steper.types import Passage, Question, Step, Trajectory

CLARK = Passage("1", "Roy Clark", "Roy Linwood Clark (born 1933) hosted “Hee Haw” from 1969.")
HALSEY = Passage("2", "Jim Halsey", "Jim Halsey, born in 1930, managed Roy Clark.")


def trajectory(answer: str, *reasoning: str) -> Trajectory:
    question = Question("q", "Who?", "Roy Clark", answer_aliases=("Clark",))
    return Trajectory(question, tuple(Step("", (), r) for r in reasoning), answer)


def run(asked: str, *steps: tuple[Sequence[Passage], str], gold: Sequence[str] = ()) -> Trajectory:
    question = Question("q", asked, "a", supporting_titles=tuple(gold))
    return Trajectory(question, tuple(Step("", tuple(p), r) for p, r in steps), "a")


# ---- answer, empty, repeat -------------------------------------------------------------------


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


def test_empty_filter_names_the_step() -> None:
    assert EmptyFilter().check(trajectory("A", "One.")) is None
    drop = EmptyFilter().check(trajectory("A", "One.", " "))
    assert drop and drop.reason == "step 2 is empty"


@pytest.mark.parametrize(
    ("first", "second", "repeats"),
    [
        ("One.", "ONE. ", True),
        ("One  two.", " one two. ", True),
        ("Roy Clark hosted Hee Haw.", "Hee Haw, hosted: Roy Clark!", True),
        ("Dvořák wrote it", "Dvorak wrote it.", True),
        ("서울은 수도이다.", "서울은 수도이다", True),
        ("Roy Clark hosted Hee Haw.", "Roy Clark hosted Hee Haw twice.", False),
        ("It was 1969.", "It was 1970.", False),
        ("서울은 수도이다.", "부산은 수도이다.", False),
        ("!", "?", False),
    ],
)
def test_repeats_are_seen_through_order_case_and_punctuation(
    first: str, second: str, repeats: bool
) -> None:
    drop = RepeatFilter().check(trajectory("A", first, "Else.", second))
    assert (drop is not None) == repeats
    if drop:
        assert drop.reason == "step 3 repeats step 1"


# ---- length ----------------------------------------------------------------------------------


def test_length_bounds_are_inclusive() -> None:
    three = trajectory("A", "one two three", "four five six")
    assert LengthFilter(min_words=3, max_words=3, max_steps=2).check(three) is None
    for bounds, reason in [
        (LengthFilter(max_words=2), "step 1 has 3 words, not 1 to 2"),
        (LengthFilter(min_words=4), "step 1 has 3 words, not 4 to 80"),
        (LengthFilter(max_steps=1), "2 steps, more than 1"),
    ]:
        drop = bounds.check(three)
        assert drop and drop.reason == reason


def test_a_run_on_in_a_script_without_spaces_is_long() -> None:
    assert LengthFilter().check(trajectory("A", "東京は日本の首都です。")) is None
    assert LengthFilter().check(trajectory("A", "東京は日本の首都です。" * 9))


# ---- ungrounded ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sentence",
    [
        "Roy Clark hosted Hee Haw.",
        "The host was Clark, and his show “Hee Haw”.",
        "However, Clark's show began in 1969.",
        "He was 36 when it began in 1969, since he was born in 1933.",
        "Therefore there were 2 hosts.",
        "So the answer is: Roy Clark.",
        "So the answer is: yes.",
        "So the answer is: Yes.",
        "I think it is he.",
    ],
)
def test_what_was_read_is_grounded(sentence: str) -> None:
    assert UngroundedFilter().check(run("Who hosted it?", ([CLARK], sentence))) is None


@pytest.mark.parametrize(
    ("sentence", "named"),
    [
        ("It was hosted by Buck Owens.", "Buck Owens"),
        ("The show of Roy Orbison.", "Roy Orbison"),
        ("It began in 1971.", "1971"),
        ("His show was called “Soul Train”.", "Soul Train"),
        ("So the answer is: Nashville.", "Nashville"),
        ("Clark worked for NASA.", "NASA"),
        ("He was 41.", "41"),
    ],
)
def test_what_was_not_read_is_named(sentence: str, named: str) -> None:
    drop = UngroundedFilter().check(run("Who hosted it?", ([CLARK], sentence)))
    assert drop and drop.filter == "ungrounded" and f"step 1 names {named!r}" in drop.reason


def test_a_passage_is_no_ground_before_it_is_read() -> None:
    steps = (([CLARK], "He hosted with Jim Halsey."), ([HALSEY], "So the answer is: Halsey."))
    drop = UngroundedFilter().check(run("Who?", *steps))
    assert drop and drop.reason.startswith("step 1")
    assert UngroundedFilter().check(run("Who?", *steps[::-1])) is None


def test_saying_it_twice_grounds_nothing() -> None:
    said = run("Who?", ([CLARK], "It is by Buck Owens."), ([], "So the answer is: Buck Owens."))
    drop = UngroundedFilter().check(said)
    assert drop and drop.reason.startswith("step 1")


def test_the_question_is_ground_and_another_answer_cue_is_known() -> None:
    asked = run("Is Oslo larger than Bergen?", ([], "We compare Oslo and Bergen."))
    assert UngroundedFilter().check(asked) is None
    french = run("Qui ?", ([CLARK], "La réponse est : Paris."))
    assert UngroundedFilter().check(french) is None  # a first word
    assert UngroundedFilter(cue="La réponse est :").check(french)


def test_korean_is_judged_by_numbers_and_quotes() -> None:
    passage = Passage("k", "서울", "서울에서 '오징어 게임'은 2021년에 나왔다.")
    for sentence in ("'오징어 게임'이 2021년 서울에서 나왔다.", "부산은 항구이다.", "2021년이다."):
        assert UngroundedFilter().check(run("언제?", ([passage], sentence))) is None
    for sentence in ("'기생충'은 영화이다.", "2019년에 나왔다."):
        assert UngroundedFilter().check(run("언제?", ([passage], sentence)))


# ---- no-gain ---------------------------------------------------------------------------------


def test_a_wasted_step_is_dropped() -> None:
    wasted = run(
        "Who hosted Hee Haw?",
        ([CLARK], "Roy Clark hosted Hee Haw."),
        ([], "Hee Haw was hosted by Clark."),
        ([], "So the answer is: Roy Clark."),
    )
    drop = NoGainFilter().check(wasted)
    assert drop and drop.reason == "step 2 brings no new word and no new passage"


def test_a_korean_step_is_wasted_whatever_its_particles() -> None:
    steps: tuple[tuple[list[Passage], str], ...]
    steps = (([CLARK], "서울은 수도이다."), ([], "수도는 서울이다."), ([], "답: 서울"))
    assert NoGainFilter().check(run("수도는?", *steps))
    assert (
        NoGainFilter().check(run("수도는?", steps[0], ([], "부산은 항구이다."), steps[2])) is None
    )


@pytest.mark.parametrize(
    "middle",
    [
        ([HALSEY], "Hee Haw was hosted by Clark."),  # it read something
        ([], "Hee Haw was produced by Clark."),  # a word
        ([], "Hee Haw began in 1969."),  # a number
        ([], "Hee Haw was hosted by Bo."),  # a short name
    ],
)
def test_a_step_that_brings_something_stays(middle: tuple[Sequence[Passage], str]) -> None:
    before = ([CLARK], "Roy Clark hosted Hee Haw.")
    steps = (before, middle, ((), "So the answer is: Roy Clark."))
    assert NoGainFilter().check(run("Who hosted Hee Haw?", *steps)) is None


def test_a_search_that_finds_something_is_no_waste() -> None:
    asked = "Who managed the host of Hee Haw?"
    steps = [([CLARK], "Clark was the host."), ([], "Who managed the host Clark?")]
    assert NoGainFilter().check(run(asked, *steps, ([HALSEY], "So the answer is: Halsey."))) is None
    assert NoGainFilter().check(run(asked, *steps, ([], "So the answer is: Halsey.")))


# ---- gold ------------------------------------------------------------------------------------


def test_gold_passages_must_be_found() -> None:
    found = run("Who?", ([CLARK], "One."), ([], "Two."), gold=("Roy Clark", "Jim Halsey"))
    drop = GoldFilter().check(found)
    assert drop and "found 0.50" in drop.reason and "not 'Jim Halsey'" in drop.reason
    assert GoldFilter(min_recall=0.5).check(found) is None
    assert GoldFilter().check(run("Who?", ([], "One."))) is None  # no labels


# ---- all together ----------------------------------------------------------------------------

FILTERS: tuple[Filter, ...] = (
    AnswerFilter("em", 1.0, "hotpotqa"),
    EmptyFilter(),
    RepeatFilter(),
    LengthFilter(max_words=4),
    UngroundedFilter(),
    NoGainFilter(),
    GoldFilter(),
)
SENTENCES = ("", "Clark sang.", "Roy Clark sang.", "By Buck Owens.", "서울은 1999년.", "a b c d e")
trajectories = st.builds(
    lambda answer, steps, gold: Trajectory(
        Question("q", "Who sang?", "a", supporting_titles=gold), tuple(steps), answer
    ),
    st.sampled_from(["a", "b", ""]),
    st.lists(
        st.builds(
            Step,
            st.just(""),
            st.sampled_from([(), (CLARK,), (HALSEY,)]),
            st.sampled_from(SENTENCES),
        ),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from([(), ("Roy Clark",)]),
)


@given(st.lists(trajectories, max_size=6), st.permutations(FILTERS))
def test_the_order_of_filters_changes_only_who_is_named_first(
    runs: list[Trajectory], order: list[Filter]
) -> None:
    kept, dropped = sift(runs, FILTERS)
    kept_too, dropped_too = sift(iter(runs), order)
    assert kept_too == kept
    assert [run for run, _ in dropped_too] == [run for run, _ in dropped]
    assert [set(drops) for _, drops in dropped_too] == [set(drops) for _, drops in dropped]
    for _, drops in dropped_too:
        named = [drop.filter for drop in drops]
        assert named == [filter_.name for filter_ in order if filter_.name in named]


@given(st.lists(trajectories, max_size=6))
def test_nothing_is_lost_and_order_stays(runs: list[Trajectory]) -> None:
    kept, dropped = sift(runs, FILTERS)
    assert sorted(map(id, [*kept, *(run for run, _ in dropped)])) == sorted(map(id, runs))
    assert all(drops for _, drops in dropped)
    assert sift(runs, []) == (runs, [])
    places = {id(run): place for place, run in enumerate(runs)}
    assert [places[id(run)] for run in kept] == sorted(places[id(run)] for run in kept)


# ---- choice ----------------------------------------------------------------------------------


def sampled(sample: int, steps: int, *passages: Passage) -> Trajectory:
    made = [Step("", passages if n == 0 else (), f"{n}.") for n in range(steps)]
    question = Question("q", "Who?", "a", supporting_titles=("Roy Clark", "Jim Halsey"))
    return Trajectory(question, tuple(made), "a", sample=sample)


@pytest.mark.parametrize(
    ("runs", "best"),
    [
        ((sampled(0, 3, CLARK, HALSEY), sampled(1, 2, CLARK)), 1),  # fewest steps
        ((sampled(0, 2, CLARK), sampled(1, 2, CLARK, HALSEY)), 1),  # then gold titles
        ((sampled(2, 2, CLARK), sampled(1, 2, HALSEY)), 1),  # then the first
    ],
)
def test_the_best_sample_is_chosen_in_any_order(runs: tuple[Trajectory, ...], best: int) -> None:
    other = Trajectory(Question("r", "Who?", "a"), (Step("", (), "One."),), "a")
    for seed in range(3):
        mixed = random.Random(seed).sample([*runs, other], 3)
        chosen, left = choose(mixed, "best")
        assert [run.sample for run in chosen if run.question.id == "q"] == [best]
        assert other in chosen and chosen == [run for run in mixed if run in chosen]
        ((loser, (drop,)),) = left
        assert loser.sample != best and drop.filter == "choice" and f"q~{best}" in drop.reason


def test_all_samples_can_be_kept() -> None:
    runs = [sampled(0, 3), sampled(1, 2)]
    assert choose(runs, "all") == (runs, [])
