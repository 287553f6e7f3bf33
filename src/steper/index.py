"""`steper index`: documents become a search index in a run folder."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tabulate import tabulate
from tqdm import tqdm

from steper.config import IndexConfig
from steper.corpus import CorpusSize, Reading, Reject, corpus_size, read_corpus
from steper.errors import SteperError
from steper.retrieval.indexes import Engine, add_to_index, make_index
from steper.retrieval.info import INFO, PASSAGES, IndexInfo, read_info
from steper.retrieval.passages import offsets_of
from steper.retrieval.search_client import without_credentials
from steper.store import Run, require_finished, to_json
from steper.types import Passage

REJECTED = "rejected.jsonl"

_SIDE_ISSUES = {"source", "out", "add", "device", "workers"}
"""Options that do not change what the index holds."""


def build_index(config: IndexConfig) -> Path:
    """Build the index of a corpus, unless this very one is already there; returns its folder.

    A run that was interrupted starts again, but for vectors that are made already. What cannot be
    read is listed in ``rejected.jsonl``.

    Raises:
        SteperError: on a corpus that cannot be read, or where the folder holds something else.
    """
    source = Path(config.source)
    _refuse_inside(source, config.out)
    if config.add:
        return _add(config)
    _refuse_unused(config)
    engine, reading = _engine(config), _reading(config)
    size = corpus_size(config.source, reading)
    is_path = source.exists()
    named = {} if is_path else {"source": config.source}
    # A manifest is no place for passwords.
    nodes = [without_credentials(url) for url in config.urls]
    with Run.open(
        config.out,
        stage="index",
        config=config.model_dump(mode="json", exclude=_SIDE_ISSUES) | {"urls": nodes} | named,
        inputs={"corpus": source} if is_path else {},
    ) as stage:
        if stage.finished and (config.out / INFO).is_file():
            return config.out
        begin = time.monotonic()
        _say(estimate(size, engine))
        try:
            with _rejects(config.out) as reject, _bar(size) as bar:
                index = make_index(
                    _read(config, reading, reject, bar),
                    config.out,
                    engine,
                    keep_duplicates=config.keep_duplicates,
                    reject=reject,
                )
        except SteperError:
            _leave_nothing(config.out)
            raise
        stage.finish(_counts(config.out, index.info, time.monotonic() - begin))
    return config.out


def _leave_nothing(out: Path) -> None:
    """Remove what a mistake left: the command that mends it is another one, and may go here."""
    for path in (out / PASSAGES, offsets_of(out / PASSAGES), out / INFO):
        path.unlink(missing_ok=True)
    shutil.rmtree(out / "bm25", ignore_errors=True)


def _add(config: IndexConfig) -> Path:
    made = require_finished(config.out, stage="index")["config"]
    config = _as_made(config, made)
    with Run.amend(config.out) as stage:
        begin, reading = time.monotonic(), _reading(config)
        size = corpus_size(config.source, reading)
        with _rejects(config.out, append=True) as reject, _bar(size) as bar:
            passages = _read(config, reading, reject, bar)
            new = add_to_index(passages, config.out, reject=reject)
        _say(f"{new:,} passages added")
        stage.finish(_counts(config.out, read_info(config.out), time.monotonic() - begin))
    return config.out


_CUTS = ("chunk_words", "chunk_tokens", "tokenizer", "overlap", "cut_records")
"""How passages are cut: what is added is cut as the rest was, unless other options are given."""

_ADDS = {*_SIDE_ISSUES, *_CUTS, "fields", "other_fields", "hub_config", "hub_split"}
"""The options that --add heeds."""


def _as_made(config: IndexConfig, made: dict[str, Any]) -> IndexConfig:
    """An addition's options, the others as those of the index.

    Raises:
        SteperError: on an option that would have to be given when the index is made.
    """
    given = config.model_dump(mode="json")
    given["urls"] = [without_credentials(url) for url in config.urls]
    defaults = {name: field.default for name, field in IndexConfig.model_fields.items()}
    for name in given.keys() - _ADDS:
        if getattr(config, name) != defaults[name] and given[name] != made.get(name):
            raise SteperError(
                "cannot be changed by --add.",
                where=f"--{name.replace('_', '-')}",
                fix="Leave it out, or build another index.",
            )
    cuts = {name: made[name] for name in _CUTS if getattr(config, name) == defaults[name]}
    return config.model_copy(update=cuts)


def _refuse_inside(source: Path, out: Path) -> None:
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise SteperError(
            "the index would lie inside the corpus folder and become part of it.",
            where=str(out),
            fix="Choose an --out elsewhere.",
        )


_SERVERS = ("opensearch", "elasticsearch")
_VECTORS = ("dense", "hybrid")
_USED_BY = {
    "language": ("bm25", "hybrid", "lancedb", *_SERVERS),
    "embedder": (*_VECTORS, "lancedb", *_SERVERS),
    "query_prompt": (*_VECTORS, "lancedb", *_SERVERS),
    "passage_prompt": (*_VECTORS, "lancedb", *_SERVERS),
    "device": (*_VECTORS, "lancedb", *_SERVERS),
    "vectors": _VECTORS,
    "uri": ("lancedb",),
    "urls": _SERVERS,
    "name": _SERVERS,
}
"""The kinds of index that an option matters to."""


def _refuse_unused(config: IndexConfig) -> None:
    for name, kinds in _USED_BY.items():
        default = IndexConfig.model_fields[name].default
        if getattr(config, name) != default and config.kind not in kinds:
            raise SteperError(
                f"has no meaning for a {config.kind} index.",
                where=f"--{name.replace('_', '-')}",
                fix=f"Leave it out, or choose --kind {' or '.join(kinds)}.",
            )
    for name, needed in (("rerank_depth", "reranker"), ("tokenizer", "chunk_tokens")):
        default = IndexConfig.model_fields[name].default
        if getattr(config, name) != default and not getattr(config, needed):
            other = f"--{needed.replace('_', '-')}"
            raise SteperError(
                f"has no meaning without {other}.",
                where=f"--{name.replace('_', '-')}",
                fix=f"Leave it out, or give {other}.",
            )
    if config.kind in _SERVERS and not config.urls:
        raise SteperError(
            "is missing.",
            where="--urls",
            fix="Name the cluster's nodes, as http://localhost:9200 (compose.yaml starts one).",
        )


def _engine(config: IndexConfig) -> Engine:
    return Engine(
        kind=config.kind,
        language=config.language,
        embedder=config.embedder,
        query_prompt=config.query_prompt,
        passage_prompt=config.passage_prompt,
        vectors=config.vectors,
        reranker=config.reranker,
        rerank_depth=config.rerank_depth,
        uri=config.uri,
        urls=config.urls,
        name=config.name,
        device=config.device,
        workers=config.workers or os.cpu_count() or 1,
    )


def _reading(config: IndexConfig) -> Reading:
    return Reading(
        fields=config.fields,
        other_fields=config.other_fields,
        chunk_words=config.chunk_words,
        chunk_tokens=config.chunk_tokens,
        tokenizer=config.tokenizer,
        overlap=config.overlap,
        cut_records=config.cut_records,
        hub_config=config.hub_config,
        hub_split=config.hub_split,
    )


# ---- what is shown ---------------------------------------------------------------------------


def estimate(size: CorpusSize, engine: Engine) -> str:
    """What building will take, in a sentence, from the corpus's size on disk.

    The factors were measured on 35,000 to 1,000,000 passages (docs/benchmarks.md).
    """
    text = size.text_bytes / 1e6
    if not text:
        return "index: how large the data set is, is not known; watch the memory"
    memory, disk = float(_BASE_MB), _PASSAGES_DISK * text
    if engine.kind in ("bm25", "hybrid"):
        memory += _BM25_MEMORY * text + _WORKER_MB * engine.workers
        disk += _BM25_DISK * text
    if engine.kind in ("dense", "hybrid") or engine.embedder:
        memory += _MODEL_MB + _VECTOR_MEMORY * text
        disk += _VECTOR_DISK * text
    return (
        f"index: about {text:,.0f} MB of text; needs about {memory:,.0f} MB of memory "
        f"and {disk:,.0f} MB of disk"
    )


_BASE_MB, _WORKER_MB, _MODEL_MB = 250, 200, 1200
_BM25_MEMORY, _VECTOR_MEMORY = 0.9, 1.0
_PASSAGES_DISK, _BM25_DISK, _VECTOR_DISK = 1.1, 2.0, 3.5


@contextmanager
def _bar(size: CorpusSize) -> Iterator[tqdm[Any]]:
    with tqdm(total=size.total, unit=size.unit, unit_scale=True, desc="read") as bar:
        yield bar


def _read(
    config: IndexConfig, reading: Reading, reject: Callable[[Reject], None], bar: tqdm[Any]
) -> Iterator[Passage]:
    """The passages of the corpus; the bar ends with the last one, before words are counted."""

    def advance(amount: int) -> None:
        bar.update(amount)

    yield from read_corpus(config.source, reading, reject=reject, progress=advance)
    bar.close()


@contextmanager
def _rejects(folder: Path, *, append: bool = False) -> Iterator[Callable[[Reject], None]]:
    """Keep what could not be read in a file, and say at the end what there was."""
    reasons: Counter[str] = Counter()
    path = folder / REJECTED
    # An addition that is repeated rejects the same again.
    there = set(path.read_text(encoding="utf-8").splitlines()) if append else set()
    with path.open("a" if append else "w", encoding="utf-8") as file:

        def keep(reject: Reject) -> None:
            line = to_json(reject)
            if line not in there:
                file.write(f"{line}\n")
            if not reasons:
                tqdm.write(f"left out: {reject.where}: {reject.reason}", file=sys.stderr)
            reasons[reject.reason] += 1

        yield keep
    if reasons:
        (reason, count), total = reasons.most_common(1)[0], reasons.total()
        _say(f"{total:,} left out, {count:,} of them because: {reason} All in {path}")


def _counts(folder: Path, info: IndexInfo, seconds: float) -> dict[str, Any]:
    counts: dict[str, Any] = {"kind": info.kind, "passages": info.passages, "words": info.words}
    if info.bm25:
        counts["terms"] = info.bm25.terms
    counts["duplicates"] = info.duplicates
    with (folder / REJECTED).open("rb") as file:
        counts["left_out"] = sum(1 for _ in file)
    files = (path for path in folder.rglob("*") if path.is_file())
    return counts | {
        "corpus_sha256": info.corpus_sha256,
        "disk_mb": round(sum(path.stat().st_size for path in files) / 1e6, 1),
        "build_seconds": round(seconds, 1),
    }


def index_table(folder: Path) -> str:
    """What an index holds, as a table for people."""
    counts = require_finished(folder, stage="index")["counts"]
    rows = [(name.replace("_", " "), str(value)) for name, value in counts.items()]
    return tabulate(rows, disable_numparse=True)


def _say(line: str) -> None:
    print(line, file=sys.stderr)
