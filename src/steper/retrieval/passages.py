"""Passages on disk, each read when it is asked for, so that a large corpus needs little memory.

A file of passages is JSONL with the byte offset of every line beside it.

>>> passages = PassageFile.write(Path("passages.jsonl"), read_corpus(source))  # doctest: +SKIP
>>> passages[17_870].title  # doctest: +SKIP
'Żukowski'
"""

from __future__ import annotations

import mmap
import os
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from steper.errors import SteperError
from steper.store import from_json, to_json
from steper.types import Passage


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
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if len(self._offsets) < 2 or self._offsets[-1] != size:
                raise SteperError(
                    f"has {size:,} bytes, which do not fit {offsets_path.name}.",
                    where=str(path),
                    fix="Build the index again.",
                )
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    @classmethod
    def write(cls, path: Path, passages: Iterable[Passage]) -> PassageFile:
        """Write passages one by one to ``path`` and its offsets beside it, and open them.

        Raises:
            SteperError: if there are no passages.
        """
        offsets = array("q", [0])
        with path.open("wb") as file:
            for passage in passages:
                file.write(f"{to_json(passage)}\n".encode())
                offsets.append(file.tell())
        if len(offsets) == 1:
            raise SteperError("there are no passages to write.", where=str(path))
        np.save(offsets_of(path), np.frombuffer(offsets, dtype=np.int64))
        return cls(path)

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
        return from_json(Passage, self._bytes[begin:end], where=f"{self.path}:{number + 1}")


def offsets_of(path: Path) -> Path:
    """Where the line offsets of a passage file are kept."""
    return path.with_name("offsets.npy")
