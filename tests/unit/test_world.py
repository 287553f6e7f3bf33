"""The offline world: nothing is shared between its parts, and reading is the only way."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from steper.driver import run
from steper.metrics import score
from steper.protocols import Request
from steper.retrieval.bm25 import BM25Index
from steper.setting import Setting
from steper.templates import load_template
from steper.types import Passage, Question
from steper.world.generator import RELATIONS, Part, World, part_of, read
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


def accuracy(error_rate: float, index: BM25Index, questions: list[Question]) -> float:
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

    def search(self, queries: list[str], k: int) -> list[list[Passage]]:
        return [self.passages for _ in queries]


def test_a_teacher_that_errs_is_wrong_more_often(worlds: dict[Part, World], tmp_path: Path) -> None:
    index = BM25Index.build(worlds["test"].passages.values(), tmp_path)
    questions = worlds["test"].questions(80, seed=4)
    careful, careless = accuracy(0.0, index, questions), accuracy(0.3, index, questions)
    assert careful > 0.9 and 0.2 < careless < 0.75 * careful


def test_the_teacher_knows_only_what_was_retrieved(worlds: dict[Part, World]) -> None:
    question = next(q for q in worlds["test"].questions(20, seed=5) if q.type == "2hop")
    teacher = WorldTeacher(error_rate=0.0)
    asked = Request("", question, (), (), final=False)
    (sentence,) = teacher.complete([asked])
    assert sentence.startswith("I need to find the") and question.chain[0].title in sentence
    assert question.chain[0].answer not in sentence
    (final,) = teacher.complete([Request("", question, (), (), final=True)])
    assert final == " unknown."
