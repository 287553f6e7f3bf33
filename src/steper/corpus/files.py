"""The files of a corpus, unpacked: a file, a folder of files, archives of them.

Whatever a file is packed in, it comes out as an ``Entry``: its name, what it is, and a stream of
its bytes, which are unpacked as they are asked for.

>>> for entry in entries(Path("notes"), print, progress=print):  # doctest: +SKIP
...     print(entry.name, entry.suffix, entry.file.read())
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import re
import shutil
import tarfile
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from steper.corpus.reading import Progress, Report
from steper.errors import SteperError

TABLES = (".jsonl", ".json", ".parquet", ".csv", ".tsv")
"""Files of records: each row is a passage."""

DOCUMENTS = (".txt", ".md", ".html", ".htm", ".pdf")
"""Files of prose: each is cut into passages."""

BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError)
"""What reading a damaged or vanished file raises."""

_SINGLE = (".parquet", ".pdf")  # packed already, and read from the end
_PACKED: dict[str, Callable[[Any], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_DUMP = re.compile(r"wiki_\d+")  # how the pieces of a Wikipedia dump are called
_READABLE = (
    f"Readable are {' '.join(TABLES + DOCUMENTS)} files (but for Parquet and PDF also packed as "
    ".gz, .bz2 or .xz), and .tar archives and folders of these."
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One file to read.

    Attributes:
        name: its path below the corpus, with slashes; the beginning of its passages' ids.
        where: its path for messages.
        suffix: one of ``TABLES`` or ``DOCUMENTS``.
        file: its bytes, unpacked.
    """

    name: str
    where: str
    suffix: str
    file: IO[bytes]

    @property
    def stem(self) -> str:
        """The file's name without folder and endings."""
        name = PurePosixPath(self.name).name
        at = name.lower().rfind(self.suffix)
        return name[:at] if at > 0 else name


def files_below(source: Path, report: Report) -> list[Path]:
    """The file itself, or all files of a folder in the order of their paths, without hidden ones.

    Args:
        source: file or folder.
        report: told of folders that cannot be looked into.

    Raises:
        SteperError: if there is no such file or folder.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise SteperError("no such file or folder.", where=str(source), fix="Check the path.")

    def closed(error: OSError) -> None:
        report(broken(error, _shown(str(error.filename))))

    found = []
    for folder, folders, names in os.walk(source, onerror=closed):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(path for path in found if path.is_file())


def is_packed(path: Path) -> bool:
    """Whether a file unfolds to several times its size."""
    name = path.name.lower()
    return name.endswith((*_PACKED, ".tgz", ".parquet"))


def is_readable(path: Path) -> bool:
    """Whether a file is of a kind that is read."""
    name = path.name.lower()
    packing = next((ending for ending in _PACKED if name.endswith(ending)), "")
    return name.endswith(_ARCHIVES) or bool(_suffix(name.removesuffix(packing)))


def entries(source: Path, report: Report, progress: Progress | None) -> Iterator[Entry]:
    """Every readable file, one open at a time: take from it what is needed before the next.

    Files that are nothing to read are counted, and told at the end, one line for each ending.

    Args:
        source: file or folder.
        report: told of files that cannot be read.
        progress: told of the bytes read from the disk.

    Raises:
        SteperError: if there is no such file or folder, or a single file is nothing to read.
    """
    root = source if source.is_dir() else source.parent
    others = _Others()
    for path in files_below(source, report):
        name = _shown(path.relative_to(root).as_posix())
        try:
            raw = _Counted(io.FileIO(path), progress)
            with io.BufferedReader(raw, 1 << 20) as file:
                yield from _opened(name, _shown(str(path)), file, others)
        except BROKEN as error:
            report(broken(error, _shown(str(path))))
    if others.counts and source.is_file() and not source.name.lower().endswith(_ARCHIVES):
        raise SteperError("is nothing to read.", where=_shown(str(source)), fix=_READABLE)
    others.tell(_shown(str(source)), report)


def broken(error: Exception, where: str) -> SteperError:
    """The problem with a file that cannot be read any further."""
    return SteperError(
        f"cannot be read any further: {str(error) or type(error).__name__}.",
        where=where,
        fix="Check its permissions, or copy or download it again.",
    )


def _opened(name: str, where: str, file: IO[bytes], others: _Others) -> Iterator[Entry]:
    """The entry that a file is, or the entries that an archive holds."""
    lower = name.lower()
    if lower.endswith(_ARCHIVES):
        yield from _archived(name, where, file, others)
        return
    packing = next((ending for ending in _PACKED if lower.endswith(ending)), "")
    suffix = _suffix(lower.removesuffix(packing))
    if not suffix or (packing and suffix in _SINGLE):
        others.add(name)
    elif packing:
        with _PACKED[packing](file) as unpacked:
            yield Entry(name, where, suffix, unpacked)
    else:
        yield Entry(name, where, suffix, file)


def _archived(name: str, where: str, file: IO[bytes], others: _Others) -> Iterator[Entry]:
    """The files of a tar archive in its own order, streamed."""
    with tarfile.open(fileobj=file, mode="r|*") as archive:
        while member := archive.next():
            # It would remember every one of a million files.
            archive.members = []  # type: ignore[attr-defined]
            parts = [part for part in PurePosixPath(member.name).parts if part not in ("/", "..")]
            content = archive.extractfile(member) if member.isfile() else None
            if content is None or any(part.startswith(".") for part in parts):
                continue
            inner = _shown("/".join(parts))
            if inner.lower().endswith(_ARCHIVES):
                others.add(inner)
            elif inner.lower().endswith(_SINGLE):
                # An archive is read forwards only, these from their ends.
                with tempfile.TemporaryFile() as copy:
                    shutil.copyfileobj(content, copy)
                    copy.seek(0)
                    yield from _opened(f"{name}/{inner}", f"{where}/{inner}", copy, others)
            else:
                yield from _opened(f"{name}/{inner}", f"{where}/{inner}", content, others)


def _suffix(name: str) -> str:
    if _DUMP.fullmatch(PurePosixPath(name).name):
        return ".jsonl"
    return next((suffix for suffix in (*TABLES, *DOCUMENTS) if name.endswith(suffix)), "")


def _shown(name: str) -> str:
    """A file name as text, also where its bytes are none."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


class _Others:
    """Counts files that are nothing to read."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, name: str) -> None:
        suffix = PurePosixPath(name).suffix.lower() or "no ending"
        self.counts[suffix] += 1
        self._first.setdefault(suffix, name)

    def tell(self, where: str, report: Report) -> None:
        for suffix, count in sorted(self.counts.items()):
            what = f"{count:,} file{'s' if count > 1 else ''} with {suffix}"
            report(
                SteperError(
                    f"{what}: nothing to read, left out, the first is {self._first[suffix]}.",
                    where=where,
                    fix=_READABLE,
                )
            )


class _Counted(io.RawIOBase):
    """A file that tells how much of it has been read; when it is closed, all of it."""

    def __init__(self, file: io.FileIO, progress: Progress | None) -> None:
        self._file, self._progress = file, progress
        self._left = os.fstat(file.fileno()).st_size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer) or 0
        self._tell(count)
        return count

    def close(self) -> None:
        if not self.closed:
            self._tell(self._left)
            self._file.close()
        super().close()

    def _tell(self, count: int) -> None:
        # A file that is sought in may be read twice, or not wholly.
        count = min(count, self._left)
        self._left -= count
        if count and self._progress:
            self._progress(count)
