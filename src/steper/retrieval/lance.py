"""LanceDB: words and vectors in one table, on the local disk or on object storage.

The table is read where it lies, so a corpus may be larger than memory, and any number of readers
may open it from S3 or the like. LanceDB keeps every version of a table: an index reads the version
it was built with, while a writer adds to it.

>>> info = read_info(Path("runs/index"))  # doctest: +SKIP
>>> LanceIndex(Path("runs/index"), info).search(["Who hosted Hee Haw?"], k=4)  # doctest: +SKIP
[[Passage(id='hee-haw', title='Hee Haw', text='Hee Haw is a country variety show…')]]
"""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from steper.errors import SteperError
from steper.prose import whole
from steper.retrieval.analysis import settings
from steper.retrieval.engines import (
    embedder_of,
    query_words,
)
from steper.retrieval.hybrid import FUSED_DEPTH, fuse
from steper.retrieval.info import REBUILD, IndexInfo, TableInfo, check_request, needs
from steper.retrieval.lance_table import OWNER, Rows, index_vectors, words_index
from steper.store import write_atomic
from steper.types import Passage

if TYPE_CHECKING:
    from steper.retrieval.embedding import Embedder

_SPARE = 32
"""So many more hits than asked for are fetched: passages that tie come in any order."""

_CELLS_PROBED, _REFINED = 32, 8
"""How thorough the approximate search is: of IVF's cells, and exact distances per hit wanted."""

_FOREVER = timedelta(days=36_500)


# ---- building --------------------------------------------------------------------------------


def build_lance(
    passages: Iterable[Passage],
    folder: Path,
    *,
    uri: str,
    language: str,
    embedder: Embedder | None,
) -> TableInfo:
    """Write the passages to a new table and index it.

    Args:
        passages: taken in batches; nothing else is held in memory.
        folder: of the index. Only ``folder/lance`` is written to.
        uri: the database: a folder, or s3://, gs://, az://; empty for ``folder/lance``. A database
            elsewhere gets a table named as the folder. One left by an interrupted build of this
            same folder is dropped first.
        language: of stopwords and stemmer, or ``none``.
        embedder: makes the vectors; without one, passages are found by their words alone.

    Raises:
        SteperError: if the language is unknown, the database cannot be written to, or holds a
            table of that name that was not made for this folder.
    """
    settings(language)  # refuses an unknown one
    if uri and "://" not in uri:
        uri = str(Path(uri).absolute())  # to be found from any working folder
    where = uri or str(folder / "lance")
    with _explained(where):
        database = _connect(uri, folder)
        if uri:
            name = re.sub(r"[^A-Za-z0-9_.-]", "_", folder.resolve().name)
            owner = _make_room(database, name, folder, where=where)
        else:
            name, owner = "passages", ""
            shutil.rmtree(folder / "lance", ignore_errors=True)
        rows = Rows(passages, embedder=embedder, owner=owner)
        # Made empty first: an interrupted build then leaves a table that says whose it is.
        table = database.create_table(name, schema=rows.schema)
        with rows.reraised():
            table.add(rows.reader())
        table.create_index("searched", config=words_index(language))
        index_vectors(table, embedder)
        info = None if embedder is None else embedder.info(_first(table))
        return TableInfo(uri, name, table.version, language, info)


def add_to_lance(
    passages: Iterable[Passage], folder: Path, info: IndexInfo, *, embedder: Embedder | None
) -> TableInfo:
    """Add passages to an index's table, without indexing the others again.

    The caller makes sure that their ids are new. What an interrupted addition left is undone first.

    Returns:
        The description with the table's new version; readers of the old one go on undisturbed.

    Raises:
        SteperError: if the table cannot be opened or written to.
    """
    described = _described(info)
    with _explained(described.uri or str(folder / "lance")):
        table = _connect(described.uri, folder).open_table(described.table)
        if table.version != described.version:
            table.checkout(described.version)
            table.restore()
        embedder = embedder_of(described.embedder, embedder, partial(_first, table))
        rows = Rows(passages, embedder=embedder, begin=info.passages)
        with rows.reraised():
            table.add(rows.reader())
        # Old versions are kept: an index of an earlier state may still be read.
        table.optimize(cleanup_older_than=_FOREVER)
        index_vectors(table, embedder)
        return TableInfo(
            described.uri, described.table, table.version, described.language, described.embedder
        )


def _connect(uri: str, folder: Path) -> Any:
    try:
        import lancedb
    except ImportError:
        raise needs("lancedb", "An index in LanceDB") from None
    return lancedb.connect(uri or str(folder / "lance"))


def _make_room(database: Any, name: str, folder: Path, *, where: str) -> str:
    """Drop the table of an interrupted build of this folder; return the mark of the new one."""
    mark = folder / "lance" / "owner.txt"
    if name in _table_names(database):
        owner = (database.open_table(name).schema.metadata or {}).get(OWNER, b"").decode()
        if not owner or not mark.is_file() or mark.read_text() != owner:
            raise SteperError(
                f"the database holds a table {name!r} that was not made for this index.",
                where=where,
                fix="Choose another name for --out, or drop the table if nobody needs it.",
            )
        database.drop_table(name)
    owner = secrets.token_hex(8)
    write_atomic(mark, owner)
    return owner


