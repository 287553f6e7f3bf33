"""Training through the real verb: invariances, exact resume, clear refusals."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
)

from models import save_tiny_model
from road import Road
from steper.audit import encode
from steper.batches import collate, forward
from steper.build import read_examples
from steper.config import TrainConfig
from steper.errors import SteperError
from steper.lm.local import LocalLM, load_model, load_tokenizer
from steper.models import read_setting, write_setting
from steper.store import write_records
from steper.train import train
from steper.trainer import last_checkpoint
from steper.types import TASKS


def config(road: Road, out: Path, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "data": road.examples,
        "out": out,
        "base": str(road.model),
        "lr": 1e-3,
        "epochs": 1.0,
        "batch": 4,
        "device": "cpu",
    }
    return TrainConfig(**(settings | changes))


def history(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def manifest(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return content


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
    assert manifest(folder)["status"] == "finished"
    assert manifest(folder)["counts"]["packing"] == "trie"
    assert "steper_trie" not in (folder / "student" / "config.json").read_text()


def test_rows_and_packing_change_nothing(road: Road, tmp_path: Path) -> None:
    whole = train(config(road, tmp_path / "whole"))
    others = [
        train(config(road, tmp_path / f"{packing}-{tokens}", packing=packing, row_tokens=tokens))
        for packing, tokens in (("trie", 900), ("trie", 1), ("rows", 3000), ("none", 2000))
    ]
    for other in others:
        assert manifest(other)["counts"]["packing"] == other.name.split("-")[0]
        for ours, theirs in zip(history(whole), history(other), strict=True):
            assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-4)
            assert ours["weights"] == pytest.approx(theirs["weights"], rel=1e-4)
            assert ours["tokens"] == theirs["tokens"]
        assert_same_weights(whole, other, 2e-3)


def mamba(vocabulary: int) -> PreTrainedModel:
    return MambaForCausalLM(
        MambaConfig(vocab_size=vocabulary, hidden_size=16, num_hidden_layers=2, state_size=4)
    )


def bloom(vocabulary: int) -> PreTrainedModel:
    return BloomForCausalLM(BloomConfig(vocab_size=vocabulary, hidden_size=32, n_layer=2, n_head=2))


def gemma_2(vocabulary: int) -> PreTrainedModel:
    return Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
        )
    )


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [(mamba, "carry a state"), (bloom, "attention layers of its own"), (gemma_2, "softcap")],
)
def test_a_model_that_cannot_be_packed_is_padded_with_a_message(
    road: Road,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    architecture: Callable[[int], PreTrainedModel],
    reason: str,
) -> None:
    base = tmp_path / "base"
    shutil.copytree(road.model, base)
    torch.manual_seed(0)
    architecture(LlamaForCausalLM.from_pretrained(road.model).config.vocab_size).save_pretrained(
        base
    )
    settings = {"base": str(base), "epochs": 0.5}
    folder = train(config(road, tmp_path / "run", **settings))
    said = capfd.readouterr()
    assert "Packing: 'none' instead of 'trie': " in said.out + said.err
    assert reason in said.out + said.err
    assert manifest(folder)["counts"]["packing"] == "none"
    padded = train(config(road, tmp_path / "padded", **settings, packing="none"))
    assert [row["losses"] for row in history(folder)] == [row["losses"] for row in history(padded)]


def test_vanilla_learns_from_the_last_step_only(road: Road, tmp_path: Path) -> None:
    folder = train(config(road, tmp_path / "run", objective="vanilla"))
    for row in history(folder):
        assert row["losses"][:2] == [0.0, 0.0] and row["losses"][2] > 0
        assert row["weights"] == [0.0, 0.0, 1.0]
    counts = manifest(folder)["counts"]
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


VALIDATED = {"epochs": 12.0, "save_steps": 3, "patience": 3, "lr": 3.0, "schedule": "constant"}


@pytest.mark.parametrize("validated", [False, True], ids=["", "validated"])
def test_killed_and_resumed_equals_uninterrupted(
    road: Road, tmp_path: Path, validated: bool
) -> None:
    """σ, Adam's state, the best model and how often it was not beaten survive a kill."""
    settings: dict[str, Any] = {"epochs": 6.0, "save_steps": 3}
    if validated:
        settings = {**VALIDATED, "validation": road.examples}
    clean = train(config(road, tmp_path / "clean", **settings))
    out = tmp_path / "killed"
    code = (
        "import sys; from steper.config import TrainConfig; from steper.train import train;"
        "train(TrainConfig.model_validate_json(sys.argv[1]))"
    )
    arguments = [sys.executable, "-c", code, config(road, out, **settings).model_dump_json()]
    process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL, env=os.environ)
    deadline = time.monotonic() + 120
    # With patience, only after the loss has not improved once.
    awaited = "checkpoint-6" if validated else "checkpoint-*"
    while not list((out / "checkpoints").glob(f"{awaited}/trainer_state.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "student").exists()
    train(config(road, out, **settings))
    ours, theirs = manifest(clean)["counts"], manifest(out)["counts"]
    assert {**ours, "train_seconds": 0} == {**theirs, "train_seconds": 0}
    assert validated == (ours["steps"] < 60 and "best_step" in ours)
    keys = ("step", "tokens", "losses", "weights", "state", "lr")
    for ours, theirs in zip(history(clean), history(out), strict=True):
        assert [ours[key] for key in keys] == [theirs[key] for key in keys]
    assert_same_weights(clean, out, 0.0)


def test_too_long_examples_stop_the_run(road: Road, tmp_path: Path) -> None:
    with pytest.raises(SteperError, match=r"fully-masked.*64 tokens.*Raise --max-length to \d+"):
        train(config(road, tmp_path / "run", max_length=64))
    assert not (tmp_path / "run").exists()


def test_a_finding_is_allowed_by_name(road: Road, tmp_path: Path) -> None:
    lengths = [len(e.prompt) + len(e.target) for e in read_examples(road.examples)]
    said: list[str] = []
    settings = {"max_length": 300, "allow": ("truncated", "fully-masked")}
    folder = train(config(road, tmp_path / "run", **settings), say=said.append)
    assert manifest(folder)["counts"]["examples"] < len(lengths)
    assert "fully-masked" in said[0]


@pytest.mark.parametrize(
    "changes",
    [{}, {"bf16": True, "device": "auto"}, {"qlora": True, "lora_rank": 8, "bf16": True}],
    ids=["plain", "bf16", "qlora"],
)
def test_a_dry_run_shows_the_audit_and_writes_nothing(
    road: Road, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Also of what needs a GPU: a laptop can plan for one."""
    said: list[str] = []
    settings = config(road, tmp_path / "run", dry_run=True, **changes)
    train(settings, say=said.append)
    assert not (tmp_path / "run").exists()
    assert "unique tokens" in said[0] and "Memory: about" in said[0] and "optimizer" in said[0]


def test_a_dry_run_of_a_finished_run_changes_nothing(road: Road, tmp_path: Path) -> None:
    folder = train(config(road, tmp_path / "run"))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    said: list[str] = []
    train(config(road, folder, dry_run=True, push_to_hub="me/student"), say=said.append)
    assert said and {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_the_models_own_limit_is_not_to_be_raised(road: Road, tmp_path: Path) -> None:
    texts = [e.prompt for e in read_examples(road.examples)]
    base = save_tiny_model(tmp_path / "base", texts, positions=100)
    with pytest.raises(SteperError, match="model has no more positions: roll out") as error:
        train(config(road, tmp_path / "run", base=str(base)))
    assert "Raise --max-length" not in str(error.value)


def test_validation_is_asked_like_training_and_audited_like_it(road: Road, tmp_path: Path) -> None:
    other = some_examples(road, tmp_path / "other", TASKS)
    setting = read_setting(road.examples / "setting.json")
    write_setting(other / "setting.json", dataclasses.replace(setting, k=setting.k + 1))
    with pytest.raises(SteperError, match=r"other/setting\.json.*asked in another way"):
        train(config(road, tmp_path / "run", validation=other))
    empty = some_examples(road, tmp_path / "empty", TASKS)
    examples = read_examples(road.examples)
    write_records(
        empty / "examples.jsonl", [dataclasses.replace(examples[0], target=""), *examples[1:]]
    )
    with pytest.raises(SteperError, match=r"empty: the token audit.*1 empty-target"):
        train(config(road, tmp_path / "run", validation=empty))
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_no_number_stops_the_run(road: Road, tmp_path: Path) -> None:
    """It names the examples, and the checkpoint before stays."""
    out = tmp_path / "run"
    settings = {"lr": 1e30, "epochs": 5.0, "warmup": 0.0, "save_steps": 1, "max_grad_norm": 0.0}
    with pytest.raises(SteperError, match=r"no longer a number at step \d+, with.*#\d") as error:
        train(config(road, out, **settings))
    assert not (out / "student").exists()
    updates = len((out / "history.jsonl").read_text().splitlines())
    kept = last_checkpoint(out / "checkpoints", before=updates)
    # The newest checkpoint holds the weights that have just failed; the one before is named.
    assert last_checkpoint(out / "checkpoints") == out / "checkpoints" / f"checkpoint-{updates}"
    if kept:
        assert str(error.value).startswith(f"{kept}: ") and "last good checkpoint" in str(error)
        assert all(t.isfinite().all() for t in load_file(kept / "model.safetensors").values())
    else:
        assert "No checkpoint was due yet" in str(error.value)


def some_examples(road: Road, folder: Path, tasks: tuple[str, ...]) -> Path:
    """A build folder with the examples of these tasks only."""
    folder.mkdir()
    for name in ("manifest.json", "setting.json"):
        (folder / name).write_bytes((road.examples / name).read_bytes())
    examples = read_examples(road.examples)
    write_records(folder / "examples.jsonl", [e for e in examples if e.task in tasks])
    return folder


@pytest.mark.parametrize(
    ("tasks", "objective", "message"),
    [
        (("initialization",), "vanilla", "no aggregation example.*Check what"),
        (
            ("initialization", "aggregation"),
            "difficulty",
            "no expansion example.*--tasks initialization aggregation",
        ),
        ((), "uniform", "no initialization and no expansion and no aggregation example"),
    ],
)
def test_a_task_without_data_is_an_error(
    road: Road, tmp_path: Path, tasks: tuple[str, ...], objective: str, message: str
) -> None:
    data = some_examples(road, tmp_path / "examples", tasks)
    with pytest.raises(SteperError, match=message):
        train(config(road, tmp_path / "run", data=data, objective=objective))
    assert not (tmp_path / "run").exists()


def test_some_tasks_only(road: Road, tmp_path: Path) -> None:
    tasks = ("initialization", "aggregation")
    folder = train(config(road, tmp_path / "run", tasks=tasks))
    for row in history(folder):
        assert row["losses"][1] == row["weights"][1] == 0.0
        assert row["losses"][0] > 0 < row["losses"][2]
    counts = manifest(folder)["counts"]
    assert counts["examples"] == 2 * counts["trajectories"]
    data = some_examples(road, tmp_path / "examples", tasks)
    other = train(config(road, tmp_path / "other", data=data, tasks=tasks))
    assert_same_weights(folder, other, 0.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ()}, "names no task"),
        ({"tasks": ("expansion",), "objective": "vanilla"}, "final step only"),
        ({"patience": 2}, "Give --validation"),
        ({"qlora": True}, "Give --lora-rank"),
        ({"objective": "fixed", "lambdas": (0.0, 0.0, 0.0)}, "--lambdas 0 0 0 leaves nothing"),
        ({"objective": "fixed", "lambdas": (1.0, -1.0, 1.0)}, "wants a task unlearned"),
        ({"qlora": True, "lora_rank": 4}, "needs a CUDA device"),
        ({"report_to": ("mlflow",)}, "mlflow not installed.*pip install mlflow"),
    ],
)
def test_options_that_cannot_be_meant(
    road: Road, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SteperError, match=message):
        train(config(road, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_a_vocabulary_that_is_too_small(road: Road, tmp_path: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(road.model)
    base = tmp_path / "base"
    shutil.copytree(road.model, base)
    model.resize_token_embeddings(300)
    model.save_pretrained(base)
    with pytest.raises(SteperError, match=r"gives token \d+, and the model has 300"):
        train(config(road, tmp_path / "run", base=str(base)))
    assert not (tmp_path / "run").exists()


def test_an_adapter(road: Road, tmp_path: Path) -> None:
    """Only the adapter is saved; the student folder is asked and resumed like any other."""
    pytest.importorskip("peft")
    folder = train(config(road, tmp_path / "run", lora_rank=4, lr=1e-2, epochs=4.0))
    names = {path.name for path in (folder / "student").iterdir()}
    assert "adapter_model.safetensors" in names and "model.safetensors" not in names
    rows = history(folder)
    assert rows[-1]["losses"][2] < rows[0]["losses"][2]
    assert manifest(folder)["counts"]["packing"] == "trie"
    student, base = LocalLM(folder / "student"), LocalLM(road.model)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        difference = student.model(ids).logits - base.model(ids).logits
    assert difference.abs().max() > 1e-3


def test_checkpointing_and_checkpoints_of_an_adapter(road: Road, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    settings = {"lora_rank": 4, "lr": 1e-2}
    one = train(config(road, tmp_path / "one", **settings))
    other = train(config(road, tmp_path / "other", **settings, gradient_checkpointing=True))
    for ours, theirs in zip(history(one), history(other), strict=True):
        assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-5)


def test_the_best_model_is_kept_and_patience_ends_the_run(road: Road, tmp_path: Path) -> None:
    """A learning rate that soon ruins the model: the best checkpoint is an early one."""
    settings = {
        "validation": road.examples,
        "save_steps": 2,
        "epochs": 12.0,
        "schedule": "constant",
    }
    folder = train(config(road, tmp_path / "run", lr=0.3, patience=3, warmup=0.0, **settings))
    counts = manifest(folder)["counts"]
    assert counts["best_step"] + 2 * 3 == counts["steps"] < 60
    best = train(config(road, tmp_path / "again", lr=0.3, warmup=0.0, **settings))
    assert manifest(best)["counts"]["validation_loss"] <= counts["validation_loss"]
    # The student is the best model, not the last: its loss is the one that was measured.
    measured = loss_alone(road, folder / "student")
    assert measured == pytest.approx(counts["validation_loss"], rel=1e-5)


def loss_alone(road: Road, student: Path) -> float:
    """Mean over the tasks of L_j, by one forward pass an example."""
    model, tokenizer = load_model(str(student), device="cpu"), load_tokenizer(str(student))
    setting = read_setting(road.examples / "setting.json")
    groups, _ = encode(
        read_examples(road.examples), tokenizer, template=setting.template, max_length=4096
    )
    total = 0.0
    with torch.no_grad():
        for example in (example for group in groups for example in group):
            batch = collate([[example]], packing="none", pad_id=0)
            total += float(forward(model, batch)) / len(groups)
    return total / 3


def test_a_tracker_gets_losses_weights_and_sigma(road: Road, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = train(config(road, tmp_path / "run", report_to=("tensorboard",)))
    events = accumulator.EventAccumulator(str(folder / "tensorboard")).Reload()
    for task in ("initialization", "expansion", "aggregation"):
        for number, name in enumerate(("loss", "weight", "sigma")):
            assert f"{name}/{task}" in str(events.Tags()["scalars"]), number
    (tag,) = (t for t in events.Tags()["scalars"] if t.endswith("loss/aggregation"))
    values = [event.value for event in events.Scalars(tag)]
    assert values == pytest.approx([row["losses"][2] for row in history(folder)])


def test_the_student_is_uploaded_and_a_failure_loses_nothing(
    road: Road, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, Any]] = []

    class Hub:
        def create_repo(self, repo: str, **_: Any) -> None:
            calls.append(("create", repo))
            if len(calls) == 1:
                raise OSError("no route to host")

        def upload_folder(self, *, repo_id: str, folder_path: str) -> None:
            calls.append((repo_id, sorted(p.name for p in Path(folder_path).iterdir())))

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    settings = config(road, tmp_path / "run", push_to_hub="me/student")
    with pytest.raises(SteperError, match=r"no route to host.*student is safe.*hf upload"):
        train(settings)
    assert manifest(tmp_path / "run")["status"] == "finished"
    train(settings)
    assert calls[1:] == [
        ("create", "me/student"),
        ("me/student", sorted(p.name for p in (tmp_path / "run" / "student").iterdir())),
    ]


def test_a_base_that_is_no_model_is_named(road: Road, tmp_path: Path) -> None:
    with pytest.raises(SteperError, match="no causal language model could be loaded"):
        train(config(road, tmp_path / "run", base=str(tmp_path)))
