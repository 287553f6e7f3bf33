"""The rollout benchmark runs and writes the figures it promises; no time is tested."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "rollout.py"


@pytest.mark.parametrize("layout", ["grouped", "interleaved"])
def test_rollout(tmp_path: Path, layout: str) -> None:
    result = subprocess.run(
        [
            *(sys.executable, str(BENCHMARK), "--model", "tiny", "--layout", layout),
            *("--steps", "3", "--questions", "2", "--repeats", "1", "--threads", "1"),
            *("--json", str(tmp_path / "figures.json")),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["outputs_equal"] is True
    assert figures["wall_speedup"] > 0 and figures["wall_speedup_over_no_reuse"] > 0
    unique = figures["unique_tokens_per_question"]
    # Three prompts of about one, two and three steps' passages; the last is what is unique.
    whole = figures["no_reuse_prefilled_per_question"]
    assert 1.8 < whole / unique < 2.2
    if layout == "grouped":
        assert figures["flashrag_style_prefilled_per_question"] == whole
    ours = figures["steper_prefilled_per_question"]
    assert figures["prefilled_over_unique"] == pytest.approx(ours / unique, rel=1e-3)
    assert ours < 1.05 * unique, "every passage once, some of the reasoning again"
    assert "flashrag_style" in result.stdout
