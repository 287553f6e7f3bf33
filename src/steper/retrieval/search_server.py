"""OpenSearch and Elasticsearch: an index on a cluster, for corpora that many machines share.

One class serves both. Words are split here (see ``engines``); the server drops stopwords and
stems. An index is marked complete only at the end, in its mapping, and is not opened before.

>>> info = read_info(Path("runs/index"))  # doctest: +SKIP
>>> ServerIndex(info).search(["Who hosted Hee Haw?"], k=4)[0][0].title  # doctest: +SKIP
'Hee Haw'
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from steper.errors import SteperError
from steper.prose import whole
from steper.retrieval.analysis import settings
from steper.retrieval.engines import (
    batched,
    embedder_of,
    query_words,
    searched_words,
)
from steper.retrieval.hybrid import FUSED_DEPTH, fuse
from steper.retrieval.info import REBUILD, IndexInfo, ServerInfo, check_request
from steper.retrieval.search_client import Cluster, ServerKind
from steper.retrieval.search_layout import new_layout
from steper.types import Passage

if TYPE_CHECKING:
    from steper.retrieval.embedding import Embedder

MOST_RESULTS = 10_000
"""Servers give no more for one query."""

_ROWS = 500
_SEARCHES = 32

_Meta = dict[str, Any]
"""What an index says of itself: ``build``, a random mark; ``passages``, ``None`` until complete."""


# ---- building --------------------------------------------------------------------------------


def build_on_server(
    kind: ServerKind,
    passages: Iterable[Passage],
    *,
    urls: Sequence[str],
    name: str,
    language: str,
    embedder: Embedder | None,
) -> ServerInfo:
    """Write the passages to a new index of the cluster.

    What an interrupted build left under that name is deleted first; nothing else is.

    Args:
        kind: what runs there.
        passages: taken in batches; nothing else is held in memory.
        urls: of the cluster's nodes; they may hold user and password.
        name: of the index, in lower case.
        language: of stopwords and stemmer, or ``none``.
        embedder: makes the vectors; without one, passages are found by their words alone.

    Raises:
        SteperError: if the language is unknown, the cluster does not answer or refuses, or has a
            complete or a foreign index of that name.
    """
    settings(language)  # refuses an unknown one
    cluster = Cluster(kind, urls)
    _make_room(cluster, name)
    meta: _Meta = {"build": secrets.token_hex(8), "passages": None}
    layout = new_layout(kind, language, None if embedder is None else embedder.dimensions)
    layout["mappings"]["_meta"] = {"steper": meta}
    cluster.call(cluster.client.indices.create, index=name, body=layout)
    _write(cluster, name, passages, meta, embedder)
    info = None if embedder is None else embedder.info(_first(cluster, name))
    return ServerInfo(cluster.urls, name, language, info)


def add_on_server(
    passages: Iterable[Passage],
    info: IndexInfo,
    *,
    state: str = "",
    embedder: Embedder | None,
) -> ServerInfo:
    """Add passages to an index of a cluster.

    The caller makes sure that their ids are new. Those who opened the index earlier go on finding
    only its earlier passages, though words count as rare or frequent by all of them.

    Raises:
        SteperError: if the index is not there, is not whole, or cannot be written to.
    """
    described = _described(info)
    cluster, meta = _open(info)
    first = partial(_first, cluster, described.name)
    embedder = embedder_of(described.embedder, embedder, first)
    if meta["passages"] > info.passages and meta.get("state") != state:
        raise SteperError(
            f"the index {described.name!r} has {meta['passages']:,} passages, this folder knows of "
            f"{info.passages:,}: another copy of the folder has added to it, or an addition from "
            "this one was interrupted.",
            where=cluster.where,
            fix="Add from that copy; or repeat the very addition that was interrupted first.",
        )
    # Passages that an interrupted addition left have these numbers, and are replaced.
    meta |= {"passages": info.passages, "state": state}
    _write(cluster, described.name, passages, meta, embedder)
    return described


def _make_room(cluster: Cluster, name: str) -> None:
    """Delete an incomplete index of ours."""
    if not cluster.call(cluster.client.indices.exists, index=name):
        return
    meta = _meta(cluster, name)
    if meta is None or meta["passages"] is not None:
        what = "one that steper did not make" if meta is None else "a complete one"
        raise SteperError(
            f"there is an index {name!r} already, {what}.",
            where=cluster.where,
            fix=f"Choose another name, or delete it if nobody needs it: "
            f"curl -X DELETE {cluster.urls[0]}/{name}",
        )
    cluster.call(cluster.client.indices.delete, index=name)


def _write(
    cluster: Cluster,
    name: str,
    passages: Iterable[Passage],
    meta: _Meta,
    embedder: Embedder | None,
) -> None:
    """Write passages after those there are, and mark the index complete."""
    client = cluster.client

    def send(rows: list[dict[str, Any]]) -> list[Mapping[str, Any]]:
        # The same passage has the same _id at every try, so it is never there twice.
        ids = [f"{meta['build']}-{row['number']}" for row in rows]
        body = [
            line
            for id_, row in zip(ids, rows, strict=True)
            for line in ({"index": {"_index": name, "_id": id_}}, row)
        ]
        return [item["index"] for item in cluster.call(client.bulk, body=body)["items"]]

    number = meta["passages"] or 0
    for batch in batched(tqdm(passages, desc=name, unit=" passages"), _ROWS):
        rows: list[dict[str, Any]] = [
            {"id": p.id, "title": p.title, "text": p.text, "searched": searched_words(p)}
            | {"number": number + i}
            for i, p in enumerate(batch)
        ]
        if embedder is not None:
            for row, vector in zip(rows, embedder.passages(batch), strict=True):
                row["vector"] = vector.tolist()
        cluster.call_each(send, rows)
        number += len(batch)
    cluster.call(client.indices.refresh, index=name)
    counted = cluster.call(client.count, index=name, body={"query": _below(number)})["count"]
    if counted != number or (_meta(cluster, name) or {}).get("build") != meta["build"]:
        raise SteperError(
            f"the index {name!r} has {counted:,} passages, {number:,} were written; another "
            "process must have changed it.",
            where=cluster.where,
            fix="Build it again, under a name of its own.",
        )
    marked = {"_meta": {"steper": meta | {"passages": number}}}
    cluster.call(client.indices.put_mapping, index=name, body=marked)


# ---- searching -------------------------------------------------------------------------------


class ServerIndex:
    """An index of a cluster, searched by words, or by words and vectors, fused.

    A query is searched by its first 512 distinct words, because servers refuse very long ones, and
    gets 10,000 passages at most. Threads may share the index.

    Args:
        info: what it is made of.
        embedder: the one that made its vectors; ``None`` loads it.

    Raises:
        SteperError: if the cluster does not answer, or has no such index, or an incomplete one.
    """

    def __init__(self, info: IndexInfo, *, embedder: Embedder | None = None) -> None:
        described = _described(info)
        self.info, self._name = info, described.name
        self._cluster, _ = _open(info)
        first = partial(_first, self._cluster, self._name)
        self._embedder = embedder_of(described.embedder, embedder, first)

    def __len__(self) -> int:
        return self.info.passages

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """Return, for each query, at most ``k`` passages, best first; ``[]`` where none match.

        Passages of equal score come in corpus order.

        Raises:
            SteperError: if ``k`` is less than 1, or the cluster does not answer.
        """
        check_request(queries, k)
        if self._embedder is None:
            return self._by_words(queries, min(k, MOST_RESULTS))
        depth = min(max(FUSED_DEPTH, k), MOST_RESULTS)
        both = (self._by_words(queries, depth), self._by_vector(queries, depth))
        return [fuse(rankings)[:k] for rankings in zip(*both, strict=True)]

    def _by_words(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        words = [query_words(query) for query in queries]
        visible = _below(len(self))
        bodies = [
            {"query": {"bool": {"must": [{"match": {"searched": text}}], "filter": [visible]}}}
            for text in words
            if text
        ]
        found = iter(_search(self._cluster, self._name, bodies, k))
        return [next(found) if text else [] for text in words]

    def _by_vector(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        asked = [whole(query) for query in queries if query.strip()]
        if not asked or self._embedder is None:
            return [[] for _ in queries]
        visible = _below(len(self))
        bodies: list[dict[str, Any]] = []
        for vector in self._embedder.queries(asked).tolist():
            if self.info.kind == "opensearch":
                nearest = {"vector": vector, "k": k, "filter": visible}
                bodies.append({"query": {"knn": {"vector": nearest}}})
            else:
                candidates = min(2 * k, MOST_RESULTS)
                nearest = {"query_vector": vector, "k": k, "num_candidates": candidates}
                bodies.append({"knn": {"field": "vector", **nearest, "filter": visible}})
        found = iter(_search(self._cluster, self._name, bodies, k))
        return [next(found) if query.strip() else [] for query in queries]


def _search(
    cluster: Cluster, name: str, bodies: Sequence[Mapping[str, Any]], k: int
) -> list[list[Passage]]:
    """The best passages of each search."""
    more = {
        "size": k,
        "sort": [{"_score": "desc"}, {"number": "asc"}],
        "_source": ["id", "title", "text"],
        "track_total_hits": False,
    }
    # Always the same copy of the shard: they differ in what is deleted, and so in their scores.
    head = {"index": name, "preference": "steper"}

    def send(batch: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        lines = [line for body in batch for line in (head, {**body, **more})]
        answers: list[Mapping[str, Any]] = cluster.call(cluster.client.msearch, body=lines)[
            "responses"
        ]
        return answers

    return [
        [Passage(**hit["_source"]) for hit in answer["hits"]["hits"]]
        for batch in batched(bodies, _SEARCHES)
        for answer in cluster.call_each(send, batch)
    ]


# ---- both ------------------------------------------------------------------------------------


def _described(info: IndexInfo) -> ServerInfo:
    if info.server is None:
        raise SteperError("the index is on no server.", where="info.json", fix=REBUILD)
    return info.server


def _open(info: IndexInfo) -> tuple[Cluster, _Meta]:
    """Connect to an index's cluster, after making sure that the index there is whole."""
    described = _described(info)
    kind: ServerKind = "opensearch" if info.kind == "opensearch" else "elasticsearch"
    cluster = Cluster(kind, described.urls)
    problem = ""
    meta: _Meta | None = None
    if not cluster.call(cluster.client.indices.exists, index=described.name):
        problem = "is not there"
    elif (meta := _meta(cluster, described.name)) is None:
        problem = "was not made by steper"
    elif meta["passages"] is None:
        problem = "is not complete: its building was interrupted, or is under way"
    elif meta["passages"] < info.passages:
        problem = f"has {meta['passages']:,} passages, {info.passages:,} were written"
    if problem or meta is None:
        raise SteperError(
            f"the index {described.name!r} {problem}.", where=cluster.where, fix=REBUILD
        )
    return cluster, meta


def _meta(cluster: Cluster, name: str) -> _Meta | None:
    """What an index says of itself; ``None`` where steper did not make it."""
    (index,) = cluster.call(cluster.client.indices.get_mapping, index=name).values()
    found: _Meta | None = index["mappings"].get("_meta", {}).get("steper")
    return found


def _first(cluster: Cluster, name: str) -> Passage:
    """The first passage, whose vector tells embedding models apart."""
    ((passage,),) = _search(cluster, name, [{"query": _below(1)}], 1)
    return passage


def _below(number: int) -> dict[str, Any]:
    """The query for the passages of lower numbers."""
    return {"range": {"number": {"lt": number}}}
