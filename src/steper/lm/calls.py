"""Every paid answer on disk, so that no call is paid for twice: not after a kill, not in a rerun.

One SQLite file, shared by any number of runs, threads and processes. An answer is found by what was
asked and nothing else, so another server address, time-out or price finds it, too. It is written
before it is used: killing the process loses no answer it has read. (A power cut may lose the last
few, because a commit does not wait for the disk; the file stays sound.)

>>> cache = CallCache(Path("runs/calls.sqlite"))  # doctest: +SKIP
>>> cache.put({"model": "m", "prompt": "Who?"}, Completion("Roy Clark."))  # doctest: +SKIP
>>> cache.get({"model": "m", "prompt": "Who?"}).text  # doctest: +SKIP
'Roy Clark.'
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from steper.errors import SteperError
from steper.protocols import Completion, Usage

APPLICATION = 0x73746570  # "step": marks the file as ours
SCHEMA = 1
WAIT_S = 60.0  # for other processes that write

_TABLE = """
CREATE TABLE calls (
    key BLOB PRIMARY KEY,
    text TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    seconds REAL NOT NULL,
    made REAL NOT NULL,  -- seconds since 1970
    model TEXT NOT NULL  -- what the server called itself
) WITHOUT ROWID
"""


def call_key(payload: Mapping[str, Any]) -> bytes:
    """SHA-256 of what is asked; the order of its fields does not matter."""
    canonical = json.dumps(payload, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).digest()


class CallCache:
    """Answers by what was asked.

    Args:
        path: the file; made where there is none.

    Raises:
        SteperError: if the file is something else, damaged, or of another version of steper. The
            same goes for every method.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        with self._file():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(
                path, timeout=WAIT_S, isolation_level=None, check_same_thread=False
            )
        try:
            with self._file():
                self._open()
        except SteperError:
            self._db.close()
            raise

    def get(self, payload: Mapping[str, Any]) -> Completion | None:
        """The answer to ``payload``, as replayed and without a price; ``None`` if unknown."""
        with self._lock, self._file():
            row = self._db.execute(
                "SELECT text, prompt_tokens, cached_tokens, completion_tokens, seconds"
                " FROM calls WHERE key = ?",
                (call_key(payload),),
            ).fetchone()
        if row is None:
            return None
        text, prompt_tokens, cached_tokens, completion_tokens, seconds = row
        usage = Usage(prompt_tokens, cached_tokens, completion_tokens, seconds)
        return Completion(text, usage, replayed=True)

    def put(self, payload: Mapping[str, Any], completion: Completion, *, model: str = "") -> None:
        """Keep an answer; the first one to a payload stays. It is committed on return."""
        usage = completion.usage
        values = (
            call_key(payload),
            completion.text,
            usage.prompt_tokens,
            usage.cached_tokens,
            usage.completion_tokens,
            usage.seconds,
            time.time(),
            model,
        )
        with self._lock, self._file():
            self._db.execute("INSERT OR IGNORE INTO calls VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)

    def count(self) -> int:
        """How many answers there are."""
        with self._lock, self._file():
            (found,) = self._db.execute("SELECT count(*) FROM calls").fetchone()
        return int(found)

    def close(self) -> None:
        """Give the file back; the cache cannot be used afterwards."""
        with self._lock:
            self._db.close()

    def _open(self) -> None:
        # Looked at before anything is changed: a foreign file stays as it is.
        self._refuse_others()
        self._to_wal()
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute("BEGIN IMMEDIATE")  # another process may be making the same file
        if not self._number("application_id"):
            self._db.execute(_TABLE)
            self._db.execute(f"PRAGMA application_id = {APPLICATION}")
            self._db.execute(f"PRAGMA user_version = {SCHEMA}")
        self._db.execute("COMMIT")
        self._refuse_others()

    def _to_wal(self) -> None:
        """Let readers and a writer work at once.

        SQLite does not wait here when two processes do this to a new file together.
        """
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                    raise
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def _refuse_others(self) -> None:
        tables = self._db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        application, schema = self._number("application_id"), self._number("user_version")
        if application != APPLICATION and (tables or application):
            raise SteperError(
                "is an SQLite file, but no cache of calls.",
                where=str(self.path),
                fix="Give another file; it is made where there is none.",
            )
        if application == APPLICATION and schema != SCHEMA:
            raise SteperError(
                f"was written in format {schema}; this version of steper reads format {SCHEMA}.",
                where=str(self.path),
                fix="Give another file, or use the version of steper that wrote it.",
            )

    def _number(self, pragma: str) -> int:
        return int(self._db.execute(f"PRAGMA {pragma}").fetchone()[0])

    @contextmanager
    def _file(self) -> Iterator[None]:
        """Say which file it was when SQLite or the disk cannot go on."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            foreign = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_NOTADB
            raise SteperError(
                f"the cache of calls cannot be used: {error}.",
                where=str(self.path),
                fix="Give another file with --cache; it is made where there is none."
                if foreign or self.path.is_dir()
                else "If it is damaged, move it away: its answers are asked for again.",
            ) from None
