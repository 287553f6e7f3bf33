"""Data sets of the Hugging Face hub, and those saved with ``save_to_disk``.

>>> is_saved(Path("."))
False
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from steper.corpus.files import DOCUMENTS, TABLES
from steper.corpus.reading import Progress, Reading
from steper.corpus.tables import Columns
from steper.errors import SteperError
from steper.retrieval.info import needs

_BATCH_ROWS = 1000
_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def is_saved(folder: Path) -> bool:
    """Whether a folder was made by ``save_to_disk``."""
    one = (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file()
    return one or (folder / "dataset_dict.json").is_file()


def is_name(source: str) -> bool:
    """Whether a source is a data set's name on the hub, ``owner/name``, and no mistyped path."""
    path = Path(source)
    readable = source.lower().endswith((*TABLES, *DOCUMENTS))
    return bool(_NAME.fullmatch(source)) and not (path.exists() or path.parent.exists() or readable)


def dataset_rows(
    data: Any, source: str, columns: Columns, progress: Progress | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of an opened data set with their places.

    Raises:
        SteperError: if its columns would spoil every record, or it stops coming.
    """
    names = data.column_names
    number = 0
    try:
        if names:  # a stream may not know them before the first row
            data = data.select_columns(columns.choose(names, source))
        for batch in data.with_format("arrow").iter(_BATCH_ROWS):
            rows = batch.to_pylist()
            if not names:
                names = batch.column_names
                columns.check(names, source)
            for row in rows:
                number += 1
                yield f"{source}: row {number}", row
            if progress:
                progress(len(rows))
    except (OSError, ValueError) as error:
        raise SteperError(
            f"stopped after {number:,} rows: {error}.",
            where=source,
            fix="Check the connection and start again.",
        ) from None


def open_saved(folder: Path, reading: Reading) -> Any:
    """A saved data set, of several splits the one asked for.

    Raises:
        SteperError: if it is damaged or has no such split.
    """
    datasets = _library("reading a saved Hugging Face data set")
    try:
        data = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SteperError(
            f"cannot be read as a saved data set: {error}.", where=str(folder), fix="Save it again."
        ) from None
    if isinstance(data, datasets.DatasetDict):
        if reading.hub_split not in data:
            raise SteperError(
                f"has no split {reading.hub_split!r}.",
                where=str(folder),
                fix=f"Choose with `--hub-split`: {', '.join(data)}.",
            )
        return data[reading.hub_split]
    return data


def open_hub(name: str, reading: Reading) -> Any:
    """A data set of the hub, streamed.

    Raises:
        SteperError: if it cannot be had.
    """
    datasets = _library(
        f"there is no file or folder {name}, and reading a Hugging Face data set of that name"
    )
    try:
        return datasets.load_dataset(
            name, reading.hub_config or None, split=reading.hub_split, streaming=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise SteperError(
            f"there is no such file or folder, and the hub's data set of that name cannot be read: "
            f"{' '.join(str(error).split())}.",
            where=name,
            fix="Check the path or name, the connection, `--hub-config` and `--hub-split`.",
        ) from None


def _library(what: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise needs("hub", what) from None
    return datasets
