"""Reciprocal rank fusion, worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steper.errors import SteperError
from steper.retrieval.hybrid import HybridIndex, fuse
from steper.retrieval.info import FORMAT_VERSION, IndexInfo
from steper.types import Passage

INFO = IndexInfo(FORMAT_VERSION, "hybrid", 9, 0, "c", {})


def passages(ids: str) -> list[Passage]:
    return [Passage(id_, id_.upper(), f"text of {id_}") for id_ in ids]


def ids(found: Sequence[Passage]) -> str:
    return "".join(passage.id for passage in found)


class Fixed:
    """Gives the same ranking for every query that is not blank, and keeps what it was asked."""

    def __init__(self, ranking: str) -> None:
        self.info, self._ranking = INFO, passages(ranking)
        self.asked: list[tuple[list[str], int]] = []

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        self.asked.append((list(queries), k))
        return [self._ranking[:k] if query.strip() else [] for query in queries]


def test_a_passage_that_both_find_comes_before_what_one_finds_first() -> None:
    # b: 1/62 + 1/61; c: 1/63 + 1/62; a: 1/61; d: 1/63
    index = HybridIndex(INFO, [Fixed("abc"), Fixed("bcd")])
    assert [ids(found) for found in index.search(["q", "", "r"], 9)] == ["bcad", "", "bcad"]
    assert index.search(["q"], 2) == [passages("bc")]
    assert len(index) == 9


def test_a_smaller_constant_makes_first_ranks_count_more() -> None:
    # a: 1 / (c + 1); b: 1 / (c + 4) + 1 / (c + 3)
    rankings = [passages("axyb"), passages("uvb")]
    assert fuse(rankings, constant=60)[0].id == "b"
    assert fuse(rankings, constant=1)[0].id == "a"
    index = HybridIndex(INFO, [Fixed("axyb"), Fixed("uvb")], constant=1)
    assert ids(index.search(["q"], 1)[0]) == "a"


def test_equal_scores_come_in_the_first_index_s_order_then_by_id() -> None:
    # a and c stand first and second here, second and first there; z and y have one first rank...
    assert ids(fuse([passages("ca"), passages("ac")])) == "ca"
    assert ids(fuse([passages("ac"), passages("ca")])) == "ac"
    # ... and what the first does not know goes by its id.
    assert ids(fuse([passages(""), passages("z"), passages("y")])) == "yz"
    assert ids(fuse([passages("b"), passages("a")])) == "ba"


def test_each_index_is_asked_once_for_the_depth_or_for_k() -> None:
    first, second = Fixed("ab"), Fixed("bc")
    HybridIndex(INFO, [first, second], depth=7).search(["q", "r"], 3)
    HybridIndex(INFO, [first, second], depth=7).search(["q"], 20)
    assert first.asked == second.asked == [(["q", "r"], 7), (["q"], 20)]
    # What is deeper than the depth does not count.
    assert ids(HybridIndex(INFO, [Fixed("xa"), Fixed("ya")], depth=1).search(["q"], 1)[0]) == "x"


def test_wrong_requests_are_refused_before_anyone_is_asked() -> None:
    first = Fixed("a")
    index = HybridIndex(INFO, [first])
    with pytest.raises(SteperError, match="at least 1"):
        index.search(["q"], 0)
    with pytest.raises(TypeError, match="not one string"):
        index.search("q", 1)
    assert not first.asked
    assert index.search([], 1) == []


@given(st.lists(st.permutations("abcdef").map("".join), min_size=1, max_size=4))
def test_the_other_indexes_order_does_not_matter(rankings: list[str]) -> None:
    cut = [passages(ranking[: 2 + n]) for n, ranking in enumerate(rankings)]
    orders = [[cut[0], *rest] for rest in permutations(cut[1:])]
    found = {ids(fuse(order)) for order in orders}
    assert len(found) == 1
    assert sorted(found.pop()) == sorted({p.id for ranking in cut for p in ranking})
