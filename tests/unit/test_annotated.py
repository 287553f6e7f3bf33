"""The annotated teacher states a hop once its passage is there, and else looks for it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from fakes import ListRetriever
from steper.chains import triple_chain
from steper.driver import run
from steper.errors import SteperError
from steper.lm.annotated import AnnotatedTeacher
from steper.metrics import score
from steper.prompts import first_sentence
from steper.protocols import Request
from steper.retrieval.indexes import make_index
from steper.setting import Setting
from steper.templates import load_template
from steper.types import Hop, Passage, Question, Step, StrategyName
from steper.world.generator import World, entity_of, relation_named

FIRST = Hop("Who managed him?", "Jim Halsey", "Roy Clark", "Jim Halsey managed Roy Clark.")
SECOND = Hop("Where was Jim Halsey born?", "Kansas", "Jim Halsey", "Jim Halsey was born in Kansas.")
QUESTION = Question("q", "Where?", "Kansas", supporting_ids=("p1",), chain=(FIRST, SECOND))
LABELLED = Passage("p1", "Roy Clark", "A musician.")
NAMESAKE = Passage("p9", "Roy Clark", "A village.")
SPOKEN = Passage("p2", "jim halsey", "Born in KANSAS, he left.")


def complete(request: Request) -> str:
    return asyncio.run(AnnotatedTeacher().complete(request)).text


def say(
    *passages: Passage, written: tuple[str, ...] = (), final: bool = False, cue: str = ""
) -> str:
    steps = tuple(Step("", (), sentence) for sentence in written)
    return complete(Request((), QUESTION, steps, passages, final, search_cue=cue))


def test_a_labelled_passage_lets_it_state_the_fact() -> None:
    assert say(LABELLED) == FIRST.statement


def test_a_passage_of_the_same_title_only_does_not() -> None:
    assert say(NAMESAKE) == "I need to find out: Who managed him?"


def test_a_passage_that_contains_the_answer_does() -> None:
    assert say(SPOKEN, written=(FIRST.statement,)) == SECOND.statement


def test_a_search_that_did_not_help_is_made_by_title() -> None:
    asked = say(NAMESAKE)
    assert say(NAMESAKE, written=(asked,)) == "I need to read about Roy Clark."


def test_the_answer_comes_when_every_hop_is_stated() -> None:
    written = (FIRST.statement, SECOND.statement)
    assert say(LABELLED, written=written) == "So the answer is: Kansas."
    assert say(LABELLED, written=written, final=True) == " Kansas."


def test_asked_too_early_it_answers_with_what_it_read() -> None:
    assert say(LABELLED, written=(FIRST.statement,), final=True) == " Jim Halsey."
    assert say(final=True) == " unknown."


def test_a_question_without_chain_is_refused() -> None:
    request = Request((), Question("q7", "Who?", "A"), (), (), False)
    with pytest.raises(SteperError, match=r"question q7: .*no gold chain"):
        complete(request)


def test_titles_are_compared_without_case_and_outer_space() -> None:
    assert say(Passage("p1", " roy CLARK ", "A musician.")) == FIRST.statement


def answer_of(question: Question, written: tuple[str, ...] = ()) -> str:
    steps = tuple(Step("", (), sentence) for sentence in written)
    return complete(Request((), question, steps, (), False))


def test_a_hop_without_title_follows_from_what_was_said() -> None:
    conclusion = Hop("", "", "", "So both are American.")
    question = Question("q", "Same country?", "yes", chain=(conclusion,))
    assert answer_of(question) == conclusion.statement
    assert answer_of(question, (conclusion.statement,)) == "So the answer is: yes."


def test_a_hop_without_question_is_looked_for_by_title() -> None:
    hop = Hop("", "", "Roy Clark", "Roy Clark hosted Hee Haw.")
    assert answer_of(Question("q", "Who?", "A", chain=(hop,))) == (
        "I need to read about Roy Clark."
    )


def test_the_chain_is_followed_in_order() -> None:
    """A later hop's passage does not let it skip an earlier hop."""
    assert say(SPOKEN) == "I need to find out: Who managed him?"


