"""`steper train`: train a student on step-wise examples with `transformers.Trainer`.

The unit of a batch is a trajectory with all its examples, because Eq. 3 averages over
trajectories. Writes the student (a plain Hugging Face folder with ``steper.json``) to
``OUT/student`` and one line per optimizer step to ``OUT/history.jsonl``: the three task losses,
their weights and σ. The same command resumes from the last checkpoint.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import (
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import get_last_checkpoint

from steper.batches import (
    Collator,
    Packing,
    Trajectories,
    encode,
    forward,
    packing_error,
    select,
    unique_share,
)
from steper.build import EXAMPLES, read_examples
from steper.config import TrainConfig
from steper.errors import SteperError
from steper.lm.local import load_model
from steper.loss import TaskWeights, build_weights, task_losses
from steper.models import RUN_SETTING, STUDENT_SETTING, model_path, read_setting, write_setting
from steper.store import Run, write_atomic
from steper.types import TASKS

STUDENT = "student"
HISTORY = "history.jsonl"

PACKING_TOLERANCE = 1e-3
"""Most that packing may change a loss (float32 rounding gives about 1e-6)."""


class StepTrainer(Trainer):
    """`transformers.Trainer` with Eq. 3 / Eq. 4 as its loss.

    The Trainer counts the trajectories of the whole optimizer step (all micro-batches and
    processes) before its first forward pass, so every share is divided by the same n.
    """

    loss_is_scaled_for_ga = True

    def __init__(self, *, task_weights: TaskWeights, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.task_weights = task_weights
        self.step_losses = torch.zeros(3)
        self.tokens = 0

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """Collect the optimizer step's micro-batches and count their trajectories."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        count = torch.tensor(sum(int(batch["trajectories"]) for batch in batches), device=device)
        self.step_losses = torch.zeros(3, device=device)
        return batches, self.accelerator.gather(count).sum()

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """This micro-batch's share of Σ_j w_j L_j."""
        trajectories = int(
            inputs["trajectories"] if num_items_in_batch is None else num_items_in_batch
        )
        outputs, losses = forward(model, inputs)
        shares = task_losses(losses, inputs["tasks"], trajectories)
        self.step_losses += shares.detach()
        self.tokens += int(inputs["tokens"])
        weights = shares.new_tensor(self.task_weights.weights())
        # Data-parallel training averages gradients over processes; shares have to be summed.
        loss = (weights * shares).sum() * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def finish_step(self) -> list[float]:
        """(L_init, L_exp, L_agg) of the optimizer step just made, over all processes."""
        losses: list[float] = self.accelerator.reduce(self.step_losses, "sum").tolist()
        return losses


