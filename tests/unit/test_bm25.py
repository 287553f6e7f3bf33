"""BM25: same analysis on both sides, deterministic order, defined answers to odd queries."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bm25s
import numpy as np
import pytest

from steper.errors import SteperError
from steper.retrieval.analysis import Analyzer, settings
from steper.retrieval.bm25 import BM25Index
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


def analyze(text: str) -> list[str]:
    return Analyzer(settings("en")).terms(text)


def ids(index: BM25Index, query: str, k: int = 4) -> list[str]:
    return [passage.id for passage in index.search([query], k)[0]]


def test_query_and_passage_are_stemmed_alike(index: BM25Index) -> None:
    assert ids(index, "Who manages musicians?")[0] == "p2"
    assert analyze("managed") == analyze("manages") == ["manag"]


def test_passages_come_back_whole(index: BM25Index) -> None:
    (found,) = index.search(["Zürich"], 1)
    assert found == [PASSAGES[6]]


def test_equal_scores_keep_the_order_of_the_corpus(index: BM25Index) -> None:
    for k in (1, 2, 3):
        assert ids(index, "identical", k) == ["p3", "p4", "p5"][:k]


@pytest.mark.parametrize(
    "query", ["", "   ", "the of and", "xylophonist", "?!", "\u0000", "\ud800"]
)
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
    plain.index([analyze(text) for text in texts], show_progress=False)
    terms = analyze("Roy Clark American show")
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


def test_scores_are_those_of_bm25s_itself(index: BM25Index) -> None:
    query = "Clark Clark hosted identical words"
    plain = bm25s.BM25(method="lucene")
    plain.index(
        [analyze(f"{p.title} {p.text}") for p in PASSAGES],
        show_progress=False,
    )
    rows, scores = index.rank(query, 100)
    assert len(rows) == 5
    np.testing.assert_allclose(scores, plain.get_scores(analyze(query))[rows], rtol=1e-6)


def test_threads_do_not_disturb_each_other(tmp_path: Path) -> None:
    passages = [Passage(f"p{i}", "", f"word{i} " + "common " * (i % 50)) for i in range(2000)]
    index = BM25Index.build(passages, tmp_path)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: index.search([f"word{i}"], 1)[0], range(2000)))
    assert found == [[passage] for passage in passages]


def test_terms_are_numbered_by_first_use(tmp_path: Path) -> None:
    # Numbered by a set's order, equal corpora would give unequal files from run to run.
    BM25Index.build(PASSAGES, tmp_path)
    vocabulary = json.loads((tmp_path / "bm25" / "vocab.index.json").read_text())
    assert list(vocabulary.items())[:4] == [
        ("roy", 0),
        ("clark", 1),
        ("american", 2),
        ("singer", 3),
    ]
    assert list(vocabulary.values()) == list(range(len(vocabulary)))


def test_a_file_changed_without_changing_size_is_named(tmp_path: Path) -> None:
    BM25Index.build(PASSAGES, tmp_path)
    path = tmp_path / "bm25" / "vocab.index.json"
    path.write_bytes(path.read_bytes().replace(b"halsey", b"yeslah"))
    with pytest.raises(SteperError, match=r"vocab\.index\.json: has changed"):
        BM25Index.open(tmp_path)


def test_large_files_are_hashed_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steper.retrieval.info.HASH_ON_OPEN_BYTES", 0)
    BM25Index.build(PASSAGES, tmp_path)
    path = tmp_path / "passages.jsonl"
    path.write_bytes(path.read_bytes().replace(b"managed", b"manages"))
    BM25Index.open(tmp_path)
    with pytest.raises(SteperError, match=r"passages\.jsonl: has changed"):
        BM25Index.open(tmp_path, verify=True)


def test_an_index_that_stems_otherwise_is_refused(tmp_path: Path) -> None:
    BM25Index.build(PASSAGES, tmp_path)
    path = tmp_path / "info.json"
    info = json.loads(path.read_text())
    info["probe"][0] = "roi"
    path.write_text(json.dumps(info))
    with pytest.raises(SteperError, match="stems words otherwise"):
        BM25Index.open(tmp_path)


def test_another_format_is_refused(tmp_path: Path) -> None:
    BM25Index.build(PASSAGES, tmp_path)
    (tmp_path / "info.json").write_text('{"format_version": 99}')
    with pytest.raises(SteperError, match="format_version: is 99"):
        BM25Index.open(tmp_path)


def test_an_index_can_be_moved(tmp_path: Path) -> None:
    built = BM25Index.build(PASSAGES, tmp_path / "here")
    expected = built.search(["Roy Clark"], 3)
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert BM25Index.open(tmp_path / "there").search(["Roy Clark"], 3) == expected


@pytest.mark.parametrize("texts", [["the of", "?!"], ["!!!"]])
def test_a_corpus_without_words_is_refused(tmp_path: Path, texts: list[str]) -> None:
    with pytest.raises(SteperError, match="no passage holds a word"):
        BM25Index.build([Passage(str(i), "", t) for i, t in enumerate(texts)], tmp_path)
    with pytest.raises(SteperError, match=r"holds no info\.json"):
        BM25Index.open(tmp_path)


def test_a_passage_without_words_is_never_found(tmp_path: Path) -> None:
    index = BM25Index.build([Passage("a", "", "?!"), Passage("b", "", "A cat.")], tmp_path)
    assert ids(index, "cat") == ["b"]


def test_misuse_is_refused(index: BM25Index) -> None:
    with pytest.raises(TypeError, match="not one string"):
        index.search("Roy Clark", 2)
    with pytest.raises(SteperError, match="k is 0"):
        index.search(["Roy Clark"], 0)


def test_the_folder_opens_with_bm25s_alone(tmp_path: Path) -> None:
    BM25Index.build(PASSAGES, tmp_path)
    plain = bm25s.BM25.load(tmp_path / "bm25", mmap=True)
    assert int(np.argmax(plain.get_scores(analyze("Halsey")))) == 2
