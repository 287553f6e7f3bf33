"""A setting on disk: read back as it was, older files included, and nothing read leniently."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from steper.errors import SteperError
from steper.models import read_setting, write_setting
from steper.prompts import Template
from steper.setting import Setting

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
