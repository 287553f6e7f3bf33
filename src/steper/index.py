"""`steper index`: a corpus becomes a search index in a run folder."""

from __future__ import annotations

import time
from pathlib import Path

from tabulate import tabulate
from tqdm import tqdm

from steper.corpus import read_corpus
from steper.retrieval.bm25 import BM25Index
from steper.store import Run, require_finished


def build_index(source: Path, out: Path, *, language: str = "en") -> BM25Index:
    """Build the index of a corpus, or open it if this very one is already there.

    Args:
        source: corpus file or folder (see ``steper.corpus.read_corpus``).
        out: folder for the index. An interrupted build there starts again.
        language: of stop words and stemmer, or ``none``.

    Raises:
        SteperError: on a corpus that cannot be read, or where the folder holds something else.
    """
    stage = Run.open(out, stage="index", config={"language": language}, inputs={"corpus": source})
    if stage.finished:
        return open_index(out)
    begin = time.monotonic()
    passages = tqdm(read_corpus(source), total=_lines(source), unit="passage", desc="index")
    index = BM25Index.build(passages, out, language=language)
    stage.finish(
        {
            "passages": index.info.passages,
            "terms": index.info.terms,
            "corpus_sha256": index.info.corpus_sha256,
            "disk_mb": round(sum(index.info.files.values()) / 1e6, 1),
            "build_seconds": round(time.monotonic() - begin, 1),
        }
    )
    return index


def _lines(source: Path) -> int | None:
    """Number of passages of a JSONL file, for the progress bar; unknown for other sources."""
    if source.suffix != ".jsonl":
        return None
    with source.open("rb") as file:
        return sum(1 for _ in file)


def open_index(folder: Path) -> BM25Index:
    """Open a finished index.

    Raises:
        SteperError: if the folder holds no finished index, or a damaged one.
    """
    require_finished(folder, stage="index")
    return BM25Index.open(folder)


def index_table(folder: Path) -> str:
    """What an index holds, as a table for people."""
    counts = require_finished(folder, stage="index")["counts"]
    rows = [(name.replace("_", " "), str(value)) for name, value in counts.items()]
    return tabulate(rows, disable_numparse=True)
