"""The annotated teacher states a hop once its passage is there, and else looks for it."""

from __future__ import annotations

import pytest

from steper.chains import triple_chain
from steper.errors import SteperError
from steper.lm.annotated import AnnotatedTeacher
from steper.prompts import first_sentence
from steper.protocols import Request
from steper.types import Hop, Passage, Question, Step

FIRST = Hop("Who managed him?", "Jim Halsey", "Roy Clark", "Jim Halsey managed Roy Clark.")
SECOND = Hop("Where was Jim Halsey born?", "Kansas", "Jim Halsey", "Jim Halsey was born in Kansas.")
QUESTION = Question("q", "Where?", "Kansas", supporting_ids=("p1",), chain=(FIRST, SECOND))
LABELLED = Passage("p1", "Roy Clark", "A musician.")
NAMESAKE = Passage("p9", "Roy Clark", "A village.")
SPOKEN = Passage("p2", "jim halsey", "Born in KANSAS, he left.")


def say(*passages: Passage, written: tuple[str, ...] = (), final: bool = False) -> str:
    steps = tuple(Step("", (), sentence) for sentence in written)
    (text,) = AnnotatedTeacher().complete([Request("", QUESTION, steps, passages, final)])
    return text


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
    request = Request("", Question("q7", "Who?", "A"), (), (), False)
    with pytest.raises(SteperError, match=r"question q7: .*no gold chain"):
        AnnotatedTeacher().complete([request])


def test_titles_are_compared_without_case_and_outer_space() -> None:
    assert say(Passage("p1", " roy CLARK ", "A musician.")) == FIRST.statement


def answer_of(question: Question, written: tuple[str, ...] = ()) -> str:
    steps = tuple(Step("", (), sentence) for sentence in written)
    (text,) = AnnotatedTeacher().complete([Request("", question, steps, (), False)])
    return text


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
