"""BM25: same analysis on both sides, deterministic order, defined answers to odd queries."""

from __future__ import annotations

from pathlib import Path

import bm25s
import numpy as np
import pytest

from steper.errors import SteperError
from steper.retrieval.bm25 import BM25Index, analyze
from steper.types import Passage

PASSAGES = [
    Passage("p0", "Roy Clark", "Roy Clark was an American singer who hosted Hee Haw."),
    Passage("p1", "Hee Haw", "Hee Haw was an American country variety show."),
    Passage("p2", "Jim Halsey", "Jim Halsey managed the musician Roy Clark."),
    Passage("p3", "Twin A", "identical words here"),
    Passage("p4", "Twin A", "identical words here"),
    Passage("p5", "Twin A", "identical words here"),
    Passage("p6", "Ünïcode", "Zürich liegt am See; 東京 ist weit."),
]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> BM25Index:
    return BM25Index.build(PASSAGES, tmp_path_factory.mktemp("index"))


def ids(index: BM25Index, query: str, k: int = 4) -> list[str]:
    return [passage.id for passage in index.search([query], k)[0]]


def test_query_and_passage_are_stemmed_alike(index: BM25Index) -> None:
    assert ids(index, "Who manages musicians?")[0] == "p2"
    assert analyze(["managed"], "en") == analyze(["manages"], "en")


def test_passages_come_back_whole(index: BM25Index) -> None:
    (found,) = index.search(["Zürich"], 1)
    assert found == [PASSAGES[6]]


def test_equal_scores_keep_the_order_of_the_corpus(index: BM25Index) -> None:
    for k in (1, 2, 3):
        assert ids(index, "identical", k) == ["p3", "p4", "p5"][:k]


@pytest.mark.parametrize("query", ["", "   ", "the of and", "xylophonist", "?!", "\u0000"])
def test_a_query_without_known_terms_finds_nothing(index: BM25Index, query: str) -> None:
    assert ids(index, query) == []


def test_only_passages_that_share_a_term_are_returned(index: BM25Index) -> None:
    assert ids(index, "Halsey", k=100) == ["p2"]


def test_a_megabyte_of_query_is_answered(index: BM25Index) -> None:
    assert ids(index, "Roy Clark " * 100_000)[0] in {"p0", "p2"}


def test_queries_in_a_batch_are_answered_apart(index: BM25Index) -> None:
    together = index.search(["Halsey", "", "identical"], 2)
    assert together == [index.search([q], 2)[0] for q in ("Halsey", "", "identical")]


def test_order_is_that_of_bm25s_itself(index: BM25Index) -> None:
    texts = [f"{p.title} {p.text}" for p in PASSAGES]
    plain = bm25s.BM25(method="lucene")
    plain.index(analyze(texts, "en"), show_progress=False)
    terms = analyze(["Roy Clark American show"], "en")[0]
    scores = plain.get_scores(terms)
    best = [f"p{row}" for row in np.argsort(-scores, kind="stable") if scores[row] > 0]
    assert ids(index, "Roy Clark American show", k=100) == best


def test_reopened_index_answers_the_same(tmp_path: Path) -> None:
    built = BM25Index.build(PASSAGES, tmp_path)
    opened = BM25Index.open(tmp_path)
    assert len(opened) == len(PASSAGES)
    assert opened.search(["Roy Clark"], 3) == built.search(["Roy Clark"], 3)
    assert opened.info == built.info


@pytest.mark.parametrize("name", ["passages.jsonl", "offsets.npy", "bm25/data.csc.index.npy"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    BM25Index.build(PASSAGES, tmp_path)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[:-1])
    with pytest.raises(SteperError, match=rf"{Path(name).name}: has \d+ bytes"):
        BM25Index.open(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(SteperError, match=rf"{Path(name).name}: is missing"):
        BM25Index.open(tmp_path)


def test_an_unknown_language_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SteperError, match="Choose one of"):
        BM25Index.build(PASSAGES, tmp_path, language="xx")


def test_without_language_stop_words_are_terms(tmp_path: Path) -> None:
    index = BM25Index.build(PASSAGES, tmp_path, language="none")
    assert ids(index, "the")[0] == "p2"
