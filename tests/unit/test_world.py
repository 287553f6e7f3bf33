"""The offline world: nothing is shared between its parts, and reading is the only way."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from fakes import texts
from steper.driver import run
from steper.metrics import score
from steper.protocols import Request, Retriever
from steper.retrieval.indexes import make_index
from steper.setting import Setting
from steper.templates import load_template
from steper.types import Passage, Question, Step
from steper.world.generator import (
    RELATIONS,
    Fact,
    Part,
    World,
    entity_of,
    part_of,
    read,
    relation_named,
)
from steper.world.teacher import WorldTeacher

PARTS: tuple[Part, ...] = ("pretrain", "train", "test")
SETTING = Setting("ircot", load_template("world"), k=2, max_steps=8)


@pytest.fixture(scope="module")
def worlds() -> dict[Part, World]:
    return {part: World.generate(seed=0, part=part, entities=300) for part in PARTS}


def test_no_entity_is_shared_between_parts(worlds: dict[Part, World]) -> None:
    for part, world in worlds.items():
        values = {v for facts in world.facts.values() for v in facts.values() if not v.isdigit()}
        assert {part_of(name) for name in {*world.kinds, *values}} == {part}
    for one, other in itertools.combinations(worlds.values(), 2):
        assert not set(one.kinds) & set(other.kinds)


def test_every_fact_of_a_passage_is_read_back(worlds: dict[Part, World]) -> None:
    for name, passage in worlds["test"].passages.items():
        facts = read(passage.text)
        assert {fact.relation: fact.value for fact in facts} == worlds["test"].facts[name]
        assert {fact.subject for fact in facts} == {name} == {passage.title}


def test_words_are_shared_by_names(worlds: dict[Part, World]) -> None:
    words = [word for name in worlds["test"].kinds for word in name.split()]
    assert len(set(words)) < 0.8 * len(words)


def test_wordings_tell_relations_apart() -> None:
    for relations in RELATIONS.values():
        for relation in relations:
            for template in relation.templates:
                value = "1950" if relation.value == "year" else "Amber Quill"
                (fact,) = read(template.format(s="Silver Harbor", v=value))
                assert fact == ("Silver Harbor", relation.name, value)


def test_answers_follow_from_the_facts(worlds: dict[Part, World]) -> None:
    world = worlds["train"]
    questions = world.questions(200, seed=1)
    assert {q.type for q in questions} == {"2hop", "3hop", "4hop", "comparison"}
    assert len({q.id for q in questions}) == len({q.question for q in questions}) == 200
    for question in questions:
        for hop in question.chain:
            assert world.facts[hop.title][hop.question] == hop.answer
            assert hop.title in hop.statement and hop.answer in hop.statement
        if question.type != "comparison":
            assert question.chain[0].title in question.question
            for hop, following in itertools.pairwise(question.chain):
                assert following.title == hop.answer
            assert question.answer == question.chain[-1].answer
            assert question.answer not in question.question


def test_the_same_seed_gives_the_same_world() -> None:
    one, other = (World.generate(seed=5, part="test", entities=60) for _ in range(2))
    assert one == other and one.questions(9, seed=2) == other.questions(9, seed=2)
    assert one != World.generate(seed=6, part="test", entities=60)


def accuracy(error_rate: float, index: Retriever, questions: list[Question]) -> float:
    teacher = WorldTeacher(error_rate=error_rate, seed=0)
    runs = list(run(questions, setting=SETTING, retriever=index, lm=teacher))
    return sum(score(r.answer, r.question.answers).em for r in runs) / len(runs)


def test_a_teacher_that_never_errs_is_right_once_it_has_read(worlds: dict[Part, World]) -> None:
    world = worlds["test"]
    questions = world.questions(60, seed=3)
    for question in questions:
        gold = [world.passages[title] for title in question.supporting_titles]
        (result,) = run(
            [question],
            setting=Setting("ircot", load_template("world"), k=9, max_steps=8),
            retriever=_Everything(gold),
            lm=WorldTeacher(error_rate=0.0),
        )
        assert result.answer == question.answer


class _Everything:
    def __init__(self, passages: list[Passage]) -> None:
        self.passages = passages

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        return [self.passages for _ in queries]


def test_a_teacher_that_errs_is_wrong_more_often(worlds: dict[Part, World], tmp_path: Path) -> None:
    index = make_index(worlds["test"].passages.values(), tmp_path)
    questions = worlds["test"].questions(80, seed=4)
    careful, careless = accuracy(0.0, index, questions), accuracy(0.3, index, questions)
    assert careful > 0.9 and 0.2 < careless < 0.75 * careful


def test_the_teacher_knows_only_what_was_retrieved(worlds: dict[Part, World]) -> None:
    question = next(q for q in worlds["test"].questions(20, seed=5) if q.type == "2hop")
    teacher = WorldTeacher(error_rate=0.0)
    asked = Request((), question, (), (), final=False)
    (sentence,) = texts(teacher, [asked])
    assert sentence.startswith("I need to find the") and question.chain[0].title in sentence
    assert question.chain[0].answer not in sentence
    (final,) = texts(teacher, [Request((), question, (), (), final=True)])
    assert final == " unknown."


class _Perfect:
    """Finds every passage about each entity that the query names."""

    def __init__(self, world: World) -> None:
        self.world = world

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        return [
            [p for title, p in self.world.passages.items() if entity_of(title) in query]
            for query in queries
        ]


@pytest.fixture(scope="module", params=[0.0, 0.5, 1.0], ids=lambda split: f"split={split}")
def world(request: pytest.FixtureRequest) -> World:
    """A world that tells of its entities in one passage each, or of some or all in two."""
    return World.generate(seed=0, part="test", entities=300, split=request.param)


def test_every_fact_is_told_once_and_read_back(world: World) -> None:
    told = [(fact, title) for title, p in world.passages.items() for fact in read(p.text)]
    assert {(f.subject, f.relation): f.value for f, _ in told} == {
        (name, relation): value
        for name, facts in world.facts.items()
        for relation, value in facts.items()
    }
    assert len(told) == sum(map(len, world.facts.values()))
    assert {(f.subject, f.relation): title for f, title in told} == world.sources
    for fact, title in told:
        assert fact.subject == entity_of(title)
    for passage in world.passages.values():
        assert len(read(passage.text)) == passage.text.count(".") <= 4
    assert len({passage.id for passage in world.passages.values()}) == len(world.passages)


def test_questions_lead_through_passages_that_tell_them(world: World) -> None:
    for question in world.questions(150, seed=6):
        assert question.hops == len(question.chain)
        assert set(question.supporting_titles) == {hop.title for hop in question.chain}
        for hop in question.chain:
            subject = entity_of(hop.title)
            fact = Fact(subject, hop.question, hop.answer)
            assert fact in read(world.passages[hop.title].text)
            assert world.facts[subject][hop.question] == hop.answer
        gold = {world.passages[title].id for title in question.supporting_titles}
        assert gold == set(question.supporting_ids)


def test_comparisons_are_answered_by_the_facts(world: World) -> None:
    asked = [q for q in world.questions(200, seed=7) if q.type == "comparison"]
    assert {q.answer in ("yes", "no") for q in asked} == {True, False}
    for question in asked:
        left, right = question.chain
        if question.question.startswith("Which came first"):
            earlier = left if int(left.answer) < int(right.answer) else right
            assert left.answer != right.answer and question.answer == entity_of(earlier.title)
        else:
            assert question.answer == ("yes" if left.answer == right.answer else "no")


def test_a_perfect_retriever_and_a_teacher_that_never_errs_answer_everything(world: World) -> None:
    questions = world.questions(200, seed=8)
    runs = list(
        run(
            questions,
            setting=SETTING,
            retriever=_Perfect(world),
            lm=WorldTeacher(error_rate=0.0),
        )
    )
    assert len(runs) == 200
    assert {score(r.answer, r.question.answers).em for r in runs} == {1.0}
    for result in runs:
        # One sentence a fact, then the answer: it neither skips nor repeats.
        said = [step.reasoning for step in result.steps]
        assert said[:-1] == [hop.statement for hop in result.question.chain]
        assert result.stopped == "answer"


def test_errors_come_at_the_rate_that_was_set(world: World) -> None:
    """Of 400 facts read among many, 30% ± 7% (three standard deviations) are misread."""
    everything = tuple(world.passages.values())
    questions = world.questions(400, seed=9)
    requests = [Request((), question, (), everything, False) for question in questions]
    said = texts(WorldTeacher(error_rate=0.3, seed=1), requests)
    wrong = [s for s, q in zip(said, questions, strict=True) if s != q.chain[0].statement]
    assert 0.23 < len(wrong) / len(questions) < 0.37
    # A misread value is one of the same kind, so it is not told by its looks.
    for sentence in wrong:
        value = sentence.split(" is ")[1].removesuffix(".")
        assert value.isdigit() or value in world.kinds
    assert said != texts(WorldTeacher(error_rate=0.3, seed=2), requests)


def test_errors_make_wrong_answers(world: World) -> None:
    """With only the gold entities to read there is little to confuse; with more there is more."""
    questions = world.questions(200, seed=9)
    teacher = WorldTeacher(error_rate=0.3, seed=1)
    runs = list(run(questions, setting=SETTING, retriever=_Perfect(world), lm=teacher))
    right = sum(r.answer == r.question.answer for r in runs) / len(runs)
    no_luck = sum(0.7**q.hops for q in questions) / len(questions)
    assert no_luck - 0.05 < right < 0.85


def test_what_was_not_retrieved_is_looked_for_and_then_unknown() -> None:
    world = World.generate(seed=0, part="test", entities=120)
    question = next(q for q in world.questions(30, seed=1) if q.type == "3hop")
    first, second, _ = question.chain
    only_first = (world.passages[first.title],)
    teacher = WorldTeacher(error_rate=0.0)

    def say(*written: str, passages: tuple[Passage, ...], final: bool = False) -> str:
        steps = tuple(Step("", (), sentence) for sentence in written)
        (text,) = texts(teacher, [Request((), question, steps, passages, final)])
        return text

    assert say(passages=only_first) == first.statement
    looked = say(first.statement, passages=only_first)
    assert looked == relation_named(second.question).search(first.answer)
    assert say(first.statement, looked, passages=only_first) == looked
    # Asked for the answer too early, it gives what it has got so far.
    assert say(first.statement, passages=only_first, final=True) == f" {first.answer}."
    assert say(passages=(), final=True) == " unknown."


def test_everything_is_the_same_in_another_process() -> None:
    """Python's string hashes differ between processes; nothing may depend on them."""
    code = (
        "import asyncio;"
        "from steper.world.generator import World;"
        "from steper.world.teacher import WorldTeacher;"
        "from steper.protocols import Request;"
        "w = World.generate(seed=3, part='train', entities=60, split=0.5);"
        "qs = w.questions(20, seed=3);"
        "ps = tuple(w.passages.values());"
        "t = WorldTeacher(error_rate=0.4, seed=2);"
        "rs = [Request((), q, (), ps, False) for q in qs];"
        "print(w.passages, qs, [asyncio.run(t.complete(r)) for r in rs])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1 and len(outputs.pop()) > 10_000


def test_too_small_a_world_says_so() -> None:
    with pytest.raises(ValueError, match="at least 30"):
        World.generate(seed=0, part="test", entities=29)
    with pytest.raises(ValueError, match="no 400 different questions"):
        World.generate(seed=0, part="test", entities=30).questions(400, seed=0, comparisons=1.0)
