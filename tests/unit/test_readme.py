"""The README does what it says: the quick start runs, the file tree is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
README = (REPO / "README.md").read_text(encoding="utf-8")


def test_the_quick_start_works_when_pasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code
    monkeypatch.chdir(tmp_path)
    exec(code[1], {})
    assert capsys.readouterr().out.strip().endswith("Hee Haw")


def test_every_module_is_in_the_tree() -> None:
    tree = README.split("## Where things are")[1].split("\n## ")[0]
    modules = (REPO / "src" / "steper").rglob("*.py")
    missing = [p.name for p in modules if p.name != "__init__.py" and p.name not in tree]
    assert not missing


def test_every_link_leads_somewhere() -> None:
    for document in [REPO / "README.md", *(REPO / "docs").glob("*.md")]:
        text = document.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"
