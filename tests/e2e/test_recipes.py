"""Every recipe trains: its own options, on a tiny model of its architecture."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Qwen2Config

from road import Road
from steper.cli import parse
from steper.config import TrainConfig
from steper.train import train

RECIPES = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.toml"))


def tiny(road: Road, folder: Path, base: str) -> Path:
    """A tiny random model of the architecture that a recipe names."""
    if "Llama" in base:
        return road.model
    assert "Qwen2" in base
    llama = AutoConfig.from_pretrained(road.model)
    names = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
        "num_key_value_heads max_position_embeddings pad_token_id bos_token_id eos_token_id"
    )
    shape = {name: getattr(llama, name) for name in names.split()}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(
        Qwen2Config(**shape, tie_word_embeddings=True)
    ).save_pretrained(folder)
    AutoTokenizer.from_pretrained(road.model).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_trains(road: Road, tmp_path: Path, recipe: Path) -> None:
    meant = parse(TrainConfig, "train", ["--config", str(recipe), "--data", "x", "--out", "y"])
    if meant.lora_rank:
        pytest.importorskip("peft")
    base = tiny(road, tmp_path / "base", meant.base)
    # NF4 needs CUDA; all else is as in the recipe, bfloat16 and checkpointing among it.
    given = ["--no-qlora"] if meant.qlora else []
    given += f"--base {base} --data {road.examples} --out {tmp_path / 'run'}".split()
    given += ["--device", "cpu", "--batch", "8", "--epochs", "1"]
    config = parse(TrainConfig, "train", ["--config", str(recipe), *given])
    assert config.bf16 == meant.bf16 and config.gradient_checkpointing

    folder = train(config)

    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["status"] == "finished" and manifest["counts"]["packing"] == "trie"
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert len(rows) >= 2
    assert all(math.isfinite(loss) for row in rows for loss in row["losses"])
    assert any((folder / "student").glob("*.safetensors"))
