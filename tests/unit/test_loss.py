"""Eq. 3 and Eq. 4 against plain definitions and autograd."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

import steper.loss
from steper.loss import (
    DifficultyWeights,
    FixedWeights,
    build_weights,
    example_losses,
    task_losses,
)


def test_an_examples_loss_is_the_mean_over_its_own_targets() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(7, 11), torch.randint(0, 11, (7,))
    examples = torch.tensor([0, 0, 2, 2, 2, 2, 0])
    losses = example_losses(logits, torch.arange(7), targets, examples, count=3)
    for number in (0, 2):
        own = examples == number
        torch.testing.assert_close(losses[number], F.cross_entropy(logits[own], targets[own]))
    assert losses[1] == 0


@pytest.mark.parametrize("chunk", [1, 25, 1 << 24])
def test_gradients_of_shared_places_in_chunks(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """Places predict several targets, one, or none, and are worked on some at a time."""
    monkeypatch.setattr(steper.loss, "CHUNK", chunk)
    torch.manual_seed(3)
    logits = torch.randn(6, 11, dtype=torch.float64, requires_grad=True)
    sources, targets = torch.tensor([0, 0, 1, 3, 3, 5]), torch.tensor([4, 9, 4, 1, 1, 10])
    examples = torch.tensor([0, 1, 1, 0, 1, 1])

    def ours(logits: torch.Tensor) -> torch.Tensor:
        return example_losses(logits, sources, targets, examples, count=2)

    plain = F.cross_entropy(logits[sources], targets, reduction="none")
    expected = torch.stack([plain[examples == number].mean() for number in (0, 1)])
    torch.testing.assert_close(ours(logits), expected)
    assert torch.autograd.gradcheck(ours, logits)


def test_logits_of_half_precision_lose_nothing_more() -> None:
    torch.manual_seed(4)
    narrow = torch.randn(5, 50).bfloat16().requires_grad_()
    wide = narrow.detach().float().requires_grad_()
    places, targets = torch.arange(5), torch.randint(0, 50, (5,))
    for logits in (narrow, wide):
        example_losses(logits, places, targets, torch.zeros(5).long(), count=1).sum().backward()
    assert narrow.grad is not None and wide.grad is not None
    torch.testing.assert_close(narrow.grad, wide.grad.bfloat16())


def test_no_targets_have_no_loss_but_a_gradient() -> None:
    """A process without work still takes part in the backward pass."""
    none = torch.zeros(0, dtype=torch.long)
    logits = torch.zeros(0, 11, requires_grad=True)
    losses = example_losses(logits, none, none, none, count=0)
    task_losses(losses, none, 8).sum().backward()
    assert logits.grad is not None


def test_task_losses_sum_examples_and_average_over_trajectories() -> None:
    losses = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    tasks = torch.tensor([0, 1, 1, 2, 2])
    assert task_losses(losses, tasks, 2).tolist() == [0.5, 2.5, 4.5]


def test_shares_of_micro_batches_add_up_to_the_whole() -> None:
    torch.manual_seed(1)
    losses, tasks = torch.rand(24), torch.randint(0, 3, (24,))
    whole = task_losses(losses, tasks, 8)
    shares = sum(task_losses(losses[part], tasks[part], 8) for part in torch.arange(24).chunk(4))
    torch.testing.assert_close(shares, whole)


def test_sigma_moves_as_autograd_and_adam_on_eq_4_would_move_it() -> None:
    torch.manual_seed(2)
    weights = DifficultyWeights(lr=0.03)
    log_sigma = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([log_sigma], lr=0.03, betas=(0.9, 0.99), eps=1e-8)
    for _ in range(50):
        losses = 3 * torch.rand(3, dtype=torch.float64) + 0.01
        sigma = log_sigma.exp()
        (losses / (2 * sigma**2) + log_sigma).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        weights.update(losses.tolist())
        assert weights.log_sigma == pytest.approx(log_sigma.tolist(), rel=1e-12, abs=1e-12)


def test_sigma_settles_where_its_square_is_the_loss() -> None:
    weights = DifficultyWeights(lr=0.02)
    losses = [0.2, 1.0, 3.0]
    for _ in range(3000):
        weights.update(losses)
    assert [math.exp(2 * value) for value in weights.log_sigma] == pytest.approx(losses, rel=1e-2)
    assert weights.weights() == pytest.approx([1 / (2 * loss) for loss in losses], rel=1e-2)


def test_a_task_without_examples_keeps_its_sigma() -> None:
    weights = DifficultyWeights(lr=0.1)
    weights.update([2.0, 0.0, 2.0])
    before = weights.weights()
    for _ in range(5):
        weights.update([0.0, 0.0, 0.0])
    assert weights.weights() == before and before[1] == 0.5 and before[0] < 0.5


def test_state_is_taken_up_exactly() -> None:
    one, other = DifficultyWeights(lr=0.05), DifficultyWeights(lr=0.05)
    for _ in range(7):
        one.update([1.5, 0.3, 0.9])
    other.load(one.state())
    for weights in (one, other):
        weights.update([0.4, 0.2, 0.1])
    assert one.state() == other.state()


def test_the_objectives_weights() -> None:
    third = pytest.approx((1 / 3, 1 / 3, 1 / 3))
    settings = {"lambdas": (1.5, 1.0, 0.5), "sigma_lr": 0.1}
    some = {**settings, "tasks": ("initialization", "aggregation")}
    assert build_weights("uniform", **some).weights() == pytest.approx((1 / 3, 0.0, 1 / 3))  # type: ignore[arg-type]
    assert build_weights("fixed", **some).weights() == pytest.approx((0.5, 0.0, 0.5 / 3))  # type: ignore[arg-type]
    assert build_weights("difficulty", **some).weights() == (0.5, 0.0, 0.5)  # type: ignore[arg-type]
    assert build_weights("vanilla", **settings).weights() == (0.0, 0.0, 1.0)  # type: ignore[arg-type]
    assert build_weights("uniform", **settings).weights() == third  # type: ignore[arg-type]
    assert build_weights("fixed", **settings).weights() == pytest.approx((0.5, 1 / 3, 0.5 / 3))  # type: ignore[arg-type]
    assert build_weights("difficulty", **settings).weights() == (0.5, 0.5, 0.5)  # type: ignore[arg-type]
    fixed = FixedWeights((1.0, 2.0, 3.0))
    fixed.update([9.0, 9.0, 9.0])
    assert fixed.weights() == (1.0, 2.0, 3.0)
