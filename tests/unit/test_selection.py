"""The best of several sentences: each rule decides only where the ones before it leave a tie."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import ListRetriever, ScriptedLM
from steper.driver import in_step, outcomes
from steper.selection import choose
from steper.setting import Setting
from steper.templates import load_template
from steper.types import Passage, Question, Trajectory

SAID = ["Jim Halsey managed Roy Clark."]
SOURCES = ["Which show did Roy Clark host in 1969?", "Hee Haw\nRoy Clark hosted Hee Haw.", *SAID]


def best(*candidates: str, said: list[str] = SAID, sources: list[str] = SOURCES) -> str:
    return candidates[choose(candidates, said=said, sources=sources)]


@pytest.mark.parametrize(
    "candidates",
    [
        # Something is written, were it foreign and alone.
        ["", "", " ", "It was Buck Owens of Texas."],
        ["...", "...", "It was Buck Owens of Texas."],
        # It was not written before, were it foreign and alone.
        ["Jim Halsey managed Roy Clark.", "jim halsey managed  Roy Clark", "It was Buck Owens."],
        # It names nothing foreign, were it alone.
        ["It was Buck Owens.", "It was Buck Owens.", "It was Hee Haw."],
        # Of two that name foreign things the one with fewer.
        ["It was Buck Owens from 1971 to 1999.", "It was Buck Owens."],
        # Numbers are named, too.
        ["That was in 1971.", "That was in 1971.", "That was in 1969."],
        # Most say the same, case and punctuation aside.
        ["He hosted it.", "He sang there.", "It was a show", "He, sang there!", "he sang there."],
    ],
)
@pytest.mark.parametrize("seed", range(4))
def test_the_rules_in_their_order(candidates: list[str], seed: int) -> None:
    wanted = candidates[-1].lower().strip(".")
    random.Random(seed).shuffle(candidates := [*candidates])
    assert best(*candidates).lower().strip(".!").replace(",", "") == wanted


def test_in_the_end_the_first_is_kept() -> None:
    assert choose(["He sang.", "He hosted."], said=SAID, sources=SOURCES) == 0
    assert choose(["He hosted.", "He sang."], said=SAID, sources=SOURCES) == 0
    assert choose(["", ""], said=SAID, sources=SOURCES) == 0
    assert choose(["One."], said=[], sources=[]) == 0


def test_a_difference_of_numbers_is_not_foreign() -> None:
    """As an age is worked out of what earlier sentences say, it stands nowhere."""
    said = ["He was born in 1933.", "The show began in 1969."]
    sources = ["How old was he?", *said]
    assert best("He was 35.", "He was 36.", said=said, sources=sources) == "He was 36."


POOL = {  # how many things each names that no source says
    "": 0,
    "Jim Halsey managed Roy Clark.": 0,
    "He hosted Hee Haw.": 0,
    "Roy Clark sang in 1969.": 0,
    "he hosted hee haw": 0,
    "It was Buck Owens.": 1,
    "It was Buck Owens in 1971.": 2,
    "Then Minnie Pearl came.": 1,
}
drawn = st.lists(st.sampled_from([*POOL]), min_size=1, max_size=8)


def key(text: str) -> str:
    return text.lower().strip(".")


def rank(text: str, candidates: list[str]) -> tuple[bool, bool, int, int]:
    """The rules, told once more."""
    votes = sum(key(other) == key(text) for other in candidates)
    return bool(text), text not in SAID, -POOL[text], votes


@given(drawn, st.randoms(use_true_random=False))
def test_order_matters_only_where_the_rules_leave_a_tie(
    candidates: list[str], rng: random.Random
) -> None:
    shuffled = rng.sample(candidates, len(candidates))
    chosen = [choose(each, said=SAID, sources=SOURCES) for each in (candidates, shuffled)]
    one, other = candidates[chosen[0]], shuffled[chosen[1]]
    assert rank(one, candidates) == rank(other, candidates)
    ranks = [rank(text, candidates) for text in candidates]
    assert chosen[0] == ranks.index(max(ranks))


def test_a_run_keeps_the_best_and_shows_them_all() -> None:
    template = load_template("world")
    lm = ScriptedLM(
        ["It was Buck Owens.", "He hosted Hee Haw.", "", " He hosted Hee Haw.", " Hee Haw.", " X."]
    )
    ended = in_step(
        outcomes(
            [(Question("q", "Which show did Roy Clark host?", "Hee Haw"), 0)],
            setting=Setting("ircot", template, k=1, max_steps=2),
            retriever=ListRetriever([Passage("1", "Roy Clark", "Roy Clark hosted Hee Haw.")]),
            lm=lm,
            candidates=3,
        )
    )
    (outcome,) = ended
    assert isinstance(outcome.result, Trajectory)
    first, last = outcome.result.steps
    assert first.reasoning == "He hosted Hee Haw."
    assert first.candidates == ("It was Buck Owens.", "He hosted Hee Haw.", "")
    # Whole sentences are compared, the answer cue included, so the first repeats nothing.
    assert last.candidates[0] == "So the answer is: He hosted Hee Haw."
    assert outcome.result.answer == "He hosted Hee Haw"
    assert [request.candidate for request in lm.requests] == [0, 1, 2, 0, 1, 2]
