"""Prompt wordings: the shipped ones, what their examples teach, a user's own, what is wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import get_args

import pytest

from fakes import ScriptedLM
from steper.config import BuildConfig, EvaluateConfig, IndexConfig, RolloutConfig
from steper.driver import run
from steper.errors import SteperError
from steper.grounding import same_word, unsupported, words
from steper.prompts import Demonstration, Template, parse_answer
from steper.setting import Setting
from steper.templates import LAYOUTS, load_template, shipped
from steper.types import Passage, Question, StrategyName

GOOD = 'instruction = "Be brief."\npassage = "[{title}] {text}"\n'
STRATEGIES: tuple[StrategyName, ...] = get_args(StrategyName)
LANGUAGES = ("", "-ko")
WORDINGS = [f"{strategy}{language}" for strategy in STRATEGIES for language in LANGUAGES]


def test_every_strategy_has_its_wording_in_every_language() -> None:
    assert shipped() == sorted([*WORDINGS, "world"])


# ---- what the shipped examples teach -----------------------------------------------------------


def strategy_of(name: str) -> StrategyName:
    return next(strategy for strategy in STRATEGIES if name in (strategy, f"{strategy}-ko"))


def examples() -> Iterator[tuple[str, int]]:
    for name in WORDINGS:
        for number in range(len(load_template(name).examples)):
            yield name, number


def with_ids(example: Demonstration) -> list[tuple[Passage, ...]]:
    """The passages of each step, with the ids that a file leaves out and a run needs."""
    return [tuple(replace(p, id=p.title) for p in step.passages) for step in example.steps]


class Handing:
    """At each search, hands out the passages of the example's step under way."""

    def __init__(self, passages: Sequence[tuple[Passage, ...]], lm: ScriptedLM) -> None:
        self.passages, self.lm = passages, lm
        self.found: list[tuple[str, tuple[Passage, ...]]] = []

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        (query,) = queries
        self.found.append((query, self.passages[len(self.lm.requests)]))
        return [list(self.found[-1][1])]


def recite(name: str, number: int, layout: str | None = None) -> tuple[Handing, ScriptedLM]:
    """Run an example's question, its own sentences being said; the run must be the example."""
    template = load_template(name).laid_out(layout)  # type: ignore[arg-type]
    example = template.examples[number]
    lm = ScriptedLM([step.reasoning for step in example.steps])
    retriever = Handing(with_ids(example), lm)
    setting = Setting(strategy_of(name), template.bare(), k=4, max_steps=5)
    question = Question("q", example.question, "x")
    (result,) = run([question], setting=setting, retriever=retriever, lm=lm)
    assert [step.reasoning for step in result.steps] == [s.reasoning for s in example.steps]
    # A step that shows passages although its strategy would not have searched would differ here.
    assert [step.passages for step in result.steps] == with_ids(example)
    last = parse_answer(example.steps[-1].reasoning, cue=template.answer_cue)
    assert (result.answer, result.stopped) == (last, "answer")
    return retriever, lm


@pytest.mark.parametrize(("name", "number"), examples())
def test_an_example_is_a_run_of_its_own_strategy(name: str, number: int) -> None:
    recite(name, number)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("name", "number"), examples())
def test_an_example_looks_like_a_run(name: str, number: int, layout: str) -> None:
    """To the letter: the last prompt of the run and what was written to it, then an empty line."""
    template = load_template(name).laid_out(layout)  # type: ignore[arg-type]
    _, lm = recite(name, number, layout)
    last = lm.requests[-1].prompt.removeprefix(f"{template.instruction}\n")
    shown = f"{last}{template.examples[number].steps[-1].reasoning}\n\n"
    assert template.render("Who?", [[]], []).count(shown) == 1


@pytest.mark.parametrize(("name", "number"), examples())
def test_what_an_example_searches_for_could_find_what_it_finds(name: str, number: int) -> None:
    retriever, _ = recite(name, number)
    for query, found in retriever.found:
        for passage in found:
            said = words(f"{passage.title} {passage.text}")
            assert any(akin(one, other) for one in words(query) for other in said), query


def akin(one: str, other: str) -> bool:
    """Whether a search would count two words as one: 아버지는 and 아버지이다 begin alike."""
    if one.isascii():
        return len(one) > 3 and same_word(one, other)
    return len(one) > 1 and one[:2] == other[:2]


