"""The benchmarks run, and write the figures they promise; what the figures are is not tested."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_training(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    result = subprocess.run(
        [
            *(sys.executable, str(BENCHMARKS / "training.py"), "--models", "tiny", "--steps", "2"),
            *("--repeats", "1", "--threads", "1", "--json", str(tmp_path / "figures.json")),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    figures = json.loads((tmp_path / "figures.json").read_text())
    speeds = ("trl", "trl_best", "padded", "one_by_one")
    ratios = [*(f"speedup_vs_{name}" for name in speeds), "cost_vs_final_only"]
    assert all(figures[name] > 0 for name in [*ratios, "peak_memory_vs_trl"])
    assert figures["max_loss_difference"] < 1e-4
    # Of two steps the first passages are shared; cumulative targets are not.
    assert 0.6 < figures["unique_over_raw_tokens"] < 0.75
    assert "tokens/s" in result.stdout
