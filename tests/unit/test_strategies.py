"""Strategies, through the real driver: what each searches with, and what ends a run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fakes import ListRetriever, ScriptedLM
from steper.driver import run
from steper.metrics import score
from steper.prompts import statement_of
from steper.protocols import Completion, Finish, Generate, Request, Search, Usage
from steper.retrieval.indexes import make_index
from steper.setting import Setting
from steper.strategies import build_strategy
from steper.strategies.limits import Limits
from steper.templates import load_template
from steper.types import Passage, Question, Step, StrategyName, Trajectory
from steper.world.generator import World
from steper.world.teacher import WorldTeacher

QUESTION = Question("q", "Which show?", "Hee Haw")
ANSWER = "So the answer is: Hee Haw."
ASKING: tuple[StrategyName, ...] = ("self-ask", "interleaved")
ALL: tuple[StrategyName, ...] = ("ircot", "single-step", "closed-book", *ASKING)


class Numbered:
    """Finds ``k`` passages never seen before at every search. Records its queries."""

    def __init__(self) -> None:
        self.queries, self.found = list[str](), 0

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        self.queries += queries
        return [[self._new() for _ in range(k)] for _ in queries]

    def _new(self) -> Passage:
        self.found += 1
        return Passage(str(self.found), f"Title {self.found}", "Text.")


def walk(
    strategy: StrategyName, lines: list[str], lm: Any = None, **changes: Any
) -> tuple[Trajectory, list[str]]:
    """A run in which the lines are said, and its queries."""
    template = load_template(strategy).bare()
    setting = Setting(strategy, template, **({"k": 2, "max_steps": 5} | changes))
    retriever = Numbered()
    (result,) = run([QUESTION], setting=setting, retriever=retriever, lm=lm or ScriptedLM(lines))
    assert [step.query for step in result.steps if step.query] == retriever.queries
    return result, retriever.queries


# ---- what is searched --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "queries"),
    [
        ("ircot", ["Which show?", "One.", "Two."]),
        ("single-step", ["Which show?"]),
        ("closed-book", []),
        ("self-ask", ["Which show?"]),
        ("interleaved", []),
    ],
)
def test_what_sentences_without_a_cue_search_for(
    strategy: StrategyName, queries: list[str]
) -> None:
    result, made = walk(strategy, ["One.", "Two.", ANSWER])
    assert made == queries
    assert (result.answer, result.stopped, len(result.steps)) == ("Hee Haw", "answer", 3)


def test_self_ask_searches_with_the_question_and_then_with_the_follow_ups() -> None:
    lines = ["Intermediate answer: A. Follow up: What is B?", "Follow up:  And\tC?", "D.", ANSWER]
    result, queries = walk("self-ask", lines)
    assert queries == ["Which show?", "What is B?", "And C?"]
    assert [len(step.passages) for step in result.steps] == [2, 2, 2, 0]


def test_interleaved_turns_search_only_when_told() -> None:
    lines = ["Search: A", "It is A.", "It is B. Search: C", ANSWER]
    result, queries = walk("interleaved", lines)
    assert queries == ["A", "C"]
    assert [len(step.passages) for step in result.steps] == [0, 2, 0, 2]


@pytest.mark.parametrize(
    ("strategy", "queries"),
    [
        ("ircot", ["Which show?", "One. Follow up: x Search: y"]),
        ("single-step", ["Which show?"]),
        ("closed-book", []),
        ("self-ask", ["Which show?", "x Search: y"]),
        ("interleaved", ["y"]),
    ],
)
def test_each_strategy_reads_its_own_cue_only(strategy: StrategyName, queries: list[str]) -> None:
    assert walk(strategy, ["One. Follow up: x Search: y", ANSWER])[1] == queries


@pytest.mark.parametrize(
    ("strategy", "cue"), [("self-ask", "Follow up:"), ("interleaved", "Search:")]
)
def test_a_forced_search_is_made_with_what_there_is(strategy: StrategyName, cue: str) -> None:
    lines = [f"A. {cue} B", "One.", "", f"Two. {cue} "]
    _, queries = walk(strategy, [*lines, ANSWER], force_search=True)
    assert queries == ["Which show?", "B", "One.", "Which show?", "Two."]
    _, queries = walk(strategy, [*lines, ANSWER])
    assert queries == (["Which show?", "B"] if strategy == "self-ask" else ["B"])


@pytest.mark.parametrize("strategy", ["ircot", "single-step", "closed-book"])
def test_forcing_changes_nothing_where_the_model_has_no_choice(strategy: StrategyName) -> None:
    lines = ["One.", "Two.", ANSWER]
    assert walk(strategy, [*lines], force_search=True) == walk(strategy, [*lines])


def test_only_models_that_choose_are_told_of_the_cue() -> None:
    for strategy in ALL:
        lm = ScriptedLM([ANSWER])
        walk(strategy, [], lm)
        cue = load_template(strategy).search_cue if strategy in ASKING else ""
        assert [request.search_cue for request in lm.requests] == [cue]


# ---- what ends a run ---------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ALL)
def test_the_last_allowed_step_asks_for_the_answer(strategy: StrategyName) -> None:
    lm = ScriptedLM(["One.", "Two.", " Hee Haw."])
    result, _ = walk(strategy, [], lm, max_steps=3)
    assert [request.final for request in lm.requests] == [False, False, True]
    assert [request.nudge == load_template(strategy).nudge_final for request in lm.requests] == [
        False,
        False,
        True,
    ]
    assert (result.answer, result.stopped) == ("Hee Haw", "limit")


@pytest.mark.parametrize("strategy", ALL)
def test_a_sentence_that_comes_again_ends_the_run_where_asked(strategy: StrategyName) -> None:
    lines = ["One.", "Two.", " one. ", " Hee Haw."]
    lm = ScriptedLM(lines)
    result, queries = walk(strategy, [], lm, early_stop=True)
    assert [request.final for request in lm.requests] == [False, False, False, True]
    assert (result.answer, result.stopped, len(result.steps)) == ("Hee Haw", "stuck", 4)
    assert result.steps[-1].query == "" and "one." not in queries  # it would only bring it again
    plain, _ = walk(strategy, [*lines, ANSWER])
    assert (plain.stopped, len(plain.steps)) == ("limit", 5)


@pytest.mark.parametrize(
    ("most", "steps", "stopped"),
    [(0, 5, "limit"), (2, 2, "budget"), (3, 3, "budget"), (9, 5, "limit")],
)
def test_enough_passages_end_the_run(most: int, steps: int, stopped: str) -> None:
    result, queries = walk("ircot", [f"{n}." for n in range(5)], max_passages=most)
    assert (len(result.steps), result.stopped) == (steps, stopped)
    # The answer is asked for with what is there: a search for it would go beyond what is allowed.
    assert len(queries) == steps - (stopped == "budget")


class Counting(ScriptedLM):
    """Takes ten tokens a sentence."""

    async def complete(self, request: Request) -> Completion:
        completion = await super().complete(request)
        return Completion(completion.text, Usage(prompt_tokens=8, completion_tokens=2))


@pytest.mark.parametrize("strategy", ALL)
@pytest.mark.parametrize(("most", "steps"), [(0, 5), (5, 2), (10, 2), (11, 3), (40, 5), (99, 5)])
def test_enough_tokens_end_the_run(strategy: StrategyName, most: int, steps: int) -> None:
    lm = Counting([*(f"{n}." for n in range(steps - 1)), " x."])
    result, _ = walk(strategy, [], lm, max_run_tokens=most)
    assert (len(result.steps), result.answer) == (steps, "x")
    # The last step would have asked anyway.
    assert result.stopped == ("budget" if steps < 5 else "limit")
    if result.stopped == "budget":
        assert result.steps[-1].query == ""


@pytest.mark.parametrize(
    ("changes", "stopped"),
    [
        ({"early_stop": True}, "stuck"),
        ({"max_passages": 4}, "budget"),
        ({"max_run_tokens": 20}, "budget"),
    ],
)
@pytest.mark.parametrize("force", [False, True])
def test_an_order_to_search_is_not_heard_at_an_early_end(
    changes: dict[str, Any], stopped: str, force: bool
) -> None:
    lm = Counting(["Follow up: A", "Follow up: A", " x."])
    result, queries = walk("self-ask", [], lm, force_search=force, **changes)
    assert queries == ["Which show?", "A"]
    assert (result.answer, result.stopped, len(result.steps)) == ("x", stopped, 3)


@pytest.mark.parametrize("strategy", ALL)
def test_an_early_end_without_an_answer_is_still_an_end(strategy: StrategyName) -> None:
    result, _ = walk(strategy, ["One.", "One.", ""], early_stop=True)
    assert (result.answer, result.stopped, len(result.steps)) == ("", "stuck", 3)


@pytest.mark.parametrize("strategy", ALL)
def test_asking_twice_gives_the_same_order(strategy: StrategyName) -> None:
    """A strategy holds no state: a run taken up from its steps goes on as it would have."""
    orders = []
    for _ in range(2):
        built = build_strategy(strategy, Limits(max_steps=3), search_cue="Search:")
        steps = [Step("", (), "One. Search: x"), Step("", (), "Two.")]
        orders.append(
            [built.next(QUESTION, steps[:n], None) for n in range(3)]
            + [built.next(QUESTION, steps, Search("x")), built.next(QUESTION, [*steps] * 2, None)]
        )
    assert orders[0] == orders[1]
    assert orders[0][-2:] == [Generate("limit"), Finish("")]


# ---- whole runs --------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ASKING)
@pytest.mark.parametrize("split", [0.0, 1.0])
def test_the_worlds_teacher_asks_its_way_to_every_answer(
    tmp_path: Path, strategy: StrategyName, split: float
) -> None:
    """Chains of up to four hops in the paper's five steps, searching in well under every step."""
    world = World.generate(seed=1, part="train", entities=120, split=split)
    questions = world.questions(60, seed=1)
    index = make_index(list(world.passages.values()), tmp_path / "index")
    setting = Setting(strategy, load_template("world"), k=4, max_steps=5)
    results = list(
        run(questions, setting=setting, retriever=index, lm=WorldTeacher(error_rate=0.0))
    )
    right = [score(r.answer, r.question.answers).em for r in results]
    assert len(right) == 60 and sum(right) >= 59
    steps = [step for result in results for step in result.steps]
    assert 0.4 < sum(bool(step.query) for step in steps) / len(steps) < 0.8
    for result in results:
        said = [step.reasoning for step in result.steps]
        assert len(said) == len({*said})
        # One fact a sentence, in the chain's order, and none left out.
        stated = [fact for text in said[:-1] if (fact := statement_of(text, cue="Search:"))]
        assert stated == [hop.statement for hop in result.question.chain[: len(stated)]]
        first = result.steps[0].query
        assert first == (result.question.question if strategy == "self-ask" else "")


