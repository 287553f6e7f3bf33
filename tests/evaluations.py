"""Evaluation folders made by hand, for tests of what reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from steper.scores import score_trajectory, summarise
from steper.store import Run, write_json, write_records
from steper.types import Question, Step, Trajectory


def evaluation(
    folder: Path,
    label: str,
    values: Mapping[str, Sequence[float | None]],
    *,
    questions: str = "q",
    seed: int = 0,
) -> Path:
    """A folder as `steper evaluate` writes it, with these measures of the questions q0, q1, …

    Args:
        folder: where to.
        label: of the run.
        values: of each measure that matters, one value a question.
        questions: stands for the SHA-256 of the question file.
        seed: of the run.
    """
    scores = []
    for number, row in enumerate(zip(*values.values(), strict=True)):
        run = Trajectory(Question(f"q{number}", "Who?", "A"), (Step("", (), "B"),), "B")
        # The names are fields of a score; a wrong one is refused by ``replace``.
        measures: dict[str, Any] = dict(zip(values, row, strict=True))
        scores.append(replace(score_trajectory(run, "hotpotqa"), **measures))
    with Run.open(folder, stage="evaluate", config={}, inputs={}) as stage:
        write_records(folder / "scores.jsonl", scores)
        result = {
            "label": label,
            "n": len(scores),
            "seeds": [seed],
            "questions_sha256": questions,
            "corpus_sha256": "c",
            "split": "all",
            "rules": "hotpotqa",
            "setting": {},
            "metrics": summarise(scores, seed=0),
        }
        write_json(folder / "results.json", result)
        stage.finish({})
    return folder
