"""`steper train`: train a student on step-wise examples.

Examples are audited as tokens and the memory is estimated before a weight is loaded. Writes the
student (a plain Hugging Face folder, or an adapter, with ``steper.json``) to ``OUT/student`` and
one line per optimizer step to ``OUT/history.jsonl``: the three task losses, their weights and σ.
The same command resumes from the last checkpoint. Under ``torchrun`` or ``accelerate launch``
every process runs this; the first of them alone owns the folder.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)

from steper.batches import Encoded, Steps
from steper.build import EXAMPLES
from steper.config import TrainConfig
from steper.errors import SteperError
from steper.lm.local import load_model, load_tokenizer
from steper.loss import build_weights
from steper.models import RUN_SETTING, model_path, read_setting
from steper.preflight import audited, check_options, memory_needed, model_shape
from steper.setting import Setting
from steper.store import Run, require_finished
from steper.students import push_student, save_student
from steper.trainer import StepTrainer, last_checkpoint, read_history
from steper.types import TASKS

STUDENT = "student"
HISTORY = "history.jsonl"
CHECKPOINTS = "checkpoints"

WITHOUT_EFFECT = {
    "data", "out", "device", "dry_run", "report_to", "push_to_hub",
    "row_tokens", "gradient_checkpointing",
}  # fmt: skip
"""Options that may differ when a run is resumed: they change where and how, not what is learned
(the last two up to rounding)."""


def train(config: TrainConfig, *, say: Callable[[str], None] = print) -> Path:
    """Run the stage and return its folder.

    Args:
        config: the options.
        say: shows the token audit and the memory estimate.

    Raises:
        SteperError: on bad input, findings of the token audit, a loss that is not a number, or
            where the folder holds another run.
    """
    check_options(config)
    for folder in filter(None, (config.data, config.validation)):
        require_finished(folder, stage="build")
    # Starts the process group where there are several processes; before any model, because
    # DeepSpeed shards a model while it is loaded.
    arguments = _arguments(config)
    main = arguments.process_index == 0
    stage = None
    if main and (config.out / "manifest.json").exists() and not config.dry_run:
        stage = _open(config)
        if stage.finished:
            _push(config)
    (finished,) = broadcast_object_list([stage is not None and stage.finished])
    if finished:
        return config.out
    setting = read_setting(config.data / RUN_SETTING)
    weights = build_weights(
        config.objective, tasks=config.tasks, lambdas=config.lambdas, sigma_lr=config.sigma_lr
    )
    tokenizer, shape = load_tokenizer(model_path(config.base)), model_shape(config)
    groups, shown = audited(config, config.data, tokenizer, shape, setting, weights)
    validation = None
    if config.validation:
        if read_setting(config.validation / RUN_SETTING) != setting:
            raise SteperError(
                "the questions for validation were asked in another way than those for training.",
                where=str(config.validation / RUN_SETTING),
                fix=f"Roll out and build both alike; compare {config.data / RUN_SETTING}.",
            )
        validation, table = audited(config, config.validation, tokenizer, shape, setting, weights)
        shown += f"\n\nValidation, {config.validation}:\n{table}"
    shown += f"\n{memory_needed(config, groups, shape, arguments)}"
    if main:
        say(shown)
    if config.dry_run:
        return config.out
    if main and stage is None:
        stage = _open(config)
    PartialState().wait_for_everyone()
    model = _model(config, arguments)
    trainer = StepTrainer(
        model=model,
        args=arguments,
        processing_class=tokenizer,
        steps=_steps(config, groups, arguments, tokenizer),
        validation=dataclasses.replace(
            _steps(config, validation, arguments, tokenizer), epochs=1.0, seed=None
        )
        if validation
        else None,
        task_weights=weights,
        history=config.out / HISTORY,
        callbacks=[EarlyStoppingCallback(config.patience)] if config.patience else [],
    )
    newest = last_checkpoint(config.out / CHECKPOINTS)
    trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    # The first process alone has the history, and writes what comes of it.
    counts = _counts(trainer, config) if stage else {}
    save_student(
        trainer,
        config.out / STUDENT,
        setting=setting,
        card=_card(config, setting, counts) if stage else "",
        # Trained in float32, a student takes the precision, and the room, that its base had.
        dtype=None if config.lora_rank else shape.dtype,
    )
    if stage:
        stage.finish(counts)
        shutil.rmtree(stage.path / CHECKPOINTS, ignore_errors=True)
        _push(config)
    PartialState().destroy_process_group()
    return config.out


def _open(config: TrainConfig) -> Run:
    inputs = {"examples": config.data / EXAMPLES, "setting": config.data / RUN_SETTING}
    if Path(base := model_path(config.base)).is_dir():
        inputs["base"] = Path(base)
    if config.validation:
        inputs["validation"] = config.validation / EXAMPLES
    return Run.open(
        config.out,
        stage="train",
        config=config.model_dump(mode="json", exclude=WITHOUT_EFFECT),
        inputs=inputs,
    )


def _arguments(config: TrainConfig) -> TrainingArguments:
    cpu = config.device == "cpu" or not torch.accelerator.is_available()
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1  # set by torchrun, accelerate launch
    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    # Newer versions of transformers have renamed the option, and warn of the old name.
    checkpointing = "activation_checkpointing"
    if checkpointing not in known:
        checkpointing = "gradient_checkpointing"
    options: dict[str, Any] = {
        checkpointing: config.gradient_checkpointing,
        f"{checkpointing}_kwargs": {"use_reentrant": False},
    }
    if config.validation:
        options |= {
            "eval_strategy": "steps",
            "eval_steps": config.save_steps,
            "load_best_model_at_end": True,
            "metric_for_best_model": "eval_loss",
            "greater_is_better": False,
        }
    if "tensorboard" in config.report_to:
        # Else its files would go with the checkpoints.
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(config.out / "tensorboard")
    return TrainingArguments(
        output_dir=str(config.out / CHECKPOINTS),
        run_name=config.out.name,
        per_device_train_batch_size=1,  # an item is an optimizer step, see steper.trainer
        learning_rate=config.lr,
        num_train_epochs=1,  # Steps holds all epochs
        lr_scheduler_type=config.schedule
        if config.schedule != "constant"
        else "constant_with_warmup",
        warmup_steps=config.warmup,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        save_strategy="steps",
        save_steps=config.save_steps,
        save_total_limit=2,
        logging_strategy="no",
        report_to=list(config.report_to) or "none",
        seed=config.seed,
        bf16=config.bf16,
        use_cpu=cpu,
        ddp_backend="gloo" if cpu and several else None,
        ddp_find_unused_parameters=False,
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        **options,
    )


def _steps(
    config: TrainConfig,
    groups: list[list[Encoded]],
    arguments: TrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
) -> Steps:
    return Steps(
        groups,
        batch=config.batch,
        epochs=config.epochs,
        seed=config.seed,
        packing=config.packing,
        row_tokens=config.row_tokens,
        pad_id=tokenizer.pad_token_id,
        rank=arguments.process_index,
        processes=arguments.world_size,
    )


def _model(config: TrainConfig, arguments: TrainingArguments) -> PreTrainedModel:
    """The model to train: all of its weights, or an adapter on a frozen one."""
    narrow = config.lora_rank and config.bf16
    options: dict[str, Any] = {}
    if config.qlora:
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        options["device_map"] = {"": arguments.device.index or 0}
    # Master weights are float32; bf16 rounds activations. A frozen base needs no more than bf16.
    base = model_path(config.base)
    model = load_model(
        str(Path(base).resolve()) if Path(base).is_dir() else base,  # an adapter remembers it
        device="" if config.qlora else "cpu",
        dtype="bfloat16" if narrow else "float32",
        **options,
    )
    if not config.lora_rank:
        return model
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if config.qlora:
        model = prepare_model_for_kbit_training(  # type: ignore[no-untyped-call]
            model, use_gradient_checkpointing=config.gradient_checkpointing
        )
    torch.manual_seed(config.seed)
    adapter = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, adapter)  # type: ignore[return-value]


def _push(config: TrainConfig) -> None:
    if config.push_to_hub:
        push_student(config.out / STUDENT, config.push_to_hub)


def _counts(trainer: StepTrainer, config: TrainConfig) -> dict[str, Any]:
    """What the manifest keeps and the command shows."""
    rows = read_history(config.out / HISTORY)
    counts: dict[str, Any] = {
        "trajectories": len(trainer.steps.groups),
        "examples": sum(len(group) for group in trainer.steps.groups),
        "steps": len(rows),
        "tokens": rows[-1]["tokens"],
        "packing": trainer.steps.packing,
        "unique_share": round(rows[-1]["forward_tokens"] / rows[-1]["tokens"], 3),
        "train_seconds": rows[-1]["seconds"],
        "losses": _mean_losses(rows[-trainer.steps.per_epoch :]),
    }
    best, loss = trainer.state.best_model_checkpoint, trainer.state.best_metric
    if best and loss is not None:
        counts["best_step"] = int(best.rpartition("-")[2])
        counts["validation_loss"] = round(loss, 6)
    return counts


def _mean_losses(rows: list[dict[str, Any]]) -> dict[str, float]:
    """L of each task trained, the mean over some steps: a single one is a few trajectories."""
    means = [fmean(row["losses"][number] for row in rows) for number in range(len(TASKS))]
    return {task: round(mean, 4) for task, mean in zip(TASKS, means, strict=True) if mean}


def _card(config: TrainConfig, setting: Setting, counts: dict[str, Any]) -> str:
    library = "peft" if config.lora_rank else "transformers"
    base = f"base_model: {config.base}\n" if not Path(model_path(config.base)).exists() else ""
    lora = f" LoRA adapter of rank {config.lora_rank}." if config.lora_rank else ""
    shown = ", ".join(f"{task} {loss:.3f}" for task, loss in counts["losses"].items())
    return f"""\
---
library_name: {library}
{base}tags: [steper, multi-hop, rag, distillation]
---

# A student trained with steper

Base: `{config.base}`.{lora} Objective: `{config.objective}` on {", ".join(config.tasks)};
{counts["trajectories"]:,} trajectories, {config.epochs:g} epochs, batch {config.batch},
learning rate {config.lr:g}. Task losses, mean of the last epoch: {shown}.

Strategy: `{setting.strategy}`, {setting.k} passages a search, at most {setting.max_steps} steps.
Ask it with `steper ask`, which reads `steper.json` for prompt wording and retrieval settings.
"""
