"""The driver: append-only passages, batching that changes nothing, streamed questions."""

from __future__ import annotations

from collections.abc import Iterator

from fakes import ListRetriever, ScriptedLM
from steper.driver import run
from steper.setting import Setting
from steper.templates import load_template
from steper.types import Passage, Question, Step
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
