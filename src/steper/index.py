"""`steper index`: a corpus becomes a search index in a run folder."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tabulate import tabulate
from tqdm import tqdm

from steper.corpus import read_corpus
from steper.errors import SteperError
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
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise SteperError(
            "the index would lie inside the corpus folder and become part of it.",
            where=str(out),
            fix="Choose an --out elsewhere.",
        )
    stage = Run.open(out, stage="index", config={"language": language}, inputs={"corpus": source})
    if stage.finished:
        return open_index(out)
    begin = time.monotonic()
    count = _lines(source)
    print(estimate(source, count), file=sys.stderr)
    passages = tqdm(read_corpus(source), total=count, unit=" passages", desc="index")
    index = BM25Index.build(passages, out, language=language)
    stage.finish(
        {
            "passages": index.info.passages,
            "words": index.info.words,
            "terms": index.info.terms,
            "corpus_sha256": index.info.corpus_sha256,
            "disk_mb": round(sum(file.bytes for file in index.info.files.values()) / 1e6, 1),
            "build_seconds": round(time.monotonic() - begin, 1),
        }
    )
    return index


def estimate(source: Path, passages: int | None) -> str:
    """What building will take, in a sentence, from the corpus's size on disk.

    The factors were measured on 8,000 to 180,000 Wikipedia paragraphs (5 to 115 MB). Packed files
    (gzip, Parquet) unfold to about three times their size.
    """
    files = [source] if source.is_file() else [p for p in source.rglob("*") if p.is_file()]
    packed = (".gz", ".parquet")
    size = sum(p.stat().st_size * (3 if p.suffix.lower() in packed else 1) for p in files) / 1e6
    what = "the corpus" if passages is None else f"{passages:,} passages"
    memory, disk = _BASE_MB + _MEMORY_FACTOR * size, _DISK_FACTOR * size
    return (
        f"index: {what}, {size:,.1f} MB of text; needs about {memory:,.0f} MB of memory "
        f"and {disk:,.0f} MB of disk"
    )


_BASE_MB, _MEMORY_FACTOR, _DISK_FACTOR = 130, 4, 1.7


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
