"""Make and open indexes of every kind: the one place that knows all of them.

An index folder holds ``info.json``, written last, so that a folder without it is no index. Its
passages and every file beside it are described there.

>>> index = make_index(passages, Path("runs/index"), Engine("hybrid"))  # doctest: +SKIP
>>> open_index("runs/index").search(["Who hosted Hee Haw?"], k=4)  # doctest: +SKIP
>>> open_index("http://localhost:8765").info.passages  # doctest: +SKIP
"""

from __future__ import annotations

import hashlib
import shutil
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import numpy as np

from steper.corpus import Reject
from steper.corpus.reading import Report, reporter
from steper.errors import SteperError
from steper.retrieval.analysis import settings
from steper.retrieval.embedding import PARTIAL
from steper.retrieval.info import (
    FORMAT_VERSION,
    INFO,
    PASSAGES,
    REBUILD,
    Index,
    IndexInfo,
    RerankerInfo,
    check_files,
    file_infos,
    needs,
    read_info,
)
from steper.retrieval.passages import (
    PassageFile,
    Written,
    content,
    offsets_of,
    write_passages,
)
from steper.store import replaced, write_json
from steper.types import IndexKind, Passage, Vectors

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

    from steper.retrieval.embedding import Embedder

EMBEDDER = "sentence-transformers/all-MiniLM-L6-v2"
"""Small enough for a laptop; larger models find more."""

_HINT = "latest_version_hint.json"
"""Of LanceDB's files the one that changes when passages are added."""

KNOWN = "known.npy"
"""(2, passages) 64-bit hashes of ids and contents, where passages are kept in another engine: what
is added later is compared with them."""


@dataclass(frozen=True, slots=True)
class Engine:
    """What searches an index, and how.

    Attributes:
        kind: what searches.
        language: of stopwords and stemmer, or ``none``.
        embedder: makes vectors: a model's folder or hub id, or a loaded one; empty for the default
            one where the kind needs one, and for words alone where it does not.
        query_prompt: text put before every query; ``None`` for what the model's folder says.
        passage_prompt: the same for passages.
        vectors: how the vectors' numbers are kept; ``auto`` by how many there are.
        reranker: folder or hub id of a cross-encoder; empty for none.
        rerank_depth: how many passages it is shown.
        uri: of a LanceDB database; empty for one in the index folder.
        urls: of an OpenSearch or Elasticsearch cluster.
        name: of the index there; empty for the folder's, in lower case.
        device: a torch device for the embedder; empty for a GPU where there is one.
        workers: processes that analyze text.
    """

    kind: IndexKind = "bm25"
    language: str = "en"
    embedder: str | Embedder = ""
    query_prompt: str | None = None
    passage_prompt: str | None = None
    vectors: Literal["auto"] | Vectors = "auto"
    reranker: str = ""
    rerank_depth: int = 50
    uri: str = ""
    urls: tuple[str, ...] = ()
    name: str = ""
    device: str = ""
    workers: int = 1

    def load_embedder(self) -> Embedder | None:
        """The model that makes vectors; ``None`` where words are all that is searched."""
        model = self.embedder or (EMBEDDER if self.kind in ("dense", "hybrid") else "")
        if not model or self.kind == "bm25":
            return None
        if not isinstance(model, str):
            return model
        from steper.retrieval.embedding import Embedder

        return Embedder(
            model,
            query_prompt=self.query_prompt,
            passage_prompt=self.passage_prompt,
            device=self.device,
        )

    def load_reranker(self) -> CrossEncoder | None:
        """The cross-encoder; ``None`` where none is wanted."""
        if not self.reranker:
            return None
        from steper.retrieval.rerank import load_reranker

        return load_reranker(self.reranker, self.device)


BM25 = Engine()


