"""The recipes in ``configs/``: their options exist, and what their comments say is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.utils import DistributedType
from transformers import PretrainedConfig, Qwen2Config

from models import LLAMA_8B
from steper.cli import parse
from steper.config import TrainConfig
from steper.memory import estimate

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RECIPES = sorted(CONFIGS.glob("*.toml"))
LAUNCHES = sorted(CONFIGS.glob("accelerate/*.yaml"))


def qwen(
    hidden: int, inner: int, layers: int, heads: tuple[int, int], *, vocabulary: int = 151936
) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        tie_word_embeddings=vocabulary == 151936,
    )


# What config.json says on the hub.
SHAPES: dict[str, PretrainedConfig] = {
    "meta-llama/Llama-3.1-8B-Instruct": LLAMA_8B,
    "Qwen/Qwen2.5-0.5B-Instruct": qwen(896, 4864, 24, (14, 2)),
    "Qwen/Qwen2.5-1.5B-Instruct": qwen(1536, 8960, 28, (12, 2)),
    "Qwen/Qwen2.5-3B-Instruct": qwen(2048, 11008, 36, (16, 2)),
    "Qwen/Qwen2.5-7B-Instruct": qwen(3584, 18944, 28, (28, 4), vocabulary=152064),
}


def recipe(path: Path) -> TrainConfig:
    return parse(TrainConfig, "train", ["--config", str(path), "--data", "x", "--out", "y"])


def comments(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if line.startswith("#"))


def name(path: Path) -> str:
    return path.stem


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 6 and len(LAUNCHES) == 2


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_a_recipe_is_read_by_the_command_line(path: Path) -> None:
    config = recipe(path)
    assert config.base in SHAPES
    # What is known of the paper's training; an adapter's learning rate is another thing.
    assert (config.epochs, config.schedule, config.objective) == (2.0, "cosine", "difficulty")
    assert config.warmup > 0 and config.gradient_checkpointing
    assert config.lora_rank or config.lr == 5e-6


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_a_recipes_comments_name_itself_and_what_exists(path: Path) -> None:
    text = comments(path)
    assert f"--config configs/{path.name} " in text
    for file in re.findall(r"configs/\S+\.(?:toml|yaml)", text):
        assert (CONFIGS.parent / file).is_file()


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_a_recipes_memory_is_the_estimate_and_fits(path: Path) -> None:
    config, text = recipe(path), comments(path)
    stated = re.search(r"Memory: about (\d+) GiB on (?:each of )?(\d) GPU", text)
    room = re.search(r"GPUs? of (\d+) GB", text)
    assert stated and room
    needed = estimate(
        SHAPES[config.base],
        tokens=config.row_tokens,
        targets=config.row_tokens // 10,
        lora_rank=config.lora_rank,
        bf16=config.bf16,
        qlora=config.qlora,
        gradient_checkpointing=config.gradient_checkpointing,
        shards=int(stated[2]),
    ).total
    assert int(stated[1]) == pytest.approx(needed / 2**30, abs=0.6)
    assert 1.2 * needed < int(room[1]) * 2**30  # what is called a GB on a GPU's box


@pytest.mark.parametrize("path", LAUNCHES, ids=name)
def test_a_launch_file_is_read_by_accelerate(path: Path) -> None:
    config = load_config_from_file(str(path))
    assert isinstance(config, ClusterConfig)
    assert (config.num_processes, config.mixed_precision) == (4, "bf16")


def test_the_launch_files_shard_everything() -> None:
    zero3, fsdp = (
        load_config_from_file(str(CONFIGS / "accelerate" / f"{name}.yaml"))
        for name in ("zero3", "fsdp")
    )
    assert zero3.distributed_type == DistributedType.DEEPSPEED
    assert zero3.deepspeed_config["zero_stage"] == 3
    assert zero3.deepspeed_config["zero3_save_16bit_model"] is True
    # Left out, so that the options of `steper train` are the ones that count.
    assert not {"gradient_clipping", "gradient_accumulation_steps"} & zero3.deepspeed_config.keys()
    assert fsdp.distributed_type == DistributedType.FSDP
    assert fsdp.fsdp_config["fsdp_version"] == 2
    assert fsdp.fsdp_config["fsdp_auto_wrap_policy"] == "TRANSFORMER_BASED_WRAP"
