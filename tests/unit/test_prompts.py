"""What a prompt looks like, and what is read out of what a model wrote."""

from __future__ import annotations

from typing import Any

import pytest

from steper.prompts import (
    ANSWER_CUE,
    Demonstration,
    DemonstrationStep,
    Template,
    answer_sentence,
    first_sentence,
    parse_answer,
    parse_query,
    statement_of,
)
from steper.protocols import Turn
from steper.types import Passage

CLARK, SHOW = Passage("1", "Roy Clark", "A musician."), Passage("2", "Hee Haw", "A show.")
TEMPLATE = Template(instruction="Be brief.", passage="[{title}] {text}")
INTERLEAVED = TEMPLATE.laid_out("interleaved")

SUNG = Demonstration(
    "Who sang?",
    (
        DemonstrationStep("He is\nRoy.", (CLARK,)),
        DemonstrationStep("So the answer is: Roy.", ()),
    ),
)
FEW_SHOT = Template("Be brief.", "[{title}] {text}", examples=(SUNG,))


def test_grouped_is_question_then_passages_then_reasoning() -> None:
    assert TEMPLATE.render("Who?", [[CLARK], [], [SHOW]], ["One.", "Two."]) == (
        "Be brief.\nQuestion: Who?\n[Roy Clark] A musician.\n[Hee Haw] A show.\n"
        "Reasoning:\nOne.\nTwo.\n"
    )


def test_interleaved_is_a_turn_a_step() -> None:
    assert INTERLEAVED.render("Who?", [[CLARK], [SHOW], []], ["One.", "Two."]) == (
        "Be brief.\nQuestion: Who?\n[Roy Clark] A musician.\nReasoning:\nOne.\n"
        "[Hee Haw] A show.\nReasoning:\nTwo.\nReasoning:\n"
    )


def test_at_the_first_step_the_layouts_are_one() -> None:
    assert INTERLEAVED.render("Who?", [[CLARK]], []) == TEMPLATE.render("Who?", [[CLARK]], [])


@pytest.mark.parametrize("reasoning", [[], ["One.", "Two."]])
def test_an_interleaved_turn_before_the_last_needs_its_sentence(reasoning: list[str]) -> None:
    with pytest.raises(ValueError, match="zip"):
        INTERLEAVED.render("Who?", [[CLARK], [SHOW]], reasoning)


def test_a_layout_of_none_changes_nothing() -> None:
    assert INTERLEAVED.laid_out(None) == INTERLEAVED
    assert INTERLEAVED.laid_out("grouped") == TEMPLATE


def test_without_instruction_the_question_comes_first() -> None:
    assert Template("", "{text}").render("Who?", [], []) == "Question: Who?\nReasoning:\n"


def test_passages_keep_the_order_they_are_given_in() -> None:
    prompt = TEMPLATE.render("Who?", [[SHOW, CLARK]], [])
    assert prompt.index("Hee Haw") < prompt.index("Roy Clark")


def test_the_last_step_is_asked_with_the_answer_cue() -> None:
    steps: list[list[Passage]] = [[], []]
    assert TEMPLATE.render("Who?", steps, ["One."], final=True).endswith(f"One.\n{ANSWER_CUE}")
    prompt = INTERLEAVED.render("Who?", steps, ["One."], final=True)
    assert prompt.endswith(f"One.\nReasoning:\n{ANSWER_CUE}")


@pytest.mark.parametrize("space", ["\n", "\r\n", "\u2028", "\x85", " \t "])
def test_only_the_layout_breaks_lines(space: str) -> None:
    odd = [Passage("1", f"Roy{space}Clark", f"A{space}musician.")]
    prompt = TEMPLATE.render(f"Who{space}is it?", [odd], [f"One{space}two."])
    assert prompt.splitlines() == [
        "Be brief.",
        "Question: Who is it?",
        "[Roy Clark] A musician.",
        "Reasoning:",
        "One two.",
    ]


def test_braces_in_a_passage_are_text() -> None:
    odd = Passage("1", "{x}", "{title} {0}")
    assert "[{x}] {title} {0}" in TEMPLATE.render("Who?", [[odd]], [])


@pytest.mark.parametrize(
    ("prompt", "grouped", "interleaved"),
    [
        ("Be brief.\nQuestion: Who?\nReasoning:\n", True, True),
        (f"Be brief.\nQuestion: Who?\nReasoning:\n{ANSWER_CUE}", True, True),
        ("Be brief.\nQuestion: Who?\nReasoning:\nOne.\n", True, False),
        (f"Be brief.\nQuestion: Who?\nReasoning:\nOne.\n{ANSWER_CUE}", True, False),
        ("Be long.\nQuestion: Who?\nReasoning:\n", False, False),
        ("Question: Who?\nReasoning:\n", False, False),
        ("Be brief.\nWho?\nReasoning:\n", False, False),
        ("Be brief.\nQuestion: Who?\n", False, False),
        ("Be brief.\nQuestion: Who?\nReasoning:", False, False),
        ("Be brief.\nQuestion: Who?\nReasoning:\nOne.", False, False),
        (f"Be brief.\nQuestion: Who?\nReasoning:\nOne. {ANSWER_CUE}", False, False),
        ("", False, False),
    ],
)
def test_matches(prompt: str, grouped: bool, interleaved: bool) -> None:
    assert TEMPLATE.matches(prompt) == grouped
    assert INTERLEAVED.matches(prompt) == interleaved


