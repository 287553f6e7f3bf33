"""Rows hold every shared prefix once, and spell every sequence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steper.packing import fill, pack, unique_tokens

sequences = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=6)
groups = st.lists(sequences, min_size=1, max_size=3)


@given(groups)
def test_places_spell_the_sequences(items: list[list[list[int]]]) -> None:
    row = pack(items)
    flat = [sequence for group in items for sequence in group]
    for sequence, places in zip(flat, row.places, strict=True):
        assert [row.ids[node] for node in places] == sequence
        assert [row.positions[node] for node in places] == list(range(len(sequence)))


@given(groups)
def test_a_node_sees_exactly_its_ancestors(items: list[list[list[int]]]) -> None:
    row = pack(items)
    seen = {
        (query, key)
        for places in row.places
        for depth, query in enumerate(places)
        for key in places[: depth + 1]
    }
    nodes = range(len(row.ids))
    assert seen == {(i, k) for i in nodes for k in nodes if k <= i < row.ends[k]}


@given(groups)
def test_a_tree_begins_with_its_deepest_path(items: list[list[list[int]]]) -> None:
    row = pack(items)
    end = 0
    for tree, group in zip(row.trees, items, strict=True):
        assert tree.begin == end
        deepest = max(map(len, group))
        trunk = list(range(tree.begin, tree.trunk))
        assert len(trunk) == deepest and trunk in row.places
        end = tree.end
    assert end == len(row.ids)


@given(sequences)
def test_no_prefix_is_held_twice(items: list[list[int]]) -> None:
    prefixes = {tuple(items[i][:d]) for i in range(len(items)) for d in range(1, len(items[i]) + 1)}
    assert len(pack([items]).ids) == len(prefixes) == unique_tokens(items)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 80), st.integers(1, 4))
def test_rows_hold_every_item_once_within_their_capacity(
    sizes: list[int], capacity: int, multiple: int
) -> None:
    rows = fill(sizes, capacity=capacity, multiple=multiple)
    assert sorted(item for row in rows for item in row) == list(range(len(sizes)))
    assert len(rows) % multiple == 0
    assert all(sum(sizes[i] for i in row) <= capacity or len(row) == 1 for row in rows)
    # No process waits for rows that need not be.
    assert len(rows) <= -(-len(sizes) // multiple) * multiple


@pytest.mark.parametrize("multiple", [1, 2])
def test_rows_are_about_equally_full(multiple: int) -> None:
    sizes = [100 + 7 * n % 60 for n in range(40)]
    rows = fill(sizes, capacity=1000, multiple=multiple)
    loads = [sum(sizes[item] for item in row) for row in rows]
    assert min(loads) > 0.85 * max(loads) and sum(loads) > 0.75 * 1000 * len(loads)