def test_the_documented_search_rates_are_what_the_code_there_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    docs = Path(__file__).resolve().parents[2] / "docs/strategies.md"
    ((code, printed),) = re.findall(
        r"```python\n(.*?)```\n\n```\n(.*?)```", docs.read_text(encoding="utf-8"), re.DOTALL
    )
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert capsys.readouterr().out == printed


KOREAN = Question("q", "훈민정음을 만든 왕의 아버지는?", "태종")
LETTERS = Passage("1", "훈민정음", "훈민정음은 세종이 만들었다.")
FATHER = Passage("2", "태종", "태종은 세종의 아버지이다.")


MADE = "훈민정음은 세종이 만들었다."


@pytest.mark.parametrize(
    ("strategy", "lines", "queries"),
    [
        ("ircot", [MADE], [KOREAN.question, MADE]),
        ("single-step", [MADE], [KOREAN.question]),
        ("closed-book", [MADE], []),
        (
            "self-ask",
            ["중간 답: 세종이다. 추가 질문: 세종의 아버지는?"],
            [KOREAN.question, "세종의 아버지는?"],
        ),
        (
            "interleaved",
            ["검색: 훈민정음을", "세종이다. 검색: 세종의 아버지"],
            ["훈민정음을", "세종의 아버지"],
        ),
    ],
)
@pytest.mark.parametrize("asked", [False, True])
def test_a_run_in_korean(
    strategy: StrategyName, lines: list[str], queries: list[str], asked: bool
) -> None:
    """From the cue of a query to that of the answer, given freely or asked for."""
    template = load_template(f"{strategy}-ko")
    lm = ScriptedLM([*lines, " 태종." if asked else "따라서 답은: 태종."])
    setting = Setting(strategy, template, k=1, max_steps=len(lines) + 1 if asked else 5)
    retriever = ListRetriever([LETTERS, FATHER])
    (result,) = run([KOREAN], setting=setting, retriever=retriever, lm=lm)
    assert retriever.queries == queries
    assert (result.answer, result.stopped) == ("태종", "limit" if asked else "answer")
    assert result.steps[-1].reasoning == "따라서 답은: 태종."
    assert lm.requests[-1].prompt.endswith("\n따라서 답은:") == asked
