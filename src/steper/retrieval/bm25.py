"""BM25: ranks passages by the words they share with the query, rare words counting more.

Every (term, passage) score was computed when the index was built (see ``postings``); a search adds
up the columns of the query's terms. Nothing is read on opening: arrays and terms are mapped into
memory, and passages are looked up on disk.

A question's frequent words are in many passages and decide little. So the rare ones are added up
first; once the passages found so far cannot be overtaken by any other, the frequent words are only
looked up for them ("MaxScore": Turtle and Flood, 1995). The result is exact.

>>> index = open_index("runs/index")  # doctest: +SKIP
>>> index.search(["Who hosted Hee Haw?"], k=4)[0][0].title  # doctest: +SKIP
'Hee Haw'
"""

from __future__ import annotations

import mmap
import os
import shutil
import threading
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steper.errors import SteperError
from steper.retrieval.analysis import Analyzer, settings
from steper.retrieval.columns import COMPILED, add_all, add_begun, reaching
from steper.retrieval.info import PASSAGES, REBUILD, BM25Info, IndexInfo, check_request
from steper.retrieval.passages import PassageFile, searched
from steper.retrieval.postings import (
    DATA,
    INDICES,
    INDPTR,
    K1,
    PEAKS,
    TERM_ENDS,
    TERMS,
    B,
    build_postings,
)
from steper.types import Passage

BM25 = "bm25"
"""The folder of its files; ``bm25s.BM25.load`` opens it as well."""

MAX_TERMS = 1024
"""Distinct terms of a query that count, its first; a pasted book would take minutes."""

_PROBE_CHARACTERS = 1000

_THREADS = min(8, os.cpu_count() or 1)
"""Most threads of one index: each holds four bytes a passage."""

_THREADS_FROM = 200_000
"""Passages from which threads gain more, where loops are compiled, than they cost."""


def build_bm25(
    passages: PassageFile, folder: Path, *, language: str = "en", workers: int = 1
) -> BM25Info:
    """Write the BM25 files of the passages into an index folder.

    Args:
        passages: the corpus.
        folder: the index folder; the files go to ``bm25/`` in it.
        language: a key of ``analysis.STEMMERS`` or one of ``analysis.IN_PAIRS``, or ``none``.
        workers: processes that analyze text.

    Raises:
        SteperError: if the language is unknown or there is nothing to search by.
    """
    analyzer = Analyzer(settings(language))
    # A build that was killed leaves blocks that would be counted among the files of this one.
    shutil.rmtree(folder / BM25, ignore_errors=True)
    (folder / BM25).mkdir(exist_ok=True)
    terms = build_postings(passages, folder / BM25, analyzer.settings, workers=workers)
    if not terms:
        raise SteperError(
            "no passage holds a word to search by.",
            where="corpus",
            fix="Words are runs of two or more letters or digits, stopwords left out.",
        )
    return BM25Info(
        analyzer=analyzer.settings,
        terms=terms,
        k1=K1,
        b=B,
        stemmer_version=version("PyStemmer"),
        probe=_probe(analyzer, passages),
    )