def test_a_labels_odd_white_space_does_not_make_it_say_a_fact_for_ever() -> None:
    """Its sentences come back folded, and it must know them again."""
    (hop,) = triple_chain([("Roy  Clark", "show", "Hee\u00a0Haw ")], ["Roy Clark"])
    question = Question("q", "Which show?", "Hee Haw", supporting_ids=("p1",), chain=(hop,))
    said = first_sentence(hop.statement)
    assert said == hop.statement == "The show of Roy Clark is Hee Haw."
    assert answer_of(question, (said,)) == "So the answer is: Hee Haw."


# ---- where it says what to search for ----------------------------------------------------------


def test_it_states_a_fact_and_asks_for_the_next_in_one_breath() -> None:
    said = say(LABELLED, cue="Search:")
    assert said == "Jim Halsey managed Roy Clark. Search: Where was Jim Halsey born?"
    assert say(LABELLED, SPOKEN, written=(said,), cue="Search:") == SECOND.statement


def test_it_asks_for_nothing_that_it_has_read_already() -> None:
    assert say(LABELLED, SPOKEN, cue="Search:") == FIRST.statement


def test_a_query_that_did_not_help_is_not_made_again() -> None:
    asked = say(NAMESAKE, cue="Search:")
    assert asked == "Search: Who managed him?"
    again = say(NAMESAKE, written=(asked,), cue="Search:")
    assert again == "Search: Roy Clark"
    assert say(NAMESAKE, written=(asked, again), cue="Search:") == again  # nothing else to try


def test_a_conclusion_is_drawn_without_a_search() -> None:
    conclusion = Hop("", "", "", "So it was in the Midwest.")
    question = replace(QUESTION, chain=(FIRST, conclusion))
    request = Request((), question, (), (LABELLED,), False, search_cue="Search:")
    assert complete(request) == FIRST.statement


def test_a_run_says_what_it_searches_for() -> None:
    setting = Setting("self-ask", load_template("self-ask"), k=1, max_steps=5)
    retriever = ListRetriever([NAMESAKE, replace(LABELLED, text="He sang."), SPOKEN])
    question = replace(QUESTION, question="village")
    (result,) = run([question], setting=setting, retriever=retriever, lm=AnnotatedTeacher())
    assert [(step.query, step.reasoning) for step in result.steps] == [
        ("village", "Follow up: Who managed him?"),
        ("Who managed him?", "Follow up: Roy Clark"),
        ("Roy Clark", "Follow up: Roy Clark"),
        ("Roy Clark", "Follow up: Roy Clark"),
        ("Roy Clark", "So the answer is: unknown."),
    ]
    setting = replace(setting, k=2)
    (result,) = run([question], setting=setting, retriever=retriever, lm=AnnotatedTeacher())
    assert [step.reasoning for step in result.steps] == [
        "Follow up: Who managed him?",
        "Follow up: Roy Clark",
        "Jim Halsey managed Roy Clark. Follow up: Where was Jim Halsey born?",
        "Jim Halsey was born in Kansas.",
        "So the answer is: Kansas.",
    ]


def asked_in_words(question: Question) -> Question:
    """The world's chains name relations; those of real data sets hold whole questions."""
    chain = tuple(
        replace(hop, question=relation_named(hop.question).asks[0].format(entity_of(hop.title)))
        for hop in question.chain
    )
    return replace(question, chain=chain)


@pytest.mark.parametrize("strategy", ["self-ask", "interleaved"])
def test_it_asks_its_way_to_the_answers(tmp_path: Path, strategy: StrategyName) -> None:
    world = World.generate(seed=1, part="train", entities=120)
    questions = [asked_in_words(question) for question in world.questions(60, seed=1)]
    index = make_index(list(world.passages.values()), tmp_path / "index")
    setting = Setting(strategy, load_template("world"), k=4, max_steps=6)
    results = list(run(questions, setting=setting, retriever=index, lm=AnnotatedTeacher()))
    right = [score(r.answer, r.question.answers).em for r in results]
    assert len(right) == 60 and sum(right) >= 59
