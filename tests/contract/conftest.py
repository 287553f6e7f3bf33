"""Every backend, built of the same passages, for the one suite that all must pass.

OpenSearch and Elasticsearch run here against a stand-in, and against the real server where one is
named:

    docker compose up -d --wait opensearch
    STEPER_OPENSEARCH_URL=http://localhost:9200 make test ARGS="tests/contract"
"""

from __future__ import annotations

import json
import os
import re
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from secrets import token_hex
from typing import Any, cast

import pytest

from searching import CORPUS, Backend, StandIn
from steper.retrieval.embedding import Embedder
from steper.retrieval.indexes import Engine, make_index, open_index
from steper.retrieval.info import Index
from steper.types import IndexKind

LOCAL: dict[str, tuple[IndexKind, bool]] = {
    "bm25": ("bm25", False),
    "dense": ("dense", True),
    "hybrid": ("hybrid", True),
    "lancedb": ("lancedb", False),
    "lancedb+vectors": ("lancedb", True),
}
"""Name to kind, and whether vectors are searched."""

SERVERS: tuple[IndexKind, ...] = ("opensearch", "elasticsearch")


def real_url(kind: str) -> str:
    """The address of a real server, empty where none is named."""
    return os.environ.get(f"STEPER_{kind.upper()}_URL", "")


NAMES = [
    *LOCAL,
    "http",
    *(f"{kind}{plus}-stand-in" for kind in SERVERS for plus in ("", "+vectors")),
    *(f"{kind}{plus}" for kind in SERVERS for plus in ("", "+vectors") if real_url(kind)),
]


@pytest.fixture(scope="session")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    """A real model of a few kilobytes: a text's vector is the mean of its words' random ones."""
    reason = "needs pip install 'steper[dense]'"
    models = pytest.importorskip("sentence_transformers", reason=reason)
    modules = pytest.importorskip("sentence_transformers.models", reason=reason)
    import torch
    from tokenizers import Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import WordLevel

    words = sorted({w for p in CORPUS for w in re.findall(r"\w+", f"{p.title} {p.text}".lower())})
    vocabulary = {word: n for n, word in enumerate(["[UNK]", *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("embedder")
    static = modules.StaticEmbedding(tokenizer, embedding_dim=32)
    models.SentenceTransformer(modules=[static], device="cpu").save(str(folder))
    return Embedder(str(folder), device="cpu")


@pytest.fixture(scope="session", params=NAMES)
def backend(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Backend]:
    """Each backend in turn, with the index of ``CORPUS``."""
    name = cast(str, request.param)
    folder = tmp_path_factory.mktemp(name.replace("+", "-")) / "index"
    kind, vectors = LOCAL.get(name, ("bm25", False))
    kind = next((server for server in SERVERS if name.startswith(server)), kind)
    vectors = vectors or "+vectors" in name
    needs_library(kind)
    model: Embedder | str = request.getfixturevalue("embedder") if vectors else ""
    with ExitStack() as stack:
        urls: tuple[str, ...] = ()
        if kind in SERVERS:
            stand_in = name.endswith("stand-in")
            urls = (stack.enter_context(StandIn(kind)).url if stand_in else real_url(kind),)
        engine = Engine(
            kind=kind, embedder=model, urls=urls, name=f"steper-contract-{token_hex(4)}"
        )
        index = make_index(CORPUS, folder, engine, keep_duplicates=True)
        if kind in SERVERS:
            stack.callback(delete, f"{urls[0]}/{engine.name}")
        where = str(folder)
        # ---- backends that wrap another: an index over HTTP ----
        if name == "http":
            where = stack.enter_context(served(index))
            index = open_index(where)
        yield Backend(name, index, not vectors, lambda: open_index(where))


def needs_library(kind: str) -> None:
    library = {"lancedb": "lancedb", "opensearch": "opensearchpy", "elasticsearch": "elasticsearch"}
    if kind in library:
        pytest.importorskip(library[kind], reason=f"needs pip install 'steper[{kind}]'")


def delete(url: str) -> None:
    with urllib.request.urlopen(urllib.request.Request(url, method="DELETE")) as response:
        assert json.load(response)["acknowledged"]


@contextmanager
def served(index: Index) -> Iterator[str]:
    """The address of an index that is served in a thread."""
    pytest.importorskip("fastapi", reason="needs pip install 'steper[serve]'")
    from steper.retrieval.remote import Limits
    from steper.serve import listen, server_of

    server: Any = server_of(index, Limits(max_k=1000))
    listener = listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
