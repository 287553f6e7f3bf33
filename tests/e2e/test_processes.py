"""Several processes learn what one does: the real command in two of them, gloo on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from road import Road
from steper import cli

LAUNCHES = Path(__file__).parents[2] / "configs" / "accelerate"
SHARDED = """
import sys
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from steper import cli

plain = AcceleratorState.__init__

def sharded(self, *arguments, **options):
    plain(self, *arguments, **options)
    for kind in ("FSDP", "DEEPSPEED"):
        if plugin := options.get(f"{kind.lower()}_plugin"):
            self.distributed_type = DistributedType[kind]
            PartialState._shared_state["distributed_type"] = self.distributed_type
            if kind == "FSDP":
                self.fsdp_plugin = plugin

AcceleratorState.__init__ = sharded
code = cli.run(sys.argv[1:])
print(AcceleratorState().distributed_type)
sys.exit(code)
"""
"""``steper`` on processes for which ``accelerate`` would make copies: it shards over GPUs only."""


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
    return printed([*launch, "-m", "steper.cli", *arguments(road, out, options)])


def two_shards(road: Road, out: Path, launch: str, *options: str) -> str:
    """``steper train`` in two processes, launched with one of our files; what it printed."""
    script = out.with_suffix(".py")
    script.write_text(SHARDED)
    command = ["-m", "accelerate.commands.launch", "--config_file", str(LAUNCHES / launch)]
    command += ["--num_processes", "2", "--main_process_port", "0", "--mixed_precision", "no"]
    return printed([*command, str(script), *arguments(road, out, options)])


def printed(command: Sequence[str]) -> str:
    """What Python prints."""
    cpu = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | cpu,
    )
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


def assert_same_best(one: Path, other: Path) -> None:
    ours, theirs = (json.loads((f / "manifest.json").read_text())["counts"] for f in (one, other))
    assert ours["best_step"] == theirs["best_step"]
    assert ours["validation_loss"] == pytest.approx(theirs["validation_loss"])


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
    assert_same_best(tmp_path / "one", tmp_path / "two")
    # A finished run is not made again, by however many processes.
    written = (tmp_path / "two" / "manifest.json").stat().st_mtime_ns
    two_processes(road, tmp_path / "two", *options)
    assert (tmp_path / "two" / "manifest.json").stat().st_mtime_ns == written


@pytest.mark.parametrize(("launch", "kind"), [("fsdp", "FSDP"), ("zero3", "DEEPSPEED")])
def test_shards_learn_what_a_whole_model_does(
    road: Road, tmp_path: Path, launch: str, kind: str
) -> None:
    """Halves of weights, gradients and optimizer; several rows each; the best model again."""
    if kind == "DEEPSPEED":
        pytest.importorskip("deepspeed")
    options = ["--validation", str(road.examples), "--save-steps", "1", "--row-tokens", "800"]
    # A rate so high that the best model is not the last.
    options += ["--lr", "4e-2", "--schedule", "constant", "--epochs", "1.3"]
    one_process(road, tmp_path / "whole", *options)
    said = two_shards(road, tmp_path / "shards", f"{launch}.yaml", *options)
    assert said.count(f"DistributedType.{kind}\n") == 2
    assert_same(tmp_path / "whole", tmp_path / "shards")
    assert_same_best(tmp_path / "whole", tmp_path / "shards")
    AutoModelForCausalLM.from_pretrained(tmp_path / "shards" / "student")
