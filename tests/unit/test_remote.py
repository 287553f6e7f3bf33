"""An index over HTTP: what comes back, what is refused, and that the server outlives it all."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import pytest
import urllib3

from faults import DROP, Call, Stub
from faults import http as answered
from steper.errors import SteperError
from steper.retrieval.info import (
    DenseInfo,
    EmbedderInfo,
    FileInfo,
    IndexInfo,
    ServerInfo,
    check_request,
)
from steper.retrieval.remote import Limits, RemoteIndex
from steper.serve import example, listen, serve_index, server_of
from steper.store import from_json, to_json
from steper.types import Passage

INFO = IndexInfo(
    format_version=3,
    kind="opensearch",
    passages=17_871,
    words=1_340_325,
    corpus_sha256="c0ffee",
    files={"bm25/vocab.index.json": FileInfo(3, "ab"), "passages.jsonl": FileInfo(10**12, "cd")},
    dense=DenseInfo(EmbedderInfo("모델", 1, "", "é", (1 / 3,)), "int8", "SQ8", 0, "1.9"),
    server=ServerInfo(
        ("http://node:9200",), "wiki", "en", EmbedderInfo("m", 2, "q: ", "", (0.1, -1e-17))
    ),
)


class Fake:
    """An index that finds one passage a word, up to k; remembers its calls.

    Attributes:
        gate: searches wait here while it is closed.
        spoiled: what is raised for a query that holds "boom".
    """

    def __init__(self, info: IndexInfo = INFO) -> None:
        self.info = info
        self.calls: list[tuple[list[str], int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.spoiled: Exception = ValueError("out of luck")

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        check_request(queries, k)
        self.calls.append((list(queries), k))
        assert self.gate.wait(20)
        if any("boom" in query for query in queries):
            raise self.spoiled
        return [[found(query, i) for i in range(min(k, len(query.split())))] for query in queries]


def found(query: str, rank: int) -> Passage:
    name = hashlib.sha256(query.encode()).hexdigest()[:12]
    return Passage(f"{name}/{rank}", query[:50], f"{rank}: {query.split()[rank][:50]}")


class Served:
    """An index served from a thread on a free port."""

    def __init__(self, index: Fake, **limits: int) -> None:
        self.index, self._limits = index, Limits(**limits)

    def __enter__(self) -> Self:
        listener = listen("127.0.0.1", 0)
        self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = server_of(self.index, self._limits)
        self._thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]})
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.index.gate.set()
        self.server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()

    def get(self, path: str) -> Any:
        response = urllib3.request("GET", self.url + path, retries=False, timeout=10)
        assert response.status == 200
        return response.json()

    def post(self, body: bytes | str | dict[str, Any], path: str = "/search") -> tuple[int, Any]:
        content = json.dumps(body) if isinstance(body, dict) else body
        response = urllib3.request("POST", self.url + path, body=content, retries=False, timeout=10)
        return response.status, response.json()

    def until(self, met: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first health that meets a condition."""
        for _ in range(1000):
            if met(health := self.get("/health")):
                return health
            time.sleep(0.01)
        raise AssertionError(f"never met: {health}")


def small() -> Served:
    limits = {"max_queries": 4, "max_k": 10, "max_query_chars": 1000, "max_body_bytes": 10_000}
    return Served(Fake(), max_waiting=8, **limits)


@pytest.fixture
def served() -> Iterator[Served]:
    with small() as served:
        yield served


@pytest.fixture(scope="module")
def hardened() -> Iterator[Served]:
    """One server that gets all the bad requests of this module, one after the other."""
    with small() as served:
        yield served


GOOD = {"queries": ["who is it", ""], "k": 2}


def works(served: Served) -> None:
    """A good request is still answered."""
    status, body = served.post(GOOD)
    assert status == 200
    assert [len(found) for found in body["results"]] == [2, 0]
    assert body["index"] == INFO.fingerprint


# ---- what goes through -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    [
        "Who hosted Hee Haw?",
        "",
        " \t\n",
        "\x00 nul \x1b \x7f",
        "😀 emoji 한국어 질문 ﷽ é e\u0301",
        '+-&|!(){}[]^"~*?:\\/ AND OR NOT',
        "</script> %00 %s {0} \\u0000 \u2028",
        "x" * 1_000_000,
        "\x01" * 1_000_000,
        "😀 " * 500_000,
    ],
    ids=lambda query: ascii(query[:12]),
)
def test_any_text_goes_through(query: str) -> None:
    with Served(Fake()) as served:
        index = RemoteIndex(served.url)
        assert index.search([query, "plain"], 3) == Fake().search([query, "plain"], 3)


