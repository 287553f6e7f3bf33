"""The driver: append-only passages, batching that changes nothing, streamed questions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest

from fakes import ListRetriever, ScriptedLM
from steper.driver import Outcome, in_step, outcomes, run
from steper.errors import CompletionError, SteperError
from steper.prompts import ANSWER_CUE
from steper.protocols import Completion, Request
from steper.setting import Setting
from steper.templates import load_template
from steper.types import Failure, Passage, Question, Step, Trajectory
from steper.world.generator import World
from steper.world.teacher import WorldTeacher

TEMPLATE = load_template("world")
A, B, C = (Passage(x, x, f"common {x} text") for x in ("a", "b", "c"))
QUESTION = Question("q", "common b", "x")


def setting(**changes: object) -> Setting:
    values: dict[str, object] = {"strategy": "ircot", "template": TEMPLATE, "k": 2, "max_steps": 4}
    return Setting(**(values | changes))  # type: ignore[arg-type]


def test_passages_are_appended_in_retrieval_order_each_once() -> None:
    lm = ScriptedLM(["common c", "common a", "So the answer is: x."])
    (result,) = run([QUESTION], setting=setting(), retriever=ListRetriever([A, B, C]), lm=lm)
    assert [[p.id for p in step.passages] for step in result.steps] == [["b", "a"], ["c"], []]
    for request, following in zip(lm.requests, lm.requests[1:], strict=False):
        shared = request.prompt.split("\nReasoning:")[0]
        assert following.prompt.startswith(shared)


@pytest.mark.parametrize("strategy", ["ircot", "single-step"])
def test_interleaved_prompts_are_one_text(strategy: str) -> None:
    """Whether a search brings something new, brings nothing, or is not made at all."""
    lm = ScriptedLM(["common c", "", "common a", " x."])
    chosen = setting(strategy=strategy, template=TEMPLATE.laid_out("interleaved"))
    (result,) = run([QUESTION], setting=chosen, retriever=ListRetriever([A, B, C]), lm=lm)
    new = {"ircot": [2, 1, 0, 0], "single-step": [2, 0, 0, 0]}[strategy]
    assert [len(step.passages) for step in result.steps] == new
    for number, (request, following) in enumerate(pairwise(lm.requests), start=1):
        written = f"{request.prompt}{result.steps[number - 1].reasoning}\n"
        shown = "".join(f"Passage: {p.title}. {p.text}\n" for p in result.steps[number].passages)
        cue = ANSWER_CUE if following.final else ""
        assert following.prompt == f"{written}{shown}Reasoning:\n{cue}"
    assert lm.requests[-1].final


def test_an_empty_sentence_searches_with_the_question_again() -> None:
    lm = ScriptedLM(["", "So the answer is: x."])
    retriever = ListRetriever([A, B])
    (result,) = run([QUESTION], setting=setting(), retriever=retriever, lm=lm)
    assert retriever.queries == ["common b", "common b"]
    assert result.steps[0].reasoning == ""


def test_single_step_searches_once() -> None:
    lm = ScriptedLM(["One.", "Two.", "So the answer is: x."])
    retriever = ListRetriever([A, B])
    chosen = setting(strategy="single-step")
    (result,) = run([QUESTION], setting=chosen, retriever=retriever, lm=lm)
    assert len(retriever.queries) == 1 and len(result.steps) == 3
    assert [step.query for step in result.steps] == ["common b", "", ""]


def test_each_step_is_shown_as_it_happens() -> None:
    shown: list[tuple[str, Step]] = []
    (result,) = run(
        [QUESTION],
        setting=setting(),
        retriever=ListRetriever([A]),
        lm=ScriptedLM(["One.", "So the answer is: x."]),
        on_step=lambda question, step: shown.append((question.id, step)),
    )
    assert shown == [("q", step) for step in result.steps]


def test_questions_in_flight_do_not_change_the_runs() -> None:
    world = World.generate(seed=1, part="train", entities=60)
    questions = world.questions(20, seed=1)
    retriever = ListRetriever(list(world.passages.values()))
    teacher = WorldTeacher(error_rate=0.2, seed=3)
    runs = [
        sorted(
            run(
                questions, setting=setting(max_steps=6), retriever=retriever, lm=teacher,
                in_flight=in_flight,
            ),
            key=lambda t: t.question.id,
        )
        for in_flight in (1, 7, 64)
    ]  # fmt: skip
    assert runs[0] == runs[1] == runs[2] and len(runs[0]) == 20


def test_questions_are_taken_only_when_there_is_room() -> None:
    taken = 0

    def stream() -> Iterator[Question]:
        nonlocal taken
        for number in range(50):
            taken += 1
            yield Question(str(number), "common", "x")

    lm = ScriptedLM(["So the answer is: x."] * 50)
    results = run(stream(), setting=setting(), retriever=ListRetriever([A]), lm=lm, in_flight=3)
    next(results)
    assert taken <= 6
    assert len(list(results)) == 49 and taken == 50


class Recited:
    """A retriever that gives out prepared results, one a search."""

    def __init__(self, *results: list[Passage]) -> None:
        self.results = list(results)

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        return [self.results.pop(0)[:k] for _ in queries]


def test_a_passage_found_twice_is_kept_once_at_its_first_place() -> None:
    retriever = Recited([C, A, C], [A, B, C], [B, A])
    lm = ScriptedLM(["One.", "Two.", "So the answer is: x."])
    (result,) = run([QUESTION], setting=setting(k=3), retriever=retriever, lm=lm)
    assert [[p.id for p in step.passages] for step in result.steps] == [["c", "a"], ["b"], []]
    assert [p.id for p in result.passages] == ["c", "a", "b"]
    for request in lm.requests:
        titles = [line.split(". ")[0] for line in request.prompt.splitlines() if ". " in line]
        assert titles == [f"Passage: {p.title}" for p in request.passages]


def test_a_search_that_finds_nothing_is_a_step_without_passages() -> None:
    lm = ScriptedLM(["One.", "So the answer is: x."])
    (result,) = run([QUESTION], setting=setting(), retriever=Recited([], [A]), lm=lm)
    assert [[p.id for p in step.passages] for step in result.steps] == [[], ["a"]]


def test_the_answer_cue_ends_the_run_early() -> None:
    lm = ScriptedLM(["One.", "It is x. So the answer is: x.\nThree.", "never said"])
    (result,) = run([QUESTION], setting=setting(), retriever=ListRetriever([A]), lm=lm)
    assert (result.answer, result.stopped, len(result.steps)) == ("x", "answer", 2)
    assert lm.lines == ["never said"]


@pytest.mark.parametrize(("max_steps", "said"), [(1, [" x."]), (3, ["One.", "Two.", " x."])])
@pytest.mark.parametrize("strategy", ["ircot", "single-step"])
def test_only_the_last_allowed_step_asks_with_the_cue(
    strategy: str, max_steps: int, said: list[str]
) -> None:
    lm = ScriptedLM(said)
    chosen = setting(strategy=strategy, max_steps=max_steps)
    (result,) = run([QUESTION], setting=chosen, retriever=ListRetriever([A, B]), lm=lm)
    last = len(said) - 1
    assert [r.final for r in lm.requests] == [n == last for n in range(len(said))]
    assert [r.prompt.endswith(ANSWER_CUE) for r in lm.requests] == [r.final for r in lm.requests]
    assert (result.answer, result.stopped) == ("x", "limit")
    assert result.steps[-1].reasoning == "So the answer is: x."


def test_a_model_that_never_answers_leaves_the_answer_empty() -> None:
    lm = ScriptedLM(["", "", ""])
    retriever = ListRetriever([A, B])
    (result,) = run([QUESTION], setting=setting(max_steps=3), retriever=retriever, lm=lm)
    assert (result.answer, result.stopped) == ("", "limit")
    assert retriever.queries == ["common b"] * 3


def test_requests_under_way_never_exceed_the_questions_in_flight() -> None:
    under_way, most = 0, 0

    class Slow(WorldTeacher):
        async def complete(self, request: Request) -> Completion:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0.001)
            under_way -= 1
            return await super().complete(request)

    world = World.generate(seed=1, part="train", entities=60)
    retriever = ListRetriever(list(world.passages.values()))
    questions = world.questions(12, seed=2)
    done = list(run(questions, setting=setting(), retriever=retriever, lm=Slow(), in_flight=5))
    assert len(done) == 12 and most == 5


def test_it_runs_inside_a_running_loop_as_in_a_notebook() -> None:
    async def cell() -> list[str]:
        lm = ScriptedLM(["One.", "So the answer is: x."])
        runs = run([QUESTION], setting=setting(), retriever=ListRetriever([A]), lm=lm)
        return [trajectory.answer for trajectory in runs]

    assert asyncio.run(cell()) == ["x"]


class Hanging:
    """Answers questions whose id is even, and never the others."""

    def __init__(self) -> None:
        self.cancelled = 0

    async def complete(self, request: Request) -> Completion:
        if int(request.question.id) % 2:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        return Completion("So the answer is: x.")


def test_a_slow_question_holds_up_no_other() -> None:
    questions = [Question(str(number), "common", "x") for number in range(10)]
    lm = Hanging()
    runs = run(questions, setting=setting(), retriever=ListRetriever([A]), lm=lm, in_flight=6)
    assert {next(runs).question.id for _ in range(5)} == {"0", "2", "4", "6", "8"}
    runs.close()  # type: ignore[attr-defined]
    assert lm.cancelled >= 4, "what is under way is ended with the iteration"


class Failing:
    """Fails at the second step of one question; or says at once that nothing can be had."""

    def __init__(self, error: SteperError) -> None:
        self.error = error

    async def complete(self, request: Request) -> Completion:
        if request.question.id == "3" and request.steps:
            raise self.error
        return Completion("So the answer is: x." if request.steps else "common")


def ended(lm: Failing) -> Iterator[Outcome]:
    runs = [(Question(str(number), "common", "x"), 0) for number in range(6)]
    return in_step(outcomes(runs, setting=setting(), retriever=ListRetriever([A, B]), lm=lm))


def test_a_question_that_fails_is_an_outcome_and_the_others_go_on() -> None:
    results = {o.result.id: o for o in ended(Failing(CompletionError("no.", where="server")))}
    assert len(results) == 6
    failure = results["3"].result
    assert isinstance(failure, Failure)
    assert (failure.step, failure.reason, len(results["3"].usage)) == (2, "server: no.", 1)
    assert all(isinstance(o.result, Trajectory) for id_, o in results.items() if id_ != "3")


def test_what_has_ended_is_handed_over_before_a_fatal_error() -> None:
    got = []
    with pytest.raises(SteperError, match="no such model"):
        for outcome in ended(Failing(SteperError("no such model."))):
            got.append(outcome.result.id)
    assert sorted(got) == ["0", "1", "2", "4", "5"]


def test_run_raises_where_a_completion_cannot_be_had() -> None:
    with pytest.raises(CompletionError, match=r"^question 3, step 2: server: no\."):
        list(
            run(
                [Question("3", "common", "x")],
                setting=setting(),
                retriever=ListRetriever([A]),
                lm=Failing(CompletionError("no.", where="server")),
            )
        )


def test_of_several_candidates_the_best_is_kept_and_all_are_recorded() -> None:
    lm = ScriptedLM(
        ["", "common c", "common a", "So the answer is: x.", "x", "So the answer is: x."]
    )
    runs = in_step(
        outcomes(
            [(QUESTION, 0)],
            setting=setting(),
            retriever=ListRetriever([A, B, C]),
            lm=lm,
            candidates=3,
        )
    )
    (outcome,) = runs
    assert isinstance(outcome.result, Trajectory)
    first, second = outcome.result.steps
    assert first.reasoning == "common c" and first.candidates == ("", "common c", "common a")
    assert second.reasoning == "So the answer is: x."
    assert [request.candidate for request in lm.requests] == [0, 1, 2] * 2
    assert len({request.prompt for request in lm.requests[:3]}) == 1