class StepRecorder(TrainerCallback):
    """After each optimizer step: learn σ, write one line of history, move the progress bar.

    The history holds σ's whole state, so resuming needs nothing else: its line of the
    checkpoint's step is read back, and what came after is dropped.
    """

    def __init__(self, trainer: StepTrainer, path: Path) -> None:
        self.trainer, self.path = trainer, path
        self._begin = 0.0
        self._bar: tqdm[Any] = tqdm(disable=True)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take up the state of the checkpoint's step, if there is one."""
        rows = read_history(self.path)[: state.global_step] if self.path.exists() else []
        if rows:
            self.trainer.task_weights.load(rows[-1]["state"])
            self.trainer.tokens = rows[-1]["tokens"]
        self._begin = time.monotonic() - (rows[-1]["seconds"] if rows else 0.0)
        if state.is_world_process_zero:
            write_atomic(self.path, "".join(f"{json.dumps(row)}\n" for row in rows))
            self._bar = tqdm(
                total=state.max_steps, initial=state.global_step, unit="step", desc="train"
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Record the step, with the weights it was made with, then update σ."""
        losses = self.trainer.finish_step()
        if not all(math.isfinite(loss) for loss in losses):
            raise SteperError(
                f"the loss is no longer a number at step {state.global_step}: {losses}.",
                where=str(self.path.parent),
                fix="Lower --lr, or train without --bf16. Earlier checkpoints are kept.",
            )
        weights = self.trainer.task_weights.weights()
        self.trainer.task_weights.update(losses)
        row = {
            "step": state.global_step,
            "epoch": round(state.epoch, 4),
            "tokens": self.trainer.tokens,
            "seconds": round(time.monotonic() - self._begin, 3),
            "lr": self.trainer._get_learning_rate(),
            "losses": losses,
            "weights": weights,
            "state": self.trainer.task_weights.state(),
        }
        if state.is_world_process_zero:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{json.dumps(row)}\n")
            self._bar.update()
            self._bar.set_postfix(loss=f"{sum(losses):.3f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the progress bar."""
        self._bar.close()


def read_history(path: Path) -> list[dict[str, Any]]:
    """The lines of a training's history, a torn last line dropped."""
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


def train(config: TrainConfig) -> Path:
    """Run the stage and return its folder.

    Raises:
        SteperError: on bad input, a loss that is not a number, or where the folder holds another
            run.
    """
    if config.batch % config.micro_batch:
        raise SteperError(
            f"--micro-batch {config.micro_batch} does not divide --batch {config.batch}.",
            where="steper train",
            fix="Choose a divisor.",
        )
    examples = read_examples(config.data)
    inputs = {"examples": config.data / EXAMPLES, "setting": config.data / RUN_SETTING}
    if Path(base := model_path(config.base)).is_dir():
        inputs["base"] = Path(base)
    stage = Run.open(
        config.out,
        stage="train",
        config=config.model_dump(mode="json", exclude={"out", "data", "device"}),
        inputs=inputs,
    )
    if stage.finished:
        return stage.path
    model, tokenizer = load_model(base, device="cpu", dtype="float32")
    weights = build_weights(config.objective, lambdas=config.lambdas, sigma_lr=config.sigma_lr)
    data = encode(examples, tokenizer, max_length=config.max_length)
    data = select(data, weights.weights())
    if not len(data):
        raise SteperError(
            "no example is left to train on: every one belongs to a task of weight 0.",
            where=str(config.data),
            fix="Choose another --objective or other --lambdas.",
        )
    packing = _packing(config.packing, model, data, tokenizer.pad_token_id)
    trainer = StepTrainer(
        task_weights=weights,
        model=model,
        args=_arguments(config, stage.path),
        train_dataset=data,
        data_collator=Collator(tokenizer.pad_token_id, packing),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(StepRecorder(trainer, stage.path / HISTORY))
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(stage.path / "checkpoints")))
    if trainer.is_world_process_zero():
        _save_student(trainer, config, stage.path / STUDENT)
        rows = read_history(stage.path / HISTORY)
        stage.finish(
            {
                "trajectories": len(data),
                "examples": sum(len(group) for group in data.groups),
                "steps": len(rows),
                "tokens": rows[-1]["tokens"],
                "packing": packing,
                "unique_share": round(unique_share(data), 3) if packing == "trie" else 1.0,
                "train_seconds": rows[-1]["seconds"],
                "losses": dict(zip(TASKS, rows[-1]["losses"], strict=True)),
            }
        )
        shutil.rmtree(stage.path / "checkpoints", ignore_errors=True)
    return stage.path


def _packing(wanted: Packing, model: torch.nn.Module, data: Trajectories, pad_id: int) -> Packing:
    """``trie`` if the model gives a packed row the losses of its separate sequences."""
    if wanted == "none":
        return "none"
    longest = max(data.groups, key=len)
    try:
        error = packing_error(model, longest, pad_id=pad_id)
    except (TypeError, ValueError, RuntimeError, IndexError) as reason:
        tqdm.write(f"Packing is off: this model does not take packed rows ({reason}).")
        return "none"
    if error > PACKING_TOLERANCE:
        tqdm.write(
            f"Packing is off: with this model a packed row's losses differ by {error:.2g} from "
            "those of its separate sequences (it does not attend by mask alone)."
        )
        return "none"
    return "trie"


def _arguments(config: TrainConfig, folder: Path) -> TrainingArguments:
    # Newer versions of transformers rename the option, and warn of the old name if it is used.
    old_name: dict[str, Any] = (
        {"gradient_checkpointing": True} if config.gradient_checkpointing else {}
    )
    return TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        per_device_train_batch_size=config.micro_batch,
        gradient_accumulation_steps=config.batch // config.micro_batch,
        learning_rate=config.lr,
        num_train_epochs=config.epochs,
        lr_scheduler_type="cosine",
        warmup_steps=config.warmup,
        save_strategy="steps",
        save_steps=config.save_steps,
        save_total_limit=2,
        logging_strategy="no",
        report_to="none",
        seed=config.seed,
        bf16=config.bf16,
        **old_name,
        use_cpu=config.device == "cpu",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=config.device != "cpu" and torch.cuda.is_available(),
    )


def _save_student(trainer: StepTrainer, config: TrainConfig, folder: Path) -> None:
    """Save model, tokenizer, the setting it was taught in, and a model card."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    trainer.save_model(str(partial))
    (partial / "training_args.bin").unlink(missing_ok=True)  # a pickle; the manifest says it all
    setting = read_setting(config.data / RUN_SETTING)
    write_setting(partial / STUDENT_SETTING, setting)
    write_atomic(
        partial / "README.md",
        f"---\nlibrary_name: transformers\ntags: [steper, multi-hop, rag]\n---\n\n"
        f"# A student trained with steper\n\nBase: `{config.base}`. Objective: "
        f"`{config.objective}`. Strategy: `{setting.strategy}`, {setting.k} passages a search, at "
        f"most {setting.max_steps} steps.\n\nAsk it with `steper ask`, which reads `steper.json` "
        f"for prompt wording and retrieval settings.\n",
    )
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