def test_half_a_surrogate_pair_is_a_letter_that_matches_nothing(served: Served) -> None:
    index = RemoteIndex(served.url)
    assert index.search(["a\ud800b \ud83d\ude00", "\udfff"], 3) == Fake().search(
        ["a\ufffdb 😀", "\ufffd"], 3
    )


def test_half_a_surrogate_pair_in_a_passage_does_not_break_the_answer(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = Passage("1", "\ud800", "lone \udfff")
    monkeypatch.setattr(served.index, "search", lambda queries, k: [[odd]] * len(queries))
    status, body = served.post({"queries": ["q"], "k": 1})
    assert (status, Passage(**body["results"][0][0])) == (200, odd)


def test_info_comes_as_it_is(served: Served) -> None:
    index = RemoteIndex(served.url)
    assert index.info == INFO
    assert index.info.fingerprint == INFO.fingerprint
    assert len(index) == INFO.passages
    raw = urllib3.request("GET", served.url + "/info").data
    assert raw.decode() == to_json(INFO)
    assert index.limits == from_json(Limits, json.dumps(served.get("/limits")), where="")


def test_what_an_index_refuses_is_refused_here(served: Served) -> None:
    index = RemoteIndex(served.url)
    assert index.search([], 3) == []
    with pytest.raises(TypeError, match="one string"):
        index.search("query", 3)
    with pytest.raises(SteperError, match="k is 0"):
        index.search(["query"], 0)
    assert served.index.calls == []


def test_large_batches_are_split(served: Served) -> None:
    """By number and by bytes; 4 queries of 900 emoji are more than 10,000 bytes."""
    index = RemoteIndex(served.url)
    queries = [f"query {i}" for i in range(11)] + ["😀" * 900] * 5
    assert index.search(queries, 3) == Fake().search(queries, 3)
    assert [len(queries) for queries, _ in served.index.calls] == [4, 4, 4, 2, 2]


def test_behind_a_path_and_a_login(served: Served) -> None:
    """A proxy that takes its path away and asks for a name and a password."""

    def proxy(call: Call) -> bytes:
        if call.headers.get("authorization") != "Basic bWU6YTpAYg==":  # me:a:@b
            return answered(401, {"error": "who are you?"})
        method = "POST" if call.body else "GET"
        path = call.path.removeprefix("/v1/steper")
        response = urllib3.request(method, served.url + path, body=call.body or None)
        return answered(response.status, response.data)

    with Stub(proxy) as stub:
        url = stub.url.replace("http://", "http://me:a%3A%40b@") + "/steper/"
        index = RemoteIndex(url)
        assert index.url == stub.url + "/steper"
        assert index.search(["a b"], 2) == Fake().search(["a b"], 2)
        with pytest.raises(SteperError, match=r"who are you\?") as caught:
            RemoteIndex(url.replace("me:", "you:"))
        assert "b@" not in str(caught.value) and "%40" not in str(caught.value)


# ---- what is refused -------------------------------------------------------------------------

BAD: dict[str, tuple[bytes | str | dict[str, Any], int]] = {
    "nothing": ("", 422),
    "blank": (" \n", 422),
    "no JSON": ("queries=who", 422),
    "broken off": ('{"queries": ["a', 422),
    "two values": ('{"queries": [], "k": 1} {}', 422),
    "a comma too many": ('{"queries": ["a"], "k": 1,}', 422),
    "single quotes": ("{'queries': ['a'], 'k': 1}", 422),
    "a list": ('["a"]', 422),
    "null": ("null", 422),
    "a number": ("1e400", 422),
    "no queries": ({"k": 1}, 422),
    "no k": ({"queries": ["a"]}, 422),
    "one string": ({"queries": "abc", "k": 1}, 422),
    "queries null": ({"queries": None, "k": 1}, 422),
    "an object as queries": ({"queries": {"0": "a"}, "k": 1}, 422),
    "a number as query": ({"queries": ["a", 7], "k": 1}, 422),
    "null as query": ({"queries": [None], "k": 1}, 422),
    "a list as query": ({"queries": [["a"]], "k": 1}, 422),
    "k 0": ({"queries": ["a"], "k": 0}, 422),
    "k negative": ({"queries": ["a"], "k": -(10**30)}, 422),
    "k too large": ({"queries": ["a"], "k": 11}, 422),
    "k huge": ({"queries": ["a"], "k": 10**30}, 422),
    "k of 5,000 digits": ('{"queries": ["a"], "k": %s}' % ("9" * 5000), 422),
    "k a string": ({"queries": ["a"], "k": "1"}, 422),
    "k true": ({"queries": ["a"], "k": True}, 422),
    "k a float": ({"queries": ["a"], "k": 1.5}, 422),
    "k NaN": ('{"queries": ["a"], "k": NaN}', 422),
    "k Infinity": ('{"queries": ["a"], "k": Infinity}', 422),
    "k null": ({"queries": ["a"], "k": None}, 422),
    "unknown field": ({"queries": ["a"], "k": 1, "kk": 1}, 422),
    "long unknown field": ({"queries": ["a"], "k": 1, "x" * 9000: 1}, 422),
    "too many queries": ({"queries": ["a"] * 5, "k": 1}, 422),
    "long query": ({"queries": ["a" * 1001], "k": 1}, 422),
    "invalid UTF-8": (b'{"queries": ["\xff\xfe"], "k": 1}', 422),
    "surrogates as UTF-8": (b'{"queries": ["\xed\xa0\x80"], "k": 1}', 422),
    "half a surrogate pair": (r'{"queries": ["\ud800"], "k": 1}', 422),
    "half a pair in a name": (r'{"queries": ["a"], "k": 1, "\udfff": 1}', 422),
    "UTF-16": ('{"queries": ["a"], "k": 1}'.encode("utf-16"), 422),
    "a raw NUL": (b'{"queries": ["\x00"], "k": 1}', 422),
    "bad escape": (r'{"queries": ["\x41"], "k": 1}', 422),
    "deeply nested": ("[" * 9_000, 422),
    "deeply nested query": ('{"k": 1, "queries": ' + "[" * 4_000 + "]" * 4_000 + "}", 422),
    "gzip": (bytes.fromhex("1f8b08000000000000ff"), 422),
    "too many bytes": ("x" * 10_001, 413),
}


@pytest.mark.parametrize(("body", "status"), BAD.values(), ids=BAD.keys())
def test_a_bad_request_is_told_so(
    hardened: Served, body: bytes | str | dict[str, Any], status: int
) -> None:
    hardened.index.calls.clear()
    got, answer = hardened.post(body)
    assert got == status
    assert answer.keys() == {"error"}
    assert 10 < len(answer["error"]) <= 500
    assert hardened.index.calls == []
    works(hardened)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("POST", "/", 404),
        ("GET", "/search", 405),
        ("PUT", "/search", 405),
        ("DELETE", "/search", 405),
        ("POST", "/health", 405),
        ("POST", "/search/", 404),
        ("POST", "//search", 404),
        ("POST", "/SEARCH", 404),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/%00%ff", 404),
        ("GET", "/docs", 404),
        ("BREW", "/info", 405),
    ],
)
def test_a_wrong_path_or_method_is_told_so(
    hardened: Served, method: str, path: str, status: int
) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", hardened.port, timeout=10)
    connection.request(method, path, json.dumps(GOOD))
    response = connection.getresponse()
    assert response.status == status
    assert json.loads(response.read()).keys() == {"error"}
    connection.close()
    works(hardened)


