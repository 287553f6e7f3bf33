"""Prompt wordings: the shipped ones, a user's own, and what is wrong with one."""

from __future__ import annotations

from pathlib import Path

import pytest

from steper.errors import SteperError
from steper.templates import SHIPPED, load_template

GOOD = 'instruction = "Be brief."\npassage = "[{title}] {text}"\n'


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped(name: str) -> None:
    template = load_template(name)
    assert "{title}" in template.passage and "{text}" in template.passage


def test_a_users_own(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(GOOD)
    prompt = load_template(str(tmp_path / "mine.toml")).render("Who?", [], [])
    assert prompt == "Be brief.\nQuestion: Who?\nReasoning:\n"


def test_a_wording_may_name_its_layout(tmp_path: Path) -> None:
    plain, named = tmp_path / "plain.toml", tmp_path / "named.toml"
    plain.write_text(GOOD)
    named.write_text(GOOD + 'layout = "interleaved"\n')
    assert load_template(str(plain)).layout == "grouped"
    assert load_template(str(named)) == load_template(str(plain)).laid_out("interleaved")


@pytest.mark.parametrize("value", ['"woven"', "3", "[]", '""'])
def test_a_layout_there_is_not_is_refused(tmp_path: Path, value: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f"{GOOD}layout = {value}\n")
    with pytest.raises(SteperError, match=r"layout: is .*'grouped', 'interleaved'") as caught:
        load_template(str(path))
    assert caught.value.where == str(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("instruction = ", "not TOML"),
        ('instruction = "x"', "expected the strings"),
        (GOOD + 'extra = "x"', "expected the strings"),
        (GOOD.replace("{title}", "{titel}"), "'titel' is not a placeholder"),
        (GOOD.replace("{title}", "{"), "is not a placeholder"),
        (GOOD.replace("{title}", "{title.upper_case}"), "is not a placeholder"),
        (GOOD.replace("{title}", "{title[first]}"), "is not a placeholder"),
        (GOOD.replace("{title}", "{0}"), "is not a placeholder"),
        (GOOD.replace("{text}", "text"), "leaves the passage's text out"),
        ('instruction = 3\npassage = "{text}"', "expected the strings"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "mine.toml").write_text(content)
    with pytest.raises(SteperError, match=message):
        load_template(str(tmp_path / "mine.toml"))


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(SteperError, match="ircot, world"):
        load_template("no-such-thing")