def test_a_wording_without_instruction_matches_no_prompt_with_one() -> None:
    assert not Template("", "{text}").matches(TEMPLATE.render("Who?", [[]], []))


def test_examples_are_shown_as_runs_before_the_question() -> None:
    assert FEW_SHOT.render("Who?", [[SHOW]], ["One."]) == (
        "Be brief.\n"
        "Question: Who sang?\n[Roy Clark] A musician.\nReasoning:\n"
        "He is Roy.\nSo the answer is: Roy.\n\n"
        "Question: Who?\n[Hee Haw] A show.\nReasoning:\nOne.\n"
    )
    assert FEW_SHOT.laid_out("interleaved").render("Who?", [[SHOW]], []) == (
        "Be brief.\n"
        "Question: Who sang?\n[Roy Clark] A musician.\nReasoning:\nHe is Roy.\n"
        "Reasoning:\nSo the answer is: Roy.\n\n"
        "Question: Who?\n[Hee Haw] A show.\nReasoning:\n"
    )


def test_a_bare_wording_is_all_but_the_examples() -> None:
    assert FEW_SHOT.bare() == TEMPLATE
    assert TEMPLATE.bare() == TEMPLATE


def test_speakers_take_turns_and_the_assistant_is_last() -> None:
    assert FEW_SHOT.laid_out("interleaved").turns("Who?", [[SHOW], []], ["One."], final=True) == (
        Turn("system", "Be brief.\n"),
        Turn("user", "Question: Who sang?\n[Roy Clark] A musician.\nReasoning:\n"),
        Turn("assistant", "He is Roy.\n"),
        Turn("user", "Reasoning:\n"),
        Turn("assistant", "So the answer is: Roy.\n\n"),
        Turn("user", "Question: Who?\n[Hee Haw] A show.\nReasoning:\n"),
        Turn("assistant", "One.\n"),
        Turn("user", "Reasoning:\n"),
        Turn("assistant", ANSWER_CUE),
    )


@pytest.mark.parametrize("layout", ["grouped", "interleaved"])
def test_examples_belong_to_what_a_wording_matches(layout: Any) -> None:
    few_shot, bare = FEW_SHOT.laid_out(layout), TEMPLATE.laid_out(layout)
    prompt = few_shot.render("Who?", [[CLARK]], [])
    assert few_shot.matches(prompt) and not few_shot.matches(bare.render("Who?", [[CLARK]], []))
    # The examples look like the beginning of a run, which the bare wording cannot tell from one.
    assert bare.matches(prompt)


def test_another_language_is_other_labels() -> None:
    korean = Template(
        "", "[{title}] {text}", question_label="질문: ", reasoning_label="추론:",
        answer_cue="따라서 답은:",
    )  # fmt: skip
    prompt = korean.render("누구?", [[CLARK]], ["하나."], final=True)
    assert prompt == "질문: 누구?\n[Roy Clark] A musician.\n추론:\n하나.\n따라서 답은:"
    assert korean.matches(prompt) and not Template("", "{text}").matches(prompt)
    sentence = answer_sentence("부산", cue=korean.answer_cue)
    assert sentence == "따라서 답은: 부산."
    assert parse_answer(sentence, cue=korean.answer_cue) == "부산"
    assert parse_answer(sentence) is None


@pytest.mark.parametrize(
    ("sentence", "answer"),
    [
        ("So the answer is: Hee Haw.", "Hee Haw"),
        ("So the answer is: Hee Haw", "Hee Haw"),
        ("Roy Clark hosted it. So the answer is:  Hee\nHaw. ", "Hee Haw"),
        ("So the answer is: Samuel L. Jackson Jr..", "Samuel L. Jackson Jr."),
        ("So the answer is: So the answer is: x.", "So the answer is: x"),
        ("So the answer is:", ""),
        ("So the answer is: .", ""),
        ("The answer is: Hee Haw.", None),
        ("so the answer is: Hee Haw.", None),
        ("", None),
    ],
)
def test_parse_answer(sentence: str, answer: str | None) -> None:
    assert parse_answer(sentence) == answer


@pytest.mark.parametrize(
    ("sentence", "query", "statement"),
    [
        ("It is A. Search: B", "B", "It is A."),
        ("Search: B", "B", ""),
        ("Search:\tB \n C ", "B C", ""),
        ("A. Search: B Search: C", "B Search: C", "A."),
        ("It is A. Search: ", None, "It is A."),
        ("search: B", None, "search: B"),
        ("It is A.", None, "It is A."),
        ("", None, ""),
    ],
)
def test_a_sentence_is_what_it_states_and_what_it_asks_for(
    sentence: str, query: str | None, statement: str
) -> None:
    assert parse_query(sentence, cue="Search:") == query
    assert statement_of(sentence, cue="Search:") == statement
    assert statement_of(sentence, cue="") == sentence


def test_an_answer_that_ends_with_a_full_stop_keeps_it() -> None:
    assert parse_answer(answer_sentence("U.S.")) == "U.S."


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("One.\nTwo.\n", "One."),
        ("\n \t\n  One  more.  \nTwo.", "One more."),
        ("One.\u2028Two.", "One."),
        ("One. Two.", "One. Two."),
        (" \n\n", ""),
        ("", ""),
    ],
)
def test_the_first_line_that_holds_anything_is_the_sentence(text: str, sentence: str) -> None:
    assert first_sentence(text) == sentence
