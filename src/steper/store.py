"""Run folders on disk: strict records, append-only logs, and a manifest that is written last.

A stage opens its folder with ``Run.open``. Running the same command again resumes it; running a
different command on it is refused with the difference shown. Whatever is final is written to a
temporary file, flushed to disk and renamed, so a reader never sees half a file.

>>> run = Run.open(Path("runs/x"), stage="rollout", config={"k": 4}, inputs={})  # doctest: +SKIP
>>> log = run.log("trajectories", Trajectory, key=lambda t: t.question.id)  # doctest: +SKIP
>>> log.append(trajectory); log.finish(); run.finish({"kept": 1})  # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import platform
import time
import tomllib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO, Generic, Self, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from steper.errors import SteperError

T = TypeVar("T")


# ---- records ---------------------------------------------------------------------------------


@cache
def _adapter(type_: Any) -> TypeAdapter[Any]:
    return TypeAdapter(type_)


def to_json(record: Any) -> str:
    """One record (a dataclass or plain data) as one line of JSON, keys in declared order."""
    data = (
        dataclasses.asdict(record)
        if dataclasses.is_dataclass(record) and not isinstance(record, type)
        else record
    )
    return json.dumps(data, ensure_ascii=False)


ONE_A_LINE = "Expected one JSON object per line, with the fields that docs/formats.md lists."


def from_json(type_: type[T], line: str | bytes, *, where: str, fix: str = ONE_A_LINE) -> T:
    """Read one record strictly: unknown, missing and mistyped fields are refused.

    Raises:
        SteperError: naming ``where``, the field, and what is wrong with it.
    """
    try:
        record: T = _adapter(cast(Any, type_)).validate_json(line, strict=True)
        return record
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        message = {
            "extra_forbidden": "unknown field.",
            "unexpected_keyword_argument": "unknown field.",
            "missing": "required field is missing.",
            "missing_argument": "required field is missing.",
        }.get(first["type"], f"{first['msg']}.")
        raise SteperError(
            f"{field}: {message}" if field else message,
            where=where,
            fix=fix,
        ) from None


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The numbered, non-blank lines of a text file.

    Raises:
        SteperError: if the file is missing or a folder.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
    except FileNotFoundError:
        raise SteperError("no such file.", where=str(path), fix="Check the path.") from None
    except IsADirectoryError:
        raise SteperError("is a folder, not a file.", where=str(path)) from None


def iter_records(path: Path, type_: type[T]) -> Iterator[T]:
    """The records of a JSONL file one by one, read strictly; nothing else is held in memory."""
    return (from_json(type_, line, where=f"{path}:{n}") for n, line in read_lines(path))


def read_records(path: Path, type_: type[T]) -> list[T]:
    """All records of a finished JSONL file, read strictly."""
    return list(iter_records(path, type_))


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of ``path`` at the end, if nothing went wrong."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a whole file so that it is either the old one or the new one, never half."""
    with replaced(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_records(path: Path, records: Iterable[Any]) -> None:
    """Write a whole JSONL file atomically, record by record."""
    with replaced(path) as file:
        for record in records:
            file.write(f"{to_json(record)}\n".encode())


def read_json(path: Path) -> Any:
    """A JSON file's content.

    Raises:
        SteperError: if the file is missing or not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise SteperError("no such file.", where=str(path), fix="Check the path.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SteperError(f"cannot be read: {error}.", where=str(path)) from None
    except json.JSONDecodeError as error:
        raise SteperError(f"not JSON: {error.msg}.", where=f"{path}:{error.lineno}") from None


def read_toml(path: Path, *, fix: str = "") -> dict[str, Any]:
    """A TOML file's content.

    Raises:
        SteperError: if the file is missing, or is no TOML; ``fix`` says what to do about it.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SteperError("no such file.", where=str(path), fix="Check the path.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SteperError(f"cannot be read: {error}.", where=str(path), fix=fix) from None


def versions() -> dict[str, str]:
    """Of Python and of what figures depend on, for results."""
    names = ("steper", "torch", "transformers")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file atomically, indented for people."""
    write_atomic(path, json.dumps(data, ensure_ascii=False, indent=2) + "\n")


def fingerprint(data: Any) -> str:
    """The SHA-256 of JSON-able data; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, or of a folder's names and bytes in sorted order.

    Of a folder, hidden files (``.git``, ``.lock``) do not count, and a file that may not be read
    counts with its name only.
    """
    digest = hashlib.sha256()
    if path.is_file():
        _digest_file(digest, path)
        return digest.hexdigest()
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        name = file.relative_to(path)
        if any(part.startswith(".") for part in name.parts):
            continue
        digest.update(os.fsencode(name))  # a name need not be UTF-8
        with suppress(PermissionError):
            _digest_file(digest, file)
    return digest.hexdigest()


def _digest_file(digest: hashlib._Hash, file: Path) -> None:
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)


# ---- append-only logs ------------------------------------------------------------------------


class Log(Generic[T]):
    """An append-only JSONL file of keyed records that survives being killed at any byte.

    A last line without its newline was torn by a kill and is dropped on opening. A record whose key
    is there already takes the place of the earlier one. ``finish`` rewrites the file sorted by key,
    so an interrupted run ends byte-equal to a clean one. Only the keys are held in memory.

    >>> log = Log(Path("p.jsonl"), Passage, key=lambda p: p.id)  # doctest: +SKIP
    >>> log.append(passage); "p1" in log  # doctest: +SKIP
    """

    def __init__(self, path: Path, type_: type[T], key: Callable[[T], str]) -> None:
        self.path, self._type, self._key = path, type_, key
        self._places: dict[str, tuple[int, int]] = {}  # of each record's line: offset, bytes
        if path.exists():
            self._scan()

    def _scan(self) -> None:
        end = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                record = from_json(self._type, line, where=f"{self.path}:{number}")
                self._places[self._key(record)] = (end, len(line))
                end += len(line)
        if end < self.path.stat().st_size:
            os.truncate(self.path, end)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[T]:
        """The records, sorted by key, one by one from the file."""
        for line in self._lines():
            yield from_json(self._type, line, where=str(self.path))

    def append(self, record: T) -> None:
        """Add one record and hand it to the operating system before returning."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = f"{to_json(record)}\n".encode()
        with self.path.open("ab") as file:
            self._places[self._key(record)] = (file.tell(), len(line))
            file.write(line)

    def finish(self, *, without: Container[str] = ()) -> None:
        """Rewrite the file sorted by key, each key once, and leave some keys out."""
        self._places = {k: place for k, place in self._places.items() if k not in without}
        places: dict[str, tuple[int, int]] = {}
        with replaced(self.path) as file:
            for key, line in zip(sorted(self._places), self._lines(), strict=True):
                places[key] = (file.tell(), len(line))
                file.write(line)
        self._places = places

    def _lines(self) -> Iterator[bytes]:
        if not self._places:
            return
        with self.path.open("rb") as file:
            for _, (offset, size) in sorted(self._places.items()):
                file.seek(offset)
                yield file.read(size)


# ---- run folders -----------------------------------------------------------------------------


DESCRIPTIONS = ("setting.json", "api.txt")
"""Files that say how a run is made; written before it has done anything."""


class Run:
    """One stage's folder and its manifest.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path, self._manifest = path, manifest
        self._begin = time.monotonic()

    @classmethod
    def open(
        cls, path: Path, *, stage: str, config: Mapping[str, Any], inputs: Mapping[str, Path]
    ) -> Run:
        """Make the folder, or resume it if it holds this same stage, configuration and inputs.

        Args:
            path: the run folder.
            stage: name of the command.
            config: everything that changes the outcome, as JSON-able data.
            inputs: named input files or folders; their SHA-256 goes into the manifest.

        Raises:
            SteperError: if the folder holds another stage, configuration or input, or files that
                no manifest accounts for, or is in use by another process.
        """
        if path.exists() and not path.is_dir():
            raise SteperError(
                "is a file, not a folder.", where=str(path), fix="Choose another --out."
            )
        hashes = {}
        for name, source in inputs.items():
            if not source.exists():
                raise SteperError(
                    f"the {name} does not exist.", where=str(source), fix="Check the path."
                )
            hashes[name] = sha256(source)
        identity = {
            "stage": stage,
            "config": json.loads(json.dumps(config, default=str)),
            "inputs": hashes,
        }
        manifest_path = path / "manifest.json"
        if manifest_path.exists():
            manifest = _read_manifest(manifest_path)
            fresh = not _begun(path, manifest)
            if not fresh:
                _refuse_difference(path, manifest, identity)
            manifest |= identity
        elif path.exists() and any(not _is_ours(file.name) for file in path.iterdir()):
            raise SteperError(
                "the folder is not empty and holds no manifest.json, so it is not a run of steper.",
                where=str(path),
                fix="Choose another --out.",
            )
        else:
            manifest = {
                **identity,
                "version": version("steper"),
                "python": platform.python_version(),
                "status": "running",
                "counts": {},
            }
            fresh = True
            path.mkdir(parents=True, exist_ok=True)
        run = cls(path, manifest)
        run._lock()
        if fresh:
            for name in DESCRIPTIONS:
                (path / name).unlink(missing_ok=True)
            write_json(manifest_path, manifest)
        return run

    @classmethod
    def amend(cls, path: Path) -> Run:
        """Open a finished run to add to it; it stays finished throughout.

        Raises:
            SteperError: if another process works in the folder.
        """
        run = cls(path, _read_manifest(path / "manifest.json"))
        run._lock()
        return run

    def _lock(self) -> None:
        """Hold the folder until the stage is finished or the process ends, however it ends."""
        self._lock_file = (self.path / ".lock").open("w")
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SteperError(
                "another process is working in this folder.",
                where=str(self.path),
                fix="Wait for it to end, or choose another --out.",
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of the folder, whether the stage has been finished or not."""
        self._lock_file.close()

    @property
    def finished(self) -> bool:
        """Whether the stage has already completed here."""
        return bool(self._manifest["status"] == "finished")

    @property
    def inputs(self) -> dict[str, str]:
        """SHA-256 of each input, by its name."""
        return dict(self._manifest["inputs"])

    @property
    def counts(self) -> dict[str, Any]:
        """What the finished stage counted."""
        return dict(self._manifest["counts"])

    def log(self, name: str, type_: type[T], key: Callable[[T], str]) -> Log[T]:
        """Open the append-only log ``NAME.jsonl`` of this run."""
        return Log(self.path / f"{name}.jsonl", type_, key)

    def reopen(self) -> None:
        """Mark a finished stage as running again, to make up for what failed in it."""
        self._manifest |= {"status": "running", "counts": {}}
        write_json(self.path / "manifest.json", self._manifest)

    def finish(self, counts: Mapping[str, Any]) -> None:
        """Mark the stage as completed. Call it last: everything else must be on disk."""
        self._manifest |= {
            "status": "finished",
            "counts": dict(counts),
            "seconds": round(time.monotonic() - self._begin, 3),
        }
        write_json(self.path / "manifest.json", self._manifest)
        self._lock_file.close()


def _is_ours(name: str) -> bool:
    """Whether a file of that name tells nothing of what a run has done.

    A cache of completions may stay: what is in it is found by what was asked, whatever run asks.
    """
    beginnings = (".manifest.json.", "completions.sqlite")  # the first half-written by a kill
    return name in ("manifest.json", *DESCRIPTIONS, ".lock", "rejected.jsonl") or name.startswith(
        beginnings
    )


def _begun(path: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether a folder holds anything that its command could lose: a result or a payment."""
    return manifest["status"] == "finished" or any(
        not _is_ours(file.name) and (file.is_dir() or file.stat().st_size > 0)
        for file in path.iterdir()
    )


def _refuse_difference(
    path: Path, manifest: Mapping[str, Any], identity: Mapping[str, Any]
) -> None:
    """Raise unless the folder's manifest and this command agree on everything that matters."""

    def flat(data: Mapping[str, Any]) -> dict[str, Any]:
        rows = {"stage": data.get("stage")}
        rows |= {f"config.{k}": v for k, v in data.get("config", {}).items()}
        rows |= {f"input.{k}": v for k, v in data.get("inputs", {}).items()}
        return rows

    old, new = flat(manifest), flat(identity)
    changed = [
        f"{name}: {old.get(name)!r} there, {new.get(name)!r} now"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    if changed:
        raise SteperError(
            f"the folder holds another run ({'; '.join(changed)}).",
            where=str(path),
            fix="Choose another --out, or repeat the command that made it to resume it.",
        )


def _read_manifest(path: Path) -> dict[str, Any]:
    """A manifest's content, after checking its shape."""
    manifest = read_json(path)
    parts = {"stage": str, "status": str, "config": dict, "inputs": dict, "counts": dict}
    if not isinstance(manifest, dict) or not all(
        isinstance(manifest.get(name), type_) for name, type_ in parts.items()
    ):
        raise SteperError(
            "is not the manifest of a run.",
            where=str(path),
            fix="It was changed by hand or is of another program; choose another folder.",
        )
    return manifest


def is_finished(folder: Path) -> bool:
    """Whether a folder holds a finished run of any stage."""
    path = folder / "manifest.json"
    return path.is_file() and _read_manifest(path)["status"] == "finished"


def require_finished(path: Path, *, stage: str) -> dict[str, Any]:
    """The manifest of a completed run of ``stage``, for a later stage to read from.

    Raises:
        SteperError: if the folder is no such run or the run has not finished.
    """
    manifest_path = path / "manifest.json"
    if not manifest_path.is_file():
        raise SteperError(
            "is not a run folder: it holds no manifest.json.",
            where=str(path),
            fix=f"Give a folder made by `steper {stage}`.",
        )
    manifest = _read_manifest(manifest_path)
    if manifest.get("stage") != stage:
        raise SteperError(
            f"is a run of `steper {manifest.get('stage')}`, not of `steper {stage}`.",
            where=str(path),
        )
    if manifest.get("status") != "finished":
        raise SteperError(
            f"`steper {stage}` has not finished there.",
            where=str(path),
            fix="Run the command that made it again; it resumes.",
        )
    return manifest