@pytest.mark.parametrize(
    ("name", "number"), [e for e in examples() if strategy_of(e[0]) != "closed-book"]
)
def test_an_example_names_nothing_it_has_not_read(name: str, number: int) -> None:
    template = load_template(name)
    example = template.examples[number]
    sources = [example.question]
    for step in example.steps:
        sources += [f"{passage.title}\n{passage.text}" for passage in step.passages]
        sentence = re.sub(r"^(Intermediate answer|Follow up):", "", step.reasoning)
        assert unsupported(sentence, sources) == ()


@pytest.mark.parametrize("name", [n for n in WORDINGS if strategy_of(n) not in ("closed-book",)])
def test_examples_show_where_searching_again_helps(name: str) -> None:
    later = [bool(s.passages) for e in load_template(name).examples for s in e.steps[1:]]
    assert any(later) == (strategy_of(name) != "single-step")


@pytest.mark.parametrize("name", WORDINGS)
def test_examples_are_short_because_every_call_pays_for_them(name: str) -> None:
    template = load_template(name)
    assert 2 <= len(template.examples) <= 3
    shown = template.render("", [[]], []).removeprefix(template.instruction)
    assert len(shown.split()) < 300
    for example in template.examples:
        answer = parse_answer(example.steps[-1].reasoning, cue=template.answer_cue)
        assert answer and len(answer.split()) <= 3


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_languages_of_a_strategy_say_the_same(strategy: str) -> None:
    english, korean = (load_template(f"{strategy}{language}") for language in LANGUAGES)
    assert len(english.examples) == len(korean.examples)
    assert english.layout == korean.layout
    for template in (english, korean):
        assert template.answer_cue in template.instruction and template.answer_cue in template.nudge
        if strategy in ("self-ask", "interleaved"):
            assert template.search_cue in template.instruction
            assert template.search_cue in template.nudge
            assert template.search_cue not in template.answer_cue


@pytest.mark.parametrize("name", [name for name in WORDINGS if name.endswith("-ko")])
def test_a_korean_prompt_holds_no_english(name: str) -> None:
    template = load_template(name)
    prompt = template.render("누구?", [[Passage("1", "제목", "글")]], [], final=True)
    assert not re.search("[A-Za-z]", prompt + template.nudge + template.nudge_final)


@pytest.mark.parametrize("name", WORDINGS)
def test_an_instruction_can_do_without_its_examples(name: str) -> None:
    """A student inherits it without them."""
    assert not re.search("example|above|below|예시|보기", load_template(name).instruction.lower())


# ---- a user's own ------------------------------------------------------------------------------


def loaded(folder: Path, content: str) -> Template:
    (folder / "mine.toml").write_text(content, encoding="utf-8")
    return load_template(str(folder / "mine.toml"))


def test_a_users_own(tmp_path: Path) -> None:
    prompt = loaded(tmp_path, GOOD).render("Who?", [], [])
    assert prompt == "Be brief.\nQuestion: Who?\nReasoning:\n"


def test_a_wording_may_name_its_layout(tmp_path: Path) -> None:
    plain = loaded(tmp_path, GOOD)
    assert plain.layout == "grouped"
    named = loaded(tmp_path, GOOD + 'layout = "interleaved"\n')
    assert named == plain.laid_out("interleaved")


EVERY_KEY = """
question_label = "F: "
reasoning_label = "Denken:"
answer_cue = "Die Antwort ist:"
search_cue = "Suche:"
nudge = "Weiter."
nudge_final = "Die Antwort."

[[examples]]
question = "Wer?"
steps = [
  { passages = [{ title = "Roy", text = "Er sang." }], reasoning = "Roy sang." },
  { reasoning = "Die Antwort ist: Roy." },
]
"""


def test_a_wording_may_have_every_key(tmp_path: Path) -> None:
    template = loaded(tmp_path, GOOD + EVERY_KEY)
    assert (template.search_cue, template.nudge, template.nudge_final) == (
        "Suche:",
        "Weiter.",
        "Die Antwort.",
    )
    assert template.render("Was?", [[]], [], final=True) == (
        "Be brief.\n"
        "F: Wer?\n[Roy] Er sang.\nDenken:\nRoy sang.\nDie Antwort ist: Roy.\n\n"
        "F: Was?\nDenken:\nDie Antwort ist:"
    )


def test_a_cue_is_looked_for_as_sentences_are_written(tmp_path: Path) -> None:
    """They are one line with single spaces; a cue with more of them would never be found."""
    template = loaded(tmp_path, GOOD + 'answer_cue = " Antwort\\n  ist: "\nsearch_cue = "Suche: "')
    assert (template.answer_cue, template.search_cue) == ("Antwort ist:", "Suche:")


# ---- docs/strategies.md ------------------------------------------------------------------------


DOCS = (Path(__file__).resolve().parents[2] / "docs/strategies.md").read_text(encoding="utf-8")


