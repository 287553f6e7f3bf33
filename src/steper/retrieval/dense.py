"""Dense retrieval: passages whose vectors point the way the query's does, found by FAISS.

Embedding is what takes long, so every window of vectors goes to disk as soon as it is made; after
a kill the same call goes on behind it and ends with the same index. An opened index is mapped into
memory, not read. How vectors are kept:

- ``float32``: as they are, all compared with the query: exact, 4 bytes a number;
- ``int8``: one byte a number; from a million passages on, only the nearest cells of an inverted
  file are looked into, as many as were found, at building, to lose less than 5 % of the best ten;
- ``pq``: product-quantised, one byte for four numbers; the least room, and not all of the best.

>>> info = build_dense(passages, folder, embedder=embedder, vectors="auto", ...)  # doctest: +SKIP
>>> DenseIndex(folder, index_info).search(["Who hosted Hee Haw?"], k=4)  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from steper.errors import SteperError
from steper.retrieval.embedding import Array, Embedder, VectorFile
from steper.retrieval.info import (
    PASSAGES,
    REBUILD,
    DenseInfo,
    IndexInfo,
    check_request,
    needs,
)
from steper.retrieval.passages import PassageFile
from steper.types import Passage, Vectors

DENSE = "dense/vectors.faiss"
"""The FAISS index within the index folder."""

EXACT_UP_TO = 50_000
"""Passages up to which ``auto`` keeps vectors as they are: 77 MB of 384 dimensions."""

CELLS_FROM = 1_000_000
"""Passages from which an inverted file is made. Comparing all would take 34 ms a query there, with
384 dimensions in one byte each and one thread; less than twice what embedding the query takes."""

_BLOCK = 65_536
_KMEANS_ROUNDS = 10
_PER_CENTER = 64
"""Vectors that each center of a clustering is learned from; FAISS wants 39 at least."""

PQ_NEEDS = 39 * 256
"""Fewest passages for product quantisation: it learns 256 centers for each byte."""

_KEPT, _TRIALS = 0.95, 200
_DIGITS = 5
"""Of a score: those after depend on the batch in which a passage was embedded."""

_QUERIES_AT_ONCE = 16
"""FAISS computes 20 queries and more by another algorithm, whose last digits differ."""


# ---- building --------------------------------------------------------------------------------


def build_dense(
    passages: PassageFile,
    folder: Path,
    *,
    embedder: Embedder,
    vectors: Literal["auto"] | Vectors,
    corpus_sha256: str,
) -> DenseInfo:
    """Embed passages and write the FAISS index of their vectors; an interrupted call is resumed.

    Args:
        passages: of the index.
        folder: the index folder; ``dense/`` in it is written.
        embedder: the model.
        vectors: how they are kept; ``auto`` is ``float32`` up to 50,000 passages, else ``int8``.
        corpus_sha256: of the passages; vectors left by another corpus or model are not used.

    Raises:
        SteperError: if there are too few passages for ``pq``, or a vector that is no number.
    """
    faiss = _faiss()
    if vectors == "auto":
        vectors = "float32" if len(passages) <= EXACT_UP_TO else "int8"
    factory = _factory(vectors, len(passages), embedder.dimensions)
    target = folder / DENSE
    target.parent.mkdir(parents=True, exist_ok=True)
    # Half precision keeps more than one byte will.
    dtype = np.dtype(np.float32 if vectors == "float32" else np.float16)
    made = VectorFile(target.parent, embedder, dtype=dtype, corpus_sha256=corpus_sha256)
    rows = made.complete(passages)
    index = faiss.index_factory(embedder.dimensions, factory, faiss.METRIC_INNER_PRODUCT)
    _train(index, rows)
    for begin in range(0, len(rows), _BLOCK):
        index.add(rows[begin : begin + _BLOCK].astype(np.float32))
    probes = _enough_probes(index, passages, embedder) if factory.startswith("IVF") else 0
    temporary = target.with_name(f"{target.name}.tmp")
    faiss.write_index(index, str(temporary))
    temporary.replace(target)
    return DenseInfo(embedder.info(passages[0]), vectors, factory, probes, faiss.__version__)


def _factory(vectors: Vectors, passages: int, dimensions: int) -> str:
    """What FAISS calls the kind of index that fits."""
    cells = f"IVF{2 ** round(np.log2(4 * passages**0.5))}," if passages >= CELLS_FROM else ""
    match vectors:
        case "float32":
            return "Flat"
        case "int8":
            return f"{cells}SQ8"
        case "pq":
            if passages < PQ_NEEDS:
                raise SteperError(
                    f"product quantisation is learned from at least {PQ_NEEDS:,} passages; there "
                    f"are {passages:,}.",
                    where="vectors",
                    fix="Use int8, which is four times smaller than float32, or auto.",
                )
            # Four numbers to a byte, or the next number that goes into the dimensions evenly.
            width = next(w for w in (4, 3, 2, 5, 6, 7, 1) if dimensions % w == 0)
            return f"{cells}PQ{dimensions // width}"


def _train(index: Any, rows: NDArray[Any]) -> None:
    """Let an index learn its centers or ranges from rows spread evenly over the corpus."""
    centers = 256
    if hasattr(index, "nlist"):
        index.cp.niter = _KMEANS_ROUNDS
        centers = max(centers, index.nlist)
    if hasattr(index, "pq"):
        index.pq.cp.niter = _KMEANS_ROUNDS
        # Meant for a filter that is not used here, and many times slower than the rest.
        index.do_polysemous_training = False
    step = max(1, len(rows) // (_PER_CENTER * centers))
    index.train(rows[::step].astype(np.float32))


def _enough_probes(index: Any, passages: PassageFile, embedder: Embedder) -> int:
    """The fewest cells, a power of 2, whose best ten are at least 95 % those of all cells.

    The queries are titles spread evenly over the corpus. They are harder than questions: on
    HotpotQA's passages, 95 % of theirs were 99 % of the questions'.
    """
    step = max(1, len(passages) // _TRIALS)
    texts = [p.title or p.text[:80] for p in (passages[i] for i in range(0, len(passages), step))]
    queries = embedder.queries(texts)

    def best(probes: int) -> list[set[int]]:
        index.nprobe = probes
        return [set(row) for row in index.search(queries, 10)[1].tolist()]

    exact = best(index.nlist)
    probes = 1
    while probes < index.nlist:
        kept = [
            len(ours & all_) / len(all_) for ours, all_ in zip(best(probes), exact, strict=True)
        ]
        if np.mean(kept) >= _KEPT:
            break
        probes *= 2
    return int(min(probes, index.nlist))


# ---- searching -------------------------------------------------------------------------------


class DenseIndex:
    """A saved index of vectors. Searching from several threads is safe.

    Attributes:
        info: what the index is made of.
        passages: the corpus, in the order it was read.
        embedder: makes the vectors of queries.
    """

    def __init__(self, folder: Path, info: IndexInfo, *, embedder: Embedder | None = None) -> None:
        """Open an index.

        Args:
            folder: the index folder.
            info: its ``info.json``, with ``dense``.
            embedder: the model, if it is loaded already; it is compared with the info.

        Raises:
            SteperError: if FAISS is not installed, its file is damaged, or the model is not there
                or is not the one that the passages were embedded by.
        """
        if info.dense is None:
            raise ValueError("the info says nothing of vectors")
        self.info = info
        self.passages = PassageFile(folder / PASSAGES)
        self._faiss = _open(folder / DENSE, info.dense, len(self.passages))
        if embedder is None:
            self.embedder = Embedder.from_info(info.dense.embedder, self.passages[0])
        else:
            embedder.check(info.dense.embedder, self.passages[0])
            self.embedder = embedder

    def __len__(self) -> int:
        return len(self.passages)

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """Return, for each query, the ``k`` passages nearest to it, best first.

        Passages of equal score, to five digits, come in corpus order. A blank query gives ``[]``,
        any other finds something. What a query has beyond what the model reads is left out.

        Raises:
            SteperError: if ``k`` is less than 1.
        """
        check_request(queries, k)
        found: list[list[Passage]] = [[] for _ in queries]
        asked = [place for place, query in enumerate(queries) if query.strip()]
        if asked:
            vectors = self.embedder.queries([queries[place] for place in asked])
            for place, numbers in zip(asked, self.rank(vectors, k), strict=True):
                found[place] = [self.passages[number] for number in numbers]
        return found

    def rank(self, vectors: Array, k: int) -> Iterator[list[int]]:
        """The numbers of the passages nearest to each vector, at most ``k``, best first."""
        # One more than is wanted shows whether passages tie with the last.
        fetch = min(k + 1, len(self))
        for begin in range(0, len(vectors), _QUERIES_AT_ONCE):
            block = vectors[begin : begin + _QUERIES_AT_ONCE]
            scores, numbers = self._faiss.search(block, fetch)
            for row in range(len(block)):
                yield self._ordered(block[row : row + 1], scores[row], numbers[row], k)

    def _ordered(
        self, vector: Array, scores: Array, numbers: NDArray[np.int64], k: int
    ) -> list[int]:
        """Put what FAISS found in order, equal scores by number, which it does not do.

        Where passages tie with the k-th, FAISS is asked again for more until all of them are seen.
        """
        scores = scores.round(_DIGITS)
        while len(scores) < len(self) and numbers[-1] >= 0 and scores[k - 1] == scores[-1]:
            found = self._faiss.search(vector, min(2 * len(scores), len(self)))
            scores, numbers = found[0][0].round(_DIGITS), found[1][0]
        there = numbers >= 0  # FAISS fills up with -1 where the cells hold fewer.
        scores, numbers = scores[there], numbers[there]
        best = np.lexsort((numbers, -scores))[:k]
        return [int(number) for number in numbers[best]]


def _open(path: Path, info: DenseInfo, passages: int) -> Any:
    """Map a FAISS index into memory.

    Raises:
        SteperError: if it is damaged or not the one that the info tells of.
    """
    faiss = _faiss()
    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise SteperError(
            f"cannot be read by FAISS: {reason}", where=str(path), fix=REBUILD
        ) from None
    shape = (index.ntotal, index.d)
    if shape != (passages, info.embedder.dimensions):
        raise SteperError(
            f"holds {shape[0]:,} vectors of {shape[1]} numbers; {passages:,} of "
            f"{info.embedder.dimensions} were written.",
            where=str(path),
            fix=REBUILD,
        )
    if info.probes:
        index.nprobe = info.probes
    return index


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise needs("dense", "Dense retrieval") from None
    return faiss
