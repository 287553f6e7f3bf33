"""How passages are kept in an index of OpenSearch or Elasticsearch: its settings and mapping.

Titles and texts are kept as they are and not searched; ``searched`` holds their words, split as in
``engines``, and is searched and not kept.

>>> new_layout("opensearch", "en", None)["mappings"]["properties"]["number"]
{'type': 'long'}
"""

from __future__ import annotations

from typing import Any

from steper.retrieval.analysis import STEMMERS
from steper.retrieval.search_client import ServerKind


def new_layout(kind: ServerKind, language: str, dimensions: int | None) -> dict[str, Any]:
    """The body of the request that creates an index.

    Args:
        kind: what runs there.
        language: of stopwords and stemmer, or ``none``.
        dimensions: of the vectors; ``None`` for words alone.
    """
    stemmer = STEMMERS.get(language)
    filters: dict[str, Any] = {}
    if stemmer is not None:
        filters["stopwords"] = {"type": "stop", "stopwords": f"_{stemmer}_"}
        filters["stems"] = {"type": "stemmer", "language": stemmer}
    words = {"type": "custom", "tokenizer": "whitespace", "filter": list(filters)}
    # One shard: each counts frequent words on its own, so the order would depend on their number.
    settings: dict[str, Any] = {
        "number_of_shards": 1,
        "auto_expand_replicas": "0-1",
        "refresh_interval": "-1",
        "analysis": {"analyzer": {"words": words}, "filter": filters},
    }
    kept = {"type": "keyword", "index": False, "doc_values": False}
    properties: dict[str, Any] = {
        **dict.fromkeys(("id", "title", "text"), kept),
        "number": {"type": "long"},
        "searched": {"type": "text", "analyzer": "words", "index_options": "freqs"},
    }
    if dimensions is not None and kind == "opensearch":
        settings["knn"] = True
        method = {"name": "hnsw", "engine": "lucene", "space_type": "cosinesimil"}
        vector = {"type": "knn_vector", "dimension": dimensions, "method": method}
        properties["vector"] = vector
    elif dimensions is not None:
        properties["vector"] = {"type": "dense_vector", "dims": dimensions, "similarity": "cosine"}
    unkept = {"excludes": ["searched", "vector"]}
    mappings = {"dynamic": "strict", "_source": unkept, "properties": properties}
    return {"settings": {"index": settings}, "mappings": mappings}