def test_the_documented_wording_has_every_key_and_is_read(tmp_path: Path) -> None:
    (content,) = re.findall(r"```toml\n(.*?)```", DOCS, re.DOTALL)
    template = loaded(tmp_path, content)
    for field in fields(Template):
        assert f"| `{field.name}` |" in DOCS
        assert getattr(template, field.name) != field.default, field.name


def test_the_documented_defaults_are_those() -> None:
    for field in fields(Template):
        if isinstance(field.default, str):
            assert f"| `{field.name}` | `{field.default}` |" in DOCS


def test_the_documented_runs_are_the_shipped_examples() -> None:
    told = {" ".join(line.split("→")[0].split()) for line in DOCS.splitlines()}
    for name, number in [("ircot", 0), ("single-step", 0), ("self-ask", 1), ("interleaved", 1)]:
        example = load_template(name).examples[number]
        assert {example.question, *(step.reasoning for step in example.steps)} <= told


def test_the_documented_options_exist() -> None:
    named = set(re.findall(r"--([a-z][a-z-]+)", DOCS))
    models = (RolloutConfig, BuildConfig, EvaluateConfig, IndexConfig)
    known = {name.replace("_", "-") for model in models for name in model.model_fields}
    assert len(named) > 15 and named <= known
    for name in re.findall(r"^\| `--([a-z-]+)` \| (\d+)\b", DOCS, re.MULTILINE):
        assert RolloutConfig.model_fields[name[0].replace("-", "_")].default == int(name[1])


# ---- what is wrong with one --------------------------------------------------------------------


@pytest.mark.parametrize("value", ['"woven"', "3", "[]", '""'])
def test_a_layout_there_is_not_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(SteperError, match=r"layout: is .*'grouped' or 'interleaved'") as caught:
        loaded(tmp_path, f"{GOOD}layout = {value}\n")
    assert caught.value.where == str(tmp_path / "mine.toml")


EXAMPLE = '\n[[examples]]\nquestion = "Who?"\nsteps = [{step}]\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("instruction = ", "not TOML"),
        ('instruction = "x"', r"passage: is missing\. docs/strategies\.md"),
        (GOOD + 'extra = "x"', "extra: unknown key"),
        (GOOD.replace("{title}", "{titel}"), "'titel' is not a placeholder"),
        (GOOD.replace("{title}", "{"), "is not a placeholder"),
        (GOOD.replace("{title}", "{title.upper_case}"), "is not a placeholder"),
        (GOOD.replace("{title}", "{title[first]}"), "is not a placeholder"),
        (GOOD.replace("{title}", "{0}"), "is not a placeholder"),
        (GOOD.replace("{text}", "text"), "leaves the passage's text out"),
        ('instruction = 3\npassage = "{text}"', "instruction: is 3: "),
        (GOOD + "answer_cue = ' '", "answer_cue: is empty"),
        (GOOD + "search_cue = ''", "search_cue: is empty"),
        (GOOD + "examples = 3", "examples: is 3: "),
        (GOOD + "examples = [3]", "examples.1: is 3: "),
        (GOOD + "\n[[examples]]\nquestion = 'Who?'\nsteps = 3", "examples.1.steps: is 3: "),
        (GOOD + EXAMPLE.format(step="{}"), "examples.1.steps.1.reasoning: is missing"),
        (GOOD + EXAMPLE.format(step="{reasoning = 'x', passages = 3}"), "passages: is 3: "),
        (
            GOOD + EXAMPLE.format(step="{reasoning = 'x', passages = [{text = 'x'}]}"),
            "examples.1.steps.1.passages.1.title: is missing",
        ),
        (GOOD + EXAMPLE.format(step=""), "examples.1: its last sentence, and no other,"),
        (GOOD + EXAMPLE.format(step="{reasoning = 'One.'}"), "after 'So the answer is:'"),
        (
            GOOD + EXAMPLE.format(step="{reasoning = 'So the answer is: x.'}, {reasoning = 'y'}"),
            "examples.1: its last sentence",
        ),
        (
            GOOD
            + EXAMPLE.format(step="{reasoning = 'So the answer is: x.'}")
            + EXAMPLE.format(step="{reasoning = 'x'}"),
            "examples.2: its last sentence",
        ),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(SteperError, match=message):
        loaded(tmp_path, content)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(SteperError, match=r"closed-book, closed-book-ko, .*, world, or the path"):
        load_template("no-such-thing")


def test_the_judges_rubric_is_no_wording_of_a_run() -> None:
    with pytest.raises(SteperError, match="no such prompt wording"):
        load_template("judge")
