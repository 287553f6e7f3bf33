"""`transformers.Trainer` with StepER's objective: the one place where a model is updated.

The Trainer keeps what it does well (optimizer, schedule, checkpoints, DDP, FSDP, DeepSpeed, early
stopping, trackers). Ours are the steps: an item of the data set is a whole optimizer step, a few
packed rows per process, so that Eq. 3's n is known before the first forward pass and no setting of
rows or processes changes what is learned.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, broadcast_object_list
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState, PrinterCallback

from steper.attention import TRIE
from steper.batches import Batch, Packing, Step, Steps, forward, packing_error, use_attention
from steper.errors import SteperError
from steper.loss import TaskWeights, task_losses
from steper.store import write_atomic
from steper.types import TASKS


class StepTrainer(Trainer):
    """Trains on ``Steps`` with Σ_j w_j L_j (Eq. 3, Eq. 4).

    Args:
        steps: the training; its ``packing`` is the one wanted, and becomes the one used.
        validation: measured like ``steps``, or ``None``.
        task_weights: w, learned or fixed.
        history: file that gets one line per optimizer step.
        arguments: of ``transformers.Trainer``.
    """

    def __init__(
        self,
        *,
        steps: Steps,
        validation: Steps | None,
        task_weights: TaskWeights,
        history: Path,
        **arguments: Any,
    ) -> None:
        super().__init__(train_dataset=steps, eval_dataset=validation, **arguments)
        self.steps, self.validation, self.task_weights = steps, validation, task_weights
        self.losses = torch.zeros(3)
        self.tokens = self.forward_tokens = 0
        self.remove_callback(PrinterCallback)
        self.recorder = StepRecorder(self, history)
        self.add_callback(self.recorder)

    def train(self, *arguments: Any, **options: Any) -> Any:
        """Train or resume, see ``transformers.Trainer.train``."""
        try:
            return super().train(*arguments, **options)
        finally:
            self.recorder.close()  # an error's message gets a line of its own

    def get_train_dataloader(self) -> DataLoader[Step]:
        """The optimizer steps in order: each process's item holds its own rows already."""
        return DataLoader(self.steps, batch_size=1, collate_fn=_only)

    def training_step(
        self, model: nn.Module, inputs: Any, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward passes of ``inputs``, this process's ``Step``."""
        model.train()
        weights = torch.tensor(self.task_weights.weights(), device=self.args.device)
        self.losses = torch.zeros(3, device=self.args.device)
        kind = self.accelerator.distributed_type
        deepspeed = kind == DistributedType.DEEPSPEED
        # Sharded gradients are shared out after each row: kept till the last, they are whole.
        sharded = deepspeed or kind == DistributedType.FSDP
        for number, batch in enumerate(inputs.batches, start=1):
            last = number == len(inputs.batches)
            self.accelerator.gradient_state._set_sync_gradients(last)
            with nullcontext() if last or sharded else self.accelerator.no_sync(model=model):
                shares = self._shares(model, batch, inputs.trajectories)
                # Data-parallel training averages gradients over processes; shares are summed.
                loss = (weights * shares).sum() * self.accelerator.num_processes
                self.accelerator.backward(loss, **({"scale_wrt_gas": False} if deepspeed else {}))
            self.losses += shares.detach()
        self.tokens += inputs.tokens
        self.forward_tokens += inputs.forward_tokens
        return (weights * self.losses).sum()

    def _shares(self, model: nn.Module, batch: Batch, trajectories: int) -> Tensor:
        """One batch's share of (L_init, L_exp, L_agg).

        Raises:
            SteperError: naming the examples whose loss is not a number, before any update.
        """
        batch = batch.to(self.args.device)
        with self.compute_loss_context_manager():
            losses = forward(model, batch)
        finite = losses.isfinite()
        if not finite.all():
            broken = [batch.names[i] for i in (~finite).nonzero().flatten().tolist()]
            # A checkpoint of these very weights is no better than they are.
            kept = last_checkpoint(Path(str(self.args.output_dir)), before=self.state.global_step)
            raise SteperError(
                f"the loss is no longer a number at step {self.state.global_step + 1}, with "
                f"{len(broken)} of {len(losses)} examples: {', '.join(broken[:5])}"
                f"{' …' if len(broken) > 5 else ''}. No update was made with it.",
                where=str(kept or self.args.output_dir),
                fix="Look at these examples; or lower --lr or raise --warmup, with a new --out. "
                + ("The last good checkpoint is kept." if kept else "No checkpoint was due yet."),
            )
        return task_losses(losses, batch.tasks, trajectories)

    @torch.no_grad()
    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """L_j on the validation set; ``eval_loss`` is their mean over the tasks trained."""
        assert self.validation is not None
        self.validation.packing = self.steps.packing
        self.model_wrapped.eval()
        totals = torch.zeros(3, device=self.args.device)
        # Indexed, because every process must take part in every pass.
        for number in range(len(self.validation)):
            for batch in self.validation[number].batches:
                totals += self._shares(self.model_wrapped, batch, len(self.validation.groups))
        losses = dict(zip(TASKS, self.accelerator.reduce(totals, "sum").tolist(), strict=True))
        trained = [task for task, w in zip(TASKS, self.task_weights.weights(), strict=True) if w]
        loss = sum(losses[task] for task in trained) / len(trained)
        metrics = {"eval_loss": loss, **{f"eval_{task}": losses[task] for task in trained}}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: the Trainer's formula knows nothing of packed rows."""
        return 0

    def reduced_losses(self) -> list[float]:
        """(L_init, L_exp, L_agg) of the optimizer step just made, over all processes."""
        losses: list[float] = self.accelerator.reduce(self.losses, "sum").tolist()
        return losses

    def settle_packing(self) -> str | None:
        """Choose the first packing, from the one wanted downwards, that leaves losses unchanged.

        Tried on the model as it will be trained: on its device, wrapped and sharded.

        Returns:
            Why it is not the one wanted, ``None`` where it is.
        """
        order: tuple[Packing, ...] = ("trie", "rows", "none")
        reason = None
        for packing in order[order.index(self.steps.packing) :]:
            self.steps.packing = packing
            # One process decides for all, or they would wait for each other's passes.
            (refusal,) = broadcast_object_list([self._refusal(packing)])
            if refusal is None:
                break
            reason = refusal
        if self.steps.packing != "none":
            use_attention(self.model, TRIE)
        return reason

    def _refusal(self, packing: Packing) -> str | None:
        """Why the model cannot be packed so."""
        if packing == "none":
            return None
        # The flag of state-space and linear-attention layers, whose state runs over row borders.
        if getattr(_inner(self.model), "_is_stateful", False):
            return "its layers carry a state from token to token, past the borders of sequences"
        most = max(self.steps.groups, key=len)
        groups = [most, min(self.steps.groups, key=len)]
        try:
            error = packing_error(
                self.model_wrapped,
                groups,
                packing=packing,
                pad_id=self.steps.pad_id,
                base=self.model,
            )
        except torch.OutOfMemoryError:
            raise  # padding would need more
        except (TypeError, ValueError, RuntimeError, IndexError) as refusal:
            return f"{type(self.model).__name__}: {str(refusal).splitlines()[0]}"
        if error > self._tolerance():
            return f"a packed row's losses differ by {error:.2g} from those of its sequences"
        return None

    def _tolerance(self) -> float:
        """Rounding alone gives 1e-6 to 1e-5 in float32, some 1e-3 in bfloat16 and CUDA's TF32."""
        parameter = next(self.model_wrapped.parameters())
        narrow = self.args.bf16 or parameter.dtype.itemsize < 4 or parameter.device.type != "cpu"
        return 3e-2 if narrow else 1e-4


class StepRecorder(TrainerCallback, ExportableState):
    """After each optimizer step: learn σ, write one line of history, move the progress bar.

    σ's whole state goes into every checkpoint's ``trainer_state.json``, and is taken up from there.
    """

    def __init__(self, trainer: StepTrainer, path: Path) -> None:
        self.trainer, self.path = trainer, path
        self._begin = time.monotonic()
        self._bar: tqdm[Any] = tqdm(disable=True)

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to hold."""
        return {
            "args": {},
            "attributes": {
                "weights": self.trainer.task_weights.state(),
                "tokens": self.trainer.tokens,
                "forward_tokens": self.trainer.forward_tokens,
                "seconds": time.monotonic() - self._begin,
            },
        }

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take up the checkpoint's state, if there is one, and settle how rows are packed."""
        trainer, rows = self.trainer, []
        if state.global_step:
            saved = state.stateful_callbacks[type(self).__name__]["attributes"]
            trainer.task_weights.load(saved["weights"])
            trainer.tokens, trainer.forward_tokens = saved["tokens"], saved["forward_tokens"]
            self._begin = time.monotonic() - saved["seconds"]
            rows = read_history(self.path)[: state.global_step]
            _restore_patience(trainer.callback_handler.callbacks, state)
        wanted = trainer.steps.packing
        refusal = trainer.settle_packing()
        if not state.is_world_process_zero:
            return
        if refusal:
            tqdm.write(
                f"Packing: {trainer.steps.packing!r} instead of {wanted!r}: {refusal}. It takes "
                "more time and memory than was estimated."
            )
        if trainer.validation is not None and args.eval_steps > state.max_steps:
            tqdm.write(
                f"The validation loss is measured at the end only: --save-steps {args.save_steps} "
                f"is more than the {state.max_steps} steps there are."
            )
        write_atomic(self.path, "".join(f"{json.dumps(row)}\n" for row in rows))
        self._bar = tqdm(
            total=state.max_steps, initial=state.global_step, unit="step", desc="train"
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Record the step, with the weights it was made with, then update σ."""
        trainer = self.trainer
        losses, weights = trainer.reduced_losses(), trainer.task_weights.weights()
        trainer.task_weights.update(losses)
        row = {
            "step": state.global_step,
            "epoch": round(state.global_step / len(trainer.steps) * trainer.steps.epochs, 4),
            "tokens": trainer.tokens,
            "forward_tokens": trainer.forward_tokens,
            "seconds": round(time.monotonic() - self._begin, 3),
            "lr": trainer._get_learning_rate(),
            "losses": losses,
            "weights": weights,
            "state": trainer.task_weights.state(),
        }
        if trainer.validation is not None and state.global_step == state.max_steps:
            control.should_evaluate = True
        if args.report_to:
            trainer.log(_flat(row))
        if state.is_world_process_zero:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{json.dumps(row)}\n")
            self._bar.update()
            rate = trainer.tokens / (time.monotonic() - self._begin)
            self._bar.set_postfix_str(f"loss {sum(losses):.3f}, {rate:,.0f} tokens/s")

    def on_evaluate(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        """Show the validation loss."""
        if state.is_world_process_zero:
            loss = known["metrics"]["eval_loss"]
            tqdm.write(f"step {state.global_step}: validation loss {loss:.4f}")

    def close(self) -> None:
        """Close the progress bar."""
        self._bar.close()


def _only(items: list[Step]) -> Step:
    (item,) = items
    return item


def _inner(model: Any) -> Any:
    """The ``transformers`` model itself, without an adapter around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _restore_patience(callbacks: Iterable[TrainerCallback], state: Any) -> None:
    """How often the validation loss has not improved survives a restart, too."""
    for callback in callbacks:
        if isinstance(callback, EarlyStoppingCallback):
            saved = state.stateful_callbacks[type(callback).__name__]["attributes"]
            callback.early_stopping_patience_counter = saved["early_stopping_patience_counter"]


def _flat(row: dict[str, Any]) -> dict[str, float]:
    """A line of history as the trackers want it."""
    flat = {name: row[name] for name in ("tokens", "forward_tokens", "lr")}
    for number, task in enumerate(TASKS):
        flat |= {f"loss/{task}": row["losses"][number], f"weight/{task}": row["weights"][number]}
        if row["state"]:
            flat[f"sigma/{task}"] = math.exp(row["state"]["log_sigma"][number])
    return flat


def last_checkpoint(folder: Path, *, before: int | None = None) -> Path | None:
    """The newest complete checkpoint, of a step before ``before`` where that is given."""
    # ``trainer_state.json`` is written last.
    found = {
        int(path.parent.name.rpartition("-")[2]): path.parent
        for path in folder.glob("checkpoint-*/trainer_state.json")
    }
    steps = [step for step in found if before is None or step < before]
    return found[max(steps)] if steps else None


def read_history(path: Path) -> list[dict[str, Any]]:
    """The lines of a training's history, a torn last line dropped."""
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]
