"""The prefix tree: a text's keys and values are found again, and dropped when nobody needs them."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch

from steper.lm.prefix import Node, PrefixTree


def keep(tree: PrefixTree, text: Sequence[int], run: str) -> list[tuple[int, int]]:
    """Keep a text whose "keys" are its tokens; return what was asked for."""
    asked = []

    def states(begin: int, end: int) -> tuple[torch.Tensor, ...]:
        asked.append((begin, end))
        own = torch.tensor(text[begin:end], dtype=torch.float)
        return own[None, :, None], -own[None, :, None]

    tree.keep(text, run, states)
    return asked


def found(tree: PrefixTree, text: Sequence[int], run: str) -> list[int]:
    """The kept prefix of a text, as its states say it."""
    path = tree.find(text, run)
    keys = [int(key) for node in path for key in node.states[0].flatten()]
    assert keys == [-int(value) for node in path for value in node.states[1].flatten()]
    assert keys == [token for node in path for token in node.tokens]
    return keys


def test_only_what_is_new_is_asked_for() -> None:
    tree = PrefixTree(limit=100)
    assert keep(tree, [1, 2, 3], "a") == [(0, 3)]
    assert keep(tree, [1, 2, 3, 4, 5], "a") == [(3, 5)]
    assert keep(tree, [1, 2, 3, 4], "a") == []
    assert found(tree, [1, 2, 3, 4, 9], "a") == [1, 2, 3, 4]
    assert found(tree, [9], "a") == []


def test_a_run_leaves_behind_only_what_it_goes_on_from() -> None:
    tree = PrefixTree(limit=100)
    keep(tree, [1, 2, 3, 90, 91], "a")  # passages, then the cue and a sentence
    assert found(tree, [1, 2, 3, 4, 90], "a") == [1, 2, 3]
    assert tree.tokens == 3
    keep(tree, [1, 2, 3, 4, 90], "a")
    assert tree.tokens == 5


def test_sentences_drawn_for_one_prompt_stay_until_one_is_chosen() -> None:
    tree = PrefixTree(limit=100)
    prompt = [1, 2, 3]
    keep(tree, prompt, "a")
    for sentence in ([7, 7], [7, 8], [8]):
        keep(tree, prompt + sentence, "a")
    assert found(tree, prompt, "a") == prompt  # another candidate is asked for
    assert tree.tokens == 3 + 2 + 1 + 1
    assert found(tree, [*prompt, 7, 8, 9], "a") == [1, 2, 3, 7, 8]
    assert tree.tokens == 5


def test_a_shared_prefix_outlives_the_runs() -> None:
    tree = PrefixTree(limit=100)
    keep(tree, [1, 2, 3, 4], "a")
    keep(tree, [1, 2, 5, 6], "b")
    tree.forget("a")
    assert found(tree, [1, 2, 5, 6], "b") == [1, 2, 5, 6]
    tree.forget("b")
    assert tree.tokens == 2
    assert found(tree, [1, 2, 3], "c") == [1, 2]


def test_what_is_gone_through_stays_longest() -> None:
    tree = PrefixTree(limit=6)
    for run, text in {"a": [1, 2, 3], "b": [4, 5, 6], "c": [7, 8, 9]}.items():
        keep(tree, text, run)
    tree.find([1, 2, 3], "a")
    tree.trim()
    assert tree.tokens == 6
    assert found(tree, [4, 5, 6], "b") == []
    assert found(tree, [1, 2, 3], "a") == [1, 2, 3]


def test_a_split_node_holds_no_memory_but_its_own() -> None:
    node = Node([1, 2, 3], (torch.zeros(2, 3, 4),), "a")
    node.split(1)
    assert node.states[0].untyped_storage().nbytes() == 2 * 1 * 4 * 4
    assert node.children[2].tokens == [2, 3]


@pytest.mark.parametrize("seed", range(5))
def test_what_is_found_is_the_longest_prefix_that_was_kept(seed: int) -> None:
    rng = random.Random(seed)
    tree, texts = PrefixTree(limit=10**6), list[list[int]]()

    def longest(text: list[int]) -> int:
        return max((same(text, other) for other in texts), default=0)

    def same(one: list[int], other: list[int]) -> int:
        return next(
            (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
            min(len(one), len(other)),
        )

    for number in range(60):
        text = [rng.randrange(2) for _ in range(rng.randrange(1, 9))]
        # Every text has a run of its own, so that nothing is dropped.
        assert len(found(tree, text, f"{number}")) == longest(text)
        keep(tree, text, f"{number}")
        texts.append(text)
    assert tree.tokens == len({tuple(t[:n]) for t in texts for n in range(1, len(t) + 1)})
