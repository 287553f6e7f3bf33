"""BM25: same analysis on both sides, deterministic order, defined answers to odd queries."""

from __future__ import annotations

import json
import shutil
import unicodedata
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
import pytest

from steper.errors import SteperError
from steper.retrieval import columns, postings
from steper.retrieval.analysis import Analyzer, settings
from steper.retrieval.bm25 import MAX_TERMS, BM25Index
from steper.retrieval.indexes import Engine, make_index, open_index, verify_index
from steper.types import Passage

PASSAGES = [
    Passage("p0", "Roy Clark", "Roy Clark was an American singer who hosted Hee Haw."),
    Passage("p1", "Hee Haw", "Hee Haw was an American country variety show."),
    Passage("p2", "Jim Halsey", "Jim Halsey managed the musician Roy Clark."),
    Passage("p3", "Twin A", "identical words here"),
    Passage("p4", "Twin B", "identical words here"),
    Passage("p5", "Twin C", "identical words here"),
    Passage("p6", "Ünïcode", "Zürich liegt am See; 東京 ist weit."),
]


def build(passages: Iterable[Passage], folder: Path, *, language: str = "en") -> BM25Index:
    index = make_index(passages, folder, Engine(language=language))
    assert isinstance(index, BM25Index)
    return index


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> BM25Index:
    return build(PASSAGES, tmp_path_factory.mktemp("index"))


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
    built = build(PASSAGES, tmp_path)
    opened = open_index(tmp_path)
    assert len(opened) == len(PASSAGES)
    assert opened.search(["Roy Clark"], 3) == built.search(["Roy Clark"], 3)
    assert opened.info == built.info


@pytest.mark.parametrize("name", ["passages.jsonl", "offsets.npy", "bm25/data.csc.index.npy"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    build(PASSAGES, tmp_path)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[:-1])
    with pytest.raises(SteperError, match=rf"{Path(name).name}: has \d+ bytes"):
        open_index(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(SteperError, match=rf"{Path(name).name}: is missing"):
        open_index(tmp_path)


def test_an_unknown_language_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SteperError, match="Choose one of"):
        build(PASSAGES, tmp_path, language="xx")


def test_without_language_stop_words_are_terms(tmp_path: Path) -> None:
    index = build(PASSAGES, tmp_path, language="none")
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
    index = build(passages, tmp_path)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: index.search([f"word{i}"], 1)[0], range(2000)))
    assert found == [[passage] for passage in passages]


def test_terms_are_numbered_in_their_order(tmp_path: Path) -> None:
    # Numbered by a set's order, equal corpora would give unequal files from run to run.
    build(PASSAGES, tmp_path)
    vocabulary = json.loads((tmp_path / "bm25" / "vocab.index.json").read_text())
    assert list(vocabulary.values()) == list(range(len(vocabulary)))
    assert list(vocabulary) == sorted(vocabulary, key=str.encode)


def generated(count: int) -> list[Passage]:
    """Passages of words as unevenly common as those of a language."""
    draw = np.random.default_rng(0)
    words = np.minimum(draw.zipf(1.3, size=(count, 30)), 5000)
    return [
        Passage(f"p{i}", f"title{i}", " ".join(f"w{w}" for w in row)) for i, row in enumerate(words)
    ]


def test_files_do_not_depend_on_blocks_or_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passages = generated(500)
    one = build(passages, tmp_path / "one")
    monkeypatch.setattr(postings, "_BLOCK", 7)
    small = build(passages, tmp_path / "small")
    monkeypatch.setattr(postings, "_BLOCK", 200)
    many = make_index(passages, tmp_path / "many", Engine(workers=2))
    assert one.info == small.info == many.info
    assert len(one.info.files) == 10


