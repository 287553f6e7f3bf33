"""BM25: ranks passages by the words they share with the query, rare words counting more.

bm25s computes every (term, passage) score once, when the index is built; a search adds up the
rows of the query's terms. The index is a folder that holds all it needs, its analysis included:
the arrays are mapped into memory, not read, and passages are looked up on disk.

>>> index = BM25Index.open(Path("runs/index"))  # doctest: +SKIP
>>> index.search(["Who hosted Hee Haw?"], k=4)[0][0].title  # doctest: +SKIP
'Hee Haw'
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from steper.errors import SteperError
from steper.retrieval.analysis import Analyzer, settings
from steper.retrieval.info import (
    FORMAT_VERSION,
    INFO,
    REBUILD,
    IndexInfo,
    check_files,
    file_info,
    read_info,
)
from steper.retrieval.passages import PassageFile
from steper.store import write_json
from steper.types import Passage

_BM25 = "bm25"
"""The folder of bm25s' own files; ``bm25s.BM25.load`` opens it as well."""

_DATA, _INDICES, _INDPTR = (
    f"{_BM25}/{name}.csc.index.npy" for name in ("data", "indices", "indptr")
)
_VOCABULARY = f"{_BM25}/vocab.index.json"
_PASSAGES = "passages.jsonl"
_FILES = (
    _DATA,
    _INDICES,
    _INDPTR,
    _VOCABULARY,
    f"{_BM25}/params.index.json",
    _PASSAGES,
    "offsets.npy",
)

_PROBE_CHARACTERS = 1000


