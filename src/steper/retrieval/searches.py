"""What many ask an index at the same time becomes few searches, and no more than some may wait.

>>> searches = Searches(open_index("runs/index"), max_waiting=2048)  # doctest: +SKIP
>>> await searches.find(Asked(["Who hosted Hee Haw?"], k=4))  # doctest: +SKIP
[[Passage(id='hee-haw', title='Hee Haw', text='Hee Haw is a country variety show…')]]
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from steper.batching import Batcher
from steper.errors import SteperError
from steper.retrieval.info import Index
from steper.retrieval.remote import Asked
from steper.types import STRICT, Passage

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Health:
    """How a server is.

    Attributes:
        waiting: queries taken in and not yet answered.
        served: queries answered.
        refused: queries turned away because too many waited.
        failed: queries whose search failed.
        searches: calls of the index so far; each is for all that waited.
    """

    __pydantic_config__ = STRICT

    status: str
    passages: int
    waiting: int
    served: int
    refused: int
    failed: int
    searches: int


class Busy(SteperError):
    """Too many queries wait already."""


class _Waiting:
    """A request's queries; nobody waits for them any more once they are taken away."""

    __slots__ = ("k", "queries")

    def __init__(self, asked: Asked) -> None:
        self.queries, self.k = asked.queries, asked.k


class Searches:
    """Searches for all requests that wait at a time, in one thread; counts what it does.

    Args:
        index: searched from one thread at a time.
        max_waiting: queries taken in and not yet answered.
    """

    def __init__(self, index: Index, max_waiting: int) -> None:
        self._index, self._max_waiting = index, max_waiting
        self._batcher: Batcher[_Waiting, list[list[Passage]]] = Batcher(self._search)
        self.waiting = self.served = self.refused = self.failed = self.searches = 0

    async def find(self, asked: Asked) -> list[list[Passage]]:
        """The passages of each query. Cancelled, it gives its place to others.

        Raises:
            Busy: if too many queries wait.
            SteperError: if the index raised an exception.
        """
        count = len(asked.queries)
        if self.waiting + count > self._max_waiting:
            self.refused += count
            raise Busy(
                f"{self.waiting} queries are waiting; this server takes {self._max_waiting}.",
                fix="Come again later, or start it with a larger --max-waiting.",
            )
        self.waiting += count
        waiting = _Waiting(asked)
        try:
            found = await self._batcher(waiting)
        except SteperError:
            self.failed += count
            raise
        finally:
            waiting.queries = []  # not even their memory is held for a client that has gone
            self.waiting -= count
        self.served += count
        return found

    def _search(self, batch: list[_Waiting]) -> list[list[list[Passage]] | Exception]:
        """Runs in the thread: one call of the index for each ``k``."""
        # A client may go at any time, so its queries are looked at once.
        asked = [(waiting.queries, waiting.k) for waiting in batch]
        found: list[list[list[Passage]] | Exception] = [[] for _ in batch]
        for k in sorted({k for queries, k in asked if queries}):
            places = [i for i, (queries, wanted) in enumerate(asked) if queries and wanted == k]
            answers = self._together([asked[i][0] for i in places], k)
            for place, answer in zip(places, answers, strict=True):
                found[place] = answer
        return found

    def _together(
        self, requests: Sequence[list[str]], k: int
    ) -> list[list[list[Passage]] | Exception]:
        """The result of each request, or what the index raised for it."""
        self.searches += 1
        queries = [query for request in requests for query in request]
        try:
            results = self._index.search(queries, k)
            ends = list(accumulate(map(len, requests)))
            if len(results) != ends[-1]:
                raise ValueError(f"{len(results)} results for {ends[-1]} queries")
            return [results[end - len(r) : end] for r, end in zip(requests, ends, strict=True)]
        except SteperError as error:  # it is not about a query: its own server may be away
            _log.error("a search failed: %s", error)
            return [error for _ in requests]
        except Exception as error:
            if len(requests) > 1:  # one request must not spoil the others'
                return [self._together([request], k)[0] for request in requests]
            _log.exception("a search failed")
            what = f"The search failed ({type(error).__name__})."
            return [SteperError(what, fix="The server's log says more.")]

    def health(self) -> Health:
        """What has been done so far, and what is to do."""
        return Health(
            status="ok",
            passages=self._index.info.passages,
            waiting=self.waiting,
            served=self.served,
            refused=self.refused,
            failed=self.failed,
            searches=self.searches,
        )
