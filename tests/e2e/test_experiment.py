"""Experiments end to end: figures that can be traced, resumption, side by side, failures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from steper.cli import run
from steper.config import ExperimentConfig
from steper.errors import SteperError
from steper.experiment import experiment

REPO = Path(__file__).resolve().parents[2]
FILE = """
question = "Is the teacher better than nothing?"
seeds = [0, 1]
[data.world.world]
train_questions = 20
test_questions = 10
[evaluate]
prompt = "world"
k = 2
max_steps = 6
max_tokens = 32
[arms.nothing]
model = "base-reader"
evaluate.strategy = "closed-book"
[arms.teacher]
model = "world"
evaluate.error_rate = 0.0
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("file") / "small.toml"
    path.write_text(FILE)
    return path


@pytest.fixture(scope="module")
def out(file: Path) -> Path:
    out = file.parent / "out"
    experiment(ExperimentConfig(file=file, out=out))
    return out


def results(out: Path) -> Any:
    return json.loads((out / "results.json").read_text())


def files(out: Path) -> dict[Path, int]:
    """When each file of the cells was written."""
    return {p: p.stat().st_mtime_ns for p in out.rglob("[!.]*") if p.is_file() and p.parent != out}


def test_every_figure_has_value_interval_n_and_seeds(out: Path) -> None:
    found = results(out)
    assert found["kind"] == "experiment" and found["seeds"] == [0, 1]
    for arm in found["arms"].values():
        em = arm["metrics"]["em"]
        assert em["low"] <= em["value"] <= em["high"] and em["n"] == arm["n"] == 20
        assert em["value"] == pytest.approx(sum(em["by_seed"]) / 2)
        assert arm["seeds"] == [0, 1]
    (em,) = (c for c in found["comparisons"] if c["measure"] == "em")
    teacher, nothing = (found["arms"][arm]["metrics"]["em"] for arm in ("teacher", "nothing"))
    assert em["difference"]["value"] == pytest.approx(teacher["value"] - nothing["value"])
    assert em["difference"]["n"] == 20 and em["p"] < 0.05 and len(em["by_seed"]) == 2


def test_figures_lead_to_the_runs_they_come_from(out: Path) -> None:
    found = results(out)
    assert len(found["evaluations"]) == 4 and found["trainings"] == []
    for folder in found["evaluations"]:
        evaluation = json.loads((out / folder / "results.json").read_text())
        assert evaluation["kind"] == "evaluation" and evaluation["label"] in found["arms"]
        assert len(evaluation["corpus_sha256"]) == len(evaluation["prompt_sha256"]) == 64
    assert found["command"].startswith("steper experiment ")
    assert found["question"] in (out / "report.html").read_text(encoding="utf-8")


def test_the_same_command_does_nothing_twice(
    file: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(out)
    assert run(["experiment", str(file), "--out", str(out)]) == 0
    assert files(out) == before
    shown = capsys.readouterr().out
    assert "8 of 8 cells are finished already" in shown and "teacher − nothing" in shown


def test_side_by_side_it_comes_to_the_same(file: Path, out: Path, tmp_path: Path) -> None:
    experiment(ExperimentConfig(file=file, out=tmp_path / "two", workers=2, seeds=(0,)))
    for folder in results(tmp_path / "two")["evaluations"]:
        one, two = (base / folder / "trajectories.jsonl" for base in (out, tmp_path / "two"))
        assert one.read_bytes() == two.read_bytes()
    assert "answering" in "".join(p.read_text() for p in (tmp_path / "two" / "logs").iterdir())


def test_a_cell_that_fails_is_named_and_the_others_are_kept(
    file: Path, out: Path, tmp_path: Path
) -> None:
    shutil.copytree(out, tmp_path / "out")
    before = files(tmp_path / "out")
    missing = f"arms.bad.model={tmp_path}/no-model"
    config = ExperimentConfig(
        file=file, out=tmp_path / "out", workers=2, seeds=(0,), set=(missing,)
    )
    with pytest.raises(SteperError, match=r"evaluate failed:(.|\n)*finished cells are kept"):
        experiment(config)
    assert before.items() <= files(tmp_path / "out").items()


def test_a_dry_run_lists_the_cells_and_makes_nothing(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment(ExperimentConfig(file=file, out=tmp_path / "x", dry_run=True))
    shown = capsys.readouterr().out
    assert "evaluate" in shown and "nothing, teacher" in shown and not (tmp_path / "x").exists()


@pytest.mark.slow
def test_on_a_ray_cluster_it_comes_to_the_same(file: Path, out: Path, tmp_path: Path) -> None:
    experiment(ExperimentConfig(file=file, out=tmp_path / "ray", workers=2, engine="ray"))
    assert results(tmp_path / "ray")["comparisons"] == results(out)["comparisons"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", sorted((REPO / "configs" / "experiments").glob("*.toml")), ids=lambda path: path.stem
)
def test_every_ready_file_runs_small(path: Path, tmp_path: Path) -> None:
    small = [f"data.{name}.world.{size}" for name in ("world", "split", "whole")
             for size in ("train_questions=20", "test_questions=10")
             if f"[data.{name}.world]" in path.read_text()]  # fmt: skip
    if path.stem == "data":
        small += [
            f'arms.{arm}.grid={{"rollout.limit"=[10, 20]}}' for arm in ("vanilla_kd", "steper")
        ]
        small.append("compare=[]")
    experiment(ExperimentConfig(file=path, out=tmp_path, seeds=(0,), set=tuple(small)))
    found = results(tmp_path)
    assert found["trainings"] and all(arm["n"] == 10 for arm in found["arms"].values())