class BM25Index:
    """A searchable corpus; fits ``protocols.Retriever``. Searching from several threads is safe.

    Attributes:
        info: what the index is made of.
        passages: the corpus, in the order it was read.
    """

    def __init__(
        self,
        info: IndexInfo,
        passages: Sequence[Passage],
        *,
        vocabulary: Mapping[str, int],
        columns: Mapping[str, NDArray[Any]],
    ) -> None:
        self.info, self.passages = info, passages
        self._vocabulary = vocabulary
        # Sparse columns, one a term: its passages are indices[indptr[t]:indptr[t + 1]], ascending,
        # and their scores stand in data at the same places.
        self._data, self._indices = columns["data"], columns["indices"]
        self._indptr = columns["indptr"]
        self._analyzer = Analyzer(info.analyzer)

    def __len__(self) -> int:
        return len(self.passages)

    # ---- building ----------------------------------------------------------------------------

    @classmethod
    def build(cls, passages: Iterable[Passage], folder: Path, *, language: str = "en") -> Self:
        """Write an index of the passages into a folder and open it.

        Args:
            passages: taken one by one; ids are distinct, as ``read_corpus`` makes sure. Only their
                terms are held in memory, 8 bytes a word.
            folder: where to; files of an earlier, interrupted build are overwritten.
            language: a key of ``analysis.STEMMERS``, or ``none``.

        Raises:
            SteperError: if the language is unknown or there is nothing to search by.
        """
        import bm25s

        # bm25s sets its own logger to DEBUG when it is imported.
        logging.getLogger("bm25s").setLevel(logging.WARNING)
        analyzer = Analyzer(settings(language))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / INFO).unlink(missing_ok=True)
        counts = _Counts()
        written = PassageFile.write(folder / _PASSAGES, counts.watch(passages, analyzer))
        if not counts.vocabulary:
            raise SteperError(
                "no passage holds a word to search by.",
                where="corpus",
                fix="Words are runs of two or more letters or digits, stopwords left out.",
            )
        bm25 = bm25s.BM25()
        terms = (counts.term_ids, counts.vocabulary)
        bm25.index(terms, create_empty_token=False, show_progress=False)
        bm25.save(folder / _BM25, show_progress=False)
        files = {name: file_info(folder / name) for name in _FILES}
        info = IndexInfo(
            format_version=FORMAT_VERSION,
            passages=len(written),
            words=counts.words,
            terms=len(counts.vocabulary),
            analyzer=analyzer.settings,
            k1=bm25.k1,
            b=bm25.b,
            method=bm25.method,
            bm25s_version=version("bm25s"),
            stemmer_version=version("PyStemmer"),
            probe=_probe(analyzer, written[0]),
            corpus_sha256=files[_PASSAGES].sha256,
            files=files,
        )
        write_json(folder / INFO, asdict(info))
        return cls.open(folder)

    # ---- opening -----------------------------------------------------------------------------

    @classmethod
    def open(cls, folder: Path, *, verify: bool = False) -> Self:
        """Open a saved index without reading it into memory, but for its vocabulary.

        Args:
            folder: where the index was saved.
            verify: whether to hash the large files too, which reads all of them.

        Raises:
            SteperError: naming the file that is missing, truncated or changed, or if the index
                was made by another format or stems words otherwise than this installation.
        """
        info = read_info(folder)
        check_files(folder, info, verify=verify)
        try:
            arrays = {
                # asarray: slices of a plain array cost less than those of a memmap.
                name: np.asarray(np.load(folder / file, mmap_mode="r"))
                for name, file in (("data", _DATA), ("indices", _INDICES), ("indptr", _INDPTR))
            }
            vocabulary = json.loads((folder / _VOCABULARY).read_bytes())
        except ValueError as error:
            raise SteperError(
                f"an index file is damaged: {error}.", where=str(folder), fix=REBUILD
            ) from None
        index = cls(info, PassageFile(folder / _PASSAGES), vocabulary=vocabulary, columns=arrays)
        if _probe(index._analyzer, index.passages[0]) != info.probe:
            raise SteperError(
                f"the index was built with PyStemmer {info.stemmer_version}, which stems words "
                f"otherwise than the installed {version('PyStemmer')}.",
                where=str(folder),
                fix="Install that version, or build the index again.",
            )
        return index

    # ---- searching ---------------------------------------------------------------------------

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """Return, for each query, at most ``k`` passages sharing a term with it, best first.

        Passages of equal score come in corpus order. A query without a known term gives ``[]``.

        Raises:
            SteperError: if ``k`` is less than 1.
        """
        if isinstance(queries, str):
            raise TypeError("queries must be a sequence of strings, not one string")
        if k < 1:
            raise SteperError(f"k is {k}, but must be at least 1.", where="k")
        return [[self.passages[int(i)] for i in self.rank(query, k)[0]] for query in queries]

    def rank(self, query: str, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The numbers of the best passages and their scores, each of length at most ``k``."""
        scores = np.zeros(len(self), dtype=np.float32)
        found = (self._vocabulary.get(term) for term in self._analyzer.terms(query))
        counts = Counter(term for term in found if term is not None)
        # In a fixed order, because a float sum depends on it. A repeated word is read once.
        for term in sorted(counts):
            begin, end = self._indptr[term], self._indptr[term + 1]
            scores[self._indices[begin:end]] += counts[term] * self._data[begin:end]
        hits = np.flatnonzero(scores)
        if len(hits) > k:
            # Keep every passage that ties with the k-th, then let the order below decide.
            kth = np.partition(scores[hits], len(hits) - k)[len(hits) - k]
            hits = hits[scores[hits] >= kth]
        best = hits[np.lexsort((hits, -scores[hits]))][:k]
        return best, scores[best]


@dataclass(slots=True)
class _Counts:
    """The terms of the passages that have gone by, numbered by first use.

    A set's order would change from run to run, and equal corpora would give unequal files.
    """

    vocabulary: dict[str, int] = field(default_factory=dict)
    term_ids: list[list[int]] = field(default_factory=list)
    words: int = 0

    def watch(self, passages: Iterable[Passage], analyzer: Analyzer) -> Iterator[Passage]:
        known = self.vocabulary
        for passage in passages:
            text = _searched(passage)
            self.words += len(text.split())
            self.term_ids.append([known.setdefault(t, len(known)) for t in analyzer.terms(text)])
            yield passage


def _searched(passage: Passage) -> str:
    """The text of a passage that is searched."""
    return f"{passage.title} {passage.text}"


def _probe(analyzer: Analyzer, passage: Passage) -> tuple[str, ...]:
    return tuple(analyzer.terms(_searched(passage)[:_PROBE_CHARACTERS]))