def _table_names(database: Any) -> set[str]:
    names: set[str] = set()
    page = database.list_tables()
    names.update(page.tables)
    while page.page_token:
        page = database.list_tables(page_token=page.page_token)
        names.update(page.tables)
    return names


def _first(table: Any) -> Passage:
    (row,) = table.search().where("number = 0").select(["id", "title", "text"]).limit(1).to_list()
    return Passage(id=row["id"], title=row["title"], text=row["text"])


# ---- searching -------------------------------------------------------------------------------


class LanceIndex:
    """A table to search by words, or by words and vectors, fused; threads may share it.

    A query is searched by its first 512 distinct words.

    Args:
        folder: of the index.
        info: what it is made of.
        embedder: the one that made its vectors; ``None`` loads it.

    Raises:
        SteperError: if the table or its version is not there.
    """

    def __init__(self, folder: Path, info: IndexInfo, *, embedder: Embedder | None = None) -> None:
        described = _described(info)
        self.info = info
        self._where = described.uri or str(folder / "lance")
        with _explained(self._where):
            database = _connect(described.uri, folder)
            self._table = database.open_table(described.table, version=described.version)
            rows = self._table.count_rows()
        if rows != info.passages:
            raise SteperError(
                f"version {described.version} of table {described.table!r} has {rows:,} passages, "
                f"{info.passages:,} were written.",
                where=self._where,
                fix=REBUILD,
            )
        with _explained(self._where):
            first = partial(_first, self._table)
            self._embedder = embedder_of(described.embedder, embedder, first)

    def __len__(self) -> int:
        return self.info.passages

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """Return, for each query, at most ``k`` passages, best first; ``[]`` where none match.

        Passages of equal score come in corpus order.

        Raises:
            SteperError: if ``k`` is less than 1, or the table cannot be read.
        """
        check_request(queries, k)
        asked = [query for query in queries if query.strip()]
        vectors: Any = [None] * len(asked)
        if self._embedder is not None and asked:
            vectors = self._embedder.queries([whole(query) for query in asked])
        # Several at a time: the storage may be far away.
        with _explained(self._where), ThreadPoolExecutor(max_workers=8) as pool:
            found = iter(list(pool.map(partial(self._find, k=k), asked, vectors)))
        return [next(found) if query.strip() else [] for query in queries]

    def _find(self, query: str, vector: Any, *, k: int) -> list[Passage]:
        if vector is None:
            return self._passages(self._by_words(query, k))
        depth = max(FUSED_DEPTH, k)
        rankings = [self._by_words(query, depth), self._by_vector(vector, depth)]
        return fuse([self._passages(ranking) for ranking in rankings])[:k]

    def _by_words(self, query: str, k: int) -> list[int]:
        from lancedb.query import MatchQuery

        if not (words := query_words(query)):
            return []
        # A match query is made of words: nothing in it is syntax. One of them is enough.
        match = MatchQuery(words, "searched")  # type: ignore[call-arg]
        return _best(lambda: self._table.search(match, query_type="fts"), "_score", k)

    def _by_vector(self, vector: Any, k: int) -> list[int]:
        def search() -> Any:
            nearest = self._table.search(vector, vector_column_name="vector").distance_type("dot")
            return nearest.nprobes(_CELLS_PROBED).refine_factor(_REFINED)

        return _best(search, "_distance", k)

    def _passages(self, row_ids: list[int]) -> list[Passage]:
        """The passages of rows, in the order asked for."""
        if not row_ids:
            return []
        columns = ["id", "title", "text"]
        rows = self._table.take_row_ids(row_ids).select(columns).with_row_id().to_list()
        found = {row["_rowid"]: Passage(*(row[name] for name in columns)) for row in rows}
        return [found[row_id] for row_id in row_ids]


def _best(search: Callable[[], Any], measure: str, k: int) -> list[int]:
    """The rows of the ``k`` best passages, best first.

    LanceDB gives those that tie in any order, and any of them where not all are wanted. So some
    more are asked for, until the last one is worse than the k-th.
    """
    limit = k + _SPARE
    while True:
        table = search().select(["number", measure]).with_row_id(True).limit(limit).to_arrow()
        measures, numbers = table[measure].to_numpy(), table["number"].to_numpy()
        if measure == "_score":
            measures = -measures
        order = np.lexsort((numbers, measures))
        if len(order) < limit or measures[order[-1]] > measures[order[k - 1]]:
            break
        limit *= 8
    row_ids = table["_rowid"].to_numpy()
    return [int(row_ids[i]) for i in order[:k]]


# ---- both ------------------------------------------------------------------------------------


def _described(info: IndexInfo) -> TableInfo:
    if info.table is None:
        raise SteperError("the index has no LanceDB table.", where="info.json", fix=REBUILD)
    return info.table


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """Turn what LanceDB raises, mostly about files and networks, into an error for people."""
    try:
        yield
    except SteperError:
        raise
    except (OSError, RuntimeError, ValueError, OverflowError) as error:
        raise SteperError(
            f"LanceDB failed: {' '.join(str(error).split())[:500]}.",
            where=where,
            fix="Check that the database is there, can be reached and has room; then try again, "
            "or build the index again with `steper index`.",
        ) from error
