"""Hand out a file's records one by one with their places: the one reader of JSON and Parquet.

Questions (``datasets``) and corpora (``corpus.tables``) both read through it. Nothing is held in
memory but the record at hand, whatever the file's size.

>>> for place, text in record_texts(Path("questions.jsonl")):  # doctest: +SKIP
...     question = from_json(Question, text, where=place)
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, cast

from steper.errors import SteperError

BOM = b"\xef\xbb\xbf"
"""What some editors put at the beginning of a file; not the user's mistake."""

MAX_LINE_BYTES = 64 << 20
"""A longer line is no record; it is left out without being held in memory."""

_BLOCK_CHARS = 1 << 20
_SPACE = re.compile(r"[ \t\r\n]*")


class Unreadable(SteperError):
    """A file that cannot be read, or not any further; others beside it may be."""


def content_id(title: str, text: str) -> str:
    """The id of a passage that has none: 16 hexadecimal digits of the SHA-256 of its content."""
    # Titles hold no newline, so two different pairs never run together.
    return hashlib.sha256(f"{title}\n{text}".encode(errors="replace")).hexdigest()[:16]


def record_texts(path: Path) -> Iterator[tuple[str, str | bytes]]:
    """Every record's JSON with its place in the file, read as they are asked for.

    The file's first bytes say which kind it is. A byte-order mark and CRLF are accepted.

    Raises:
        SteperError: if the file is missing, an archive, not UTF-8, or broken as JSON array or
            Parquet. Lines of JSONL are not checked here.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise SteperError("no such file.", where=str(path), fix="Check the path.") from None
    except IsADirectoryError:
        raise SteperError("is a folder, not a file.", where=str(path)) from None
    with file:
        head = head_of(file)
        if head.startswith(b"PAR1"):
            for where, row in parquet_rows(path, where=str(path)):
                yield where, _row_text(row, where)
        elif head.startswith((b"PK\x03\x04", b"\x1f\x8b")):
            raise SteperError("is a compressed archive.", where=str(path), fix="Unpack it first.")
        elif head.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise SteperError("is not UTF-8 text.", where=str(path), fix="Save it as UTF-8.")
        elif is_array(head):
            yield from array_texts(file, str(path))
        else:
            yield from json_lines(file, str(path))


def head_of(file: IO[bytes]) -> bytes:
    """The first bytes of an open file, which are still there to be read."""
    return cast("BufferedReader", file).peek(4096)


def is_array(head: bytes) -> bool:
    """Whether a file that begins with these bytes is one JSON array."""
    return head.removeprefix(BOM).lstrip().startswith(b"[")


def json_lines(
    file: IO[bytes], where: str, *, report: Callable[[SteperError], None] | None = None
) -> Iterator[tuple[str, bytes]]:
    """The non-blank lines of a file with their places, ends of line included.

    Args:
        file: open at its beginning.
        where: its name, for messages.
        report: told of a line that is too long to be a record, which is then left out.

    Raises:
        Unreadable: at such a line if there is no ``report``.
    """
    number = 0
    while line := file.readline(MAX_LINE_BYTES):
        number += 1
        if number == 1:
            line = line.removeprefix(BOM)
        if len(line) >= MAX_LINE_BYTES and not line.endswith(b"\n"):
            while (rest := file.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
            error = Unreadable(
                f"the line is longer than {MAX_LINE_BYTES >> 20} MB.",
                where=f"{where}:{number}",
                fix="Write one record a line.",
            )
            if report is None:
                raise error
            report(error)
        elif line.strip():
            yield f"{where}:{number}", line


# ---- one JSON array ----------------------------------------------------------------------------


class _Window:
    """The part of a text file that is looked at: it moves on, and reads more when asked."""

    def __init__(self, file: IO[bytes], where: str) -> None:
        self._file, self._where, self._ended = file, where, False
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self.text, self.position = "", 0
        self._line, self._counted = 1, 0  # the line at a place up to which lines are counted

    def more(self) -> bool:
        """Drop what is behind and double what is ahead; whether there was more."""
        if self._ended:
            return False
        data = self._file.read(max(_BLOCK_CHARS, len(self.text) - self.position))
        self._ended = not data
        try:
            new = self._decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            raise Unreadable(
                f"is not UTF-8 text: {error.reason}.", where=self._where, fix="Save it as UTF-8."
            ) from None
        self.line()
        self.text, self.position, self._counted = self.text[self.position :] + new, 0, 0
        return True

    def line(self) -> int:
        """The number of the line at the present place."""
        self._line += self.text.count("\n", self._counted, self.position)
        self._counted = self.position
        return self._line

    def next(self) -> str:
        """The next character that is no white space, or ``""`` at the end."""
        while True:
            self.position = cast("re.Match[str]", _SPACE.match(self.text, self.position)).end()
            if self.position < len(self.text):
                return self.text[self.position]
            if not self.more():
                return ""

    def broken(self, what: str, at: int) -> Unreadable:
        return Unreadable(
            f"not JSON: {what}.",
            where=f"{self._where}:{self.line() + self.text.count(chr(10), self.position, at)}",
            fix="Check the commas and brackets there, or download the file again.",
        )

    def value_end(self) -> int:
        """Where the JSON value that begins here ends."""
        while True:
            try:
                _, end = _DECODER.raw_decode(self.text, self.position)
            except json.JSONDecodeError as error:
                # Cut off at the end of the window, or wrong before it?
                torn = error.msg.startswith("Unterminated") or error.pos > len(self.text) - 16
                if not (torn and self.more()):
                    raise self.broken(error.msg, error.pos) from None
            except RecursionError:
                raise self.broken("nested too deeply", self.position) from None
            else:
                if end < len(self.text) or not self.more():
                    return end


_DECODER = json.JSONDecoder()


def array_texts(file: IO[bytes], where: str) -> Iterator[tuple[str, str]]:
    """The elements of a JSON array one at a time: an official file is one line of up to 540 MB.

    Raises:
        Unreadable: where it is not JSON; what came before has been handed out.
    """
    window = _Window(file, where)
    window.next()
    window.position += 1
    number = 0
    while (following := window.next()) != "]":
        if number:
            if following != ",":
                what = "expected a comma or the end of the list"
                raise window.broken(what, window.position)
            window.position += 1
            window.next()
        number, end = number + 1, window.value_end()
        yield f"{where}:{window.line()}: record {number}", window.text[window.position : end]
        window.position = end
    window.position += 1
    if window.next():
        raise window.broken("more after the end of the list", window.position)


# ---- Parquet -----------------------------------------------------------------------------------


def parquet_rows(
    file: Path | IO[bytes],
    *,
    where: str,
    choose: Callable[[Sequence[str]], list[str]] | None = None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a Parquet file with their places; a null is ``None``.

    Args:
        file: a path, or an open file that can be sought in.
        where: its name, for messages.
        choose: the columns to read out of those there are; by default all.

    Raises:
        Unreadable: if it is broken.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise SteperError(
            "reading Parquet needs pyarrow.", where=where, fix="Run `pip install pyarrow`."
        ) from None
    try:
        table = pq.ParquetFile(file)
        columns = choose(table.schema_arrow.names) if choose else None
        number = 0
        for batch in table.iter_batches(batch_size=1024, columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield f"{where}: row {number}", row
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise Unreadable(
            f"is not a readable Parquet file: {' '.join(str(error).split())}.",
            where=where,
            fix="Write it again.",
        ) from None


def _row_text(row: dict[str, Any], where: str) -> str:
    """A row as JSON; a null is a field that is not there."""

    def refuse(value: object) -> object:
        raise SteperError(
            f"a value of type {type(value).__name__} cannot be read.",
            where=where,
            fix="Write text, numbers, lists and structs only.",
        )

    present = {key: value for key, value in row.items() if value is not None}
    return json.dumps(present, default=refuse)
