"""Hand out a file's records one by one as JSON, with their places, whatever the file's kind.

JSONL, one JSON array, and Parquet all become ``(place, JSON text)``, so that one strict reader
(``store.from_json``) checks them all and every error names its place.

>>> for place, text in record_texts(Path("questions.jsonl")):  # doctest: +SKIP
...     question = from_json(Question, text, where=place)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from steper.errors import SteperError
from steper.store import read_lines

_BOM = b"\xef\xbb\xbf"
_SPACE = re.compile(r"[ \t\r\n]*")


def record_texts(path: Path) -> Iterator[tuple[str, str | bytes]]:
    """Every record's JSON with its place in the file, read as they are asked for.

    The file's first bytes say which kind it is. A byte-order mark and CRLF are accepted.

    Raises:
        SteperError: if the file is missing, an archive, not UTF-8, or broken as JSON array or
            Parquet. Lines of JSONL are not checked here.
    """
    _, head = next(read_lines(path), (0, b""))
    if head.startswith(b"PAR1"):
        yield from _parquet_texts(path)
    elif head.startswith((b"PK\x03\x04", b"\x1f\x8b")):
        raise SteperError("is a compressed archive.", where=str(path), fix="Unpack it first.")
    elif head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise SteperError("is not UTF-8 text.", where=str(path), fix="Save it as UTF-8.")
    elif head.removeprefix(_BOM).lstrip().startswith(b"["):
        yield from _array_texts(path)
    else:
        for number, line in read_lines(path):
            text = line.removeprefix(_BOM) if number == 1 else line
            if text.strip():
                yield f"{path}:{number}", text


def _array_texts(path: Path) -> Iterator[tuple[str, str]]:
    """The elements of a JSON array one at a time: an official file is one line of up to 540 MB."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SteperError(
            f"is not UTF-8 text: {error.reason}.", where=str(path), fix="Save it as UTF-8."
        ) from None

    def skip(position: int) -> int:
        found = _SPACE.match(text, position)
        return found.end() if found else position

    def broken(what: str, at: int) -> SteperError:
        return SteperError(
            f"not JSON: {what}.",
            where=f"{path}:{text.count(chr(10), 0, at) + 1}",
            fix="Check the commas and brackets there, or download the file again.",
        )

    decoder = json.JSONDecoder()
    number, line, counted = 0, 1, 0
    position = skip(skip(0) + 1)
    while not text.startswith("]", position):
        if number:
            if not text.startswith(",", position):
                raise broken("expected a comma or the end of the list", position)
            position = skip(position + 1)
        try:
            _, end = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise broken(error.msg, error.pos) from None
        number, line, counted = number + 1, line + text.count("\n", counted, position), position
        yield f"{path}:{line}: record {number}", text[position:end]
        position = skip(end)
    position = skip(position + 1)
    if position != len(text):
        raise broken("more after the end of the list", position)


def _parquet_texts(path: Path) -> Iterator[tuple[str, str]]:
    """The rows of a Parquet file as JSON; a null is a field that is not there."""
    try:
        import pyarrow as pa  # type: ignore[import-untyped]
        import pyarrow.parquet as pq  # type: ignore[import-untyped]
    except ImportError:
        raise SteperError(
            "reading Parquet needs pyarrow.", where=str(path), fix="Run `pip install pyarrow`."
        ) from None

    def refuse(value: object) -> object:
        raise SteperError(
            f"a value of type {type(value).__name__} cannot be read.",
            where=f"{path}: row {number}",
            fix="Write text, numbers, lists and structs only.",
        )

    number = 0
    try:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                present = {key: value for key, value in row.items() if value is not None}
                yield f"{path}: row {number}", json.dumps(present, default=refuse)
    except pa.ArrowException as error:
        raise SteperError(
            f"is not a readable Parquet file: {error}.", where=str(path), fix="Write it again."
        ) from None
