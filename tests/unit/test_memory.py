"""The memory estimate: its counts are those of real models, its sum is what a training takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    Qwen2Config,
)

from models import LLAMA_8B
from steper.memory import Shape, _container, available, estimate

GB, GIB = 10**9, 2**30

TINY = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
TINY_MODELS = [
    LlamaConfig(**TINY),
    Qwen2Config(**TINY, tie_word_embeddings=True),
    GemmaConfig(**TINY, head_dim=16, tie_word_embeddings=True),
    GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4),
]


def name(config: PretrainedConfig) -> str:
    return str(config.model_type)


@pytest.mark.parametrize("config", TINY_MODELS, ids=name)
def test_parameters_are_counted_as_in_the_real_model(config: PretrainedConfig) -> None:
    model = AutoModelForCausalLM.from_config(config)
    real = sum(parameter.numel() for parameter in model.parameters())
    assert Shape.of(config).parameters == real
    assert estimate(config, tokens=1, targets=1).optimizer == 8 * real


@pytest.mark.parametrize("config", TINY_MODELS, ids=name)
def test_adapter_weights_are_counted_as_in_the_real_adapter(config: PretrainedConfig) -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(
        AutoModelForCausalLM.from_config(config),
        peft.LoraConfig(r=4, target_modules="all-linear"),
    )
    real = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert estimate(config, tokens=1, targets=1, lora_rank=4).gradients == 4 * real


def test_nothing_is_allocated_for_a_large_model() -> None:
    before = psutil.Process().memory_info().rss
    assert Shape.of(LLAMA_8B).parameters == 8_030_261_248
    assert psutil.Process().memory_info().rss - before < GIB


def test_states_of_an_8b_model() -> None:
    full = estimate(LLAMA_8B, tokens=1, targets=1)
    states = full.weights + full.gradients + full.optimizer
    assert states == 16 * 8_030_261_248
    assert full.copies == 0
    # Autocast's copies of all weights but the input embedding's.
    assert estimate(LLAMA_8B, tokens=1, targets=1, bf16=True).copies == pytest.approx(
        15e9, rel=0.01
    )

    adapter = estimate(LLAMA_8B, tokens=1, targets=1, lora_rank=16, bf16=True)
    assert adapter.weights == pytest.approx(16 * GB, rel=0.03)
    assert adapter.gradients + adapter.optimizer < 0.6 * GB
    four_bits = estimate(LLAMA_8B, tokens=1, targets=1, lora_rank=16, bf16=True, qlora=True)
    # 7 billion weights at 4.5 bits, and a billion of embedding and output at 16.
    assert four_bits.weights == pytest.approx(6.2 * GB, rel=0.03)


def test_shards_share_states_and_nothing_else() -> None:
    alone = estimate(LLAMA_8B, tokens=4096, targets=400, bf16=True)
    four = estimate(LLAMA_8B, tokens=4096, targets=400, bf16=True, shards=4)
    for part in ("weights", "copies", "gradients", "optimizer"):
        assert getattr(four, part) == getattr(alone, part) // 4
    assert (four.activations, four.logits) == (alone.activations, alone.logits)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_more_tokens_and_targets_need_more(checkpointing: bool) -> None:
    def total(tokens: int, targets: int) -> int:
        return estimate(
            LLAMA_8B, tokens=tokens, targets=targets, gradient_checkpointing=checkpointing
        ).total

    assert total(1000, 100) < total(1001, 100) < total(8000, 100) < total(8000, 101)


def test_what_saves_memory_does() -> None:
    plain = estimate(LLAMA_8B, tokens=8192, targets=800, bf16=True)
    lora = estimate(LLAMA_8B, tokens=8192, targets=800, bf16=True, lora_rank=16)
    again = estimate(
        LLAMA_8B, tokens=8192, targets=800, bf16=True, lora_rank=16, gradient_checkpointing=True
    )
    assert lora.weights + lora.gradients + lora.optimizer < 0.2 * (
        plain.weights + plain.gradients + plain.optimizer
    )
    assert again.activations < lora.activations / 5
    wide = estimate(LLAMA_8B, tokens=8192, targets=800)
    assert plain.activations < wide.activations and plain.logits < wide.logits


def test_the_table_adds_up() -> None:
    lines = estimate(LLAMA_8B, tokens=4096, targets=400).table().splitlines()
    sizes = [float(line.split()[1]) for line in lines]
    assert [line.split()[0] for line in lines][-1] == "total"
    assert sizes[-1] == pytest.approx(sum(sizes[:-1]), abs=0.05)


# ---- what there is ----------------------------------------------------------------------------


def test_a_cpu_has_what_the_system_says_at_most() -> None:
    assert 0 < available("cpu") <= psutil.virtual_memory().total
    assert available(torch.device("cpu")) > 0


@pytest.mark.gpu
def test_a_gpu_has_what_cuda_says() -> None:
    assert 0 < available("cuda") <= torch.cuda.get_device_properties(0).total_memory


def group(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file, value in files.items():
        (folder / file.replace("__", ".")).write_text(f"{value}\n", encoding="ascii")


def test_a_containers_limits_count_those_above_it_too(tmp_path: Path) -> None:
    groups, root = tmp_path / "cgroup", tmp_path / "fs"
    groups.write_text("0::/slice/job\n", encoding="ascii")
    group(root / "slice/job", memory__max="max", memory__current=50)
    group(root / "slice", memory__max=1000, memory__current=700, memory__stat="inactive_file 200")
    assert _container(groups, root) == [500]
    group(root / "slice/job", memory__max=100, memory__current=300)
    assert _container(groups, root) == [0, 500]


def test_the_older_control_groups_are_read_too(tmp_path: Path) -> None:
    groups, root = tmp_path / "cgroup", tmp_path / "fs"
    groups.write_text("4:memory:/not/seen/inside\n1:cpu:/x\n", encoding="ascii")
    group(root / "memory", memory__limit_in_bytes=900, memory__usage_in_bytes=100)
    assert _container(groups, root) == [800]


def test_no_control_groups_no_limit(tmp_path: Path) -> None:
    assert _container(tmp_path / "none", tmp_path) == []


# ---- what a training takes --------------------------------------------------------------------

MEASURE = """
import gc, json, random
import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from steper.attention import TRIE
from steper.batches import Encoded, collate, forward
from steper.memory import estimate

