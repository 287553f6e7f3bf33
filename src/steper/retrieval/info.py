"""What a saved index says of itself, and whether its files are still those that were written.

>>> info = read_info(Path("runs/index"))  # doctest: +SKIP
>>> check_files(Path("runs/index"), info, verify=True)  # doctest: +SKIP
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from steper.errors import SteperError
from steper.protocols import Retriever
from steper.retrieval.analysis import AnalyzerSettings
from steper.store import fingerprint, from_json, sha256
from steper.types import STRICT, IndexKind, Vectors

FORMAT_VERSION = 3
INFO = "info.json"
PASSAGES = "passages.jsonl"
"""The corpus in an index folder; its line offsets are beside it."""
REBUILD = "Build the index again with `steper index`."

HASH_ON_OPEN_BYTES = 4 << 20
"""Files up to this size are hashed on every opening; a few milliseconds each."""


@dataclass(frozen=True, slots=True)
class FileInfo:
    """What a file of the index must be: its size and SHA-256."""

    __pydantic_config__ = STRICT

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class BM25Info:
    """How words are matched.

    Attributes:
        terms: distinct terms after analysis.
        k1: saturation of repeated words.
        b: how much long passages are discounted.
        probe: the terms of the first passage's beginning. Where today's libraries give others,
            queries would no longer meet the passages.
    """

    __pydantic_config__ = STRICT

    analyzer: AnalyzerSettings
    terms: int
    k1: float
    b: float
    stemmer_version: str
    probe: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EmbedderInfo:
    """Which model turned passages into vectors, so that queries are turned by the same.

    Attributes:
        model: folder or hub id.
        dimensions: numbers of a vector.
        query_prompt: text put before every query.
        passage_prompt: text put before every passage.
        probe: the first numbers of the first passage's vector. Where the model given today has
            others, queries would not meet the passages.
    """

    __pydantic_config__ = STRICT

    model: str
    dimensions: int
    query_prompt: str
    passage_prompt: str
    probe: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class DenseInfo:
    """How vectors are kept and searched.

    Attributes:
        vectors: how a vector's numbers are kept.
        factory: the FAISS description of the index, as "SQ8" or "IVF1024,PQ48".
        probes: how many cells of an inverted file are looked into; 0 where all vectors are.
    """

    __pydantic_config__ = STRICT

    embedder: EmbedderInfo
    vectors: Vectors
    factory: str
    probes: int
    faiss_version: str


@dataclass(frozen=True, slots=True)
class TableInfo:
    """A LanceDB table.

    Attributes:
        uri: its database: a folder, or s3://, gs://, az://; empty for the index folder itself.
        version: the table's version that this index reads; writers may go on.
        embedder: of the table's vectors, ``None`` where it is searched by words alone.
    """

    __pydantic_config__ = STRICT

    uri: str
    table: str
    version: int
    language: str
    embedder: EmbedderInfo | None


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """An index of an OpenSearch or Elasticsearch cluster.

    Attributes:
        urls: of the cluster's nodes, without credentials.
        name: of the index there.
        embedder: of its vectors, ``None`` where it is searched by words alone.
    """

    __pydantic_config__ = STRICT

    urls: tuple[str, ...]
    name: str
    language: str
    embedder: EmbedderInfo | None


@dataclass(frozen=True, slots=True)
class RerankerInfo:
    """A cross-encoder that reads query and passage together and orders the best anew.

    Attributes:
        model: folder or hub id.
        depth: how many passages it is shown.
        probe: its score for a fixed pair, which tells another model of the same name.
    """

    __pydantic_config__ = STRICT

    model: str
    depth: int
    probe: float | None = None


@dataclass(frozen=True, slots=True)
class IndexInfo:
    """What an index is made of; its ``info.json``.

    Attributes:
        words: words of all titles and texts, as separated by white space.
        corpus_sha256: of the passages as canonical JSONL. An index that was added to has the
            SHA-256 of the two hexadecimal hashes, old and new, one after the other.
        files: every file of the index, but for this one.
        duplicates: passages left out because another has the same title and text.
    """

    __pydantic_config__ = STRICT

    format_version: int
    kind: IndexKind
    passages: int
    words: int
    corpus_sha256: str
    files: dict[str, FileInfo]
    duplicates: int = 0
    bm25: BM25Info | None = None
    dense: DenseInfo | None = None
    table: TableInfo | None = None
    server: ServerInfo | None = None
    reranker: RerankerInfo | None = None

    @property
    def fingerprint(self) -> str:
        """The same for indexes of the same passages, settings and files.

        LanceDB's files are left out: they have other names each time, and the same content.
        """
        said = asdict(self)
        said["files"] = {k: v for k, v in said["files"].items() if not k.startswith("lance/")}
        return fingerprint(said)


class Index(Retriever, Protocol):
    """A retriever that knows what it is made of."""

    @property
    def info(self) -> IndexInfo:
        """What the index is made of."""
        ...


def check_request(queries: object, k: int) -> None:
    """Refuse what no index can be asked.

    Raises:
        TypeError: if the queries are one string, a programmer's slip.
        SteperError: if ``k`` is less than 1.
    """
    if isinstance(queries, str):
        raise TypeError("queries must be a sequence of strings, not one string")
    if k < 1:
        raise SteperError(f"k is {k}, but must be at least 1.", where="k")


def needs(extra: str, what: str) -> SteperError:
    """The error for an optional library that is not installed."""
    return SteperError(f"{what} needs more libraries.", fix=f"Run `pip install 'steper[{extra}]'`.")


def file_infos(folder: Path, paths: Iterable[Path]) -> dict[str, FileInfo]:
    """Describe finished files by their names in the folder, once each is safely on the disk."""
    found = {}
    for path in sorted(paths):
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        name = path.relative_to(folder).as_posix()
        found[name] = FileInfo(bytes=path.stat().st_size, sha256=sha256(path))
    return found


def read_info(folder: Path) -> IndexInfo:
    """Read the ``info.json`` of a saved index.

    Raises:
        SteperError: if it is missing, malformed or of another format.
    """
    path = folder / INFO
    try:
        content = path.read_bytes()
    except OSError:
        begun = (folder / "manifest.json").is_file()
        raise SteperError(
            "the index there is not finished." if begun else f"is no index: it holds no {INFO}.",
            where=str(folder),
            fix="Run the command that made it again."
            if begun
            else "Give a folder made by `steper index`.",
        ) from None
    found = from_json(dict, content, where=str(path), fix=REBUILD).get("format_version")
    if found != FORMAT_VERSION:
        raise SteperError(
            f"format_version: is {found!r}; this version of steper reads {FORMAT_VERSION}.",
            where=str(path),
            fix=REBUILD,
        )
    return from_json(IndexInfo, content, where=str(path), fix=REBUILD)


def check_files(folder: Path, info: IndexInfo, *, verify: bool) -> None:
    """Compare each file's size, and the hash of small files, or of all to ``verify``.

    Raises:
        SteperError: naming the first file that is missing, truncated or changed.
    """
    for name, expected in info.files.items():
        path = folder / name
        if not path.is_file():
            raise SteperError("is missing.", where=str(path), fix=REBUILD)
        size = path.stat().st_size
        if size != expected.bytes:
            raise SteperError(
                f"has {size:,} bytes, {expected.bytes:,} were written.",
                where=str(path),
                fix=REBUILD,
            )
        small = size <= HASH_ON_OPEN_BYTES
        if (small or verify) and sha256(path) != expected.sha256:
            raise SteperError(
                "has changed since the index was built.", where=str(path), fix=REBUILD
            )
