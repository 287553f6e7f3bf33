"""Passages on disk, each read when it is asked for, so that a large corpus needs little memory.

A file of passages is JSONL with the byte offset of every line beside it.

>>> written = write_passages(Path("passages.jsonl"), read_corpus("notes"))  # doctest: +SKIP
>>> written.passages[17_870].title, written.duplicates  # doctest: +SKIP
('Żukowski', 12)
"""

from __future__ import annotations

import hashlib
import json
import os
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np
from pydantic_core import from_json as parsed

from steper.corpus.reading import Reject, Report, reporter
from steper.errors import SteperError
from steper.store import from_json
from steper.types import Passage

Mask = np.ndarray[Any, np.dtype[np.bool_]]
Numbers = np.ndarray[Any, np.dtype[np.int64]]


class PassageFile(Sequence[Passage]):
    """A read-only sequence of the passages in a JSONL file.

    Raises:
        SteperError: if file and offsets do not fit each other.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        offsets_path = offsets_of(path)
        try:
            # (passages + 1,): where each line begins, then where the file ends.
            self._offsets = np.asarray(np.load(offsets_path, mmap_mode="r"))
        except (OSError, ValueError) as error:
            raise SteperError(f"cannot be read: {error}.", where=str(offsets_path)) from None
        # Read at places, not mapped: mapped pages would count as this process's memory, and each
        # touch brings its neighbors with it. No position is shared, so threads may read at once.
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._file)
        size = os.fstat(self._file).st_size
        if len(self._offsets) < 2 or self._offsets[-1] != size:
            raise SteperError(
                f"has {size:,} bytes, which do not fit {offsets_path.name}.",
                where=str(path),
                fix="Build the index again.",
            )

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, index: int) -> Passage: ...
    @overload
    def __getitem__(self, index: slice) -> list[Passage]: ...
    def __getitem__(self, index: int | slice) -> Passage | list[Passage]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        number = index % len(self)
        begin, end = int(self._offsets[number]), int(self._offsets[number + 1])
        line = os.pread(self._file, end - begin, begin)
        return from_json(Passage, line, where=f"{self.path}:{number + 1}")

    def __iter__(self) -> Iterator[Passage]:
        return self.iterate(0, len(self))

    def iterate(self, begin: int, end: int) -> Iterator[Passage]:
        """The passages from ``begin`` up to ``end``, fast: the lines are ours and not checked."""
        for line in self.lines(begin, end):
            row = parsed(line)
            yield Passage(row["id"], row["title"], row["text"])

    def lines(self, begin: int, end: int) -> Iterator[bytes]:
        """The lines from ``begin`` up to ``end`` as they stand, with their newlines."""
        with self.path.open("rb", buffering=1 << 20) as file:
            file.seek(int(self._offsets[begin]))
            yield from islice(file, max(0, end - begin))


def offsets_of(path: Path) -> Path:
    """Where the line offsets of a passage file are kept."""
    return path.with_name("offsets.npy")


def searched(passage: Passage) -> str:
    """The text of a passage that is searched."""
    return f"{passage.title} {passage.text}"


# ---- writing -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Written:
    """A file of passages that has just been written.

    Attributes:
        words: of all titles and texts, as separated by white space.
        duplicates: passages left out because they stand there already.
        sha256: of the file.
    """

    passages: PassageFile
    words: int
    duplicates: int
    sha256: str


def write_passages(
    path: Path,
    passages: Iterable[Passage],
    *,
    keep_duplicates: bool = False,
    reject: Callable[[Reject], None] | None = None,
) -> Written:
    """Write passages one by one to ``path`` and their offsets beside it, each once.

    Passages are duplicates if title and text are the same but for white space; the first is kept.
    So it is where two different passages have the same id, and the second is rejected. In memory
    are 24 bytes a passage: both are found by sorting hashes once all is written, confirmed by what
    is written, and if there are any the file is written anew without them.

    Args:
        path: the file to write.
        passages: read once.
        keep_duplicates: keep passages of the same content under different ids.
        reject: told of what is left out, but for duplicates; without it, the first ends it all.

    Raises:
        SteperError: if there are no passages.
    """
    report = reporter(reject)
    hashes, words = _Hashes(), 0
    with _Writer(path) as writer:
        for number, passage in enumerate(passages, start=1):
            try:
                writer.write(_line(passage))
            except UnicodeEncodeError:
                report(
                    SteperError(
                        "holds half a character (a lone surrogate), which is no text.",
                        where=_place(number, passage.id.encode(errors="replace").decode()),
                        fix="Repair the program that wrote it.",
                    )
                )
                continue
            hashes.add(passage)
            words += _words(passage)
    if not hashes.ids:
        raise SteperError("there are no passages to write.", where=str(path))
    written = writer.finish(path)
    dropped, duplicates = _repeated(written, hashes, keep_duplicates, report)
    del hashes
    if dropped.any():
        writer, fewer = _rewrite(written, dropped)
        written, words = writer.finish(path), words - fewer
    return Written(written, words, duplicates, writer.sha256)


def _rewrite(passages: PassageFile, dropped: Mask) -> tuple[_Writer, int]:
    """Write a file anew without some passages; also returns how many words they had."""
    temporary, words = passages.path.with_suffix(".tmp"), 0
    with _Writer(temporary) as writer:
        # As bytes, not as a list: 20 MB for 20 million passages, not 160.
        for line, drop in zip(passages.lines(0, len(passages)), dropped.tobytes(), strict=True):
            if drop:
                words += _words(from_json(Passage, line, where=str(temporary)))
            else:
                writer.write(line)
    temporary.replace(passages.path)
    return writer, words


def _line(passage: Passage) -> bytes:
    """The line of a passage, as ``store.to_json`` makes it; three times as fast."""
    fields = {"id": passage.id, "title": passage.title, "text": passage.text}
    return f"{_encode(fields)}\n".encode()


_encode = json.JSONEncoder(ensure_ascii=False).encode


def _place(number: int, id_: str) -> str:
    return f"passage {number:,} (id {id_!r})"


class _Writer:
    """A passage file being written: lines, offsets and hash."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=1 << 20)
        self._offsets, self._digest = array("q", [0]), hashlib.sha256()

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, line: bytes) -> None:
        self._file.write(line)
        self._digest.update(line)
        self._offsets.append(self._offsets[-1] + len(line))

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def finish(self, path: Path) -> PassageFile:
        """Write the offsets, too, and open the file, wherever it has been moved."""
        np.save(offsets_of(path), np.frombuffer(self._offsets, dtype=np.int64))
        return PassageFile(path)


