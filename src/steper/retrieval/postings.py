"""Build the arrays that BM25 searches, in a stream, several processes at a time.

bm25s computes all scores when it indexes, in arrays that must fit into memory several times over.
Here blocks of passages are counted by worker processes, each block's counts go to disk, and are
scored once the whole corpus has gone by and the frequency of every term is known. Memory holds the
vocabulary, one block, and what the system keeps of the files. The files are those of bm25s, which
opens them as well, and the scores are its "lucene" variant: for a term in n_t of N passages, f
times in one of length l,

    ln(1 + (N - n_t + 0.5) / (n_t + 0.5)) · f / (f + k1 · (1 - b + b · l / mean l))

>>> build_postings(passages, folder, analyzer, workers=2)  # doctest: +SKIP
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import accumulate
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from steper.errors import SteperError
from steper.retrieval.analysis import Analyzer, AnalyzerSettings
from steper.retrieval.passages import PassageFile, searched
from steper.store import write_json

DATA, INDICES, INDPTR = (f"{name}.csc.index.npy" for name in ("data", "indices", "indptr"))
"""Sparse columns, one a term: its passages are indices[indptr[t]:indptr[t + 1]], ascending, and
their scores stand in data at the same places."""

PEAKS = "peaks.npy"
"""The highest score that each term gives a passage."""

TERMS, TERM_ENDS = "terms.bin", "terms.npy"
"""All terms in the order of their UTF-8 bytes, one after the other, and where each ends."""

K1, B = 1.5, 0.75
"""The defaults of bm25s."""

_BLOCK = 20_000
"""Passages counted at a time: some 10 MB of counts, and few enough that no worker waits long."""


def build_postings(
    passages: PassageFile, folder: Path, settings: AnalyzerSettings, *, workers: int = 1
) -> int:
    """Write the arrays for all passages into a folder; returns the number of distinct terms.

    The files do not depend on the number of workers.

    Args:
        passages: the corpus.
        folder: where to; exists.
        settings: how text becomes terms.
        workers: processes; with 1 all is done in this one.
    """
    with tempfile.TemporaryDirectory(prefix=".blocks-", dir=folder) as scratch:
        numbers: dict[str, int] = {}
        blocks: list[tuple[_Block, NDArray[np.int32]]] = []
        with tqdm(total=len(passages), unit=" passages", desc="words", unit_scale=True) as bar:
            for block in _counted(passages, Path(scratch), settings, workers):
                known = (numbers.setdefault(term, len(numbers)) for term in block.terms)
                blocks.append((block, np.fromiter(known, np.int32, count=len(block.terms))))
                block.terms.clear()
                bar.update(block.end - block.begin)
        order = sorted(numbers, key=str.encode)
        if not order:
            return 0
        # The terms were numbered by first use; from here on by their order.
        place = np.empty(len(order), dtype=np.int32)
        place[np.fromiter(map(numbers.__getitem__, order), np.int32)] = np.arange(len(order))
        del numbers
        _write_terms(folder, order, len(passages))
        _write_scores(folder, [(block, place[known]) for block, known in blocks], len(order))
    return len(order)


# ---- first pass: count -------------------------------------------------------------------------


@dataclass(slots=True)
class _Block:
    """The counts of the passages ``begin`` to ``end``; the large ones in a file.

    The file holds three int32 arrays of equal length, grouped by term: a number below
    ``len(terms)``, a passage counted from ``begin``, and how often the term is in it.

    Attributes:
        lengths: (passages,) terms of each passage, repetitions counted.
    """

    begin: int
    end: int
    terms: list[str]
    lengths: NDArray[np.int32]
    path: Path

    def counts(self) -> NDArray[np.int32]:
        """(3, entries): terms, passages, frequencies."""
        found: NDArray[np.int32] = np.load(self.path)
        return found


def _counted(
    passages: PassageFile, scratch: Path, settings: AnalyzerSettings, workers: int
) -> Iterator[_Block]:
    """The blocks in corpus order, counted by as many processes as asked for."""
    spans = [(i, min(i + _BLOCK, len(passages))) for i in range(0, len(passages), _BLOCK)]
    count = partial(_count, passages.path, scratch, settings)
    if workers == 1 or len(spans) == 1:
        yield from map(count, spans)
        return
    # A process that has threads must not be forked, and libraries start some unasked.
    context = get_context("spawn")
    try:
        with ProcessPoolExecutor(workers, context, initializer=_end_with_parent) as pool:
            yield from pool.map(count, spans)
    except BrokenProcessPool:
        raise SteperError(
            "a process that analyzes text died, or could not start.",
            where="workers",
            fix="Memory may be short: try --workers 1. In a script of your own, the call must "
            "stand under `if __name__ == '__main__':`.",
        ) from None


def _end_with_parent() -> None:
    """End this process with the one that started it, which may be killed without a word."""
    # Ctrl-C goes to all of a terminal's processes; the parent tells its own.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _count(path: Path, scratch: Path, settings: AnalyzerSettings, span: tuple[int, int]) -> _Block:
    begin, end = span
    analyzer = Analyzer(settings)
    terms: dict[str, int] = {}
    numbers = _Numbers(analyzer, terms)
    found: list[NDArray[np.int32]] = []
    for passage in PassageFile(path).iterate(begin, end):
        ids = np.fromiter(
            map(numbers.__getitem__, analyzer.words(searched(passage))), dtype=np.int32
        )
        found.append(ids[ids >= 0])
    lengths = np.fromiter(map(len, found), np.int32, count=len(found))
    owners = np.repeat(np.arange(len(found), dtype=np.int64), lengths)
    # One sort groups by term, then by passage, and counts.
    keys, frequencies = np.unique(
        np.concatenate(found).astype(np.int64) * len(found) + owners, return_counts=True
    )
    file = scratch / f"{begin}.npy"
    np.save(file, np.stack([*np.divmod(keys, len(found)), frequencies]).astype(np.int32))
    return _Block(begin, end, list(terms), lengths, file)


class _Numbers(dict[str, int]):
    """The number of each word's term, -1 for a stopword: a word is stemmed once in a block."""

    def __init__(self, analyzer: Analyzer, terms: dict[str, int]) -> None:
        super().__init__()
        self._analyzer, self._terms = analyzer, terms

    def __missing__(self, word: str) -> int:
        term = self._analyzer.term(word)
        self[word] = -1 if term is None else self._terms.setdefault(term, len(self._terms))
        return self[word]


