"""What the engines with an index of their own (LanceDB, OpenSearch, Elasticsearch) have in common.

Their analyzers split text at different places, and most keep a Korean word with its particles in
one piece. So they are given words that are split already, as BM25 splits them, and only drop the
stopwords and stem; a query can then hold no syntax either.

>>> split_words("The bands hosted shows in 서울은.")
'the bands hosted shows in 서울 울은'
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from steper.retrieval.analysis import Analyzer, settings
from steper.retrieval.info import EmbedderInfo
from steper.retrieval.passages import searched
from steper.types import Passage

if TYPE_CHECKING:
    from steper.retrieval.embedding import Embedder

T = TypeVar("T")

MOST_WORDS = 512
"""Of a query's distinct words, so many are searched. Servers refuse more than 1,024 clauses."""


@cache
def _analyzer() -> Analyzer:
    # Splitting is the same in every language.
    return Analyzer(settings("none"))


def split_words(text: str) -> str:
    """The lower-case words of a text, put together again with single spaces."""
    return " ".join(_analyzer().words(text))


def searched_words(passage: Passage) -> str:
    """The words of a passage that are searched."""
    return split_words(searched(passage))


def query_words(query: str) -> str:
    """The first ``MOST_WORDS`` distinct words of a query; empty where it has none."""
    return " ".join(islice(dict.fromkeys(_analyzer().words(query)), MOST_WORDS))


def embedder_of(
    info: EmbedderInfo | None, given: Embedder | None, first: Callable[[], Passage]
) -> Embedder | None:
    """The embedder that an index's vectors were made by, loaded unless it is given.

    Args:
        info: what the index says of it; ``None`` where it has no vectors.
        given: one at hand.
        first: gives the index's first passage, whose vector tells models apart.

    Raises:
        SteperError: if the model cannot be loaded or is another one by now.
    """
    if info is None:
        return None
    if given is not None:
        given.check(info, first())
        return given
    from steper.retrieval.embedding import Embedder

    return Embedder.from_info(info, first())


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items in lists of at most ``size``."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
