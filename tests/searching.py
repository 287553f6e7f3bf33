"""What every backend is tested with: a small corpus, and a stand-in for a search server.

The stand-in has the endpoints of OpenSearch or Elasticsearch that steper uses, and no others. It
is strict where the real ones are: unknown fields, too many clauses or results, a wrong method
and a missing index are refused as they refuse them. Scores are BM25's, computed naively.

>>> with StandIn("opensearch") as server:
...     print(server.url)  # doctest: +SKIP
http://127.0.0.1:54321
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

import Stemmer

from steper.retrieval.info import Index
from steper.types import Passage

TWINS = [Passage(f"twin-{n}", "Twin", "Twins look alike everywhere") for n in range(60)]
"""They tie with each other, whatever is asked."""

CORPUS = [
    Passage("hee-haw", "Hee Haw", "Hee Haw is a country variety show hosted by Roy Clark."),
    Passage("clark", "Roy Clark", "Roy Clark was an American singer who hosted Hee Haw."),
    *TWINS,
    Passage("서울#1", "서울", "서울은 대한민국의 수도이다."),
    Passage("부산#1", "부산", "부산은 바다가 있는 항구 도시이다."),
    Passage(
        "../é/\u2028 \"'\\",
        "Żukowski\t<b>",
        "  Zwei  Leerzeichen,\nneue Zeile;\u00a0 𝔘 😀 e\u0301 ",
    ),
    Passage(
        "nul", "A\x00B", "A control\x00character\x07 and ()[]{} + - && || ! ^ ~ * ? : \\ / AND OR"
    ),
    Passage("untitled", "", "Only a text about zebras."),
    Passage("long", "Long", "lorem ipsum " * 2000 + "needle"),
]


@dataclass
class Backend:
    """An index to be tested.

    Attributes:
        name: what the test is called by.
        index: the index.
        words_only: whether it finds only passages that share a word with the query.
        reopen: opens it once more.
    """

    name: str
    index: Index
    words_only: bool
    reopen: Callable[[], Index]


STOPWORDS = frozenset(["a", "an", "and", "are", "by", "in", "is", "not", "of", "or", "the", "to"])
"""Some of Lucene's English list."""

Document = dict[str, Any]
Answer = tuple[int, Any]


class Refusal(Exception):
    """A request that the server refuses."""

    def __init__(self, status: int, kind: str, reason: str = "") -> None:
        super().__init__(reason)
        self.status = status
        self.error: object = {"type": kind, "reason": reason or kind}


class Shard:
    """An index of one shard."""

    def __init__(self, layout: dict[str, Any]) -> None:
        self.settings = layout["settings"]["index"]
        self.mappings = layout["mappings"]
        self.written: dict[str, Document] = {}
        self.visible: list[Document] = []

    def refresh(self) -> None:
        self.visible = [{**document} for document in self.written.values()]
        self.counts = [Counter(self.terms(d["searched"])) for d in self.visible]
        self.frequency = Counter(term for counts in self.counts for term in counts)
        self.mean_length = sum(sum(c.values()) for c in self.counts) / max(1, len(self.counts))

    def terms(self, text: str) -> list[str]:
        analysis = self.settings["analysis"]
        name = self.mappings["properties"]["searched"]["analyzer"]
        analyzer = analysis["analyzer"][name]
        assert analyzer["tokenizer"] == "whitespace"
        terms = text.split()
        for filter_ in (analysis["filter"][name] for name in analyzer["filter"]):
            if filter_["type"] == "stop":
                terms = [term for term in terms if term not in STOPWORDS]
            else:
                terms = Stemmer.Stemmer(filter_["language"]).stemWords(terms)
        return terms

    def write(self, id_: str, document: Document) -> None:
        unknown = document.keys() - self.mappings["properties"].keys()
        if unknown:
            raise Refusal(400, "strict_dynamic_mapping_exception", f"{sorted(unknown)}")
        vector = self.mappings["properties"].get("vector")
        if vector is not None:
            wanted = vector.get("dims", vector.get("dimension"))
            if len(document["vector"]) != wanted:
                raise Refusal(400, "mapper_parsing_exception", "wrong number of dimensions")
        self.written[id_] = document

    def matches(self, query: dict[str, Any]) -> Iterator[tuple[float, Document]]:
        """The documents that a query finds, with their scores."""
        ((kind, body),) = query.items()
        match kind:
            case "range":
                ((field, bounds),) = body.items()
                assert bounds.keys() == {"lt"}
                yield from ((1.0, d) for d in self.visible if d[field] < bounds["lt"])
            case "match":
                ((_, text),) = body.items()
                yield from self._bm25(self.terms(text))
            case "bool":
                (must,), (filter_,) = body["must"], body["filter"]
                allowed = {d["number"] for _, d in self.matches(filter_)}
                yield from ((s, d) for s, d in self.matches(must) if d["number"] in allowed)
            case "knn":  # OpenSearch's
                ((field, near),) = body.items()
                yield from self.nearest(field, near["vector"], near["k"], near["filter"])
            case _:
                raise Refusal(400, "parsing_exception", f"unknown query [{kind}]")

    def nearest(
        self, field: str, vector: list[float], k: int, filter_: dict[str, Any]
    ) -> list[tuple[float, Document]]:
        allowed = [d for _, d in self.matches(filter_)]
        scored = [
            ((1 + sum(a * b for a, b in zip(vector, d[field], strict=True))) / 2, d)
            for d in allowed
        ]
        return sorted(scored, key=lambda pair: -pair[0])[:k]

    def _bm25(self, terms: list[str]) -> Iterator[tuple[float, Document]]:
        if len(terms) > 1024:
            raise Refusal(400, "too_many_clauses", "maxClauseCount is set to 1024")
        for counts, document in zip(self.counts, self.visible, strict=True):
            length = sum(counts.values()) / self.mean_length
            score = 0.0
            for term in terms:
                if (n := counts[term]) > 0:
                    df, all_ = self.frequency[term], len(self.visible)
                    idf = math.log(1 + (all_ - df + 0.5) / (df + 0.5))
                    score += idf * n / (n + 1.2 * (0.25 + 0.75 * length))
            if score > 0:
                yield score, document