def exhaustive(
    index: BM25Index, query: str, k: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """All columns of the query's terms added up, and everything sorted."""
    scores = np.zeros(len(index), dtype=np.float32)
    terms = Counter(index._terms.number(term) for term in index._analyzer.terms(query))
    for term in sorted(t for t in terms if t is not None):
        column = slice(index._indptr[term], index._indptr[term + 1])
        scores[index._indices[column]] += terms[term] * index._data[column]
    hits = np.flatnonzero(scores)
    best = hits[np.lexsort((hits, -scores[hits]))][:k]
    return best, scores[best]


@pytest.fixture(params=["compiled", "numpy"])
def loops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The inner loops of BM25, in both of their forms."""
    if request.param == "compiled":
        pytest.importorskip("numba")
        assert columns.COMPILED
        return
    monkeypatch.setattr("steper.retrieval.bm25.add_all", columns._add_all)
    monkeypatch.setattr("steper.retrieval.bm25.add_begun", columns._add_begun)
    monkeypatch.setattr("steper.retrieval.bm25.reaching", columns._reaching)


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("k", [1, 3, 10, 300, 5000])
def test_leaving_passages_out_changes_nothing(tmp_path: Path, k: int) -> None:
    index = build(generated(3000), tmp_path)
    draw = np.random.default_rng(k)
    for length in (1, 2, 5, 12, 40) * 8:
        query = " ".join(f"w{w}" for w in np.minimum(draw.zipf(1.2, size=length), 5000))
        numbers, scores = index.rank(query, k)
        expected, expected_scores = exhaustive(index, query, k)
        assert numbers.tolist() == expected.tolist()
        assert scores.tolist() == expected_scores.tolist()


def test_few_passages_are_looked_at_to_the_end(tmp_path: Path) -> None:
    # Otherwise the test above would compare an exhaustive search with itself.
    passages = [Passage(f"p{i}", f"rare{i}", "common words of all passages") for i in range(1000)]
    index = build(passages, tmp_path)
    terms = {index._terms.number(term): 1 for term in ("rare7", "common", "word")}
    assert None not in terms
    assert index._candidates(terms, 1).tolist() == [7]  # type: ignore[arg-type]


def test_many_queries_on_many_threads_find_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = build(generated(500), tmp_path)
    queries = [f"w{i} w{i * 7 % 50} w1" for i in range(1, 200)]
    one_by_one = [index.search([query], 10)[0] for query in queries]
    monkeypatch.setattr("steper.retrieval.bm25.COMPILED", True)
    monkeypatch.setattr("steper.retrieval.bm25._THREADS_FROM", 0)
    assert index.search(queries, 10) == one_by_one
    assert any(one_by_one)


def test_of_a_very_long_query_the_first_words_count(tmp_path: Path) -> None:
    words = [f"word{i}" for i in range(MAX_TERMS + 10)]
    index = build([Passage(word, "", word) for word in words], tmp_path)
    found = index.search([" ".join(words)], MAX_TERMS + 10)[0]
    assert [passage.id for passage in found] == words[:MAX_TERMS]


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("서울은 대한민국의 수도이다.", "서울"),
        ("서울은 대한민국의 수도이다.", "수도가 어디?"),
        ("東京タワーは高い。", "東京"),
        ("北京是中国的首都", "首都"),
        ("ประเทศไทย", "ไทย"),
        ("हिन्दी एक भाषा है", "हिन्दी"),
        ("Zu\u0308rich liegt am See", "Z\u00fcrich"),
        ("Москва — столица", "москва"),
        ("ｗｉｄｅ letters", "wide"),
    ],
)
def test_words_of_any_script_are_found(tmp_path: Path, text: str, query: str) -> None:
    others = [Passage(f"other{i}", "", f"word{i} anders 다른 別の") for i in range(3)]
    index = build([*others, Passage("it", "", text)], tmp_path)
    found = index.search([query], 4)[0]
    assert [passage.id for passage in found] == ["it"]
    assert found[0].text == text


def test_korean_in_two_unicode_forms_is_one(tmp_path: Path) -> None:
    text = "서울은 수도"
    index = build([Passage("a", "", unicodedata.normalize("NFD", text))], tmp_path)
    assert ids(index, "서울") == ["a"]


def test_a_file_changed_without_changing_size_is_named(tmp_path: Path) -> None:
    build(PASSAGES, tmp_path)
    path = tmp_path / "bm25" / "vocab.index.json"
    path.write_bytes(path.read_bytes().replace(b"halsey", b"yeslah"))
    with pytest.raises(SteperError, match=r"vocab\.index\.json: has changed"):
        open_index(tmp_path)


def test_large_files_are_hashed_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steper.retrieval.info.HASH_ON_OPEN_BYTES", 0)
    build(PASSAGES, tmp_path)
    path = tmp_path / "passages.jsonl"
    path.write_bytes(path.read_bytes().replace(b"managed", b"manages"))
    open_index(tmp_path)
    with pytest.raises(SteperError, match=r"passages\.jsonl: has changed"):
        verify_index(tmp_path)


def test_an_index_that_stems_otherwise_is_refused(tmp_path: Path) -> None:
    build(PASSAGES, tmp_path)
    path = tmp_path / "info.json"
    info = json.loads(path.read_text())
    info["bm25"]["probe"][0] = "roi"
    path.write_text(json.dumps(info))
    with pytest.raises(SteperError, match="stems words otherwise"):
        open_index(tmp_path)


def test_another_format_is_refused(tmp_path: Path) -> None:
    build(PASSAGES, tmp_path)
    (tmp_path / "info.json").write_text('{"format_version": 99}')
    with pytest.raises(SteperError, match="format_version: is 99"):
        open_index(tmp_path)


def test_an_index_can_be_moved(tmp_path: Path) -> None:
    built = build(PASSAGES, tmp_path / "here")
    expected = built.search(["Roy Clark"], 3)
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert open_index(tmp_path / "there").search(["Roy Clark"], 3) == expected


@pytest.mark.parametrize("texts", [["the of", "?!"], ["!!!"]])
def test_a_corpus_without_words_is_refused(tmp_path: Path, texts: list[str]) -> None:
    with pytest.raises(SteperError, match="no passage holds a word"):
        build([Passage(str(i), "", t) for i, t in enumerate(texts)], tmp_path)
    with pytest.raises(SteperError, match=r"holds no info\.json"):
        open_index(tmp_path)


def test_a_passage_without_words_is_never_found(tmp_path: Path) -> None:
    index = build([Passage("a", "", "?!"), Passage("b", "", "A cat.")], tmp_path)
    assert ids(index, "cat") == ["b"]


def test_misuse_is_refused(index: BM25Index) -> None:
    with pytest.raises(TypeError, match="not one string"):
        index.search("Roy Clark", 2)
    with pytest.raises(SteperError, match="k is 0"):
        index.search(["Roy Clark"], 0)


def test_the_folder_opens_with_bm25s_alone(tmp_path: Path) -> None:
    build(PASSAGES, tmp_path)
    plain = bm25s.BM25.load(tmp_path / "bm25", mmap=True)
    assert int(np.argmax(plain.get_scores(analyze("Halsey")))) == 2
