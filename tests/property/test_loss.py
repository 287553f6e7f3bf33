"""Eq. 3 and Eq. 4 on any batch: against plain definitions, autograd and Adam."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from steper.loss import DifficultyWeights, example_losses, task_losses

seeds = st.integers(0, 2**31)
lengths = st.lists(st.integers(0, 6), min_size=1, max_size=8).filter(any)
# Rounded, because Adam divides a vanishing gradient by its own size: of a loss of 1 + 1e-16 at
# σ = 1 it would make a step out of the last bit, on which no two computations agree.
some_loss = st.floats(1e-3, 20.0).map(lambda value: round(value, 3))
losses_of_a_step = st.lists(st.one_of(st.just(0.0), some_loss), min_size=3, max_size=3)


@settings(max_examples=60, deadline=None)
@given(lengths, seeds)
def test_example_losses_equal_one_cross_entropy_an_example(lengths: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(sum(lengths), 9, generator=generator)
    sources = torch.arange(sum(lengths))
    targets = torch.randint(0, 9, (sum(lengths),), generator=generator)
    owners = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    shuffled = torch.randperm(len(owners), generator=generator)
    losses = example_losses(
        logits, sources[shuffled], targets[shuffled], owners[shuffled], count=len(lengths)
    )
    for number, length in enumerate(lengths):
        own = owners == number
        expected = F.cross_entropy(logits[own], targets[own]) if length else torch.tensor(0.0)
        torch.testing.assert_close(losses[number], expected)


@settings(max_examples=60, deadline=None)
@given(seeds, st.sampled_from([(1, 8), (2, 4), (4, 2), (8, 1)]))
def test_micro_batches_add_up_to_the_batch_of_eight(seed: int, shape: tuple[int, int]) -> None:
    """Values and gradients of 8 trajectories, cut into ``count`` micro-batches of ``size``."""
    count, size = shape
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randint(1, 6, (8,), generator=generator).tolist()
    tasks = [[2 if s == n else 0 if s == 1 else 1 for s in range(1, n + 1)] for n in steps]
    values = [torch.rand(n, generator=generator, dtype=torch.float64) for n in steps]
    weights = torch.tensor([0.7, 0.2, 1.3], dtype=torch.float64)

    def run(groups: list[list[int]]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        leaves = [value.clone().requires_grad_() for value in values]
        total = torch.zeros(3, dtype=torch.float64)
        for group in groups:
            of_group = torch.tensor([task for i in group for task in tasks[i]])
            share = task_losses(torch.cat([leaves[i] for i in group]), of_group, 8)
            (weights * share).sum().backward()
            total += share.detach()
        return total, [leaf.grad for leaf in leaves if leaf.grad is not None]

    whole, gradients = run([list(range(8))])
    parts, part_gradients = run([list(range(c * size, (c + 1) * size)) for c in range(count)])
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(part_gradients, gradients)
    for task in range(3):
        plain = sum(
            float(values[i][s]) for i in range(8) for s, t in enumerate(tasks[i]) if t == task
        )
        assert float(whole[task]) == pytest.approx(plain / 8)


@settings(max_examples=60, deadline=None)
@given(st.lists(losses_of_a_step, min_size=1, max_size=12), st.floats(1e-3, 0.2))
@example([[1.0, 1.0, 1.0]], 0.05)  # the fixed point: no gradient, no movement
def test_sigma_follows_adam_on_eq_4(history: list[list[float]], lr: float) -> None:
    ours = DifficultyWeights(lr=lr)
    log_sigma = [torch.zeros((), dtype=torch.float64, requires_grad=True) for _ in range(3)]
    adam = torch.optim.Adam(log_sigma, lr=lr, betas=(0.9, 0.99), eps=1e-8)
    for losses in history:
        for value, loss in zip(log_sigma, losses, strict=True):
            if loss:  # Adam passes over a parameter without gradient, as σ of an absent task is
                (loss / (2 * (2 * value).exp()) + value).backward()
        adam.step()
        adam.zero_grad()
        ours.update(losses)
        expected = [value.item() for value in log_sigma]
        assert ours.log_sigma == pytest.approx(expected, rel=0, abs=1e-12)


@given(st.lists(losses_of_a_step, min_size=1, max_size=8), st.integers(0, 8))
def test_saving_anywhere_changes_nothing(history: list[list[float]], at: int) -> None:
    straight, saved = DifficultyWeights(lr=0.05), DifficultyWeights(lr=0.05)
    for number, losses in enumerate(history):
        if number == at:
            state = json.loads(json.dumps(saved.state()))
            saved = DifficultyWeights(lr=0.05)
            saved.load(state)
        straight.update(losses)
        saved.update(losses)
    assert straight.state() == saved.state() and straight.weights() == saved.weights()
