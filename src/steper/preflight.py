"""Before a training starts: refuse what cannot be meant, audit the examples, estimate the memory.

Nothing here loads a weight or writes a file, so `steper train --dry-run` is just this.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    TrainingArguments,
)
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from steper.audit import encode
from steper.batches import Encoded, largest_pass
from steper.build import read_examples
from steper.config import TrainConfig
from steper.errors import SteperError
from steper.loss import TaskWeights
from steper.memory import available, estimate
from steper.models import model_path
from steper.setting import Setting
from steper.types import TASKS


def check_options(config: TrainConfig) -> None:
    """Refuse combinations that cannot be meant, and what is not installed."""

    def refuse(what: str, fix: str) -> None:
        raise SteperError(what, where="steper train", fix=fix)

    if not config.tasks:
        refuse("--tasks names no task.", f"Name at least one of {', '.join(TASKS)}.")
    if config.objective == "vanilla" and "aggregation" not in config.tasks:
        refuse(
            "--objective vanilla trains the final step only, and --tasks leaves it out.",
            "Choose another --objective, or leave --tasks out.",
        )
    if config.objective == "fixed" and (min(config.lambdas) < 0 or not any(config.lambdas)):
        refuse(
            f"--lambdas {' '.join(f'{value:g}' for value in config.lambdas)} leaves nothing to "
            "learn, or wants a task unlearned.",
            "Give weights of 0 or more, not all of them 0.",
        )
    if config.patience and not config.validation:
        refuse("--patience needs something to measure.", "Give --validation.")
    if config.qlora and not config.lora_rank:
        refuse("--qlora trains an adapter on a 4-bit base.", "Give --lora-rank, such as 16.")
    there = config.device != "cpu" and torch.cuda.is_available()
    if config.qlora and not there and not config.dry_run:
        refuse(
            "--qlora needs a CUDA device: its 4-bit kernels run nowhere else.",
            "Use --lora-rank without --qlora here.",
        )
    if os.environ.get("ACCELERATE_MIXED_PRECISION", "no") != "no" and not config.bf16:
        refuse(
            "accelerate's configuration sets mixed_precision, which --bf16 decides here.",
            "Give --bf16, or set mixed_precision: 'no'.",
        )
    wanted = {"peft": bool(config.lora_rank), "bitsandbytes": config.qlora}
    wanted |= dict.fromkeys(config.report_to, True)
    missing = [name for name, needed in wanted.items() if needed and find_spec(name) is None]
    if missing and not config.dry_run:
        refuse(f"{' and '.join(missing)} not installed.", f"pip install {' '.join(missing)}")


def model_shape(config: TrainConfig) -> PretrainedConfig:
    """The configuration of the model to start from.

    Raises:
        SteperError: if there is none.
    """
    try:
        shape: PretrainedConfig = AutoConfig.from_pretrained(model_path(config.base))
    except (OSError, ValueError) as error:
        raise SteperError(
            f"no model configuration could be loaded: {str(error).splitlines()[0]}",
            where=config.base,
            fix="Give a folder with config.json, weights and tokenizer, or a hub id.",
        ) from None
    return shape


def audited(
    config: TrainConfig,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    shape: PretrainedConfig,
    setting: Setting,
    weights: TaskWeights,
) -> tuple[list[list[Encoded]], str]:
    """The audited trajectories of the tasks that have weight, and the audit's table.

    Raises:
        SteperError: if the audit stops the run, or something needed is missing.
    """
    where = str(folder)
    text = shape.get_text_config()
    positions = getattr(text, "max_position_embeddings", None)
    on = [weight > 0 for weight in weights.weights()]
    examples = [e for e in read_examples(folder) if on[TASKS.index(e.task)]]
    groups, audit = encode(
        examples,
        tokenizer,
        template=setting.template,
        max_length=config.max_length,
        positions=positions,
    )
    audit.require(config.allow, where=where)
    absent = [t for t, wanted, n in zip(TASKS, on, audit.examples, strict=True) if wanted and not n]
    if absent:
        present = [task for task, n in zip(TASKS, audit.examples, strict=True) if n]
        raise SteperError(
            f"there is no {' and no '.join(absent)} example, though --objective "
            f"{config.objective} gives it weight.",
            where=where,
            fix=f"Train what there is with --tasks {' '.join(present)}, or roll out longer runs."
            if present
            else "Check what `steper build` kept, and --tasks.",
        )
    largest = max(max(example.ids) for group in groups for example in group)
    if largest >= text.vocab_size:
        raise SteperError(
            f"the tokenizer gives token {largest}, and the model has {text.vocab_size} of them.",
            where=config.base,
            fix="They do not belong together; use the tokenizer that the model came with.",
        )
    return groups, audit.table()


def memory_needed(
    config: TrainConfig,
    groups: list[list[Encoded]],
    shape: PretrainedConfig,
    arguments: TrainingArguments,
) -> str:
    """What the training will need, and whether it is there, as text.

    Raises:
        SteperError: if the model is of another kind.
    """
    tokens, places = largest_pass(
        groups, batch=config.batch, packing=config.packing, row_tokens=config.row_tokens
    )
    flags = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")  # set by accelerate launch
    sharded = any(os.environ.get(flag) == "true" for flag in flags)
    sharding = arguments.deepspeed_plugin
    if sharding:  # or ZeRO-3 would shard the model that is only looked at, and leave nothing to see
        unset_hf_deepspeed_config()
    try:
        needed = estimate(
            shape,
            tokens=tokens,
            targets=places,
            lora_rank=config.lora_rank,
            bf16=config.bf16,
            qlora=config.qlora,
            gradient_checkpointing=config.gradient_checkpointing,
            shards=arguments.world_size if sharded else 1,
        )
    except ValueError as error:
        raise SteperError(
            f"is not the configuration of a causal language model: {str(error).splitlines()[0]}",
            where=config.base,
            fix="Give a model that writes text from left to right.",
        ) from None
    if sharding:
        sharding.set_deepspeed_weakref()
    device = arguments.device.type
    free = available(device)
    line = (
        f"Memory: about {_shown(needed.total)} of the {_shown(free)} free on {device}, with "
        f"{tokens:,} tokens in the largest forward pass."
    )
    if needed.total > free:
        line += (
            " That will probably not fit. What helps: --gradient-checkpointing, a smaller "
            "--row-tokens, --bf16 --lora-rank 16, or more devices (docs/training.md)."
        )
    return f"{line}\n{needed.table()}" if config.dry_run else line


def _shown(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB" if size < 2**30 else f"{size / 2**30:.1f} GiB"
