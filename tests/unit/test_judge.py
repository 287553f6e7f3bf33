"""A judge's answers are read strictly, the unreadable are unscored, nothing is asked twice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steper.driver import HOPELESS
from steper.errors import BudgetSpent, CompletionError, Outage, SteperError
from steper.judge import JudgeFilter, Rating, Verdict, judge, judge_request, read_verdict
from steper.protocols import Completion, Request
from steper.store import Log
from steper.types import Passage, Question, Step, Trajectory

CLARK = Passage("1", "Roy Clark", "Roy Clark hosted {Hee Haw}.")
GOOD = '{"supported": true, "useful": true, "reason": "Stated."}'
BAD = '{"supported": false, "useful": true, "reason": "Nowhere."}'


def trajectory(id_: str = "q", steps: int = 2, sample: int = 0) -> Trajectory:
    made = [Step(f"s{n}", (CLARK,) if n == 1 else (), f"Fact {n}.") for n in range(1, steps + 1)]
    return Trajectory(Question(id_, "Who hosted it?", "a"), tuple(made), "a", sample=sample)


class Judge:
    """Answers by a function of the request; records what it was asked."""

    def __init__(self, answer: Callable[[Request], str]) -> None:
        self.answer, self.requests = answer, list[Request]()

    async def complete(self, request: Request) -> Completion:
        self.requests.append(request)
        await asyncio.sleep(0)
        return Completion(self.answer(request))


def judged(
    folder: Path, lm: Judge, *trajectories: Trajectory, in_flight: int = 4
) -> dict[str, list[Verdict]]:
    log = Log(folder / "verdicts.jsonl", Verdict, key=lambda verdict: verdict.id)
    return asyncio.run(judge(trajectories, lm, log, in_flight=in_flight))


# ---- reading ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"Here is my verdict:\n```json\n{GOOD}\n```\nI hope it helps!",
        f"<think>perhaps {BAD} or {{</think>{GOOD}",
        '{"reason": "Stated.", "useful": true,\n "supported": true}',
    ],
)
def test_a_verdict_is_found_among_words(text: str) -> None:
    assert read_verdict(text) == Rating(True, True, "Stated.")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "It is supported and useful.",
        "null",
        "[true, true]",
        f"{GOOD} {BAD}",
        f"{GOOD} {GOOD}",
        f"[{GOOD}, {BAD}]",
        f'{{"verdict": {GOOD}}}',
        f'{{"draft": {GOOD}, "verdict": {{"supp',
        f"{{as I see it}} {GOOD}",
        GOOD.replace("true", "True"),
        GOOD.replace("true", '"true"'),
        GOOD.replace("true", "1"),
        GOOD.replace('"Stated."', "null"),
        GOOD.replace('"Stated."', '{"text": "Stated."}'),
        GOOD.replace(', "reason": "Stated."', ""),
        GOOD.replace("}", ', "score": 5}'),
        GOOD.replace("}", ', "useful": false}'),
        '{"supported": true, "supported": false, "useful": true, "reason": ""}',
        GOOD[:-1],
        '{"a":' * 100_000,
        "{" * 100_000,
        "x" * 100_000 + GOOD,
    ],
)
def test_a_flawed_verdict_is_none(text: str) -> None:
    assert read_verdict(text) is None


@given(st.text(max_size=200))
def test_no_answer_is_an_error(text: str) -> None:
    assert read_verdict(text) is None or "{" in text


@given(
    st.booleans(),
    st.booleans(),
    st.text(alphabet=st.characters(codec="utf-8", exclude_characters="{")),
)
def test_what_was_meant_is_read(supported: bool, useful: bool, reason: str) -> None:
    said = json.dumps({"supported": supported, "useful": useful, "reason": reason})
    if "</think>" not in said:
        rating = read_verdict(said)
        assert rating == Rating(supported, useful, " ".join(reason.split()))


def test_half_a_character_can_be_written_down(tmp_path: Path) -> None:
    lm = Judge(lambda _: GOOD.replace("Stated.", "Half \\ud83d, whole \\ud83d\\ude00."))
    verdicts = judged(tmp_path, lm, trajectory())
    assert verdicts["q"][0].rating == Rating(True, True, "Half ?, whole 😀.")


# ---- asking ----------------------------------------------------------------------------------


def test_the_judge_sees_what_the_step_could_see() -> None:
    later = Passage("2", "Later", "Not read yet.")
    steps = (Step("", (CLARK,), "Fact 1."), Step("", (), "Fact 2."), Step("", (later,), "Fact 3."))
    request = judge_request(Trajectory(Question("q", "Who?", "gold"), steps, "a", sample=3), 2)
    system, user, assistant = request.turns
    assert (system.role, user.role, assistant.role) == ("system", "user", "assistant")
    assert assistant.text == "" and "supported" in system.text
    for shown in (
        "Who?",
        "[Roy Clark] Roy Clark hosted {Hee Haw}.",
        "1. Fact 1.",
        "check: Fact 2.",
    ):
        assert shown in user.text
    for hidden in ("Fact 3.", "Later", "gold"):
        assert hidden not in request.prompt
    assert request.steps == steps[:1] and request.passages == (CLARK,) and request.sample == 3


def test_every_step_is_rated_once(tmp_path: Path) -> None:
    lm = Judge(lambda request: BAD if "check: Fact 2." in request.prompt else GOOD)
    verdicts = judged(tmp_path, lm, trajectory("a"), trajectory("a", sample=1), trajectory("b", 12))
    assert {id_: [v.step for v in found] for id_, found in verdicts.items()} == {
        "a": [1, 2],
        "a~1": [1, 2],
        "b": list(range(1, 13)),
    }
    assert len(lm.requests) == 16
    drop = JudgeFilter(verdicts).check(trajectory("b", 12))
    assert drop and drop.reason == "step 2 is unsupported: Nowhere."
    useless = Judge(lambda _: GOOD.replace('useful": true', 'useful": false'))
    drop = JudgeFilter(judged(tmp_path / "else", useless, trajectory())).check(trajectory())
    assert drop and drop.reason == "step 1 is useless: Stated."


def test_the_unscored_drop_nothing(tmp_path: Path) -> None:
    verdicts = judged(tmp_path, Judge(lambda _: "Well."), trajectory())
    assert [(v.rating, v.raw) for v in verdicts["q"]] == [(None, "Well.")] * 2
    assert JudgeFilter(verdicts).check(trajectory()) is None
    mixed = Judge(lambda request: BAD if "check: Fact 2." in request.prompt else "Well.")
    assert JudgeFilter(judged(tmp_path / "else", mixed, trajectory())).check(trajectory())


def test_nothing_is_asked_twice_and_a_stopped_run_ends_like_a_whole_one(tmp_path: Path) -> None:
    runs = [trajectory(id_) for id_ in "abcd"]
    judged(tmp_path / "whole", Judge(lambda _: GOOD), *runs)

    def broken(request: Request) -> str:
        if request.question.id == "c":
            raise SteperError("the server is gone.")
        return GOOD

    with pytest.raises(SteperError, match="is gone"):
        judged(tmp_path / "stopped", Judge(broken), *runs, in_flight=1)
    lm = Judge(lambda _: GOOD)
    judged(tmp_path / "stopped", lm, *runs)
    assert {request.question.id for request in lm.requests} == {"c", "d"}
    files = [tmp_path / name / "verdicts.jsonl" for name in ("whole", "stopped")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_failed_request_is_unscored_and_asked_again(tmp_path: Path) -> None:
    def fails(request: Request) -> str:
        if not request.steps:
            raise CompletionError("too long.")
        return GOOD

    verdicts = judged(tmp_path, Judge(fails), trajectory())
    assert [v.error for v in verdicts["q"]] == ["too long.", ""]
    assert JudgeFilter(verdicts).check(trajectory()) is None
    again = Judge(lambda _: GOOD)
    verdicts = judged(tmp_path, again, trajectory())
    assert len(again.requests) == 1 and all(v.rating for v in verdicts["q"])


def test_a_spent_budget_waits_for_what_is_under_way(tmp_path: Path) -> None:
    class Poor(Judge):
        async def complete(self, request: Request) -> Completion:
            self.requests.append(request)
            if len(self.requests) > 3:
                raise BudgetSpent("spent.")
            await asyncio.sleep(0.01)
            return Completion(GOOD)

    with pytest.raises(BudgetSpent):
        judged(tmp_path, Poor(lambda _: GOOD), *map(trajectory, "abcd"))
    assert len((tmp_path / "verdicts.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("good_first", [0, 5])
def test_a_dead_judge_stops_instead_of_letting_everything_pass(
    tmp_path: Path, good_first: int
) -> None:
    """From the start, or midway; the same command goes on, and asks again for what failed."""

    def answer(_: Request) -> str:
        if len(given) == good_first:
            raise Outage("no answer after 9 attempts.")
        given.append(GOOD)
        return GOOD

    given = list[str]()
    lm = Judge(answer)
    trajectories = [trajectory(f"q{number}") for number in range(40)]
    with pytest.raises(SteperError, match=r"steps could not be judged; the last: no answer"):
        judged(tmp_path, lm, *trajectories)
    assert len(lm.requests) <= good_first + HOPELESS + 4
    again = Judge(lambda _: GOOD)
    verdicts = judged(tmp_path, again, *trajectories)
    assert len(again.requests) == 80 - good_first
    assert all(verdict.rating for found in verdicts.values() for verdict in found)