def make_index(
    passages: Iterable[Passage],
    folder: Path,
    engine: Engine = BM25,
    *,
    keep_duplicates: bool = False,
    reject: Callable[[Reject], None] | None = None,
) -> Index:
    """Write an index of the passages into a folder and open it.

    Args:
        passages: taken one by one.
        folder: where to; what an interrupted build left there is overwritten, but for vectors made
            of the same passages by the same model, which are used.
        engine: what is to search them.
        keep_duplicates: whether to keep passages of equal title and text.
        reject: told of passages whose id is taken; without it, the first of them is an error.

    Raises:
        SteperError: if there is nothing to search by, or a library, model or server is missing.
    """
    # Before the corpus is read, which may take an hour.
    _check(engine)
    embedder, reranker = engine.load_embedder(), engine.load_reranker()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INFO).unlink(missing_ok=True)
    written = write_passages(
        folder / PASSAGES, passages, keep_duplicates=keep_duplicates, reject=reject
    )
    info = IndexInfo(
        format_version=FORMAT_VERSION,
        kind=engine.kind,
        passages=len(written.passages),
        words=written.words,
        corpus_sha256=written.sha256,
        files={},
        duplicates=written.duplicates,
        reranker=_reranker_info(reranker, engine),
    )
    try:
        info = _build(written, folder, engine, embedder, info)
        files = file_infos(folder, _files(folder))
    except OSError as error:
        raise SteperError(
            f"could not be written: {error}.",
            where=str(folder),
            fix="See whether the disk has room; then run the same command again.",
        ) from error
    write_json(folder / INFO, asdict(replace(info, files=files)))
    # Not before: it would take hours to make the vectors anew.
    for name in PARTIAL:
        (folder / "dense" / name).unlink(missing_ok=True)
    return _open(folder, embedder, reranker)


_LIBRARIES = {
    "dense": "faiss",
    "hybrid": "faiss",
    "lancedb": "lancedb",
    "opensearch": "opensearchpy",
    "elasticsearch": "elasticsearch",
}


def _check(engine: Engine) -> None:
    """Refuse an engine whose language is unknown, library missing, or cluster away."""
    settings(engine.language)
    library = _LIBRARIES.get(engine.kind)
    if library and find_spec(library) is None:
        extra = "dense" if library == "faiss" else engine.kind
        raise needs(extra, f"An index of kind {engine.kind}")
    if engine.kind in ("opensearch", "elasticsearch"):
        from steper.retrieval.search_client import Cluster

        Cluster(engine.kind, engine.urls)


def _reranker_info(reranker: CrossEncoder | None, engine: Engine) -> RerankerInfo | None:
    if reranker is None:
        return None
    from steper.retrieval.rerank import probe_of

    score = probe_of(reranker, engine.reranker)
    return RerankerInfo(engine.reranker, engine.rerank_depth, score)


def _build(
    written: Written, folder: Path, engine: Engine, embedder: Embedder | None, info: IndexInfo
) -> IndexInfo:
    """Have each engine of a kind build its part; returns the info with what they say."""
    from steper.retrieval.bm25 import build_bm25

    passages = written.passages
    if engine.kind in ("bm25", "hybrid"):
        bm25 = build_bm25(passages, folder, language=engine.language, workers=engine.workers)
        info = replace(info, bm25=bm25)
    if engine.kind in ("dense", "hybrid"):
        from steper.retrieval.dense import build_dense

        assert embedder is not None
        dense = build_dense(
            passages,
            folder,
            embedder=embedder,
            vectors=engine.vectors,
            corpus_sha256=written.sha256,
        )
        info = replace(info, dense=dense)
    match engine.kind:
        case "lancedb":
            from steper.retrieval.lance import build_lance

            table = build_lance(
                passages, folder, uri=engine.uri, language=engine.language, embedder=embedder
            )
            info = replace(info, table=table)
        case "opensearch" | "elasticsearch":
            from steper.retrieval.search_server import build_on_server

            server = build_on_server(
                engine.kind,
                passages,
                urls=engine.urls,
                name=engine.name or folder.name.lower(),
                language=engine.language,
                embedder=embedder,
            )
            info = replace(info, server=server)
        case _:
            return info
    # The engine has the passages now.
    with replaced(folder / KNOWN) as file:
        np.save(file, _hashes(passages))
    _forget(passages)
    return info


