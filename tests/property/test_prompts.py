"""Prompts only grow, and what is rendered can be read back."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from fakes import ScriptedLM
from steper.driver import run
from steper.prompts import (
    ANSWER_CUE,
    Demonstration,
    DemonstrationStep,
    Template,
    answer_sentence,
    first_sentence,
    one_line,
    parse_answer,
    parse_query,
    statement_of,
)
from steper.setting import Setting
from steper.templates import LAYOUTS, load_template
from steper.types import Passage, Question

words = st.text(st.characters(categories=["L", "N", "P", "Zs"]), min_size=1, max_size=20)
a_passage = st.builds(Passage, id=words, title=words, text=words)
passages = st.lists(a_passage, min_size=1, max_size=5)


@given(words, passages, st.lists(words, max_size=3), st.sampled_from(["ircot", "world"]))
def test_a_later_prompt_begins_with_the_earlier_passages(
    question: str, found: list[Passage], reasoning: list[str], name: str
) -> None:
    template = load_template(name)
    later = template.render(question, [found], reasoning)
    for count in range(len(found)):
        earlier = template.render(question, [found[:count]], reasoning)
        shared = earlier.removesuffix(
            "".join(f"{line}\n" for line in ["Reasoning:", *map(one_line, reasoning)])
        )
        assert later.startswith(shared)


@given(words, passages, st.lists(words, max_size=3))
def test_asking_for_the_answer_only_adds_the_cue(
    question: str, found: list[Passage], reasoning: list[str]
) -> None:
    template = load_template("ircot")
    plain = template.render(question, [found], reasoning)
    assert template.render(question, [found], reasoning, final=True) == plain + ANSWER_CUE


# A step's new passages, perhaps none, and the sentence that the model writes to them.
turns = st.lists(st.tuples(st.lists(a_passage, max_size=3), st.text(max_size=20)), min_size=1)
labels = words.map(one_line).filter(bool)
demonstrations = st.builds(
    Demonstration,
    question=words,
    steps=st.lists(
        st.builds(DemonstrationStep, words, st.lists(a_passage, max_size=2).map(tuple)),
        min_size=1,
        max_size=3,
    ).map(tuple),
)
wordings = st.builds(
    Template,
    instruction=words.map(one_line) | st.just(""),
    passage=st.sampled_from(["{text}", "Passage: {title}\n{text}"]),
    layout=st.sampled_from(LAYOUTS),
    question_label=st.sampled_from(["Question: ", "질문: "]) | labels,
    reasoning_label=st.sampled_from(["Reasoning:", "추론:"]) | labels,
    answer_cue=st.sampled_from([ANSWER_CUE, "따라서 답은:"]) | labels,
    examples=st.lists(demonstrations, max_size=2).map(tuple),
)


@given(wordings, words, turns, st.booleans())
def test_an_interleaved_prompt_begins_with_the_one_before_and_what_was_written(
    wording: Template, question: str, turns: list[tuple[list[Passage], str]], final: bool
) -> None:
    template = wording.laid_out("interleaved")
    found, reasoning = map(list, zip(*turns, strict=True))
    prompts = [
        template.render(question, found[:step], reasoning[: step - 1])
        for step in range(1, len(turns) + 1)
    ]
    for prompt, sentence, following in zip(prompts, reasoning, prompts[1:], strict=False):
        assert following.startswith(f"{prompt}{one_line(sentence)}\n")
    last = template.render(question, found, reasoning[:-1], final=final)
    assert last == prompts[-1] + (template.answer_cue if final else "")


@given(wordings, words, turns)
def test_a_grouped_prompt_begins_with_the_one_before_up_to_its_last_passage(
    wording: Template, question: str, turns: list[tuple[list[Passage], str]]
) -> None:
    template = wording.laid_out("grouped")
    found, reasoning = map(list, zip(*turns, strict=True))
    for step in range(1, len(turns)):
        following = template.render(question, found[: step + 1], reasoning[:step])
        # Without reasoning the prompt ends behind its label, which is one line.
        begun = template.render(question, found[:step], [])
        assert following.startswith(begun.removesuffix(f"{template.reasoning_label}\n"))


@given(wordings, words, turns, st.booleans())
def test_turns_are_the_prompt_and_alternate(
    wording: Template, question: str, turns: list[tuple[list[Passage], str]], final: bool
) -> None:
    found, reasoning = map(list, zip(*turns, strict=True))
    spoken = wording.turns(question, found, reasoning[:-1], final=final)
    prompt = wording.render(question, found, reasoning[:-1], final=final)
    assert "".join(turn.text for turn in spoken) == prompt
    roles = [turn.role for turn in spoken if turn.role != "system"]
    assert roles == ["user", "assistant"] * (len(roles) // 2)
    assert [turn.role for turn in spoken].count("system") == bool(wording.instruction)
    # Examples come before the question, and the rest of the prompt is the bare one's.
    bare = wording.bare().turns(question, found, reasoning[:-1], final=final)
    assert (
        spoken[len(spoken) - len(bare) + bool(wording.instruction) :]
        == (bare[bool(wording.instruction) :])
    )


@given(wordings, wordings, words, turns, st.booleans())
def test_a_wording_matches_every_prompt_of_its_own_and_none_of_another_instruction(
    wording: Template,
    other: Template,
    question: str,
    turns: list[tuple[list[Passage], str]],
    final: bool,
) -> None:
    found, reasoning = map(list, zip(*turns, strict=True))
    prompt = wording.render(question, found, reasoning[:-1], final=final)
    assert wording.matches(prompt)
    # Without an instruction, a prompt begins with the label; generated ones may begin alike.
    if not prompt.startswith(other.instruction or other.question_label):
        assert not other.matches(prompt)
    assert not wording.matches(f"{prompt}half a sentence")


@given(words.map(one_line).filter(lambda answer: answer and ANSWER_CUE not in answer))
def test_an_answer_is_read_back(answer: str) -> None:
    assert parse_answer(answer_sentence(answer)) == answer
    assert first_sentence(f"\n {answer_sentence(answer)}\nand more") == answer_sentence(answer)


@given(words.map(one_line), words.map(one_line).filter(bool), labels)
def test_a_query_is_read_back(statement: str, query: str, cue: str) -> None:
    sentence = one_line(f"{statement} {cue} {query}")
    # A label may turn up in what is said before it, or across the seam.
    if sentence.find(cue) == len(sentence) - len(f"{cue} {query}"):
        assert parse_query(sentence, cue=cue) == query
        assert statement_of(sentence, cue=cue) == statement


@given(st.text().filter(lambda text: ANSWER_CUE not in text))
def test_other_sentences_hold_no_answer(text: str) -> None:
    assert parse_answer(text) is None


class Drawn:
    """A retriever that returns what hypothesis drew, one result a search."""

    def __init__(self, results: list[list[Passage]]) -> None:
        self.results = list(results)

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        return [self.results.pop(0) for _ in queries]


few = st.sampled_from([Passage(str(n), f"Title {n}", f"Text {n}.") for n in range(6)])


@given(
    st.lists(st.lists(few, max_size=4), min_size=4, max_size=4),
    st.lists(st.text(max_size=20), min_size=4, max_size=4),
    st.sampled_from(["ircot", "world"]),
)
def test_a_runs_prompts_extend_each_other_up_to_the_last_passage(
    results: list[list[Passage]], lines: list[str], name: str
) -> None:
    template = load_template(name)
    lm = ScriptedLM(lines)
    setting = Setting("ircot", template, k=4, max_steps=4)
    question = Question("q", "Who?", "A")
    (result,) = run([question], setting=setting, retriever=Drawn(results), lm=lm)
    for request, following in pairwise(lm.requests):
        until_last_passage = template.render("Who?", [request.passages], []).removesuffix(
            "Reasoning:\n"
        )
        assert request.prompt.startswith(until_last_passage)
        assert following.prompt.startswith(until_last_passage)
        assert following.passages[: len(request.passages)] == request.passages
    # Retrieval order, each once: what a reader of the results alone would note down.
    searched = [passage for found in results[: len(result.steps)] for passage in found]
    assert list(result.passages) == list(dict.fromkeys(searched))
