"""The retrieval benchmark runs and writes the figures it promises; no time is tested."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "retrieval.py"


def test_retrieval(tmp_path: Path) -> None:
    result = subprocess.run(
        [
            *(sys.executable, str(BENCHMARK), "--passages", "4000", "--queries", "60"),
            *("--rounds", "1", "--data", str(tmp_path / "none"), "--folder", str(tmp_path / "run")),
            *("--json", str(tmp_path / "figures.json")),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["setting"]["passages"] == 4000
    assert list(figures["engines"]) == ["steper", "bm25s", "lancedb", "tantivy"]
    names = ["build_s", "peak_gb", "disk_mb", "query_p50_ms", "query_p95_ms", "queries_per_s"]
    for engine in figures["engines"].values():
        assert all(engine[name] > 0 for name in names)
        assert engine["query_p50_ms"] <= engine["query_p95_ms"]
    # The same words and scores; the rest is ties, which bm25s puts in another order.
    assert figures["engines"]["steper"]["same_top10"] > 0.9
    assert figures["engines"]["bm25s"]["same_top10"] == 1
    # Its passages are mapped, not held; a process with numpy has 0.05 GB.
    assert 0.05 < figures["engines"]["steper"]["peak_gb"] < 1
    assert (tmp_path / "run" / "corpus.jsonl").read_bytes().count(b"\n") == 4000
