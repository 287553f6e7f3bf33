"""What people and models see, kept to the letter. To change it on purpose: ``--update-golden``."""

from __future__ import annotations

from pathlib import Path

import pytest

from steper.driver import run
from steper.retrieval.indexes import make_index
from steper.setting import Setting
from steper.store import to_json
from steper.templates import LAYOUTS, load_template, shipped
from steper.types import Passage, PromptLayout
from steper.world.generator import World
from steper.world.teacher import WorldTeacher

HERE = Path(__file__).parent
PASSAGES = [
    [Passage("1", "Jim Halsey", "Jim Halsey managed  the singer\nRoy Clark.")],
    [Passage("2", "Roy Clark", "Roy Clark hosted Hee Haw.")],
]


def compare(name: str, found: str, request: pytest.FixtureRequest) -> None:
    path = HERE / name
    if request.config.getoption("--update-golden"):
        path.write_text(found, encoding="utf-8")
    assert found == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", shipped())
@pytest.mark.parametrize("layout", LAYOUTS)
def test_prompt(name: str, layout: PromptLayout, request: pytest.FixtureRequest) -> None:
    prompt = (
        load_template(name)
        .laid_out(layout)
        .render(
            "What show did Jim Halsey's client host?", PASSAGES, ["Jim Halsey managed Roy Clark."]
        )
    )
    suffix = "" if layout == "grouped" else f"-{layout}"
    compare(f"prompt-{name}{suffix}.txt", prompt, request)


def test_teacher_trajectories(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    world = World.generate(seed=0, part="test", entities=120)
    index = make_index(world.passages.values(), tmp_path)
    setting = Setting("ircot", load_template("world"), k=2, max_steps=6)
    teacher = WorldTeacher(error_rate=0.1, seed=0)
    runs = run(world.questions(10, seed=0), setting=setting, retriever=index, lm=teacher)
    lines = [to_json(t) + "\n" for t in sorted(runs, key=lambda t: t.question.id)]
    compare("trajectories.jsonl", "".join(lines), request)
