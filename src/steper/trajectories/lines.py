"""JSONL files that are read while another process may still be writing them.

A reader notes where each line stands and reads it again when it is wanted, so that a file of
gigabytes costs a few bytes a line. What is appended later is taken in by asking again; a file that
was replaced, as a run's log is when it is finished, is begun anew.

>>> lines = Lines(Path("runs/x/trajectories.jsonl")); lines.poll()  # doctest: +SKIP
>>> spans = [span for span, _ in lines.new(growing=True)]  # doctest: +SKIP
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple


class Span(NamedTuple):
    """Where a line stands: its number from 1, its first byte, its length in bytes."""

    line: int
    offset: int
    length: int


class Lines:
    """The lines of a JSONL file that may be missing, still growing, or be replaced meanwhile.

    Attributes:
        digest: SHA-256 of the lines given out so far.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None
        self._restart()

    def _restart(self) -> None:
        self._count = self._end = 0
        self.digest = hashlib.sha256()

    def poll(self) -> bool:
        """Look at the file again; returns whether it was replaced, so that all spans are void."""
        if not self.path.is_file():
            return False
        found, replaced = self.path.stat(), False
        if self._file is not None:
            ours = os.fstat(self._file.fileno())
            if os.path.samestat(ours, found) and found.st_size >= self._end:
                return False
            self._file.close()
            replaced = True
        self._restart()
        self._file = self.path.open("rb")
        return replaced

    def new(self, *, growing: bool) -> Iterator[tuple[Span, bytes]]:
        """The non-blank lines since the last call; of a growing file only those that are whole."""
        if self._file is None:
            return
        self._file.seek(self._end)
        for line in self._file:
            if growing and not line.endswith(b"\n"):
                return
            span = Span(self._count + 1, self._end, len(line))
            self._count, self._end = span.line, span.offset + span.length
            self.digest.update(line)
            if line.strip():
                yield span, line

    def read(self, span: Span) -> bytes:
        """One line again."""
        assert self._file is not None, "a span comes from an open file"
        return os.pread(self._file.fileno(), span.length, span.offset)


class Records:
    """JSON objects of a side file by their ``id``, read when asked for; none if it is missing.

    Attributes:
        spans: where each record stands.
        problems: lines that are no such record, each as a sentence with ``file:line``.
    """

    def __init__(self, path: Path) -> None:
        self._lines = Lines(path)
        self.spans: dict[str, Span] = {}
        self.problems: list[str] = []

    def refresh(self, *, growing: bool) -> bool:
        """Take in what is new; returns whether anything has changed."""
        changed = self._lines.poll()
        if changed:
            self.spans, self.problems = {}, []
        for span, line in self._lines.new(growing=growing):
            changed = True
            where = f"{self._lines.path.name}:{span.line}"
            try:
                record = _plain(line)
                self.spans[str(record["id"])] = span
            except (ValueError, TypeError, KeyError, RecursionError):
                self.problems.append(f"{where}: is not a JSON object with an id.")
        return changed

    def get(self, key: str) -> dict[str, Any] | None:
        """The record with this id; the last one where there are several."""
        span = self.spans.get(key)
        return None if span is None else dict(_plain(self.line(span)))

    def line(self, span: Span) -> bytes:
        """One record as it stands in the file."""
        return self._lines.read(span)


def _plain(line: bytes) -> Any:
    """JSON as browsers know it: NaN and the infinities, which Python writes, become null."""
    return json.loads(line, parse_constant=lambda _: None)
