"""Exported examples: files that read back equal, and the recipe of docs/trl.md as it is printed."""

from __future__ import annotations

import json
import math
import re
import socket
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoTokenizer

from road import Road
from steper import cli
from steper.audit import encode
from steper.build import read_examples
from steper.config import EvaluateConfig, ExportConfig
from steper.errors import SteperError
from steper.evaluate import evaluate
from steper.export import export
from steper.models import RUN_SETTING, read_setting
from steper.types import TASKS, StepExample

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "trl.md"
START, SIMPLE, EXACT, EQ3, SAVE = re.findall(
    r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL
)
NAMES = ("prompt_completion", "messages")


@pytest.fixture(scope="module")
def exported(road: Road, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(ExportConfig(data=road.examples, out=tmp_path_factory.mktemp("export") / "run"))


@pytest.fixture(scope="module")
def examples(road: Road) -> list[StepExample]:
    return read_examples(road.examples)


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run in a folder of its own, with `datasets`' cache in it and without a network."""
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")

    def refuse(*_: object) -> None:
        raise AssertionError("something looks for the network")

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ---- the files -----------------------------------------------------------------------------------


def test_both_shapes_hold_the_examples(exported: Path, examples: list[StepExample]) -> None:
    keys = ("id", "trajectory_id", "task", "step")
    plain, chat = (jsonl(exported / f"{name}.jsonl") for name in NAMES)
    for example, text, turns in zip(examples, plain, chat, strict=True):
        same = {key: getattr(example, key) for key in keys}
        assert text == {"prompt": example.prompt, "completion": example.target, **same}
        said = [("user", example.prompt), ("assistant", example.target)]
        assert turns == {
            "messages": [{"role": role, "content": content} for role, content in said],
            **same,
        }


@pytest.mark.parametrize("name", NAMES)
def test_parquet_and_jsonl_are_equal(exported: Path, name: str) -> None:
    rows = pq.read_table(exported / f"{name}.parquet").to_pylist()
    assert rows == jsonl(exported / f"{name}.jsonl") and rows


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("kind", "suffix"), [("json", "jsonl"), ("parquet", "parquet")])
def test_datasets_reads_them(
    exported: Path, offline: Path, name: str, kind: str, suffix: str
) -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.load_dataset(kind, data_files=f"{exported}/{name}.{suffix}", split="train")
    assert list(data) == jsonl(exported / f"{name}.jsonl")


