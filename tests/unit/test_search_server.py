"""OpenSearch and Elasticsearch: what is asked of them, and what when they are busy, gone or others.

Against a stand-in; ``tests/contract`` runs against real ones.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from searching import StandIn
from steper.errors import SteperError
from steper.retrieval import search_client, search_server
from steper.retrieval.info import FORMAT_VERSION, IndexInfo, ServerInfo
from steper.retrieval.search_client import ServerKind
from steper.retrieval.search_server import ServerIndex, add_on_server, build_on_server
from steper.types import Passage

pytest.importorskip("opensearchpy", reason="needs pip install 'steper[opensearch]'")
pytest.importorskip("elasticsearch", reason="needs pip install 'steper[elasticsearch]'")

PASSAGES = [
    Passage("a", "Bands", "Many bands hosted a show"),
    Passage("b", "Roads", "A car drives on roads"),
    Passage("c", "Seas", "Ships sail the seas"),
]
MORE = [Passage("d", "Bands", "Many bands hosted a show"), Passage("e", "Skies", "Kites fly")]


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_client, "PAUSES_S", (0.0, 0.0, 0.0))
    for name in ("USER", "PASSWORD", "API_KEY"):
        monkeypatch.delenv(f"STEPER_SEARCH_{name}", raising=False)


@pytest.fixture(params=["opensearch", "elasticsearch"])
def server(request: pytest.FixtureRequest) -> Iterator[StandIn]:
    with StandIn(request.param) as server:
        yield server


def build(
    server: StandIn, passages: list[Passage] | Iterator[Passage] = PASSAGES, **other: Any
) -> ServerInfo:
    arguments: dict[str, Any] = {"urls": [server.url], "name": "x", "language": "en"}
    kind: ServerKind = server.kind  # type: ignore[assignment]
    return build_on_server(kind, passages, embedder=None, **arguments | other)


def whole(server: StandIn, info: ServerInfo, count: int = len(PASSAGES)) -> IndexInfo:
    kind: ServerKind = server.kind  # type: ignore[assignment]
    return IndexInfo(FORMAT_VERSION, kind, count, 0, "", {}, server=info)


def found(index: ServerIndex, query: str, k: int = 9) -> list[str]:
    return [passage.id for passage in index.search([query], k)[0]]


class Faults:
    """Answers the first requests of a kind with an error, then lets them through."""

    def __init__(self, status: int, times: int, *, method: str = "", path: str = "") -> None:
        self.status, self.left, self.method, self.path = status, times, method, path

    def __call__(self, method: str, path: str) -> int | None:
        if self.left and method in (self.method, "POST", "PUT") and self.path in path:
            if self.method and method != self.method:
                return None
            self.left -= 1
            return self.status
        return None


# ---- building --------------------------------------------------------------------------------


def test_an_index_is_marked_complete_last(server: StandIn) -> None:
    info = build(server)
    assert server.indexes["x"].mappings["_meta"]["steper"]["passages"] == 3
    assert server.calls[-1] == ("PUT", "/x/_mapping")
    index = ServerIndex(whole(server, info))
    assert found(index, "band") == ["a"]
    assert len(index) == 3


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_busy_cluster_is_asked_again(server: StandIn, status: int) -> None:
    server.fault = Faults(status, 3, path="_bulk")
    info = build(server)
    assert server.fault.left == 0
    server.fault = Faults(status, 3, path="_msearch")
    assert found(ServerIndex(whole(server, info)), "band") == ["a"]
    assert server.fault.left == 0


def test_passages_turned_away_are_sent_again_alone(server: StandIn) -> None:
    server.fault = Faults(429, 2, method="ITEM")
    build(server)
    assert server.fault.left == 0
    numbers = [document["number"] for document in server.indexes["x"].visible]
    assert sorted(numbers) == [0, 1, 2]
    assert len([call for call in server.calls if call[1] == "/_bulk"]) == 2


def test_a_search_turned_away_is_sent_again(server: StandIn) -> None:
    index = ServerIndex(whole(server, build(server)))
    server.fault = Faults(429, 1, method="SEARCH")
    assert index.search(["band", "car", "nothing"], 3) == [PASSAGES[:1], PASSAGES[1:2], []]
    assert server.fault.left == 0


def test_a_cluster_that_stays_busy_is_given_up(server: StandIn) -> None:
    index = ServerIndex(whole(server, build(server)))
    server.fault = Faults(429, 99, path="_msearch")
    with pytest.raises(SteperError, match=r"127.0.0.1.*too busy"):
        index.search(["band"], 3)
    server.fault = Faults(429, 99, method="SEARCH")
    with pytest.raises(SteperError, match="refuses"):
        index.search(["band"], 3)


def test_a_refused_passage_leaves_an_incomplete_index_that_the_next_build_replaces(
    server: StandIn,
) -> None:
    server.fault = Faults(400, 1, method="ITEM")
    with pytest.raises(SteperError, match=r"the cluster refuses.*fault"):
        build(server)
    server.fault = None
    with pytest.raises(SteperError, match="'x' is not complete"):
        ServerIndex(whole(server, ServerInfo((server.url,), "x", "en", None)))
    assert found(ServerIndex(whole(server, build(server, MORE), 2)), "bands") == ["d"]


def test_a_killed_build_starts_again(server: StandIn) -> None:
    def dying() -> Iterator[Passage]:
        yield from (Passage(str(n), "t", "old") for n in range(1100))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(server, dying())
    assert len(server.indexes["x"].written) == 1000
    assert found(ServerIndex(whole(server, build(server))), "old") == []


@pytest.mark.parametrize("meta", [{}, {"_meta": {"owner": "others"}}])
def test_a_foreign_index_is_neither_deleted_nor_opened(
    server: StandIn, meta: dict[str, Any]
) -> None:
    info = build(server)
    mappings = server.indexes["x"].mappings
    del mappings["_meta"]
    mappings |= meta
    with pytest.raises(SteperError, match="there is an index 'x' already, one that steper did not"):
        build(server)
    with pytest.raises(SteperError, match="was not made by steper"):
        ServerIndex(whole(server, info))
    assert len(server.indexes["x"].written) == 3


def test_a_complete_index_is_not_deleted(server: StandIn) -> None:
    build(server)
    with pytest.raises(SteperError, match=r"a complete one.*curl -X DELETE"):
        build(server, MORE)
    assert ("DELETE", "/x") not in server.calls


def test_two_builds_of_one_index_do_not_mix(server: StandIn) -> None:
    def disturbed() -> Iterator[Passage]:
        yield from (Passage(str(n), "t", "mine") for n in range(600))
        build(server)  # takes the first one's index for that of a dead build

    with pytest.raises(SteperError, match="another process must have changed it"):
        build(server, disturbed())


def test_an_unknown_language_is_refused_before_anything_is_asked(server: StandIn) -> None:
    with pytest.raises(SteperError, match="unknown language"):
        build(server, language="xx")
    assert server.calls == []


def test_a_name_that_the_server_refuses_is_told(server: StandIn) -> None:
    with pytest.raises(SteperError, match="invalid_index_name_exception"):
        build(server, name="Upper")


# ---- adding ----------------------------------------------------------------------------------


def test_who_opened_it_earlier_finds_only_the_earlier_passages(server: StandIn) -> None:
    info = whole(server, build(server))
    reader = ServerIndex(info)
    grown = whole(server, add_on_server(MORE, info, embedder=None), 5)
    assert found(reader, "bands") == ["a"]
    assert found(ServerIndex(info), "kites") == []
    assert found(ServerIndex(grown), "bands") == ["a", "d"]
    assert found(ServerIndex(grown), "kites") == ["e"]


def test_what_an_interrupted_addition_left_is_replaced(server: StandIn) -> None:
    info = whole(server, build(server))
    left = [Passage(f"x{n}", "X", "left behind") for n in range(2)]
    add_on_server(left, info, embedder=None)
    grown = whole(server, add_on_server(MORE, info, embedder=None), 5)
    assert found(ServerIndex(grown), "behind") == []
    assert found(ServerIndex(grown), "bands") == ["a", "d"]


# ---- opening and searching -------------------------------------------------------------------


def test_an_index_with_too_few_passages_or_none_is_refused(server: StandIn) -> None:
    info = build(server)
    with pytest.raises(SteperError, match="has 3 passages, 4 were written"):
        ServerIndex(whole(server, info, 4))
    server.indexes.clear()
    with pytest.raises(SteperError, match="'x' is not there"):
        ServerIndex(whole(server, info))


def test_an_index_that_is_gone_while_searching_is_told(server: StandIn) -> None:
    index = ServerIndex(whole(server, build(server)))
    server.indexes.clear()
    with pytest.raises(SteperError, match="index_not_found_exception"):
        index.search(["band"], 3)


def test_k_is_cut_to_what_servers_give(server: StandIn) -> None:
    index = ServerIndex(whole(server, build(server)))
    assert found(index, "band", 1_000_000) == ["a"]


def test_words_are_stemmed_by_language(server: StandIn) -> None:
    german = [Passage("de", "", "Die Häuser stehen im Wald")]
    info = build(server, german, name="de", language="de")
    assert found(ServerIndex(whole(server, info, 1)), "Haus") == ["de"]
    info = build(server, german, name="none", language="none")
    assert found(ServerIndex(whole(server, info, 1)), "Haus") == []
    assert found(ServerIndex(whole(server, info, 1)), "häuser") == ["de"]


# ---- connecting ------------------------------------------------------------------------------


def test_nobody_answers(server: StandIn) -> None:
    with pytest.raises(SteperError, match=r"http://127.0.0.1:9: no answer.*docker compose up"):
        build(server, urls=["http://user:secret@127.0.0.1:9"])


def test_another_product_is_told(server: StandIn) -> None:
    other: ServerKind = "elasticsearch" if server.kind == "opensearch" else "opensearch"
    with pytest.raises(SteperError, match=r"is not \w+|refuses"):
        build_on_server(other, PASSAGES, urls=[server.url], name="x", language="en", embedder=None)
    assert server.indexes == {}


@pytest.mark.parametrize("url", ["localhost:9200", "ftp://host", "http://", ""])
def test_what_is_no_url_is_refused(server: StandIn, url: str) -> None:
    with pytest.raises(SteperError, match="not the URL of a node"):
        build(server, urls=[url])
    with pytest.raises(SteperError, match="no URL"):
        build(server, urls=[])


def test_passwords_are_sent_and_not_kept(server: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    info = build(server, urls=[server.url.replace("//", "//me:p%40ss@")])
    expected = f"Basic {base64.b64encode(b'me:p@ss').decode()}"
    assert {headers["authorization"] for headers in server.headers} == {expected}
    assert info.urls == (server.url,)
    monkeypatch.setenv("STEPER_SEARCH_USER", "me")
    monkeypatch.setenv("STEPER_SEARCH_PASSWORD", "p@ss")
    server.headers.clear()
    ServerIndex(whole(server, info))
    assert {headers["authorization"] for headers in server.headers} == {expected}


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_user_is_told_what_to_set(server: StandIn, status: int) -> None:
    server.fault = lambda method, path: status
    with pytest.raises(SteperError, match="STEPER_SEARCH_USER"):
        build(server)
    assert len(server.calls) == 1  # asking again would not help


@pytest.mark.parametrize("kind", ["opensearch", "elasticsearch"])
def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, kind: ServerKind) -> None:
    for name in ("opensearchpy", "elasticsearch"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SteperError, match=rf"steper\[{kind}\]"):
        build_on_server(
            kind, PASSAGES, urls=["http://127.0.0.1:9"], name="x", language="en", embedder=None
        )


def test_servers_get_no_more_words_than_they_take() -> None:
    query = search_server.query_words(" ".join(f"w{n} w0" for n in range(5000)))
    assert len(query.split()) == len(set(query.split())) == 512
