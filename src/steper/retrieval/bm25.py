"""BM25 over an index on disk, by the `bm25s` library (Lucene variant, its default k1 and b).

The index is memory-mapped: opening it reads no passage, and a search reads the few it returns.
Folder and corpus are tied together: the index carries its analysis, its corpus hash and the size
of every file, so a truncated file is named instead of giving odd results.

>>> index = BM25Index.open(Path("runs/index"))  # doctest: +SKIP
>>> index.search(["Who hosted Hee Haw?"], k=4)[0][0].title  # doctest: +SKIP
'Hee Haw'
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
import Stemmer
from numpy.typing import NDArray

from steper.errors import SteperError
from steper.store import from_json, read_json, to_json, write_json
from steper.types import STRICT, Passage

LANGUAGES = {
    "da": "danish",
    "de": "german",
    "en": "english",
    "es": "spanish",
    "fr": "french",
    "it": "italian",
    "nl": "dutch",
    "no": "norwegian",
    "pt": "portuguese",
    "sv": "swedish",
}
"""Languages with stop words and a Snowball stemmer; ``none`` does without both."""

MAX_QUERY_TERMS = 1024
"""Terms of a query that are used. A longer text is no query; its beginning is searched with."""

FORMAT = 1


@dataclass(frozen=True, slots=True)
class IndexInfo:
    """What an index says of itself.

    Attributes:
        files: size in bytes of every file of the index.
    """

    __pydantic_config__ = STRICT

    format: int
    language: str
    bm25s: str
    passages: int
    terms: int
    corpus_sha256: str
    files: dict[str, int]


def analyze(texts: Sequence[str], language: str) -> list[list[str]]:
    """The terms of each text: the one analysis for passages and queries alike."""
    stemmer = Stemmer.Stemmer(LANGUAGES[language]) if language != "none" else None
    stopwords = language if language != "none" else []
    tokens: list[list[str]] = bm25s.tokenize(
        list(texts),
        stopwords=stopwords,
        stemmer=stemmer,
        return_ids=False,
        show_progress=False,
        allow_empty=False,
    )
    # bm25s stands an empty term in for a text without any; it must not match anything.
    return [[term for term in terms if term] for terms in tokens]


class BM25Index:
    """Implements ``steper.protocols.Retriever``."""

    def __init__(self, folder: Path, info: IndexInfo) -> None:
        self.info = info
        self._scorer = bm25s.BM25.load(
            folder / "bm25", mmap=True, show_progress=False, load_vocab=True
        )
        self._offsets: NDArray[np.int64] = np.load(folder / "offsets.npy", mmap_mode="r")
        self._passages = (folder / "passages.jsonl").open("rb")
        self._where = str(folder / "passages.jsonl")

    def __len__(self) -> int:
        return self.info.passages

    @classmethod
    def build(cls, passages: Iterable[Passage], folder: Path, *, language: str = "en") -> BM25Index:
        """Write an index of the passages into a folder and open it.

        Args:
            passages: taken one by one; only their terms are held in memory.
            folder: where to; files of an earlier, interrupted build are overwritten.
            language: a key of ``LANGUAGES``, or ``none``.

        Raises:
            SteperError: if the language is unknown.
        """
        if language != "none" and language not in LANGUAGES:
            raise SteperError(
                f"unknown language {language!r}.",
                where="--language",
                fix=f"Choose one of {', '.join(LANGUAGES)}, or none.",
            )
        logging.getLogger("bm25s").setLevel(logging.ERROR)
        folder.mkdir(parents=True, exist_ok=True)
        terms, digest = _write_passages(passages, folder, language)
        scorer = bm25s.BM25(method="lucene")
        scorer.index(terms, show_progress=False)
        scorer.save(folder / "bm25", show_progress=False)
        paths = (p for p in folder.rglob("*") if p.suffix in (".npy", ".json", ".jsonl"))
        info = IndexInfo(
            format=FORMAT,
            language=language,
            bm25s=bm25s.__version__,
            passages=len(terms),
            terms=len(scorer.vocab_dict),
            corpus_sha256=digest,
            files={
                path.relative_to(folder).as_posix(): path.stat().st_size
                for path in sorted(paths)
                if path.name not in ("manifest.json", "info.json")
            },
        )
        write_json(folder / "info.json", {f: getattr(info, f) for f in IndexInfo.__slots__})
        return cls(folder, info)

    @classmethod
    def open(cls, folder: Path) -> BM25Index:
        """Open an index, memory-mapped.

        Raises:
            SteperError: if a file is missing or has another size than when it was written, or
                another version of steper wrote it.
        """
        path = folder / "info.json"
        info = from_json(IndexInfo, to_json(read_json(path)), where=str(path))
        if info.format != FORMAT:
            raise SteperError(
                f"index format {info.format}, this version reads {FORMAT}.",
                where=str(folder),
                fix="Build the index again with `steper index`.",
            )
        for name, size in info.files.items():
            file = folder / name
            there = file.stat().st_size if file.is_file() else None
            if there != size:
                raise SteperError(
                    f"has {there} bytes, not the {size} it was written with."
                    if there is not None
                    else "is missing.",
                    where=str(file),
                    fix="The index is damaged; delete the folder and run `steper index` again.",
                )
        return cls(folder, info)

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """At most ``k`` passages for each query, best first; ties in corpus order.

        A passage that shares no term with the query is never returned, so a query that is empty,
        of stop words only, or of unknown words gives ``[]``.
        """
        return [
            [self.passage(int(row)) for row in self._best(terms[:MAX_QUERY_TERMS], k)]
            for terms in analyze(queries, self.info.language)
        ]

    def passage(self, row: int) -> Passage:
        """The passage at a place of the corpus."""
        begin, end = self._offsets[row], self._offsets[row + 1]
        self._passages.seek(int(begin))
        line = self._passages.read(int(end - begin))
        return from_json(Passage, line, where=f"{self._where}:{row + 1}")

    def _best(self, terms: Sequence[str], k: int) -> Any:
        known = [term for term in terms if term in self._scorer.vocab_dict]
        if not known or k < 1:
            return []
        scores = self._scorer.get_scores(known)  # (passages,)
        k = min(k, len(scores))
        # Everything as good as the k-th best is a candidate, so that ties at the edge are
        # decided by corpus order and not by the partition's whim.
        edge = max(np.partition(scores, -k)[-k], np.finfo(scores.dtype).tiny)
        candidates = np.flatnonzero(scores >= edge)
        return candidates[np.argsort(-scores[candidates], kind="stable")][:k]


def _write_passages(
    passages: Iterable[Passage], folder: Path, language: str
) -> tuple[list[list[str]], str]:
    """Write passages and their byte offsets; returns every passage's terms and the corpus hash."""
    terms: list[list[str]] = []
    offsets = [0]
    digest = hashlib.sha256()
    with (folder / "passages.jsonl").open("wb") as file:
        for block in _blocks(passages, 4096):
            for passage in block:
                line = f"{to_json(passage)}\n".encode()
                digest.update(line)
                file.write(line)
                offsets.append(offsets[-1] + len(line))
            terms += analyze([f"{p.title} {p.text}" for p in block], language)
    np.save(folder / "offsets.npy", np.array(offsets, dtype=np.int64))
    return terms, digest.hexdigest()


def _blocks(passages: Iterable[Passage], size: int) -> Iterable[list[Passage]]:
    block: list[Passage] = []
    for passage in passages:
        block.append(passage)
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block