def test_the_command_shows_its_counts_and_returns_when_finished(
    road: Road, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = ["export", "--data", str(road.examples), "--out", str(out), "--tasks", "aggregation"]
    assert cli.run(command) == 0
    shown = capsys.readouterr().out
    rows = jsonl(out / "prompt_completion.jsonl")
    assert {row["task"] for row in rows} == {"aggregation"}
    assert re.search(rf"examples +aggregation {len(rows)}\n", shown) and str(out) in shown
    before = {path: path.stat().st_mtime_ns for path in out.iterdir() if path.name != ".lock"}
    assert cli.run(command) == 0 and capsys.readouterr().out == shown
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert {path.name for path in before} == {
        *(f"{name}.{suffix}" for name in NAMES for suffix in ("jsonl", "parquet")),
        "setting.json",
        "manifest.json",
    }


def test_the_order_of_tasks_is_no_other_run(road: Road, tmp_path: Path) -> None:
    one, other = (
        ExportConfig(data=road.examples, out=tmp_path / "run", tasks=tasks)
        for tasks in (TASKS, TASKS[::-1])
    )
    assert export(one) == export(other)
    with pytest.raises(SteperError, match="holds another run"):
        export(ExportConfig(data=road.examples, out=tmp_path / "run", tasks=TASKS[:1]))


def test_mistakes_are_refused(road: Road, tmp_path: Path) -> None:
    with pytest.raises(SteperError, match="not of `steper build`"):
        export(ExportConfig(data=road.rollout, out=tmp_path / "run"))
    with pytest.raises(SteperError, match="no example of the tasks"):
        export(ExportConfig(data=road.examples, out=tmp_path / "run", tasks=()))


# ---- the recipe ----------------------------------------------------------------------------------


@pytest.fixture
def names(road: Road, exported: Path, offline: Path) -> dict[str, Any]:
    """The names that the recipe begins with, pointing to what the tests made."""
    pytest.importorskip("trl", reason="trl is not installed")
    space: dict[str, Any] = {}
    exec(START, space)
    given = {"MODEL": str(road.model), "EXPORT": str(exported), "STUDENT": "student"}
    assert given.keys() <= space.keys()
    return space | given


def run(block: str, names: dict[str, Any]) -> Any:
    """Run a block of the recipe for two steps on the CPU; returns its trainer."""
    epochs = "num_train_epochs=2,"
    assert epochs in block
    exec(block.replace(epochs, "max_steps=2, use_cpu=True, bf16=False,"), names)
    return names["trainer"]


def sequences(trainer: Any) -> list[tuple[list[int], list[int]]]:
    """Token ids and labels that the trainer trains on, in file order."""
    return [(row["input_ids"], row["labels"]) for row in trainer.train_dataset]


def ours(road: Road, examples: list[StepExample]) -> list[tuple[list[int], list[int]]]:
    """The sequences of `steper train`, in file order."""
    groups, audit = encode(
        examples,
        AutoTokenizer.from_pretrained(road.model),
        template=read_setting(road.examples / RUN_SETTING).template,
        max_length=2048,
    )
    assert not audit.findings
    encoded = [(list(example.ids), example.prompt) for group in groups for example in group]
    return [(ids, [-100] * prompt + ids[prompt:]) for ids, prompt in encoded]


def assert_trained(trainer: Any) -> None:
    assert trainer.state.global_step == 2
    assert math.isfinite(trainer.state.log_history[-1]["train_loss"])


def test_the_simple_way_ends_every_completion(
    road: Road, names: dict[str, Any], examples: list[StepExample]
) -> None:
    trainer = run(SIMPLE, names)
    assert_trained(trainer)
    tokenizer = AutoTokenizer.from_pretrained(road.model)
    for example, (ids, labels) in zip(examples, sequences(trainer), strict=True):
        target = [label for label in labels if label != -100]
        assert tokenizer.decode(ids) == example.prompt + example.target + tokenizer.eos_token
        assert tokenizer.decode(target) == example.target + tokenizer.eos_token
        assert labels == [-100] * (len(ids) - len(target)) + target


def test_the_exact_way_trains_on_our_sequences(
    road: Road, names: dict[str, Any], examples: list[StepExample]
) -> None:
    trainer = run(EXACT, names)
    assert_trained(trainer)
    expected = ours(road, examples)
    assert sequences(trainer) == expected
    known = {tuple(ids): labels for ids, labels in expected}
    for batch in trainer.get_train_dataloader():
        for ids, labels, mask in zip(
            batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True
        ):
            length = int(mask.sum())
            assert labels.tolist()[:length] == known[tuple(ids.tolist()[:length])]
            assert (labels[length:] == -100).all()

    exec(SAVE, names)
    folder = evaluate(
        EvaluateConfig(
            model="student",
            index=str(road.index),
            questions=road.questions,
            out=Path("evaluation"),
            limit=2,
            max_tokens=4,
            device="cpu",
        )
    )
    assert len(jsonl(folder / "trajectories.jsonl")) == 2


def test_a_default_of_trl_would_cut_targets_off(names: dict[str, Any]) -> None:
    """Why the recipe says ``max_length``: past it, examples lose their targets or vanish."""
    from trl import SFTConfig

    assert SFTConfig(output_dir="x", use_cpu=True, bf16=False).max_length == 1024
    whole = sequences(run(EXACT, names))
    limit = sorted(len(ids) for ids, _ in whole)[len(whole) // 2]
    cut = sequences(run(EXACT.replace("max_length=None", f"max_length={limit}"), names))
    assert 0 < len(cut) < len(whole)
    assert sum(map(targets, cut)) < sum(map(targets, whole))


def targets(sequence: tuple[list[int], list[int]]) -> int:
    return sum(label != -100 for label in sequence[1])


def test_eq3_is_the_mean_over_examples(names: dict[str, Any]) -> None:
    block = EXACT.replace("trainer = SFTTrainer(", "trainer = Eq3Trainer(")
    assert block != EXACT
    exec("from trl import SFTTrainer\n" + EQ3, names)
    trainer = run(block, names)
    assert_trained(trainer)
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model.eval(), dict(batch))
        alone = []
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            at = (labels != -100).nonzero().squeeze(1)
            logs = trainer.model(input_ids=ids[None]).logits[0].float().log_softmax(-1)
            alone.append(-logs[at - 1, labels[at]].mean())
    assert len({int((labels != -100).sum()) for labels in batch["labels"]}) > 1
    torch.testing.assert_close(loss, torch.stack(alone).mean())
