"""A LanceDB table: passages as its rows, written in batches, and the indexes of its columns.

>>> rows = Rows(passages, embedder=None, owner="5f3a")  # doctest: +SKIP
>>> with rows.reraised():  # doctest: +SKIP
...     database.create_table("passages", schema=rows.schema).add(rows.reader())
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from steper.retrieval.analysis import STEMMERS
from steper.retrieval.engines import batched, searched_words
from steper.types import Passage

if TYPE_CHECKING:
    from steper.retrieval.embedding import Embedder

OWNER = b"steper.owner"
"""Where a table says whose it is, in its metadata."""

VECTOR_INDEX_FROM = 50_000
"""Tables of fewer passages are searched vector by vector, which is exact and fast enough."""

_ROWS = 1024


class Rows:
    """A stream of rows.

    Attributes:
        schema: of the table.
    """

    def __init__(
        self,
        passages: Iterable[Passage],
        *,
        embedder: Embedder | None,
        begin: int = 0,
        owner: str = "",
    ) -> None:
        """Prepare the rows; nothing is read yet.

        Args:
            passages: taken in batches.
            embedder: makes their vectors.
            begin: number of the first passage.
            owner: mark of a new table.
        """
        import pyarrow

        self._passages, self._embedder, self._begin = passages, embedder, begin
        self._failure: BaseException | None = None
        columns = [("number", pyarrow.int64())]
        columns += [(name, pyarrow.string()) for name in ("id", "title", "text", "searched")]
        if embedder is not None:
            columns.append(("vector", pyarrow.list_(pyarrow.float32(), embedder.dimensions)))
        self.schema = pyarrow.schema(columns, metadata={OWNER: owner.encode()} if owner else None)

    def reader(self) -> Any:
        """The rows as LanceDB takes them, once."""
        import pyarrow

        return pyarrow.RecordBatchReader.from_batches(self.schema, self._batches())

    @contextmanager
    def reraised(self) -> Iterator[None]:
        """Raise what went wrong with the passages; LanceDB only tells that something did."""
        try:
            yield
        except RuntimeError:
            if self._failure is not None:
                raise self._failure from None
            raise

    def _batches(self) -> Iterator[Any]:
        number = self._begin
        try:
            for batch in batched(tqdm(self._passages, desc="lancedb", unit=" passages"), _ROWS):
                yield self._batch(batch, number)
                number += len(batch)
        except BaseException as error:
            self._failure = error
            raise

    def _batch(self, batch: list[Passage], number: int) -> Any:
        import pyarrow

        texts = [(p.id, p.title, p.text, searched_words(p)) for p in batch]
        arrays: list[Any] = [pyarrow.array(range(number, number + len(batch)))]
        arrays += [pyarrow.array(column, pyarrow.string()) for column in zip(*texts, strict=True)]
        if self._embedder is not None:
            vectors = pyarrow.array(self._embedder.passages(batch).ravel(), pyarrow.float32())
            size = self._embedder.dimensions
            arrays.append(pyarrow.FixedSizeListArray.from_arrays(vectors, size))
        return pyarrow.record_batch(arrays, schema=self.schema)


def words_index(language: str) -> Any:
    """How words that are split already are indexed."""
    from lancedb.index import FTS

    stemmer = STEMMERS.get(language)
    return FTS(
        base_tokenizer="whitespace",  # the words are split already
        language=(stemmer or "english").title(),
        stem=stemmer is not None,
        remove_stop_words=stemmer is not None,
        max_token_length=255,
        with_position=False,
    )


def index_vectors(table: Any, embedder: Embedder | None) -> None:
    """Give a large table an approximate index of its vectors, unless it has one."""
    if embedder is None or table.count_rows() < VECTOR_INDEX_FROM:
        return
    if not any(index.columns == ["vector"] for index in table.list_indices()):
        from lancedb.index import IvfPq

        table.create_index("vector", config=IvfPq(distance_type="dot"))