HEAD = b"POST /search HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100,  # TLS
        b"GET\r\n\r\n",
        b"POST /search HTTP/9.9\r\nHost: x\r\n\r\n",
        b"POST /search HTTP/1.1\r\n\r\n",  # no host
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: ten\r\n\r\n",
        HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",
        HEAD + b"Content-Length: 99999999999999999999\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nab\r\n",
        HEAD + b"Transfer-Encoding: gzip\r\n\r\nabc",
        HEAD + b"X: " + b"y" * 200_000 + b"\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"400\r\n%b\r\n" % (b"x" * 1024) * 20,
    ],
    ids=lambda sent: ascii(sent[:12] + b" ".join(sent.split()[-2:])[:30]),
)
def test_bytes_that_are_no_request(hardened: Served, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", hardened.port), timeout=10) as client:
        client.sendall(sent)
        status = int(client.recv(65536).split(b" ")[1])
    assert 400 <= status < 500 or status == 501
    works(hardened)


def test_a_body_in_chunks_without_end_is_cut_off(hardened: Served) -> None:
    """It does not tell its length, so it must be counted; nobody waits for its end."""
    with socket.create_connection(("127.0.0.1", hardened.port), timeout=10) as client:
        client.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(10):
            client.sendall(b"400\r\n" + b" " * 1024 + b"\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 413")
    works(hardened)


def test_requests_that_never_end_block_nobody(hardened: Served) -> None:
    with ExitStack() as stack:
        for _ in range(100):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", hardened.port)))
            client.sendall(HEAD + b'Content-Length: 1000\r\n\r\n{"queries": ["')
        works(hardened)
        assert hardened.get("/health")["waiting"] == 0


def test_a_request_that_comes_too_slowly_is_told_so(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steper.retrieval.server._BODY_S", 0.05)
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as client:
        client.sendall(HEAD + b"Content-Length: 1000\r\n\r\n{")
        assert client.recv(65536).startswith(b"HTTP/1.1 408")


# ---- many at a time --------------------------------------------------------------------------


def test_what_waits_is_searched_together_by_k(served: Served) -> None:
    """The first request holds the index; the six that come meanwhile need two searches."""
    served.index.gate.clear()
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(served.post, {"queries": ["first one"], "k": 1})
        served.until(lambda health: len(served.index.calls) == 1)
        asked = [{"queries": [f"query {i}"], "k": 1 + i % 2} for i in range(6)]
        others = [pool.submit(served.post, body) for body in asked]
        served.until(lambda health: health["waiting"] == 7)
        served.index.gate.set()
        for body, future in zip(asked, others, strict=True):
            status, answer = future.result()
            want = Fake().search(body["queries"], body["k"])
            assert (status, answer["results"]) == (200, json.loads(json.dumps([
                [{"id": p.id, "title": p.title, "text": p.text} for p in row] for row in want
            ])))  # fmt: skip
        assert first.result()[0] == 200
    assert sorted((len(queries), k) for queries, k in served.index.calls) == [
        (1, 1),
        (3, 1),
        (3, 2),
    ]
    health = served.get("/health")
    assert (health["served"], health["waiting"], health["searches"]) == (7, 0, 3)


def test_health_is_told_during_a_search_and_beyond_the_queue_is_503(served: Served) -> None:
    served.index.gate.clear()
    with ThreadPoolExecutor(8) as pool:
        taken = [pool.submit(served.post, {"queries": ["q"] * 4, "k": 1}) for _ in range(2)]
        health = served.until(lambda health: health["waiting"] == 8)
        assert health["status"] == "ok"
        response = urllib3.request(
            "POST", served.url + "/search", json={"queries": ["q"], "k": 1}, retries=False
        )
        assert response.status == 503
        assert response.headers["Retry-After"] == "1"
        assert "8 queries are waiting" in response.json()["error"]
        served.index.gate.set()
        assert [future.result()[0] for future in taken] == [200, 200]
    assert served.get("/health") == {
        "status": "ok",
        "passages": INFO.passages,
        "waiting": 0,
        "served": 8,
        "refused": 1,
        "failed": 0,
        "searches": served.get("/health")["searches"],
    }


def test_a_flood_beyond_the_queue_is_answered_in_the_end() -> None:
    with Served(Fake(), max_waiting=6, max_queries=2) as served:
        index = RemoteIndex(served.url)
        queries = [[f"query {i}", f"and {i}"] for i in range(8)]
        served.index.gate.clear()
        with ThreadPoolExecutor(8) as pool:
            answers = pool.map(lambda pair: index.search(pair, 2), queries)
            served.until(lambda health: health["refused"] > 0)
            served.index.gate.set()
            assert list(answers) == [Fake().search(pair, 2) for pair in queries]
        health = served.get("/health")
    assert health["served"] == 16 and health["waiting"] == 0
    assert sum(len(queries) for queries, _ in served.index.calls) == 16


def test_two_hundred_clients_get_what_a_direct_search_gives() -> None:
    with Served(Fake()) as served, ThreadPoolExecutor(200) as pool:
        index = RemoteIndex(served.url)
        start = threading.Barrier(200)

        def ask(client: int) -> bool:
            start.wait(20)
            queries = [f"client {client} asks {i}" for i in range(3)]
            return index.search(queries, 1 + client % 5) == Fake().search(queries, 1 + client % 5)

        assert all(pool.map(ask, range(200)))
        health = served.get("/health")
    assert health["served"] == 600
    assert health["searches"] < 200


def test_clients_that_go_leave_no_place_taken(served: Served) -> None:
    """Nor is it searched what they asked, unless it was under way already."""
    served.index.gate.clear()
    gone = [socket.create_connection(("127.0.0.1", served.port), timeout=10) for _ in range(2)]
    for number, client in enumerate(gone):
        body = json.dumps({"queries": [f"from {number}"] * 4, "k": 1}).encode()
        client.sendall(HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        served.until(lambda health, number=number: health["waiting"] == 4 * (number + 1))
    for client in gone:
        client.close()
    assert served.until(lambda health: health["waiting"] == 0)["served"] == 0
    served.index.gate.set()
    works(served)
    asked = [query for queries, _ in served.index.calls for query in queries]
    assert asked == ["from 0"] * 4 + GOOD["queries"]


# ---- what goes wrong -------------------------------------------------------------------------


def test_an_exception_in_the_index_is_a_500_and_the_server_lives(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    status, answer = served.post({"queries": ["boom"], "k": 1})
    assert status == 500
    assert "ValueError" in answer["error"]
    assert "out of luck" in caplog.text
    with pytest.raises(SteperError, match=r"HTTP 500.*ValueError"):
        RemoteIndex(served.url).search(["boom"], 1)
    works(served)
    assert served.get("/health")["failed"] == 2


def test_a_wrong_number_of_results_is_a_500(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    for results in ([], [[], []]):
        with monkeypatch.context() as patch:
            patch.setattr(served.index, "search", lambda queries, k, r=results: r)
            assert served.post({"queries": ["a"], "k": 1})[0] == 500
    works(served)


@pytest.mark.parametrize(
    ("error", "statuses", "searches"),
    [
        (KeyError("x"), [500, 200, 200], [1, 3, 1, 1, 1]),
        (StopIteration(), [500, 200, 200], [1, 3, 1, 1, 1]),
        (SteperError("the cluster is away."), [500, 500, 500], [1, 3]),
    ],
)
def test_a_query_that_fails_does_not_spoil_the_others(
    served: Served, error: Exception, statuses: list[int], searches: list[int]
) -> None:
    """But a backend that is away is not asked again for each of those who wait."""
    served.index.spoiled = error
    served.index.gate.clear()
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(served.post, {"queries": ["first"], "k": 1})
        served.until(lambda health: len(served.index.calls) == 1)
        asked = [{"queries": [query], "k": 1} for query in ("boom", "good", "better")]
        others = [pool.submit(served.post, body) for body in asked]
        served.until(lambda health: health["waiting"] == 4)
        served.index.gate.set()
        assert first.result()[0] == 200
        assert [future.result()[0] for future in others] == statuses
    assert [len(queries) for queries, _ in served.index.calls] == searches
    works(served)


def test_another_index_at_the_same_address_is_refused(served: Served) -> None:
    index = RemoteIndex(served.url)
    other = Fake(replace(INFO, corpus_sha256="other"))
    with Served(other) as moved:
        index.url = moved.url
        with pytest.raises(SteperError, match="another index is served there now"):
            index.search(["query"], 1)


def good(call: Call) -> bytes:
    """What a real server would say."""
    match call.path.removeprefix("/v1"):
        case "/info":
            return answered(200, to_json(INFO).encode())
        case "/limits":
            return answered(200, to_json(Limits()).encode())
        case _:
            results = [
                [{"id": p.id, "title": p.title, "text": p.text} for p in row]
                for row in Fake().search(call.asked["queries"], call.asked["k"])
            ]
            return answered(200, {"results": results, "index": INFO.fingerprint})


@pytest.mark.parametrize(
    "fault",
    [
        DROP,
        answered(502, b"<html>Bad gateway</html>"),
        answered(503, {"error": "busy"}, {"Retry-After": "0"}),
        answered(504, b""),
        answered(200, {"results": [[]], "index": "x" * 1000})[:-500],
    ],
    ids=["dropped", "502", "503", "504", "cut off"],
)
def test_faults_that_pass_are_got_over(fault: bytes) -> None:
    with Stub(good) as stub:
        index = RemoteIndex(stub.url, timeout_s=5)
        stub.answer = lambda call: fault if len(stub.calls) == 3 else good(call)
        assert index.search(["a b"], 2) == Fake().search(["a b"], 2)
        assert len(stub.calls) == 4


def test_a_server_that_is_silent_is_asked_again() -> None:
    with Stub(good) as stub:
        index = RemoteIndex(stub.url, timeout_s=0.3)

        async def silent() -> bytes:
            await asyncio.sleep(60)
            return DROP

        stub.answer = lambda call: silent() if len(stub.calls) == 3 else good(call)
        assert index.search(["a b"], 2) == Fake().search(["a b"], 2)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (answered(503, {"error": "8 wait."}), r"HTTP 503\): 8 wait\. Try again later"),
        (answered(500, b"oops"), r"HTTP 500\): X"),
        (answered(422, {"error": "k is too large."}), "HTTP 422.*k is too large"),
        (answered(404, {"detail": "Not Found"}), r"HTTP 404.*`steper index serve` printed"),
        (answered(302, b"", {"location": "http://elsewhere"}), "HTTP 302.*Give the address"),
        (answered(200, b"<html>It works!</html>"), "Is it the address"),
        (answered(200, {"results": [[]], "index": INFO.fingerprint, "x": 1}), "unknown field"),
        (answered(200, {"results": [[]], "index": INFO.fingerprint}), "answered 1 of 2 queries"),
        (answered(200, {"results": [[], [{"id": 1}]], "index": "x"}), "results.1.0"),
        (answered(200, b"\xff\xfe"), "Is it the address"),
        (answered(503, {"error": "x"}, {"Retry-After": "soon"}), "does not answer"),
        (
            b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 3\r\n\r\nabc",
            "not answer",
        ),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "does not answer"),
        (DROP, r"does not answer \(ProtocolError, 5 s allowed, 1 retries\)"),
    ],
)
def test_what_a_server_says_wrongly_is_a_steper_error(answer: bytes, said: str) -> None:
    with Stub(good) as stub:
        index = RemoteIndex(stub.url, timeout_s=5, retries=1)
        stub.answer = lambda call: answer
        with pytest.raises(SteperError, match=said) as caught:
            index.search(["a", "b"], 1)
        assert stub.url in str(caught.value)


def test_no_server_there() -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(SteperError, match=f"127.0.0.1:{port}: the index server does not answer"):
        RemoteIndex(f"http://127.0.0.1:{port}", retries=0)


@pytest.mark.parametrize(
    "url", ["", "runs/index", "localhost:8765", "ftp://x", "http://", "http://h:x", "http://h/?q=1"]
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(SteperError, match="not the address of an index server"):
        RemoteIndex(url)


def test_waits_are_those_asked_for_and_more_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """And never the day that a proxy may ask for."""
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    with Stub(good) as stub:
        index = RemoteIndex(stub.url, timeout_s=5, retries=4)
        stub.answer = lambda call: answered(503, {"error": "busy"}, {"Retry-After": "86400"})
        with pytest.raises(SteperError, match="busy"):
            index.search(["a"], 1)
    asked, added = waits[::2], waits[1::2]
    assert asked == [60] * 4
    assert added[0] == 0
    assert all(1 <= a <= 1.5 and 2 <= b <= 2.5 for a, b in [added[1:3]])
    assert len(stub.calls) == 2 + 5


# ---- the verb --------------------------------------------------------------------------------


def test_a_port_in_use_is_named() -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(SteperError, match=f"127.0.0.1:{port}: cannot be listened at.*in use"):
            serve_index(Fake(), port=port)


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70_000), ("no such host", 0)])
def test_a_place_where_nobody_can_listen(host: str, port: int) -> None:
    with pytest.raises(SteperError, match="cannot be listened at"):
        listen(host, port)


@pytest.mark.parametrize(
    "limits", [{"max_k": 0}, {"max_waiting": -1}, {"max_queries": 10, "max_waiting": 9}]
)
def test_limits_that_let_nothing_in_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(SteperError, match=r"at least 1|less than"):
        Limits(**limits)


def test_an_answer_does_not_wait_for_the_receipt_of_its_first_half() -> None:
    with listen("127.0.0.1", 0) as listener:
        client = socket.create_connection(listener.getsockname())
        connection, _ = listener.accept()
        with client, connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_the_libraries_are_named_where_they_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(SteperError, match=r"pip install 'steper\[serve\]'"):
        serve_index(Fake())


def test_the_description_of_the_api_says_what_is_taken(served: Served) -> None:
    form = served.get("/openapi.json")["paths"]["/search"]["post"]["requestBody"]
    properties = form["content"]["application/json"]["schema"]["properties"]
    assert properties["k"]["maximum"] == 10
    assert properties["queries"]["maxItems"] == 4
    assert "localhost" in example("http://localhost:1")