class StandIn:
    """The server, in threads of its own.

    Attributes:
        indexes: what it holds, by name.
        calls: method and path of each request, in order.
        fault: asked about each request with method and path, each passage ("ITEM", id) and search
            ("SEARCH", index); gives the status of an error, or ``None`` for a good answer.
    """

    def __init__(self, kind: str, *, fault: Callable[[str, str], int | None] | None = None):
        self.kind, self.fault = kind, fault
        self.indexes: dict[str, Shard] = {}
        self.calls: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # head and body in one packet: two of them wait for each other

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                path = self.path.partition("?")[0]
                with outer._lock:
                    outer.calls.append((self.command, path))
                    outer.headers.append({k.lower(): v for k, v in self.headers.items()})
                    status, answer = outer.answer(self.command, path, body)
                content = b"" if self.command == "HEAD" else json.dumps(answer).encode()
                self.send_response(status)
                if outer.kind == "elasticsearch":
                    self.send_header("x-elastic-product", "Elasticsearch")
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = handle_any

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, method: str, path: str, body: bytes) -> Answer:
        try:
            self._may_fail(method, path)
            return 200, self._answer(method, path, body)
        except Refusal as refusal:
            return refusal.status, {"error": refusal.error, "status": refusal.status}

    def _answer(self, method: str, path: str, body: bytes) -> Any:
        match method, path.strip("/").split("/"):
            case "GET", [""]:
                version = {"number": "3.3.0" if self.kind == "opensearch" else "9.1.0"}
                if self.kind == "opensearch":
                    version["distribution"] = "opensearch"
                return {"name": "stand-in", "version": version, "tagline": "stand-in"}
            case "POST" | "PUT", ["_bulk"]:
                return {"items": list(self._bulk(body))}
            case "POST" | "GET", ["_msearch"]:
                return {"responses": [self._one(*pair) for pair in _pairs(body)]}
            case "PUT", [name]:
                if name != name.lower() or not re.fullmatch(r"[^_\-+][\w.\-]*", name):
                    raise Refusal(400, "invalid_index_name_exception", f"[{name}] is not a name")
                if name in self.indexes:
                    raise Refusal(400, "resource_already_exists_exception")
                self.indexes[name] = Shard(json.loads(body))
                return {"acknowledged": True}
            case "DELETE", [name]:
                self._index(name)
                del self.indexes[name]
                return {"acknowledged": True}
            case "HEAD", [name]:
                self._index(name)
                return {}
            case "GET", [name, "_mapping"]:
                return {name: {"mappings": self._index(name).mappings}}
            case "PUT", [name, "_mapping"]:
                self._index(name).mappings |= json.loads(body)
                return {"acknowledged": True}
            case "POST", [name, "_refresh"]:
                self._index(name).refresh()
                return {}
            case "POST" | "GET", [name, "_count"]:
                shard = self._index(name)
                return {"count": len(list(shard.matches(json.loads(body)["query"])))}
        raise Refusal(405, "method_not_allowed", f"{method} {path}")

    def _index(self, name: str) -> Shard:
        if name not in self.indexes:
            raise Refusal(404, "index_not_found_exception", f"no such index [{name}]")
        return self.indexes[name]

    def _bulk(self, body: bytes) -> Iterator[dict[str, Any]]:
        for action, document in _pairs(body):
            about = action["index"]
            try:
                self._may_fail("ITEM", about["_id"])
                self._index(about["_index"]).write(about["_id"], document)
            except Refusal as refusal:
                failed = {"status": refusal.status, "error": refusal.error}
                yield {"index": {"_id": about["_id"], **failed}}
            else:
                yield {"index": {"_id": about["_id"], "status": 201}}

    def _may_fail(self, kind: str, about: str) -> None:
        if self.fault is not None and (answer := self.fault(kind, about)) is not None:
            raise Refusal(answer, "fault")

    def _one(self, head: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
        try:
            self._may_fail("SEARCH", head["index"])
            shard = self._index(head["index"])
            if body["size"] > 10_000:
                raise Refusal(400, "illegal_argument_exception", "Result window is too large")
            near = body.get("knn")  # Elasticsearch's
            if near is not None and self.kind == "elasticsearch":
                assert near["k"] <= near["num_candidates"] <= 10_000
                field, vector = near["field"], near["query_vector"]
                found = shard.nearest(field, vector, near["k"], near["filter"])
            else:
                found = list(shard.matches(body["query"]))
            assert body["sort"] == [{"_score": "desc"}, {"number": "asc"}]
            found = sorted(found, key=lambda pair: (-pair[0], pair[1]["number"]))
            hits = [
                {"_score": score, "_source": {name: d[name] for name in body["_source"]}}
                for score, d in found[: body["size"]]
            ]
            return {"status": 200, "hits": {"hits": hits}}
        except Refusal as refusal:
            return {"status": refusal.status, "error": refusal.error}


def _pairs(body: bytes) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    assert body.endswith(b"\n")
    lines = [json.loads(line) for line in body.splitlines()]
    return zip(lines[::2], lines[1::2], strict=True)
