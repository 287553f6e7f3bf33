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
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from transformers import (
    AutoConfig,
    EarlyStoppingCallback,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from steper.audit import encode
from steper.batches import Encoded, Steps, largest_pass
from steper.build import EXAMPLES, read_examples
from steper.config import TrainConfig
from steper.errors import SteperError
from steper.lm.local import load_model, load_tokenizer
from steper.loss import TaskWeights, build_weights
from steper.memory import available, estimate
from steper.models import RUN_SETTING, STUDENT_SETTING, model_path, read_setting, write_setting
from steper.setting import Setting
from steper.store import Run, write_atomic
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
    _check_options(config)
    # Starts the process group where there are several processes; before any model, because
    # DeepSpeed shards a model while it is loaded.
    arguments = _arguments(config)
    main = arguments.process_index == 0
    stage = None
    if main and (config.out / "manifest.json").exists() and not config.dry_run:
        stage = _open(config)
        if stage.finished:
            _push(config, stage.path / STUDENT)
    if _agreed(stage is not None and stage.finished):
        return config.out
    setting = read_setting(config.data / RUN_SETTING)
    weights = build_weights(
        config.objective, tasks=config.tasks, lambdas=config.lambdas, sigma_lr=config.sigma_lr
    )
    tokenizer, shape = load_tokenizer(model_path(config.base)), _shape(config)
    groups, shown = _groups(config, config.data, tokenizer, shape, setting, weights)
    validation = None
    if config.validation:
        if read_setting(config.validation / RUN_SETTING) != setting:
            raise SteperError(
                "the questions for validation were asked in another way than those for training.",
                where=str(config.validation / RUN_SETTING),
                fix=f"Roll out and build both alike; compare {config.data / RUN_SETTING}.",
            )
        validation, table = _groups(config, config.validation, tokenizer, shape, setting, weights)
        shown += f"\n\nValidation, {config.validation}:\n{table}"
    shown += f"\n{_memory(config, groups, shape, arguments)}"
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
    _save_student(trainer, config, setting, shape)
    if stage:
        stage.finish(_counts(trainer, config))
        shutil.rmtree(stage.path / CHECKPOINTS, ignore_errors=True)
        _push(config, stage.path / STUDENT)
    PartialState().destroy_process_group()
    return config.out


# ---- before anything is loaded ----------------------------------------------------------------


def _check_options(config: TrainConfig) -> None:
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


def _agreed(flag: bool) -> bool:
    """What the first process knows, on every process."""
    state = PartialState()
    if state.num_processes == 1:
        return flag
    values = [flag]
    torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def _shape(config: TrainConfig) -> PretrainedConfig:
    """The model's configuration; ``load_tokenizer`` has shown that there is something to load."""
    try:
        shape: PretrainedConfig = AutoConfig.from_pretrained(model_path(config.base))
    except (OSError, ValueError) as error:
        raise SteperError(
            f"no model configuration could be loaded: {str(error).splitlines()[0]}",
            where=config.base,
            fix="Give a folder with config.json, weights and tokenizer, or a hub id.",
        ) from None
    return shape


def _groups(
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


def _memory(
    config: TrainConfig,
    groups: list[list[Encoded]],
    shape: PretrainedConfig,
    arguments: TrainingArguments,
) -> str:
    """What the training will need, and whether it is there."""
    tokens, places = largest_pass(
        groups, batch=config.batch, packing=config.packing, row_tokens=config.row_tokens
    )
    flags = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")  # set by accelerate launch
    sharded = any(os.environ.get(flag) == "true" for flag in flags)
    sharding = arguments.deepspeed_plugin
    if sharding:  # or ZeRO-3 would shard the model that is only looked at, and leave nothing to see
        unset_hf_deepspeed_config()
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


# ---- the training -----------------------------------------------------------------------------


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
    model, _ = load_model(
        model_path(config.base),
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


# ---- afterwards -------------------------------------------------------------------------------


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
        "losses": dict(zip(TASKS, rows[-1]["losses"], strict=True)),
    }
    best = trainer.state.best_model_checkpoint
    if best:
        counts["best_step"] = int(best.rpartition("-")[2])
        counts["validation_loss"] = trainer.state.best_metric
    return counts


def _save_student(
    trainer: StepTrainer, config: TrainConfig, setting: Setting, shape: PretrainedConfig
) -> None:
    """Save model or adapter, tokenizer, the setting it was taught in, and a model card."""
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    if not config.lora_rank and not sharded and shape.dtype is not None:
        # Trained in float32, a student takes the precision, and the room, that its base had.
        cast(torch.nn.Module, trainer.model).to(shape.dtype)
    folder = config.out / STUDENT
    partial = folder.with_name(f".{folder.name}.partial")
    if trainer.is_world_process_zero():
        shutil.rmtree(partial, ignore_errors=True)
    PartialState().wait_for_everyone()
    trainer.save_model(str(partial))  # every process: a sharded model is gathered
    PartialState().wait_for_everyone()
    if not trainer.is_world_process_zero():
        return
    (partial / "training_args.bin").unlink(missing_ok=True)  # a pickle; the manifest says it all
    write_setting(partial / STUDENT_SETTING, setting)
    write_atomic(partial / "README.md", _card(trainer, config, setting))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _card(trainer: StepTrainer, config: TrainConfig, setting: Setting) -> str:
    library = "peft" if config.lora_rank else "transformers"
    base = f"base_model: {config.base}\n" if not Path(model_path(config.base)).exists() else ""
    lora = f" LoRA adapter of rank {config.lora_rank}." if config.lora_rank else ""
    losses = read_history(config.out / HISTORY)[-1]["losses"]
    shown = ", ".join(f"{t} {loss:.3f}" for t, loss in zip(TASKS, losses, strict=True) if loss)
    return f"""\
---
library_name: {library}
{base}tags: [steper, multi-hop, rag, distillation]
---

# A student trained with steper

Base: `{config.base}`.{lora} Objective: `{config.objective}` on {", ".join(config.tasks)};
{len(trainer.steps.groups):,} trajectories, {config.epochs:g} epochs, batch {config.batch},
learning rate {config.lr:g}. Task losses of the last step: {shown}.

Strategy: `{setting.strategy}`, {setting.k} passages a search, at most {setting.max_steps} steps.
Ask it with `steper ask`, which reads `steper.json` for prompt wording and retrieval settings.
"""


def _push(config: TrainConfig, student: Path) -> None:
    """Upload the student, where that was asked for.

    Raises:
        SteperError: if it fails; the student is complete on disk.
    """
    if not config.push_to_hub:
        return
    from huggingface_hub import HfApi

    try:
        hub = HfApi()
        hub.create_repo(config.push_to_hub, exist_ok=True, private=True)
        hub.upload_folder(repo_id=config.push_to_hub, folder_path=str(student))
    except Exception as error:  # of network, hub or disk: nothing is lost
        raise SteperError(
            f"the upload failed: {str(error).splitlines()[0].rstrip('.')}.",
            where=config.push_to_hub,
            fix=f"The student is safe in {student}. Run the same command again, or "
            f"`hf upload {config.push_to_hub} {student}`.",
        ) from None
