"""What a saved index says of itself, and whether its files are still those that were written.

>>> info = read_info(Path("runs/index"))  # doctest: +SKIP
>>> check_files(Path("runs/index"), info, verify=True)  # doctest: +SKIP
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from steper.errors import SteperError
from steper.retrieval.analysis import AnalyzerSettings
from steper.store import from_json, sha256
from steper.types import STRICT

FORMAT_VERSION = 2
INFO = "info.json"
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
class IndexInfo:
    """What an index is made of; its ``info.json``.

    Attributes:
        words: words of all titles and texts, as separated by white space.
        terms: distinct terms after analysis.
        corpus_sha256: of the passages as canonical JSONL, that is, of ``passages.jsonl``.
        files: every file of the index, but for this one.
        probe: the terms of the first passage's beginning. Where today's libraries give others,
            queries would no longer meet the passages.
    """

    __pydantic_config__ = STRICT

    format_version: int
    passages: int
    words: int
    terms: int
    analyzer: AnalyzerSettings
    k1: float
    b: float
    method: str
    bm25s_version: str
    stemmer_version: str
    probe: tuple[str, ...]
    corpus_sha256: str
    files: dict[str, FileInfo]


def file_info(path: Path) -> FileInfo:
    """Describe a finished file, after making sure that it is on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    return FileInfo(bytes=path.stat().st_size, sha256=sha256(path))


def read_info(folder: Path) -> IndexInfo:
    """Read the ``info.json`` of a saved index.

    Raises:
        SteperError: if it is missing, malformed or of another format.
    """
    path = folder / INFO
    try:
        content = path.read_bytes()
    except OSError:
        raise SteperError(
            f"is not an index: it holds no {INFO}.",
            where=str(folder),
            fix="Give a folder made by `steper index`.",
        ) from None
    found = from_json(dict, content, where=str(path)).get("format_version")
    if found != FORMAT_VERSION:
        raise SteperError(
            f"format_version: is {found!r}; this version of steper reads {FORMAT_VERSION}.",
            where=str(path),
            fix=REBUILD,
        )
    return from_json(IndexInfo, content, where=str(path))


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
