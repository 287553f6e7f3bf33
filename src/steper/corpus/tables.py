"""Records: JSONL, JSON arrays, CSV, TSV, Parquet, a Wikipedia dump. Each row is a passage.

A row is a dict, whatever the file's kind, and one ``Columns`` makes passages of them, strictly.

>>> columns = Columns(Reading(fields={"text": "body"}))
>>> columns.passage({"id": 7, "body": "Roy Clark hosted Hee Haw."}, "c.jsonl:1")
Passage(id='7', title='', text='Roy Clark hosted Hee Haw.')
"""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterator, Sequence
from typing import IO, Any

from pydantic_core import from_json

from steper.corpus.files import Entry
from steper.corpus.reading import Reading, Report
from steper.errors import SteperError
from steper.records import (
    BOM,
    Unreadable,
    array_texts,
    content_id,
    head_of,
    is_array,
    json_lines,
    parquet_rows,
)
from steper.types import Passage

MAX_FIELD_CHARS = 16 << 20
"""Of a field of CSV; more is a quotation mark that is never closed."""

_NOT_KEPT = ("sources", "metadata")  # where a passage came from; accepted everywhere
_DUMP = frozenset(("id", "url", "title", "text"))
_NOT_UTF8 = re.compile("[\udc80-\udcff]")

Row = dict[str, Any]


class Columns:
    """Which columns hold what, and the one place where a row becomes a passage."""

    def __init__(self, reading: Reading) -> None:
        self._id, self._title, self._text = (
            reading.fields.get(name, name) for name in ("id", "title", "text")
        )
        self._ours = (self._id, self._title, self._text)
        self._wanted = {self._text, *reading.fields.values()}
        self._all = reading.other_fields == "ignore"
        self._known = frozenset((*self._ours, *_NOT_KEPT))

    def check(self, names: Collection[str], where: str) -> None:
        """Refuse columns that would spoil every record.

        Raises:
            SteperError: naming the first column that is unknown, or missing.
        """
        missing = [name for name in self._wanted if name not in names]
        if missing:
            # Whoever lets further columns pass does not mean every table in the folder.
            error = Unreadable if self._all else SteperError
            raise error(
                f"{missing[0]}: required field is missing.",
                where=where,
                fix=f"The fields there are {_listed(names)}; say which holds what, for example "
                "with `--fields text COLUMN`, or leave such files out with `--other-fields "
                "ignore`.",
            )
        self._refuse_unknown(names, where)

    def choose(self, names: Sequence[str], where: str) -> list[str]:
        """Those of a file's columns that are needed, after ``check``."""
        self.check(names, where)
        return [name for name in names if name in self._ours]

    def _refuse_unknown(self, names: Collection[str], where: str) -> None:
        unknown = [] if self._all else [name for name in names if name not in self._known]
        if unknown:
            raise SteperError(
                f"{unknown[0]}: unknown field.",
                where=where,
                fix="Leave such fields out with `--other-fields ignore`, or say what they hold, "
                "for example with `--fields text COLUMN`.",
            )

    def passage(self, row: object, where: str) -> Passage:
        """One row as a passage.

        Raises:
            SteperError: naming the field that is unknown, missing, empty or not text.
        """
        if type(row) is not dict:
            raise SteperError(
                "is no record.", where=where, fix='Expected is {"id": …, "title": …, "text": …}.'
            )
        if is_dump(row):
            text, title, id_ = _article(row["text"]), row["title"], row["id"]
        else:
            if not row.keys() <= self._known:
                self._refuse_unknown(row, where)
            text, title, id_ = row.get(self._text), row.get(self._title, ""), row.get(self._id)
            if text is None and self._text not in row:
                raise SteperError(f"{self._text}: required field is missing.", where=where)
        if type(text) is not str:
            raise _mistyped(self._text, text, where)
        if type(title) is not str:
            raise _mistyped(self._title, title, where)
        if not text or text.isspace():
            raise SteperError("text: is empty.", where=where, fix="Drop the record or fill it.")
        if id_ is None:
            id_ = content_id(title, text)
        elif type(id_) is int:
            id_ = str(id_)
        elif type(id_) is not str:
            raise _mistyped(self._id, id_, where)
        elif not id_ or id_.isspace():
            raise SteperError("id: is empty.", where=where, fix="Fill it, or leave the field out.")
        return Passage(id_, title, text)


def _mistyped(name: str, value: object, where: str) -> SteperError:
    found = "null" if value is None else f"of type {type(value).__name__}"
    return SteperError(f"{name}: is {found}, not text.", where=where, fix="Write it as text.")


def _listed(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:12]) or "none"
    return f"{shown}, …" if len(names) > 12 else shown


# ---- the Wikipedia dump of HotpotQA --------------------------------------------------------------


def is_dump(row: Row) -> bool:
    """Whether a row is an article of the dump: its text comes in sentences or paragraphs."""
    return type(row.get("text")) is list and row.keys() >= _DUMP


