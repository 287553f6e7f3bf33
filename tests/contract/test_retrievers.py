"""What every retriever promises, whatever searches behind it."""

from __future__ import annotations

import os
import unicodedata
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest

from searching import CORPUS, TWINS, Backend
from steper.errors import SteperError

QUERIES = [
    "Who hosted Hee Haw?",
    "twins look alike",
    "",
    "서울",
    "hosted by Roy Clark",
    "zebras and ports",
    "singer lorem",
    "qqqq",
]

HOSTILE = {
    "1 MB, one word": "x" * 1_000_000,
    "1 MB, one word over and over": "clark " * 166_666,
    "1 MB, all words distinct": " ".join(f"w{n}" for n in range(130_000)),
    "1 MB of spaces": " " * 1_000_000,
    "NUL": "\x00",
    "NUL within": "hee\x00haw",
    "controls": "\x01\x07\x1b[31m\x7f\r\n",
    "lone surrogates": "\ud800 clark \udfff",
    "only a lone surrogate": "\udc80",
    "noncharacters": "\ufffe\uffff\U0010ffff",
    "emoji": "😀👨‍👩‍👧‍👦🇰🇷",
    "right to left": "\u202eمرحبا\u202c",
    "combining marks": "e" + "\u0301" * 5000,
    "syntax": '+-&|!(){}[]^"~*?:\\/',
    "operators": "AND OR NOT",
    "half a phrase": '"hee haw',
    "a field": "title:clark searched:* _exists_:id",
    "a range": "[a TO z] {1 TO *}",
    "fuzzy, boosted, wild": "clrak~2 haw^9 ha* ?ee",
    "a regular expression": "/(a+)+$/ .* (",
    "JSON": '{"query": {"match_all": {}}}',
    "SQL": "' OR 1=1; DROP TABLE passages; --",
    "only punctuation": "... --- !!!",
    "one letter": "a",
    "only stopwords": "the of and to a in is",
}


def ids(backend: Backend, query: str, k: int) -> list[str]:
    return [passage.id for passage in backend.index.search([query], k)[0]]


@pytest.mark.parametrize(("kind", "port"), [("opensearch", 9200), ("elasticsearch", 9201)])
def test_the_real_server_is_under_test(kind: str, port: int) -> None:
    """Says, where it is not, how to have it."""
    variable = f"STEPER_{kind.upper()}_URL"
    if not os.environ.get(variable):
        pytest.skip(
            f"only a stand-in was tested: docker compose up -d --wait {kind}; "
            f'{variable}=http://localhost:{port} make test ARGS="tests/contract"'
        )
    with urllib.request.urlopen(os.environ[variable], timeout=30) as response:
        assert response.status == 200


def test_it_knows_what_it_is_made_of(backend: Backend) -> None:
    assert backend.index.info.passages == len(CORPUS)
    assert len(cast(Any, backend.index)) == len(CORPUS)


def test_the_best_passage_comes_first(backend: Backend) -> None:
    assert ids(backend, "a country variety show hosted by Roy Clark", 3)[0] == "hee-haw"
    assert ids(backend, "American singer who hosted", 3)[0] == "clark"


@pytest.mark.parametrize("k", [1, 2, 7, len(CORPUS), 1000])
def test_at_most_k_passages_each_once(backend: Backend, k: int) -> None:
    for query in ("twins everywhere hosted 서울", "clark"):
        found = ids(backend, query, k)
        assert 1 <= len(found) <= k
        assert len(set(found)) == len(found)
    if not backend.words_only:
        assert len(ids(backend, "clark", k)) == min(k, len(CORPUS))


def test_a_blank_query_finds_nothing(backend: Backend) -> None:
    assert backend.index.search(["", " \t\r\n", "\u3000"], 5) == [[], [], []]


def test_words_that_no_passage_has_find_nothing(backend: Backend) -> None:
    found = backend.index.search(["qqqq xyzzy", "the of and"], 5)
    if backend.words_only:
        assert found == [[], []]
    else:
        assert [len(passages) for passages in found] == [5, 5]


def test_no_queries_have_no_answers(backend: Backend) -> None:
    assert backend.index.search([], 5) == []


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_one_is_refused(backend: Backend, k: int) -> None:
    with pytest.raises(SteperError, match="k is"):
        backend.index.search(["clark"], k)


def test_a_bare_string_is_refused(backend: Backend) -> None:
    with pytest.raises(TypeError, match="not one string"):
        backend.index.search("clark", 3)


@pytest.mark.parametrize("k", [1, 2, 30, 59, 60])
def test_ties_come_in_corpus_order_every_time(backend: Backend, k: int) -> None:
    expected = [passage.id for passage in TWINS[:k]]
    for _ in range(4):
        assert ids(backend, "twins look alike everywhere", k) == expected


def test_passages_come_back_as_they_went_in(backend: Backend) -> None:
    queries = [f"{passage.title} {passage.text}" for passage in CORPUS]
    for passage, found in zip(CORPUS, backend.index.search(queries, len(CORPUS)), strict=True):
        assert passage in found


@pytest.mark.parametrize("query", HOSTILE.values(), ids=HOSTILE.keys())
def test_any_text_is_a_query(backend: Backend, query: str) -> None:
    found = backend.index.search([query, "zebras"], 3)
    assert found[0] == backend.index.search([query], 3)[0]
    assert found[1][0].id == "untitled"


def test_syntax_is_read_as_words(backend: Backend) -> None:
    if backend.words_only:  # a model may read signs as it likes
        plain = backend.index.search(["title hee haw clark"], 5)
        assert len(plain[0]) == 2
        assert backend.index.search(['title:hee +haw -"clark'], 5) == plain


def test_a_repeated_word_or_a_flood_of_them_still_finds(backend: Backend) -> None:
    if backend.words_only:
        assert set(ids(backend, "clark " * 100_000, 5)) == {"hee-haw", "clark"}
        flood = "zebras " + " ".join(f"w{n}" for n in range(50_000))
        assert ids(backend, flood, 5) == ["untitled"]


def test_korean_words_are_found_within_longer_ones(backend: Backend) -> None:
    if backend.name == "dense":
        return  # it has no words; what a model makes of Korean is its own affair
    # 서울 stands in 서울은, 바다 in 바다가, 도시 in 도시이다.
    for query, found in {"서울": "서울#1", "바다": "부산#1", "도시": "부산#1"}.items():
        assert ids(backend, query, 3)[0] == found
        assert ids(backend, unicodedata.normalize("NFD", query), 3)[0] == found


def test_a_batch_is_the_same_as_one_by_one(backend: Backend) -> None:
    queries = QUERIES * 5  # more than one request to a server holds
    assert backend.index.search(queries, 4) == [
        backend.index.search([query], 4)[0] for query in queries
    ]


def test_threads_get_what_one_gets(backend: Backend) -> None:
    expected = [backend.index.search([query], 5) for query in QUERIES]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda query: backend.index.search([query], 5), QUERIES * 8))
    assert found == expected * 8


def test_opened_again_it_finds_the_same(backend: Backend) -> None:
    again = backend.reopen()
    assert again.info == backend.index.info
    for k in (1, 5, 70):
        assert again.search(QUERIES, k) == backend.index.search(QUERIES, k)
