"""Real questions on real retrieval, the whole road: index, rollout, build, train, evaluate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from models import save_tiny_model
from steper.build import build, read_examples
from steper.config import (
    BuildConfig,
    EvaluateConfig,
    IndexConfig,
    RolloutConfig,
    TrainConfig,
)
from steper.corpus import read_corpus
from steper.evaluate import evaluate
from steper.index import build_index
from steper.retrieval.indexes import open_index
from steper.rollout import read_questions, read_trajectories, rollout
from steper.train import train

NAMES = ("hotpotqa", "2wikimultihopqa", "musique")
RECALL = {  # of gold titles at 2, 5, 10, from the README of the data
    "hotpotqa": (59.8, 76.3, 88.2),
    "2wikimultihopqa": (55.9, 65.7, 70.4),
    "musique": (40.6, 52.4, 60.9),
}


@pytest.fixture(scope="module", params=NAMES)
def indexed(
    request: pytest.FixtureRequest, shared_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, Path]:
    """(data set, its folder, its index)."""
    name: str = request.param
    out = tmp_path_factory.mktemp(name) / "index"
    build_index(IndexConfig(source=str(shared_data / name / "corpus.jsonl"), out=out))
    return name, shared_data / name, out


def test_recall_is_that_of_the_reference(indexed: tuple[str, Path, Path]) -> None:
    from steper.recall import gold_recall

    name, data, index = indexed
    questions = read_questions(data / "questions.jsonl", split=None, limit=None, chains=None)
    found = gold_recall(open_index(index), questions)
    for interval, reference in zip(found.depths.values(), RECALL[name], strict=True):
        assert 100 * interval.value == pytest.approx(reference, abs=1.0)


def test_the_road_on_real_questions(
    indexed: tuple[str, Path, Path], shared_data: Path, tmp_path: Path
) -> None:
    name, data, index = indexed
    people = shared_data / "human_chains.jsonl" if name == "hotpotqa" else None
    rolled = rollout(
        RolloutConfig(
            index=str(index),
            questions=data / "questions.jsonl",
            out=tmp_path / "rollout",
            chains=people,
            limit=None if people else 60,
        )
    )
    trajectories = read_trajectories(rolled)
    assert len(trajectories) >= 25
    assert all(1 <= len(t.steps) <= 5 for t in trajectories)
    assert all(len(step.passages) <= 4 for t in trajectories for step in t.steps)
    for trajectory in trajectories:
        ids = [passage.id for passage in trajectory.passages]
        assert len(ids) == len(set(ids))
    rules = name if name != "hotpotqa" else "hotpotqa"
    built = build(BuildConfig(rollout=rolled, out=tmp_path / "examples", rules=rules))  # type: ignore[arg-type]
    examples = read_examples(built)
    counts = json.loads((built / "manifest.json").read_text())["counts"]
    assert counts["kept"] > len(trajectories) / 3
    assert {e.task for e in examples} == {"initialization", "expansion", "aggregation"}

    texts = [
        p.text for p, _ in zip(read_corpus(str(data / "corpus.jsonl")), range(300), strict=False)
    ]
    model = save_tiny_model(tmp_path / "model", texts, positions=16384)
    # Two trajectories are enough for a few steps of a tiny student.
    keep = {e.trajectory_id for e in examples[:8]}
    lines = (built / "examples.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["trajectory_id"] in keep]
    (built / "examples.jsonl").write_text("".join(kept), encoding="utf-8")
    trained = train(
        TrainConfig(
            data=built,
            out=tmp_path / "run",
            base=str(model),
            lr=1e-3,
            batch=1,
            max_length=16384,
            device="cpu",
        )
    )
    rows = [json.loads(line) for line in (trained / "history.jsonl").read_text().splitlines()]
    assert len(rows) >= 2 and all(row["losses"][2] > 0 for row in rows)
    evaluated = evaluate(
        EvaluateConfig(
            model=str(trained / "student"),
            index=str(index),
            questions=data / "questions.jsonl",
            out=tmp_path / "evaluation",
            limit=2,
            rules=rules,  # type: ignore[arg-type]
        )
    )
    result = json.loads((evaluated / "results.json").read_text())
    assert result["n"] == 2 and result["setting"]["k"] == 4
    assert 0 <= result["metrics"]["recall"]["value"] <= 1
