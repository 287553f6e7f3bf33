"""Which trajectories a step sees, in which rows, on which process."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steper.batches import Encoded, Packing, Steps, collate, distribute, largest_pass

PACKINGS: tuple[Packing, ...] = ("trie", "rows", "none")


def group(number: int, sizes: list[int]) -> list[Encoded]:
    ids = [number % 7 + 3, *range(3, 40)]
    return [
        Encoded([*ids[:size], 1], size, min(s, 2), f"{number}#{s}") for s, size in enumerate(sizes)
    ]


groups = st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=5), min_size=1, max_size=9).map(
    lambda sizes: [group(number, own) for number, own in enumerate(sizes)]
)


def steps_of(groups: list[list[Encoded]], **changes: object) -> Steps:
    steps = Steps(groups, batch=4, epochs=1.0, seed=0, packing="trie", row_tokens=60, pad_id=0)
    return replace(steps, **changes)  # type: ignore[arg-type]


def names(steps: Steps) -> list[list[str]]:
    """The examples of each step."""
    return [
        sorted(name for batch in steps[n].batches for name in batch.names)
        for n in range(len(steps))
    ]


@settings(max_examples=50, deadline=None)
@given(groups, st.sampled_from(PACKINGS), st.integers(1, 80), st.integers(1, 3))
def test_rows_and_processes_change_nothing_about_a_step(
    groups: list[list[Encoded]], packing: Packing, row_tokens: int, processes: int
) -> None:
    plain = steps_of(groups)
    shares = [
        steps_of(groups, packing=packing, row_tokens=row_tokens, rank=rank, processes=processes)
        for rank in range(processes)
    ]
    for number in range(len(plain)):
        steps = [share[number] for share in shares]
        together = [name for step in steps for batch in step.batches for name in batch.names]
        assert sorted(together) == names(plain)[number]
        assert {(s.trajectories, s.tokens) for s in steps} == {
            (plain[number].trajectories, plain[number].tokens)
        }
        # Every process makes as many passes, or the others would wait for it for ever.
        assert len({len(step.batches) for step in steps}) == 1
        run = sum(batch.ids.numel() for step in steps for batch in step.batches if batch.names)
        assert run == steps[0].forward_tokens


@given(groups, st.sampled_from(PACKINGS), st.integers(1, 80))
def test_a_pass_stays_within_its_tokens(
    groups: list[list[Encoded]], packing: Packing, row_tokens: int
) -> None:
    for row in distribute(groups, packing=packing, row_tokens=row_tokens):
        assert row
        tokens = collate(row, packing=packing, pad_id=0).ids.numel()
        assert tokens <= row_tokens or len(row) == 1


@given(groups, st.sampled_from(("rows", "none")), st.integers(1, 80))
def test_no_step_runs_more_than_the_largest_pass(
    groups: list[list[Encoded]], packing: Packing, row_tokens: int
) -> None:
    tokens, places = largest_pass(groups, batch=1, packing=packing, row_tokens=row_tokens)
    passes = [
        batch
        for step in steps_of(groups, batch=1, packing=packing, row_tokens=row_tokens)
        for batch in step.batches
    ]
    assert max(batch.ids.numel() for batch in passes) <= tokens
    assert tokens <= max(row_tokens, *(len(e.ids) for group in groups for e in group))
    assert places > 0


def test_an_epoch_sees_every_trajectory_once_and_the_next_in_another_order() -> None:
    items = [group(number, [3]) for number in range(10)]
    steps = steps_of(items, epochs=2.0)
    assert [step.trajectories for step in (steps[n] for n in range(len(steps)))] == [4, 4, 2] * 2
    seen = names(steps)
    first, second = (sorted(chain.from_iterable(part)) for part in (seen[:3], seen[3:]))
    assert first == second == sorted(e.id for own in items for e in own)
    assert seen[:3] != seen[3:] and names(steps_of(items, epochs=2.0)) == seen
    assert names(steps_of(items, epochs=2.0, seed=1)) != seen
    assert names(steps_of(items, seed=None))[0] == ["0#0", "1#0", "2#0", "3#0"]


@pytest.mark.parametrize(("epochs", "count"), [(1.0, 3), (0.5, 2), (1.4, 5), (2.0, 6)])
def test_fractions_of_an_epoch(epochs: float, count: int) -> None:
    steps = steps_of([group(number, [3]) for number in range(10)], epochs=epochs)
    assert len(steps) == count
    with pytest.raises(IndexError):
        steps[count]


def test_a_token_may_be_a_target_of_one_example_and_a_prompt_of_another() -> None:
    one, other = Encoded([5, 6, 7], 1, 0, "one"), Encoded([5, 6, 7, 8], 3, 1, "other")
    batch = collate([[one, other]], packing="trie", pad_id=0)
    assert batch.ids.tolist() == [[5, 6, 7, 8]]
    found = list(zip(batch.examples.tolist(), batch.targets.tolist(), strict=True))
    assert found == [(0, 6), (0, 7), (1, 8)]


def test_logits_are_wanted_at_target_places_only() -> None:
    batch = collate([group(1, [20, 30])], packing="trie", pad_id=0)
    assert batch.ids.shape == (1, 32) and batch.columns.tolist() == [19, 29]
