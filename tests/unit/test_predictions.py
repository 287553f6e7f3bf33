"""The files for the official scripts; what these make of them: tests/parity."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from steper.config import EvaluateConfig, IndexConfig
from steper.evaluate import evaluate
from steper.index import build_index
from steper.metrics import Rules
from steper.predictions import write_predictions
from steper.rollout import read_trajectories
from steper.store import read_json, write_records
from steper.types import Hop, Passage, Question

ANSWERS = {"z": "Hee Haw", "a": ""}


@pytest.mark.parametrize(
    ("rules", "more"), [("hotpotqa", {}), ("2wikimultihopqa", {"evidence": {"z": [], "a": []}})]
)
def test_hotpotqa_and_2wiki_read_one_object(
    tmp_path: Path, rules: Rules, more: dict[str, object]
) -> None:
    write_predictions(tmp_path, ANSWERS, rules=rules)
    assert [file.name for file in tmp_path.iterdir()] == ["predictions.json"]
    found = read_json(tmp_path / "predictions.json")
    assert found == {"answer": ANSWERS, "sp": {"z": [], "a": []}} | more


def test_musique_reads_a_line_a_question_in_their_order(tmp_path: Path) -> None:
    write_predictions(tmp_path, ANSWERS, rules="musique")
    (file,) = tmp_path.iterdir()
    assert file.name == "predictions.jsonl"
    assert [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] == [
        {
            "id": id_,
            "predicted_answer": answer,
            "predicted_support_idxs": [],
            "predicted_answerable": True,
        }
        for id_, answer in ANSWERS.items()
    ]


def test_an_evaluation_writes_its_answers_in_the_order_of_the_questions(tmp_path: Path) -> None:
    """The trajectories themselves are sorted by id."""
    clark = Passage("p", "Roy Clark", "Roy Clark hosted Hee Haw.")
    chain = (Hop("What did Roy Clark host?", "Hee Haw", "Roy Clark", clark.text),)
    asked = [Question(id_, "What did Roy Clark host?", id_ * 2, chain=chain) for id_ in "zam"]
    write_records(tmp_path / "corpus.jsonl", [clark])
    write_records(tmp_path / "q.jsonl", asked)
    build_index(IndexConfig(source=str(tmp_path / "corpus.jsonl"), out=tmp_path / "index"))
    config = EvaluateConfig(
        model="annotated",
        index=str(tmp_path / "index"),
        questions=tmp_path / "q.jsonl",
        out=tmp_path / "out",
        rules="musique",
    )
    folder = evaluate(config)
    lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    found = {row["id"]: row["predicted_answer"] for row in map(json.loads, lines)}
    runs = read_trajectories(folder)
    assert [run.id for run in runs] == ["a", "m", "z"] and list(found) == ["z", "a", "m"]
    assert found == {run.id: run.answer for run in runs} == {id_: id_ * 2 for id_ in "zam"}