def _article(parts: list[Any]) -> str | None:
    """The text of sentences, or of paragraphs of sentences; ``None`` if it is neither."""
    paragraphs = parts if parts and all(type(part) is list for part in parts) else [parts]
    if not all(type(sentence) is str for paragraph in paragraphs for sentence in paragraph):
        return None
    return "\n".join(filter(None, map(_joined, paragraphs)))


def _joined(sentences: list[str]) -> str:
    """Sentences with a space between them; most bring their own."""
    text = ""
    for sentence in sentences:
        apart = not text or text[-1].isspace() or sentence[:1].isspace()
        text += sentence if apart else f" {sentence}"
    return text.strip()


# ---- the kinds of files ------------------------------------------------------------------------


def read_table(entry: Entry, columns: Columns, report: Report) -> Iterator[Passage]:
    """The passages of a file of records, one by one; what cannot be read is reported.

    Raises:
        SteperError: if the columns would spoil every record.
        Unreadable: if the file is broken from some place on.
    """
    match entry.suffix:
        case ".parquet":
            rows = parquet_rows(
                entry.file,
                where=entry.where,
                choose=lambda names: columns.choose(names, entry.where),
            )
        case ".csv" | ".tsv":
            rows = _csv_rows(entry, columns, report)
        case _:
            rows = _json_rows(entry, columns, report)
    for where, row in rows:
        try:
            passage = columns.passage(row, where)
        except SteperError as error:
            report(error)
        else:
            yield passage


def _json_rows(entry: Entry, columns: Columns, report: Report) -> Iterator[tuple[str, Any]]:
    texts: Iterator[tuple[str, str | bytes]]
    if is_array(head_of(entry.file)):
        texts = array_texts(entry.file, entry.where)
    else:
        texts = json_lines(entry.file, entry.where, report=report)
    checked = False
    for where, text in texts:
        try:
            row = from_json(text)
        except ValueError as error:
            if not checked and entry.suffix == ".json" and text.strip() in _OPENED:
                what = "is one JSON value over many lines, not records."
                report(SteperError(what, where=entry.where, fix=_EXPECTED))
                return
            report(_not_json(error, text, where))
            continue
        if not checked and type(row) is dict:
            checked = True
            if not is_dump(row):
                columns.check(row, where)
        yield where, row


_OPENED = ("{", b"{")  # settings, as programs write them
_EXPECTED = "Expected is one JSON object a line, or one array of objects."


def _not_json(error: ValueError, text: str | bytes, where: str) -> SteperError:
    if isinstance(text, bytes):
        try:
            text.decode()
        except UnicodeDecodeError as wrong:
            return not_utf8(wrong.start + 1, where)
    return SteperError(f"not JSON: {error}.", where=where, fix=_EXPECTED)


def not_utf8(byte: int, where: str) -> SteperError:
    """The problem with a line that is in another encoding; ``byte`` counts from 1."""
    return SteperError(
        f"byte {byte} is not valid UTF-8.",
        where=where,
        fix="Save the file in UTF-8, for example with `iconv -t UTF-8`.",
    )


def _csv_rows(entry: Entry, columns: Columns, report: Report) -> Iterator[tuple[str, Row]]:
    """The rows below the line that names the columns."""
    csv.field_size_limit(MAX_FIELD_CHARS)
    reader = csv.reader(_lines(entry.file), delimiter="\t" if entry.suffix == ".tsv" else ",")
    where = f"{entry.where}:1"
    try:
        names = next(reader, [])
    except csv.Error as error:
        raise Unreadable(f"not CSV: {error}.", where=where, fix=_QUOTES) from None
    if not names:
        return
    if len(set(names)) < len(names):
        raise SteperError("two columns have the same name.", where=where, fix="Rename one.")
    chosen = set(columns.choose(names, where))
    places = [(number, name) for number, name in enumerate(names) if name in chosen]
    while True:
        where = f"{entry.where}:{reader.line_num + 1}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            report(SteperError(f"not CSV: {error}.", where=where, fix=_QUOTES))
            continue
        if len(cells) != len(names):
            if cells:
                what = f"has {len(cells)} fields, the first line has {len(names)}."
                report(SteperError(what, where=where, fix=_QUOTES))
        elif any(not cell.isascii() and _NOT_UTF8.search(cell) for cell in cells):
            report(SteperError("is not valid UTF-8.", where=where, fix="Save it in UTF-8."))
        else:
            yield where, {name: cells[number] for number, name in places}


def _lines(file: IO[bytes]) -> Iterator[str]:
    """Lines as text; bytes that are not UTF-8 become surrogates, so that only their row is lost."""
    mark = BOM
    while line := file.readline(MAX_FIELD_CHARS):
        yield line.removeprefix(mark).decode(errors="surrogateescape")
        mark = b""


_QUOTES = (
    'Put fields with separators, quotes or newlines in quotes, and double the quotes: "a ""b""".'
)
