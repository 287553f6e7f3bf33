"""What `steper evaluate` writes and prints; the command itself is tested with the rollout."""

from __future__ import annotations

from pathlib import Path

from steper.evaluate import evaluation_table
from steper.scores import MEASURES
from steper.store import write_json


def test_the_table_has_a_row_a_label_with_the_mean_over_its_runs(tmp_path: Path) -> None:
    for number, (label, em) in enumerate((("a", 0.25), ("b", 1.0), ("a", 0.75))):
        metrics = dict.fromkeys(MEASURES) | {"em": {"value": em}, "steps": {"value": 3.0}}
        result = {"label": label, "metrics": metrics, "seconds": 2.0, "n": 7, "failed": number}
        write_json(tmp_path / str(number) / "results.json", result)
    lines = evaluation_table([tmp_path / str(number) for number in range(3)]).splitlines()
    found = [line.split()[:4] for line in lines[2:]]
    assert found == [["a", "14", "2", "50.0"], ["b", "7", "1", "100.0"]]
    assert lines[2].split()[-3:] == ["3.0", "-", "2"]