def resident(field):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

def train(checkpointing):
    model = AutoModelForCausalLM.from_config(config)
    model.set_attn_implementation(TRIE)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    for _ in range(2):
        for _ in range(2):
            forward(model, batch).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

torch.set_num_threads(1)
config = LlamaConfig(
    vocab_size=2000, hidden_size=256, intermediate_size=704, num_hidden_layers=4,
    num_attention_heads=4, num_key_value_heads=2,
)
chance = random.Random(0)
row = [chance.randrange(2000) for _ in range(1400)]
branch = row[:700] + [chance.randrange(2000) for _ in range(100)]
group = [Encoded(row, 1350, 2), Encoded(branch, 750, 0)]
batch = collate([group], packing="trie", pad_id=0)
layer = torch.nn.Linear(8, 8)
layer(torch.ones(8)).sum().backward()
begin = resident("VmRSS")
for checkpointing in (True, False):  # the greater peak last
    train(checkpointing)
    gc.collect()
    known = estimate(
        config, tokens=batch.ids.numel(), targets=len(batch.columns),
        gradient_checkpointing=checkpointing,
    )
    print(json.dumps([known.total, resident("VmHWM") - begin]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_a_training_takes_what_was_estimated() -> None:
    # Freed memory goes back to the system at once, so that what is resident is what is used.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURE],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    for line in result.stdout.splitlines():
        estimated, measured = json.loads(line)
        assert 0.6 < estimated / measured < 1.7, (estimated, measured)
    assert len(result.stdout.splitlines()) == 2