class BM25Index:
    """A searchable corpus; fits ``info.Index``. Searching from several threads is safe.

    Attributes:
        info: what the index is made of.
        passages: the corpus, in the order it was read.
    """

    def __init__(self, folder: Path, info: IndexInfo) -> None:
        """Open the index of a folder whose ``info.json`` says this of it.

        Raises:
            SteperError: if a file is damaged, or words are stemmed otherwise than they were.
        """
        assert info.bm25 is not None
        self.info = info
        self.passages = PassageFile(folder / PASSAGES)
        self._analyzer = Analyzer(info.bm25.analyzer)
        try:
            self._data, self._indices, self._indptr, self._peaks = (
                # asarray: slices of a plain array cost less than those of a memmap.
                np.asarray(np.load(folder / BM25 / name, mmap_mode="r"))
                for name in (DATA, INDICES, INDPTR, PEAKS)
            )
            self._terms = _Terms(folder / BM25)
        except (OSError, ValueError) as error:
            raise SteperError(
                f"an index file is damaged: {error}.", where=str(folder / BM25), fix=REBUILD
            ) from None
        self._scratch = threading.local()
        self._threads, self._process = ThreadPoolExecutor(_THREADS), os.getpid()
        if _probe(self._analyzer, self.passages) != info.bm25.probe:
            raise SteperError(
                f"the index was built with PyStemmer {info.bm25.stemmer_version}, which stems "
                f"words otherwise than the installed {version('PyStemmer')}.",
                where=str(folder),
                fix="Install that version, or build the index again.",
            )

    def __len__(self) -> int:
        return len(self.passages)

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """Return, for each query, at most ``k`` passages sharing a term with it, best first.

        Passages of equal score come in corpus order. A query without a known term gives ``[]``;
        of a very long one the first ``MAX_TERMS`` known terms count.

        Raises:
            SteperError: if ``k`` is less than 1.
        """
        check_request(queries, k)

        def find(query: str) -> list[Passage]:
            return [self.passages[int(i)] for i in self.rank(query, k)[0]]

        if COMPILED and len(self) >= _THREADS_FROM and len(queries) > 1:
            if self._process != os.getpid():  # forked: its threads are not here
                self._threads, self._process = ThreadPoolExecutor(_THREADS), os.getpid()
            return list(self._threads.map(find, queries))
        return [find(query) for query in queries]

    def rank(self, query: str, k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """The numbers of the best passages and their scores, each of length at most ``k``."""
        found = (self._terms.number(term) for term in self._analyzer.terms(query))
        counts = Counter(term for term in found if term is not None)
        terms = dict(islice(counts.items(), MAX_TERMS))
        try:
            passages = self._candidates(terms, k)
        except BaseException:
            # Half added up (Ctrl-C in a notebook): this thread's next search begins with zeros.
            self._scratch.__dict__.pop("sums", None)
            raise
        scores = np.zeros(len(passages), dtype=np.float32)
        # In a fixed order, because a float sum depends on it.
        for term in sorted(terms):
            at, hit = self._lookup(term, passages)
            scores[hit] += terms[term] * self._data[at]
        best = np.lexsort((passages, -scores))[:k]
        return passages[best], scores[best]

    # ---- the passages that can be among the best -----------------------------------------------

    def _candidates(self, terms: dict[int, int], k: int) -> NDArray[np.int32]:
        """The passages among which the best ``k`` are, ascending; few more than those.

        Args:
            terms: the query's terms, with how often each is in it.
            k: how many are wanted.
        """
        order = sorted(terms, key=lambda term: (self._indptr[term + 1] - self._indptr[term], term))
        # What the terms from each on can add to a score, at most.
        peaks = [np.float32(terms[t]) * self._peaks[t] for t in reversed(order)]
        most = np.cumsum(peaks, dtype=np.float32)[::-1]
        sums = self._zeros()
        found: list[NDArray[np.int32]] = []
        floor, done = np.float32(0), 0
        while done < len(order) and most[done] >= floor:
            term = order[done]
            new, high = add_all(sums, *self._column(term), np.float32(terms[term]), floor)
            found.append(new)
            floor = _raised(floor, high, k)
            done += 1
        # No other passage can reach the best k any more; some of those found cannot, either.
        touched = np.concatenate([np.empty(0, dtype=np.int32), *found])
        passages: NDArray[np.int32] = touched
        for place, term in enumerate(order[done:], start=done):
            passages = reaching(sums, passages, floor - most[place])
            self._add(term, np.float32(terms[term]), sums, passages)
            scores = sums[passages]
            floor = _raised(floor, scores[scores > floor], k)
        passages = reaching(sums, passages, floor)
        passages.sort()
        # Zeros for the next query of this thread, by whichever is faster.
        sums[touched if len(touched) * _CLEARED < len(sums) else slice(None)] = 0
        return passages

    def _column(self, term: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """The passages that hold a term, and its scores for them."""
        column = slice(self._indptr[term], self._indptr[term + 1])
        return self._indices[column], self._data[column]

    def _add(
        self,
        term: int,
        weight: np.float32,
        sums: NDArray[np.float32],
        passages: NDArray[np.int32],
    ) -> None:
        """Add a term's scores to the sums of passages that have a sum already."""
        if len(passages) * _LOOKUP < self._indptr[term + 1] - self._indptr[term]:
            at, hit = self._lookup(term, passages)
            sums[passages[hit]] += weight * self._data[at]
        else:
            add_begun(sums, *self._column(term), weight)

    def _lookup(
        self, term: int, passages: NDArray[np.int32]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Where in the arrays a term's entries for passages are, and which passages have one."""
        begin, end = self._indptr[term], self._indptr[term + 1]
        column = self._indices[begin:end]
        at = np.searchsorted(column, passages)
        hit = column[np.minimum(at, len(column) - 1)] == passages
        return begin + at[hit], hit

    def _zeros(self) -> NDArray[np.float32]:
        """(passages,) zeros, one array a thread: every search leaves it as it found it."""
        if not hasattr(self._scratch, "sums"):
            self._scratch.sums = np.zeros(len(self), dtype=np.float32)
        sums: NDArray[np.float32] = self._scratch.sums
        return sums


_ROUNDING = np.float32(1 - 3 * MAX_TERMS * 2**-24)
"""Sums of so many terms in another order differ by less; a bound that much lower loses nothing."""

_LOOKUP, _CLEARED = 12, 8
"""Entries of a column that are added up in the time of one bisection in it; entries in a row that
are set to zero in the time of one by its number."""


def _raised(floor: np.float32, high: NDArray[np.float32], k: int) -> np.float32:
    """A score that k passages reach, rounding allowed for, from the scores above such a floor."""
    if len(high) < k:
        return floor
    return np.float32(np.partition(high, len(high) - k)[len(high) - k] * _ROUNDING)


_SAMPLED = 256
"""Of so many terms one is held in memory: most of a bisection is done there."""


class _Terms:
    """The sorted terms on disk, found by bisection: a vocabulary of millions costs no memory."""

    def __init__(self, folder: Path) -> None:
        self._ends: NDArray[Any] = np.asarray(np.load(folder / TERM_ENDS, mmap_mode="r"))
        with (folder / TERMS).open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if len(self._bytes) != self._ends[-1]:
            raise ValueError(f"{TERMS} does not fit {TERM_ENDS}")
        self._samples = [self._at(number) for number in range(0, len(self._ends), _SAMPLED)]

    def number(self, term: str) -> int | None:
        """The number of a term, ``None`` if no passage has it."""
        wanted = term.encode(errors="replace")
        sample = bisect_right(self._samples, wanted)
        low, high = max(0, sample - 1) * _SAMPLED, min(sample * _SAMPLED, len(self._ends))
        while low < high:
            middle = (low + high) // 2
            if self._at(middle) < wanted:
                low = middle + 1
            else:
                high = middle
        return low if low < len(self._ends) and self._at(low) == wanted else None

    def _at(self, number: int) -> bytes:
        begin = int(self._ends[number - 1]) if number else 0
        return self._bytes[begin : int(self._ends[number])]


def _probe(analyzer: Analyzer, passages: Sequence[Passage]) -> tuple[str, ...]:
    """The terms of the first passage's beginning, or of the first of some that has any."""
    texts = (searched(passage)[:_PROBE_CHARACTERS] for passage in islice(passages, 100))
    return next(filter(None, (tuple(analyzer.terms(text)) for text in texts)), ())