def add_to_index(
    passages: Iterable[Passage],
    folder: Path,
    *,
    reject: Callable[[Reject], None] | None = None,
) -> int:
    """Add passages to an index that can grow; returns how many were not in it yet.

    Readers go on with what they have, and an interrupted addition leaves the index as it was.

    Raises:
        SteperError: if the index is of a kind that cannot grow, or the engine cannot be reached.
    """
    info = read_info(folder)
    check_files(folder, info, verify=False)
    if info.table is None and info.server is None:
        raise SteperError(
            f"a {info.kind} index cannot be added to: what a word weighs, or how vectors are "
            "quantised, depends on all passages.",
            where=str(folder),
            fix="Build one of the whole corpus, or one that grows: --kind lancedb.",
        )
    known = _known(folder, info)
    unknown = _unknown(passages, known, reporter(reject))
    first = next(unknown, None)
    if first is None:
        return 0
    staged = folder / "added"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    new = write_passages(staged / PASSAGES, chain([first], unknown), reject=reject)
    both = f"{info.corpus_sha256}{new.sha256}".encode()
    corpus_sha256 = hashlib.sha256(both).hexdigest()
    if info.table is not None:
        from steper.retrieval.lance import add_to_lance

        info = replace(info, table=add_to_lance(new.passages, folder, info, embedder=None))
    elif info.server is not None:
        from steper.retrieval.search_server import add_on_server

        server = add_on_server(new.passages, info, state=corpus_sha256, embedder=None)
        info = replace(info, server=server)
    with replaced(folder / KNOWN) as file:
        np.save(file, np.concatenate([known, _hashes(new.passages)], axis=1))
    info = replace(
        info,
        passages=info.passages + len(new.passages),
        duplicates=info.duplicates + new.duplicates,
        words=info.words + new.words,
        corpus_sha256=corpus_sha256,
        files=file_infos(folder, _files(folder)),
    )
    write_json(folder / INFO, asdict(info))
    shutil.rmtree(staged)
    return len(new.passages)


# ---- opening ---------------------------------------------------------------------------------


def is_url(where: str | Path) -> bool:
    """Whether an index is named by the address of a server."""
    return str(where).startswith(("http://", "https://"))


def without_login(where: str) -> str:
    """An index's name as it may be shown and stored."""
    parts = urlsplit(where) if is_url(where) else None
    return (
        where
        if parts is None or "@" not in parts.netloc
        else where.replace(f"{parts.netloc.rpartition('@')[0]}@", "", 1)
    )


def describe_index(where: str | Path) -> IndexInfo:
    """What an index is made of, without opening it.

    Raises:
        SteperError: if there is no finished index, or no server answers.
    """
    if is_url(where):
        from steper.retrieval.remote import RemoteIndex

        return RemoteIndex(str(where)).info
    return read_info(Path(where))


def open_index(where: str | Path) -> Index:
    """Open a finished index: a folder, or the address of ``steper index serve``.

    Raises:
        SteperError: if there is none, a file of it is damaged, or what it needs is missing.
    """
    if is_url(where):
        from steper.retrieval.remote import RemoteIndex

        return RemoteIndex(str(where))
    return _open(Path(where))


def open_parts(where: str | Path) -> dict[str, Index]:
    """The index, and before it each of the indexes that it is put together from, by name."""
    index = open_index(where)
    parts: dict[str, Index] = {}
    from steper.retrieval.hybrid import HybridIndex
    from steper.retrieval.rerank import Reranked

    inner = index.index if isinstance(index, Reranked) else index
    if isinstance(inner, HybridIndex):
        parts |= dict(zip(("bm25", "dense"), inner.indexes, strict=True))
    parts[index.info.kind] = inner
    if isinstance(index, Reranked):
        parts["reranked"] = index
    return parts


def verify_index(folder: Path) -> str:
    """Compare every file of an index with what was written; returns what was found, for people.

    Raises:
        SteperError: naming the first file that is missing, truncated or changed.
    """
    info = read_info(folder)
    check_files(folder, info, verify=True)
    found = f"{len(info.files)} files are as they were written: {folder}"
    elsewhere = info.server.urls[0] if info.server else info.table.uri if info.table else ""
    return f"{found}\nNot compared: what is at {elsewhere}" if elsewhere else found


