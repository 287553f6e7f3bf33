"""Several processes learn what one does: the real command under ``torchrun``, gloo on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from road import Road
from steper import cli


def arguments(road: Road, out: Path, options: Sequence[str]) -> list[str]:
    return [
        *("train", "--data", str(road.examples), "--out", str(out), "--base", str(road.model)),
        *("--lr", "1e-3", "--epochs", "2", "--batch", "8", "--device", "cpu", *options),
    ]


def one_process(road: Road, out: Path, *options: str) -> None:
    """``steper train`` in this process, for its imports take seconds."""
    assert cli.run(arguments(road, out, options)) == 0


def two_processes(road: Road, out: Path, *options: str) -> str:
    """``steper train`` in two processes; returns what it printed."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launch, "-m", "steper.cli", *arguments(road, out, options)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def assert_same(one: Path, other: Path) -> None:
    """The same history, σ's state included, and the same student, to rounding."""
    assert len(rows(one)) == len(rows(other)) >= 4
    for ours, theirs in zip(rows(one), rows(other), strict=True):
        for name in ("step", "epoch", "tokens", "forward_tokens", "lr"):
            assert ours[name] == theirs[name]
        for name in ("losses", "weights"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5)
        for name in ("log_sigma", "mean", "square"):
            assert ours["state"][name] == pytest.approx(theirs["state"][name], rel=1e-4)
    ours, theirs = (load_file(f / "student" / "model.safetensors") for f in (one, other))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-4, atol=1e-5)


def test_batch_8_is_4_times_2_is_two_processes(road: Road, tmp_path: Path) -> None:
    """One pass over 8 trajectories; several passes over some; two processes with some each."""
    one_process(road, tmp_path / "whole", "--row-tokens", "100000")
    one_process(road, tmp_path / "rows", "--row-tokens", "1500")
    said = two_processes(road, tmp_path / "two", "--row-tokens", "800")
    assert said.count("Student: ") == 1 == said.count("unique tokens")
    for other in ("rows", "two"):
        assert_same(tmp_path / "whole", tmp_path / other)


def test_two_processes_keep_the_same_best_model(road: Road, tmp_path: Path) -> None:
    options = ["--validation", str(road.examples), "--save-steps", "2"]
    one_process(road, tmp_path / "one", *options)
    two_processes(road, tmp_path / "two", *options)
    assert_same(tmp_path / "one", tmp_path / "two")
    one, two = (json.loads((tmp_path / n / "manifest.json").read_text()) for n in ("one", "two"))
    assert one["counts"]["best_step"] == two["counts"]["best_step"]
    assert one["counts"]["validation_loss"] == pytest.approx(two["counts"]["validation_loss"])
    # A finished run is not made again, by however many processes.
    written = (tmp_path / "two" / "manifest.json").stat().st_mtime_ns
    two_processes(road, tmp_path / "two", *options)
    assert (tmp_path / "two" / "manifest.json").stat().st_mtime_ns == written
