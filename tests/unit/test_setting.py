"""A setting on disk: read back as it was, older files included, and nothing read leniently."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steper.errors import SteperError
from steper.models import read_setting, write_setting
from steper.prompts import Demonstration, DemonstrationStep, Template
from steper.setting import Setting
from steper.templates import load_template, shipped
from steper.types import Passage

SETTING = Setting("ircot", Template("Be brief.", "{text}"), k=4, max_steps=5)
OLD: dict[str, Any] = {
    "strategy": "ircot",
    "template": {"instruction": "Be brief.", "passage": "{text}"},
    "k": 4,
    "max_steps": 5,
}
"""A file written before there were layouts."""


@pytest.mark.parametrize("layout", ["grouped", "interleaved"])
def test_it_is_read_back(tmp_path: Path, layout: Any) -> None:
    template = SETTING.template.laid_out(layout)
    setting = Setting("ircot", template, k=4, max_steps=5)
    write_setting(tmp_path / "setting.json", setting)
    assert read_setting(tmp_path / "setting.json") == setting


def test_a_file_without_a_layout_is_grouped_and_still_written_so(tmp_path: Path) -> None:
    path = tmp_path / "setting.json"
    path.write_text(json.dumps(OLD))
    assert read_setting(path) == SETTING
    assert SETTING.record() == OLD


EXAMPLE = Demonstration(
    "Who?",
    (
        DemonstrationStep("Roy sang.", (Passage("", "Roy", "Sang."),)),
        DemonstrationStep("답은: Roy."),
    ),
)
CHANGED: dict[str, Any] = {
    "max_passages": 8,
    "max_run_tokens": 900,
    "early_stop": True,
    "force_search": True,
    "template": Template(
        "x",
        "{text}",
        layout="interleaved",
        question_label="질문: ",
        reasoning_label="추론:",
        answer_cue="답은:",
        search_cue="검색:",
        nudge="계속.",
        nudge_final="답.",
        examples=(EXAMPLE,),
    ),
}


@pytest.mark.parametrize("names", [[name] for name in CHANGED] + [list(CHANGED)])
def test_only_what_differs_from_the_defaults_is_written(tmp_path: Path, names: list[str]) -> None:
    """So a run made before an option existed is the same run as one made now without it."""
    setting = replace(SETTING, **{name: CHANGED[name] for name in names})
    write_setting(tmp_path / "setting.json", setting)
    assert read_setting(tmp_path / "setting.json") == setting
    written = json.loads((tmp_path / "setting.json").read_text(encoding="utf-8"))
    assert written.keys() == OLD.keys() | {*names}


@pytest.mark.parametrize("name", shipped())
def test_every_wording_is_read_back_with_its_examples(tmp_path: Path, name: str) -> None:
    for template in (load_template(name), load_template(name).bare()):
        setting = replace(SETTING, template=template)
        write_setting(tmp_path / "setting.json", setting)
        assert read_setting(tmp_path / "setting.json") == setting


@pytest.mark.parametrize(
    ("strategy", "chooses"),
    [
        ("ircot", False),
        ("single-step", False),
        ("closed-book", False),
        ("self-ask", True),
        ("interleaved", True),
    ],
)
def test_who_chooses_the_queries(strategy: Any, chooses: bool) -> None:
    assert replace(SETTING, strategy=strategy).chooses_queries == chooses


def test_a_strategy_there_is_not_is_refused(tmp_path: Path) -> None:
    (tmp_path / "setting.json").write_text(json.dumps(OLD | {"strategy": "guess"}))
    with pytest.raises(SteperError, match=r"strategy: .*'ircot'.*'closed-book'"):
        read_setting(tmp_path / "setting.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layout": "woven"}, "template.layout: .*'grouped' or 'interleaved'"),
        ({"layout": None}, "template.layout: "),
        ({"outlay": "grouped"}, "template.outlay: unknown field"),
    ],
)
def test_another_layout_or_field_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "setting.json"
    path.write_text(json.dumps(OLD | {"template": OLD["template"] | change}))
    with pytest.raises(SteperError, match=message):
        read_setting(path)
