"""Read a corpus: JSONL, Parquet, plain text or Markdown, as a file or a folder, into passages.

Records (JSONL, Parquet) are passages already and are taken as they are, strictly. Prose (text,
Markdown) is cut into passages of about 100 words at sentence ends, because a passage must be
short enough that several fit into a prompt.

>>> passages = list(read_corpus(Path("notes")))  # doctest: +SKIP
>>> passages[0].id, passages[0].title  # doctest: +SKIP
('guide/setup.md#1', 'Set-up > Linux')
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import IO, Any, cast

from steper.errors import SteperError
from steper.prose import sections, split_passages
from steper.store import from_json
from steper.types import STRICT, Passage

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet", ".txt", ".md")
"""What can be read, by the end of the file's name; upper or lower case."""

_PARQUET_BATCH = 4096


@dataclass(frozen=True, slots=True)
class PassageRecord:
    """One line of a corpus file: a passage whose ``id`` and ``title`` may be missing.

    Attributes:
        sources: where the passage came from; accepted and not kept.
        metadata: anything else; accepted and not kept.
    """

    __pydantic_config__ = STRICT

    text: str
    id: str | None = None
    title: str = ""
    sources: Any = None
    metadata: dict[str, Any] = field(default_factory=dict)


def read_corpus(source: Path) -> Iterator[Passage]:
    """Read every passage of a file or a folder, in a fixed order (files sorted by path).

    A folder is read recursively, hidden files and folders left out. A record without ``id`` gets
    one from the hash of its title and text. Prose gets ids ``relative/path#n``, counted from 1.

    Raises:
        SteperError: naming file, line and field, on an unreadable or unknown file, an unknown,
            missing or mistyped field, an empty text, a duplicate id, or if there is no passage.
    """
    seen: set[str] = set()
    for where, passage in _located(source):
        if passage.id in seen:
            # Only the ids are held in memory; the first place is looked up when it is needed.
            first = next(place for place, other in _located(source) if other.id == passage.id)
            raise SteperError(
                f"id: {passage.id!r} is used twice, first in {first}.",
                where=where,
                fix="Give each passage its own id, or drop the repeated passage.",
            )
        seen.add(passage.id)
        yield passage
    if not seen:
        raise SteperError(
            "holds no passages.",
            where=str(source),
            fix=f"Readable are {', '.join(SUFFIXES)} files, or a folder of them.",
        )


def _located(source: Path) -> Iterator[tuple[str, Passage]]:
    """Each passage with the place it stands in, for messages."""
    root = source if source.is_dir() else source.parent
    for path in _files(source):
        match _suffix(path):
            case ".jsonl" | ".jsonl.gz":
                yield from _read_jsonl(path)
            case ".parquet":
                yield from _read_parquet(path)
            case ".txt":
                yield from _read_prose(path, root, [((), _read_text(path))])
            case ".md":
                yield from _read_prose(path, root, sections(_read_text(path)))
            case _:
                raise SteperError(
                    "cannot be read as a corpus file.",
                    where=str(path),
                    fix=f"Readable are {', '.join(SUFFIXES)}; move other files elsewhere.",
                )


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise SteperError("no such file or folder.", where=str(source), fix="Check the path.")
    found = (path for path in source.rglob("*") if path.is_file())
    relative = sorted(path.relative_to(source) for path in found)
    return [source / path for path in relative if not any(p.startswith(".") for p in path.parts)]


def _suffix(path: Path) -> str:
    name = path.name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")


# ---- records ---------------------------------------------------------------------------------


def _read_jsonl(path: Path) -> Iterator[tuple[str, Passage]]:
    for number, line in _lines(path):
        where = f"{path}:{number}"
        # A byte-order mark is an editor's doing, not the user's mistake.
        text = _decode(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line, where)
        if text.strip():
            yield where, _passage(from_json(PassageRecord, text, where=where), where)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines, with their ends, of a plain or gzip file."""
    packed = path.name.lower().endswith(".gz")
    number = 0
    try:
        with cast("IO[bytes]", gzip.open(path) if packed else path.open("rb")) as file:
            for number, line in enumerate(file, start=1):
                yield number, line
    except (OSError, EOFError, zlib.error) as error:
        raise SteperError(
            f"cannot be read: {error}.",
            where=f"{path}:{number + 1}",
            fix="Copy or download it again." if packed else "Check the file's permissions.",
        ) from None


def _read_parquet(path: Path) -> Iterator[tuple[str, Passage]]:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        file = pyarrow.parquet.ParquetFile(path)
        columns = _columns(path, file.schema_arrow.names)
        number = 0
        for batch in file.iter_batches(batch_size=_PARQUET_BATCH, columns=columns):
            for row in batch.to_pylist():
                number += 1
                where = f"{path}: row {number}"
                yield where, _passage(_record(row, where), where)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise SteperError(
            f"cannot be read as Parquet: {' '.join(str(error).split())}", where=str(path)
        ) from None


def _columns(path: Path, names: list[str]) -> list[str]:
    """The columns to read, after checking that they are those of a corpus."""
    known = [field.name for field in fields(PassageRecord)]
    unknown = [name for name in names if name not in known]
    if unknown or "text" not in names:
        name, problem = (unknown[0], "unknown field") if unknown else ("text", "required, missing")
        raise SteperError(
            f"{name}: {problem}.", where=str(path), fix=f"The columns may be {', '.join(known)}."
        )
    return [name for name in names if name in ("id", "title", "text")]


def _record(row: dict[str, Any], where: str) -> PassageRecord:
    """Check one Parquet row as strictly as a line of JSONL."""
    for name, value in row.items():
        if not isinstance(value, str):
            raise SteperError(
                f"{name}: is {type(value).__name__}, not a string.",
                where=where,
                fix=f"Cast the column {name} to string and fill its nulls.",
            )
    return PassageRecord(**row)


def _passage(record: PassageRecord, where: str) -> Passage:
    if not record.text.strip():
        raise SteperError("text: is empty.", where=where, fix="Drop the passage or fill it.")
    if record.id == "":
        raise SteperError("id: is empty.", where=where, fix="Fill it, or leave the field out.")
    content = f"{record.title}\n{record.text}"
    id_ = record.id or hashlib.sha1(content.encode(), usedforsecurity=False).hexdigest()[:12]
    return Passage(id=id_, title=record.title, text=record.text)


def _decode(data: bytes, where: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise SteperError(
            f"byte {error.start + 1} is not valid UTF-8.",
            where=where,
            fix="Save the file in UTF-8, for example with `iconv -t UTF-8`.",
        ) from None


# ---- prose -----------------------------------------------------------------------------------


def _read_text(path: Path) -> str:
    """A whole file, decoded line by line so that an error can name the line."""
    lines = (_decode(line, f"{path}:{number}") for number, line in _lines(path))
    return "".join(lines).removeprefix("\ufeff")


def _read_prose(
    path: Path, root: Path, bodies: list[tuple[tuple[str, ...], str]]
) -> Iterator[tuple[str, Passage]]:
    name = path.relative_to(root).as_posix()
    number = 0
    for headings, body in bodies:
        title = " > ".join(headings) or path.name[: -len(_suffix(path))]
        for text in split_passages(body):
            number += 1
            yield str(path), Passage(id=f"{name}#{number}", title=title, text=text)
