"""Hybrid: several indexes search, and reciprocal rank fusion makes one ranking of theirs.

Words find names and numbers, vectors find what is said in other words. Their scores cannot be
compared, their ranks can: a passage's score is the sum of 1 / (60 + rank) over the rankings that
hold it (Cormack, Clarke and Büttcher, SIGIR 2009).

>>> index = HybridIndex(info, [bm25, dense])  # doctest: +SKIP
>>> index.search(["Who hosted Hee Haw?"], k=4)[0][0].title  # doctest: +SKIP
'Hee Haw'
"""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum

from steper.retrieval.info import Index, IndexInfo, check_request
from steper.types import Passage

FUSED_DEPTH = 100
"""How many passages of each ranking are fused, at least ``k``."""


class HybridIndex:
    """Several indexes of one corpus as one. As safe with threads as they are.

    Attributes:
        info: what the index is made of.
        indexes: the indexes fused; the order matters for ties only.
        depth: how many passages of each ranking are fused, at least ``k``.
        constant: the 60 of the formula; a larger one makes first ranks count less.
    """

    def __init__(
        self,
        info: IndexInfo,
        indexes: Sequence[Index],
        *,
        depth: int = FUSED_DEPTH,
        constant: int = 60,
    ) -> None:
        self.info, self.indexes = info, tuple(indexes)
        self.depth, self.constant = depth, constant

    def __len__(self) -> int:
        return self.info.passages

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """Return, for each query, at most ``k`` passages that any index found, best first.

        Equal scores come in the order of the first index, then of passage ids.

        Raises:
            SteperError: if ``k`` is less than 1.
        """
        check_request(queries, k)
        depth = max(k, self.depth)
        found = [index.search(queries, depth) for index in self.indexes]
        return [fuse(rankings, constant=self.constant)[:k] for rankings in zip(*found, strict=True)]


def fuse(rankings: Sequence[Sequence[Passage]], *, constant: int = 60) -> list[Passage]:
    """Fuse rankings of passages, known by their ids, best first, into one.

    Equal scores come in the order of the first ranking, then of passage ids.
    """
    passages: dict[str, Passage] = {}
    shares: dict[str, list[float]] = {}
    for ranking in rankings:
        for rank, passage in enumerate(ranking, start=1):
            passages.setdefault(passage.id, passage)
            shares.setdefault(passage.id, []).append(1 / (constant + rank))
    first = {passage.id: rank for rank, passage in enumerate(rankings[0] if rankings else ())}
    # fsum: the same ranks give the same sum in whatever order the rankings come.
    order = sorted(
        passages, key=lambda id_: (-fsum(shares[id_]), first.get(id_, len(passages)), id_)
    )
    return [passages[id_] for id_ in order]
