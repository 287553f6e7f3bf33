"""StepER's objective: three separable task losses and the weights that join them (Eq. 3, Eq. 4).

Per optimizer step, over its n trajectories (all micro-batches, all processes),

    L_j = (1/n) Σ_i Σ_{s ∈ task j} ℓ(example s of trajectory i)         ℓ: mean over target tokens

and the model minimises Σ_j w_j L_j with

============  ==================================================================
``vanilla``   w = (0, 0, 1): only the aggregation example, plain distillation
``uniform``   w = (1/3, 1/3, 1/3): Eq. 3
``fixed``     w = λ/3: the ablation
``difficulty``  w_j = 1/(2σ_j²), σ_j learned by minimising Σ_j L_j/(2σ_j²) + log σ_j: Eq. 4
============  ==================================================================

Since ∂/∂log σ_j = 1 - L_j/σ_j², σ needs only the three numbers L_j, never the model: it lives
here as three floats, equal on every process, and its fixed point is σ_j² = L_j.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from steper.types import TASKS, Task

ObjectiveName = Literal["vanilla", "uniform", "fixed", "difficulty"]


CHUNK = 1 << 24
"""Logits worked on at a time; whatever is in work besides logits and gradient has this size."""


class _TokenLosses(torch.autograd.Function):
    """Cross-entropy whose backward pass makes nothing of the logits' size but their gradient."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, sources: Tensor, targets: Tensor) -> Tensor:
        norms = [_wide(chunk).logsumexp(dim=-1) for chunk in logits.split(_rows(logits))]
        norm = torch.cat(norms) if norms else _wide(logits.new_zeros(0))
        ctx.save_for_backward(logits, norm, sources, targets)
        return norm[sources] - _wide(logits[sources, targets])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        logits, norm, sources, targets = ctx.saved_tensors
        (gradient,) = gradients
        # What the losses of all targets predicted from one place add up to.
        total = torch.zeros_like(norm).index_add(0, sources, gradient)
        result = torch.empty_like(logits)
        chunks = (tensor.split(_rows(logits)) for tensor in (logits, norm, total, result))
        for chunk, own_norm, own_total, out in zip(*chunks, strict=True):
            work = out if out.dtype == norm.dtype else torch.empty_like(out, dtype=norm.dtype)
            torch.sub(_wide(chunk), own_norm[:, None], out=work).exp_().mul_(own_total[:, None])
            out.copy_(work)
        result.index_put_((sources, targets), -gradient.to(result.dtype), accumulate=True)
        return result, None, None


def _rows(logits: Tensor) -> int:
    return max(1, CHUNK // logits.shape[1])


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def example_losses(
    logits: Tensor, sources: Tensor, targets: Tensor, examples: Tensor, *, count: int
) -> Tensor:
    """ℓ of each example: cross-entropy averaged over its own target tokens.

    Args:
        logits: (places, vocabulary). Packed examples share places.
        sources: (targets,) the place that predicts each target token.
        targets: (targets,) token ids.
        examples: (targets,) which example each target token belongs to, 0 … count - 1.
        count: number of examples.

    Returns:
        (count,) in at least float32; 0 for an example without targets.
    """
    losses: Tensor = _TokenLosses.apply(logits, sources, targets)  # type: ignore[no-untyped-call]
    totals = losses.new_zeros(count).index_add(0, examples, losses)
    return totals / torch.bincount(examples, minlength=count).clamp(min=1)


def task_losses(losses: Tensor, tasks: Tensor, trajectories: int) -> Tensor:
    """This micro-batch's share of (L_init, L_exp, L_agg).

    Args:
        losses: (examples,), from ``example_losses``.
        tasks: (examples,), 0, 1 or 2 as in ``steper.types.TASKS``.
        trajectories: n, those of the *whole* optimizer step, so that shares add up to L_j.
    """
    return losses.new_zeros(3).index_add(0, tasks, losses) / trajectories


@dataclass(slots=True)
class FixedWeights:
    """Weights that never change."""

    values: tuple[float, float, float]

    def weights(self) -> tuple[float, float, float]:
        """(w_init, w_exp, w_agg)."""
        return self.values

    def update(self, losses: Sequence[float]) -> None:
        """Nothing to learn."""

    def state(self) -> dict[str, list[float]]:
        """Nothing to save."""
        return {}

    def load(self, state: dict[str, list[float]]) -> None:
        """Nothing to restore."""


@dataclass(slots=True)
class DifficultyWeights:
    """Eq. 4's σ_j, learned by Adam on log σ_j from the analytic gradient 1 - L_j/σ_j².

    Attributes:
        lr: learning rate of log σ, its own: at a model's 5e-6 it would never move.
        on: 1 for the tasks that are trained, 0 for those left out.
        log_sigma: starts at 0, σ = 1.
    """

    lr: float
    on: tuple[float, float, float] = (1.0, 1.0, 1.0)
    log_sigma: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    _mean: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    _square: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    _steps: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])

    def weights(self) -> tuple[float, float, float]:
        """(1/2σ_init², 1/2σ_exp², 1/2σ_agg²)."""
        first, second, third = (
            on * 0.5 * math.exp(-2 * value)
            for on, value in zip(self.on, self.log_sigma, strict=True)
        )
        return first, second, third

    def update(self, losses: Sequence[float]) -> None:
        """One Adam step from the all-reduced (L_init, L_exp, L_agg) of an optimizer step.

        A task without any example in the step has L_j = 0 exactly; its σ is left alone, because
        the gradient would only shrink it, and its weight would grow for want of data.
        """
        for task, loss in enumerate(losses):
            if loss == 0.0:
                continue
            gradient = 1 - loss * math.exp(-2 * self.log_sigma[task])
            self._steps[task] += 1
            self._mean[task] = 0.9 * self._mean[task] + 0.1 * gradient
            self._square[task] = 0.99 * self._square[task] + 0.01 * gradient**2
            mean = self._mean[task] / (1 - 0.9 ** self._steps[task])
            square = self._square[task] / (1 - 0.99 ** self._steps[task])
            self.log_sigma[task] -= self.lr * mean / (math.sqrt(square) + 1e-8)

    def state(self) -> dict[str, list[float]]:
        """Everything needed to go on exactly, as plain numbers."""
        return {
            "log_sigma": list(self.log_sigma),
            "mean": list(self._mean),
            "square": list(self._square),
            "steps": list(self._steps),
        }

    def load(self, state: dict[str, list[float]]) -> None:
        """Take up a saved ``state``."""
        self.log_sigma, self._mean = list(state["log_sigma"]), list(state["mean"])
        self._square, self._steps = list(state["square"]), list(state["steps"])


TaskWeights = FixedWeights | DifficultyWeights


def build_weights(
    objective: ObjectiveName,
    *,
    tasks: Sequence[Task] = TASKS,
    lambdas: tuple[float, float, float] = (1.0, 1.0, 1.0),
    sigma_lr: float = 0.02,
) -> TaskWeights:
    """The weights of an objective (see the module's table); a task left out has weight 0."""
    on = [float(task in tasks) for task in TASKS]
    match objective:
        case "vanilla":
            return FixedWeights((0.0, 0.0, on[2]))
        case "uniform":
            return FixedWeights((on[0] / 3, on[1] / 3, on[2] / 3))
        case "fixed":
            first, second, third = (a * b / 3 for a, b in zip(on, lambdas, strict=True))
            return FixedWeights((first, second, third))
        case "difficulty":
            return DifficultyWeights(lr=sigma_lr, on=(on[0], on[1], on[2]))