def _open(
    folder: Path, embedder: Embedder | None = None, reranker: CrossEncoder | None = None
) -> Index:
    info = read_info(folder)
    check_files(folder, info, verify=False)
    index = _opened(folder, info, embedder)
    if info.reranker is None:
        return index
    from steper.retrieval.rerank import Reranked

    return Reranked(info, index, model=reranker)


def _opened(folder: Path, info: IndexInfo, embedder: Embedder | None) -> Index:
    from steper.retrieval.bm25 import BM25Index

    match info.kind:
        case "bm25":
            return BM25Index(folder, info)
        case "dense":
            from steper.retrieval.dense import DenseIndex

            return DenseIndex(folder, info, embedder=embedder)
        case "hybrid":
            from steper.retrieval.dense import DenseIndex
            from steper.retrieval.hybrid import HybridIndex

            dense = DenseIndex(folder, info, embedder=embedder)
            return HybridIndex(info, (BM25Index(folder, info), dense))
        case "lancedb":
            from steper.retrieval.lance import LanceIndex

            return LanceIndex(folder, info, embedder=embedder)
        case "opensearch" | "elasticsearch":
            from steper.retrieval.search_server import ServerIndex

            return ServerIndex(info, embedder=embedder)


# ---- what there is in a folder ---------------------------------------------------------------


def _files(folder: Path) -> Iterator[Path]:
    """The files of an index, but for those that its run or another engine accounts for."""
    passages = folder / PASSAGES
    yield from (path for path in (passages, offsets_of(passages)) if path.exists())
    for part in ("bm25", "dense", "lance"):
        found = (path for path in (folder / part).rglob("*") if path.is_file())
        yield from (path for path in found if path.name not in (*PARTIAL, _HINT))


def _forget(passages: PassageFile) -> None:
    passages.path.unlink()
    offsets_of(passages.path).unlink()


def _hashes(passages: Iterable[Passage]) -> np.ndarray[tuple[int, int], np.dtype[np.uint64]]:
    """(2, passages): hashes of ids, and of titles and texts."""
    found = array("Q")
    for passage in passages:
        found.extend(_hash_pair(passage))
    return np.frombuffer(found, dtype=np.uint64).reshape(-1, 2).T


def _hash_pair(passage: Passage) -> tuple[int, int]:
    parts = (passage.id, "\n".join(content(passage)))
    one, other = (
        hashlib.blake2b(part.encode(errors="replace"), digest_size=8).digest() for part in parts
    )
    return int.from_bytes(one, "big"), int.from_bytes(other, "big")


def _known(folder: Path, info: IndexInfo) -> Any:
    """The hashes of an index's passages; what an interrupted addition noted stands behind them."""
    path = folder / KNOWN
    try:
        known = np.load(path)[:, : info.passages]
    except (OSError, ValueError, EOFError, IndexError) as error:
        raise SteperError(f"cannot be read: {error}.", where=str(path), fix=REBUILD) from None
    if known.shape != (2, info.passages):
        raise SteperError("does not fit the index.", where=str(path), fix=REBUILD)
    return known


def _unknown(passages: Iterable[Passage], known: Any, report: Report) -> Iterator[Passage]:
    """Those whose content is not known; of them, those whose id is known are reported."""
    ids, contents = (np.sort(row) for row in known)  # sets would take ten times the memory
    for passage in passages:
        id_, content_hash = map(np.uint64, _hash_pair(passage))
        if _holds(contents, content_hash):
            continue
        if _holds(ids, id_):
            report(
                SteperError(
                    "another passage of the index has this id.",
                    where=f"passage (id {passage.id!r})",
                    fix="Give it an id of its own; ids of prose are made of the file's path. "
                    "To replace passages, build the index again.",
                )
            )
            continue
        yield passage


def _holds(ordered: Any, value: np.uint64) -> bool:
    at = np.searchsorted(ordered, value)
    return bool(at < len(ordered) and ordered[at] == value)
