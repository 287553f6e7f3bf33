"""Training through the real verb: invariances, exact resume, clear refusals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from road import Road
from steper.build import read_examples
from steper.config import TrainConfig
from steper.errors import SteperError
from steper.store import write_records
from steper.train import train


def config(road: Road, out: Path, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "data": road.examples,
        "out": out,
        "base": str(road.model),
        "lr": 1e-3,
        "epochs": 1.0,
        "batch": 4,
        "micro_batch": 4,
        "device": "cpu",
    }
    return TrainConfig(**(settings | changes))


def history(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "student" / "model.safetensors")


def assert_same_weights(one: Path, other: Path, tolerance: float) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=tolerance, atol=tolerance)


def test_a_student_folder_is_complete(road: Road, tmp_path: Path) -> None:
    folder = train(config(road, tmp_path / "run"))
    names = {path.name for path in (folder / "student").iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "steper.json",
        "README.md",
    } <= names
    assert not (folder / "checkpoints").exists()
    rows = history(folder)
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert all(len(row["losses"]) == 3 and len(row["weights"]) == 3 for row in rows)
    assert rows[-1]["losses"][2] < rows[0]["losses"][2]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["status"] == "finished" and manifest["counts"]["packing"] == "trie"


def test_packing_and_micro_batches_change_nothing(road: Road, tmp_path: Path) -> None:
    whole = train(config(road, tmp_path / "whole"))
    split = train(config(road, tmp_path / "split", micro_batch=2))
    padded = train(config(road, tmp_path / "padded", packing="none"))
    for other in (split, padded):
        for ours, theirs in zip(history(whole), history(other), strict=True):
            assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-4)
            assert ours["weights"] == pytest.approx(theirs["weights"], rel=1e-4)
            assert ours["tokens"] == theirs["tokens"]
        assert_same_weights(whole, other, 2e-3)


def test_vanilla_learns_from_the_last_step_only(road: Road, tmp_path: Path) -> None:
    folder = train(config(road, tmp_path / "run", objective="vanilla"))
    for row in history(folder):
        assert row["losses"][:2] == [0.0, 0.0] and row["losses"][2] > 0
        assert row["weights"] == [0.0, 0.0, 1.0]
    counts = json.loads((folder / "manifest.json").read_text())["counts"]
    assert counts["examples"] == counts["trajectories"]


def test_fixed_weights_are_those_given(road: Road, tmp_path: Path) -> None:
    folder = train(config(road, tmp_path / "run", objective="fixed", lambdas=(1.5, 1.0, 0.5)))
    assert history(folder)[0]["weights"] == pytest.approx([0.5, 1 / 3, 0.5 / 3])


def test_difficulty_learns_sigma_and_it_starts_at_one(road: Road, tmp_path: Path) -> None:
    rows = history(train(config(road, tmp_path / "run", sigma_lr=0.1)))
    assert rows[0]["weights"] == [0.5, 0.5, 0.5]
    # Losses of an untrained model are above 1, so every σ grows and every weight falls.
    assert all(
        last < first for first, last in zip(rows[0]["weights"], rows[-1]["weights"], strict=True)
    )
    for row, following in pairwise(rows):
        expected = [0.5 / torch.tensor(s).exp().item() ** 2 for s in row["state"]["log_sigma"]]
        assert following["weights"] == pytest.approx(expected, rel=1e-5)


def test_killed_and_resumed_equals_uninterrupted(road: Road, tmp_path: Path) -> None:
    settings = {"epochs": 6.0, "save_steps": 3}
    clean = train(config(road, tmp_path / "clean", **settings))
    out = tmp_path / "killed"
    code = (
        "import sys; from steper.config import TrainConfig; from steper.train import train;"
        "train(TrainConfig.model_validate_json(sys.argv[1]))"
    )
    arguments = [sys.executable, "-c", code, config(road, out, **settings).model_dump_json()]
    process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL, env=os.environ)
    deadline = time.monotonic() + 120
    while not list((out / "checkpoints").glob("checkpoint-*/trainer_state.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "student").exists()
    train(config(road, out, **settings))
    keys = ("step", "tokens", "losses", "weights", "state", "lr")
    for ours, theirs in zip(history(clean), history(out), strict=True):
        assert [ours[key] for key in keys] == [theirs[key] for key in keys]
    assert_same_weights(clean, out, 0.0)


def test_too_long_examples_stop_the_run(road: Road, tmp_path: Path) -> None:
    with pytest.raises(SteperError, match=r"longer than 64 tokens.*Raise --max-length to \d+"):
        train(config(road, tmp_path / "run", max_length=64))


def test_a_loss_that_is_no_number_stops_the_run(road: Road, tmp_path: Path) -> None:
    with pytest.raises(SteperError, match="no longer a number"):
        train(config(road, tmp_path / "run", lr=1e30, epochs=5.0, warmup=0.0))
    assert not (tmp_path / "run" / "student").exists()


def test_batch_must_be_a_multiple(road: Road, tmp_path: Path) -> None:
    with pytest.raises(SteperError, match="does not divide"):
        train(config(road, tmp_path / "run", micro_batch=3))
    assert not (tmp_path / "run").exists()


def test_a_task_without_data_is_an_error_for_vanilla(road: Road, tmp_path: Path) -> None:
    data = tmp_path / "examples"
    data.mkdir()
    for name in ("manifest.json", "setting.json"):
        (data / name).write_bytes((road.examples / name).read_bytes())
    first_steps = [e for e in read_examples(road.examples) if e.task == "initialization"]
    write_records(data / "examples.jsonl", first_steps)
    with pytest.raises(SteperError, match="no example is left"):
        train(config(road, tmp_path / "run", data=data, objective="vanilla"))


def test_a_base_that_is_no_model_is_named(road: Road, tmp_path: Path) -> None:
    with pytest.raises(SteperError, match="no causal language model could be loaded"):
        train(config(road, tmp_path / "run", base=str(tmp_path)))
