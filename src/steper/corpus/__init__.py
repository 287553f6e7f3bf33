"""Read a corpus into passages: a file, a folder or archive of files, or a data set.

Records (JSONL, JSON, CSV, Parquet, data sets, a Wikipedia dump) are passages already and are taken
as they are, strictly. Prose (text, Markdown, HTML, PDF) is cut into passages at sentence ends,
because a passage must be short enough that several fit into a prompt. What cannot be read is
handed to ``reject``, and the rest goes on.

>>> passages = list(read_corpus("notes"))  # doctest: +SKIP
>>> passages[0].id, passages[0].title  # doctest: +SKIP
('guide/setup.md#1', 'Set-up > Linux')
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from steper.corpus.documents import cutter, read_document
from steper.corpus.files import (
    BROKEN,
    TABLES,
    Entry,
    broken,
    entries,
    files_below,
    is_packed,
    is_readable,
)
from steper.corpus.hub import dataset_rows, is_name, is_saved, open_hub, open_saved
from steper.corpus.reading import Progress, Reading, Reject, Report, reporter
from steper.corpus.tables import Columns, read_table
from steper.errors import SteperError
from steper.records import Unreadable
from steper.types import Passage

__all__ = ["CorpusSize", "Reading", "Reject", "corpus_size", "read_corpus"]

AS_IS = Reading()

Cut = Callable[[str], list[str]]


def read_corpus(
    source: str,
    reading: Reading = AS_IS,
    *,
    reject: Callable[[Reject], None] | None = None,
    progress: Progress | None = None,
) -> Iterator[Passage]:
    """Read every passage, in a fixed order: files by their paths, archives in their own order.

    A folder is read recursively, hidden files and folders left out. A record without ``id`` gets
    one from the hash of its title and text. Prose gets ids ``relative/path#n``, records that are
    cut ``id#n``, counted from 1. Ids and contents that come twice are the writer's to find, see
    ``retrieval.passages.write_passages``.

    Args:
        source: file, folder, data set saved with ``save_to_disk``, or one of the hub by its name.
        reading: how it is read.
        reject: told of each record or document that cannot be read; without it, the first of them
            ends the reading.
        progress: told of the bytes newly read from files, or the rows of a data set: those that
            ``corpus_size(source).total`` counts.

    Raises:
        SteperError: if the source is not there, columns are unknown or missing, a library is
            missing, or nothing at all can be read.
    """
    rejects: list[Reject] = []  # the first, which tells why if nothing can be read

    def keep_first(found: Reject) -> None:
        rejects.extend(() if rejects else (found,))
        if reject:
            reject(found)

    report = reporter(keep_first if reject else None)
    empty = True
    for passage in _passages(source, reading, report, progress):
        empty = False
        yield passage
    if empty:
        first = rejects[0] if rejects else None
        what = f"The first: {first.where}: {first.reason}" if first else "It is empty."
        raise SteperError(
            f"holds no passages that can be read. {what}",
            where=source,
            fix=first.fix if first else "Give a file or folder with text in it.",
        )


def _passages(
    source: str, reading: Reading, report: Report, progress: Progress | None
) -> Iterator[Passage]:
    columns, cut = Columns(reading), cutter(reading)
    path = Path(source)
    if is_saved(path) or is_name(source):
        data = open_saved(path, reading) if path.exists() else open_hub(source, reading)
        for where, row in dataset_rows(data, source, columns, progress):
            try:
                passage = columns.passage(row, where)
            except SteperError as error:
                report(error)
            else:
                yield from _cut_record(passage, cut) if reading.cut_records else (passage,)
        return
    for entry in entries(path, report, progress):
        try:
            if entry.suffix not in TABLES:
                yield from _cut_document(entry, cut, report)
            elif reading.cut_records:
                for passage in read_table(entry, columns, report):
                    yield from _cut_record(passage, cut)
            else:
                yield from read_table(entry, columns, report)
        except Unreadable as error:
            report(error)
        except BROKEN as error:
            report(broken(error, entry.where))


def _cut_record(passage: Passage, cut: Cut) -> Iterator[Passage]:
    """A record as it is, or in parts if it is too long."""
    texts = cut(passage.text)
    if len(texts) < 2:
        yield passage
    else:
        for number, text in enumerate(texts, start=1):
            yield Passage(f"{passage.id}#{number}", passage.title, text)


def _cut_document(entry: Entry, cut: Cut, report: Report) -> Iterator[Passage]:
    found = read_document(
        entry.suffix, entry.file.read(), stem=entry.stem, where=entry.where, report=report
    )
    number = 0
    for title, body in found:
        for text in cut(body):
            number += 1
            yield Passage(f"{entry.name}#{number}", title, text)


# ---- how much there is -------------------------------------------------------------------------

_UNFOLDED = 3
"""How many times larger packed text (gzip, bzip2, Parquet, PDF) is when unpacked, about."""


@dataclass(frozen=True, slots=True)
class CorpusSize:
    """How large a corpus is, before it is read.

    Attributes:
        disk_bytes: of all its files; 0 for a data set of the hub.
        text_bytes: of the text in it, estimated; 0 where nothing is known.
        rows: of a saved data set, else ``None``.
        total: how much ``read_corpus`` will tell its ``progress``; ``None`` where unknown.
        unit: what it counts.
    """

    disk_bytes: int
    text_bytes: int
    rows: int | None
    total: int | None
    unit: Literal["B", "rows"]


def corpus_size(source: str, reading: Reading = AS_IS) -> CorpusSize:
    """How large a corpus is, from the sizes of its files; nothing of them is read.

    Raises:
        SteperError: if it is not there.
    """
    path = Path(source)
    if is_name(source):
        return CorpusSize(0, 0, None, None, "rows")
    files = files_below(path, report=lambda _: None)
    sizes = [(file.stat().st_size, is_packed(file)) for file in files if is_readable(file)]
    disk = sum(file.stat().st_size for file in files)
    if is_saved(path):
        data = open_saved(path, reading)
        return CorpusSize(disk, disk, len(data), len(data), "rows")
    text = sum(size * (_UNFOLDED if packed else 1) for size, packed in sizes)
    return CorpusSize(disk, text, None, disk, "B")