# ---- second pass: score ------------------------------------------------------------------------


def _write_scores(
    folder: Path, blocks: Sequence[tuple[_Block, NDArray[np.int32]]], terms: int
) -> None:
    """Score every entry and put it where its term's column is.

    Args:
        folder: where to.
        blocks: in corpus order, each with the final number of each of its terms.
        terms: how many there are.
    """
    holders = np.zeros(terms, dtype=np.int64)  # n_t
    for block, numbers in blocks:
        holders[numbers] += np.bincount(block.counts()[0], minlength=len(numbers))
    count = blocks[-1][0].end
    words = sum(int(block.lengths.sum(dtype=np.int64)) for block, _ in blocks)
    idf = np.log(1 + (count - holders + 0.5) / (holders + 0.5))
    indptr = np.concatenate([[0], np.cumsum(holders)])
    peaks = np.zeros(terms, dtype=np.float32)
    data = _mapped(folder / DATA, np.float32, int(indptr[-1]))
    indices = _mapped(folder / INDICES, np.int32, int(indptr[-1]))
    filled = indptr[:-1].copy()
    for block, numbers in tqdm(blocks, unit=" blocks", desc="scores"):
        local, passages, frequencies = block.counts()
        own = np.bincount(local, minlength=len(numbers))
        starts = np.cumsum(own) - own
        # An entry's place: its term's first free one, and its rank among the block's entries.
        places = filled[numbers][local] + np.arange(len(local)) - starts[local]
        saturation = K1 * (1 - B + B * block.lengths / (words / count))
        scores = idf[numbers][local] * frequencies / (frequencies + saturation[passages])
        data[places], indices[places] = scores, passages + block.begin
        peaks[numbers] = np.maximum(peaks[numbers], np.maximum.reduceat(data[places], starts))
        filled[numbers] += own
    for array in (data, indices):
        array.flush()
    np.save(folder / INDPTR, indptr)
    np.save(folder / PEAKS, peaks)


def _mapped(path: Path, dtype: type[np.generic], entries: int) -> Any:
    """A new array on disk that has its room: a full disk would end the process without a word."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(entries,))
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with path.open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def _write_terms(folder: Path, terms: Sequence[str], passages: int) -> None:
    encoded = [term.encode() for term in terms]
    (folder / TERMS).write_bytes(b"".join(encoded))
    np.save(folder / TERM_ENDS, np.fromiter(accumulate(map(len, encoded)), np.int64))
    # For bm25s alone.
    with (folder / "vocab.index.json").open("w", encoding="utf-8") as file:
        entries = (f"{json.dumps(t, ensure_ascii=False)}: {i}" for i, t in enumerate(terms))
        file.write(f"{{{next(entries)}")
        file.writelines(f",\n{entry}" for entry in entries)
        file.write("}\n")
    params: Mapping[str, Any] = {
        "k1": K1,
        "b": B,
        "delta": 0.5,
        "method": "lucene",
        "idf_method": "lucene",
        "dtype": "float32",
        "int_dtype": "int32",
        "num_docs": passages,
        "version": version("bm25s"),
        "backend": "numpy",
    }
    write_json(folder / "params.index.json", params)