# ---- finding what stands there twice -------------------------------------------------------------


class _Hashes:
    """A 64-bit hash of the content, and one of the id, for each passage.

    They differ from process to process; what they find does not, since it is confirmed.
    """

    def __init__(self) -> None:
        self.contents, self.ids = array("q"), array("q")

    def add(self, passage: Passage) -> None:
        self.contents.append(hash(content(passage)))
        self.ids.append(hash(passage.id))


def content(passage: Passage) -> tuple[str, str]:
    """Title and text with their white space folded: where these are equal, passages are."""
    return " ".join(passage.title.split()), " ".join(passage.text.split())


def _words(passage: Passage) -> int:
    return len(passage.title.split()) + len(passage.text.split())


def _repeated(
    passages: PassageFile, hashes: _Hashes, keep_duplicates: bool, report: Report
) -> tuple[Mask, int]:
    """Which passages are to be left out, ``(passages,)``; and how many of them as duplicates."""
    dropped = np.zeros(len(passages), dtype=bool)
    duplicates = 0
    # Ids first: a passage that is rejected must not be the reason to drop another as its duplicate.
    twice = _pairs(passages, hashes.ids, dropped, lambda passage: passage.id)
    # In corpus order, whatever the order of the hashes is in this process.
    for first, second in sorted(twice, key=lambda pair: pair[1]):
        dropped[second] = True
        one, other = passages[first], passages[second]
        if content(one) == content(other):
            duplicates += 1
            continue
        report(
            SteperError(
                f"the id is used twice, first by passage {first + 1:,} "
                f"({one.title or one.text[:40]!r}).",
                where=_place(second + 1, other.id),
                fix="Give each passage its own id, or leave the field out.",
            )
        )
    if not keep_duplicates:
        for _, second in _pairs(passages, hashes.contents, dropped, content):
            dropped[second] = True
            duplicates += 1
    return dropped, duplicates


def _pairs(
    passages: PassageFile,
    hashes: array[int],
    without: Mask,
    key: Callable[[Passage], object],
) -> Iterator[tuple[int, int]]:
    """The numbers of each passage whose key an earlier one has, and of the first that has it."""
    values = np.frombuffer(hashes, dtype=np.int64)
    ordered = np.sort(values)
    twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    del ordered
    if not len(twice):
        return
    numbers = np.concatenate(
        [
            start + np.flatnonzero(_among(values[start : start + (1 << 20)], twice))
            for start in range(0, len(values), 1 << 20)
        ]
    )
    numbers = numbers[~without[numbers]]
    numbers = numbers[np.argsort(values[numbers], kind="stable")]
    current: int | None = None
    firsts: dict[object, int] = {}  # of the passages with the present hash; nearly always one
    for number in numbers.tolist():
        if values[number] != current:
            current, firsts = values[number], {}
        first = firsts.setdefault(key(passages[number]), number)
        if first != number:
            yield first, number


def _among(values: Numbers, few: Numbers) -> Mask:
    """Which values are among a few sorted ones."""
    places = np.minimum(np.searchsorted(few, values), len(few) - 1)
    found: Mask = few[places] == values
    return found
