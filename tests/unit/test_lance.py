"""LanceDB: a fixed state for readers, clean restarts, and nobody else's table is touched."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import cast
from zlib import crc32

import numpy as np
import pytest

from steper.errors import SteperError
from steper.retrieval import lance_table
from steper.retrieval.embedding import Array, Embedder
from steper.retrieval.info import FORMAT_VERSION, IndexInfo, TableInfo
from steper.retrieval.lance import LanceIndex, add_to_lance, build_lance
from steper.retrieval.passages import searched
from steper.types import Passage

lancedb = pytest.importorskip("lancedb", reason="needs pip install 'steper[lancedb]'")


@cache
def word_vector(word: str) -> Array:
    return np.random.default_rng(crc32(word.encode())).standard_normal(32, np.float32)


class Words(Embedder):
    """A text's vector is the sum of its words' random ones; "car" and "auto" are one word."""

    def __init__(self, model: str = "words") -> None:
        self.model, self.dimensions = model, 32
        self.query_prompt = self.passage_prompt = ""

    def queries(self, texts: list[str]) -> Array:  # type: ignore[override]
        split = [text.lower().replace("auto", "car").split() for text in texts]
        rows = np.stack([np.sum([word_vector(self.model + w) for w in ws], 0) for ws in split])
        return cast(Array, rows / np.linalg.norm(rows, axis=1, keepdims=True))

    def passages(self, passages: list[Passage]) -> Array:  # type: ignore[override]
        return self.queries([searched(passage) for passage in passages])


PASSAGES = [
    Passage("a", "Bands", "Many bands hosted a show"),
    Passage("b", "Roads", "A car drives on roads"),
    Passage("c", "Seas", "Ships sail the seas"),
]
MORE = [Passage("d", "Bands", "Many bands hosted a show"), Passage("e", "Skies", "Kites fly")]


def build(
    folder: Path,
    passages: list[Passage] | Iterator[Passage] = PASSAGES,
    *,
    uri: str = "",
    language: str = "en",
    embedder: Embedder | None = None,
) -> TableInfo:
    folder.mkdir(exist_ok=True, parents=True)
    return build_lance(iter(passages), folder, uri=uri, language=language, embedder=embedder)


def whole(table: TableInfo, count: int = len(PASSAGES)) -> IndexInfo:
    return IndexInfo(FORMAT_VERSION, "lancedb", count, 0, "", {}, table=table)


def found(index: LanceIndex, query: str, k: int = 9) -> list[str]:
    return [passage.id for passage in index.search([query], k)[0]]


def dying(passages: list[Passage]) -> Iterator[Passage]:
    yield from passages
    raise KeyboardInterrupt


@pytest.mark.parametrize("elsewhere", [False, True])
def test_an_interrupted_build_starts_again(tmp_path: Path, elsewhere: bool) -> None:
    uri = str(tmp_path / "database") if elsewhere else ""
    folder = tmp_path / "index"
    with pytest.raises(KeyboardInterrupt):
        build(folder, dying([Passage(str(n), "t", "old") for n in range(3000)]), uri=uri)
    build(folder, [Passage("old", "t", "old")], uri=uri)  # complete, but for its info.json
    index = LanceIndex(folder, whole(build(folder, uri=uri)))
    assert found(index, "old") == []
    assert found(index, "band") == ["a"]


def test_a_foreign_table_is_refused_and_kept(tmp_path: Path) -> None:
    uri = str(tmp_path / "database")
    lancedb.connect(uri).create_table("index", [{"mine": 1}])
    with pytest.raises(SteperError, match=r"database: the database holds a table 'index'"):
        build(tmp_path / "index", uri=uri)
    assert lancedb.connect(uri).open_table("index").to_arrow().to_pylist() == [{"mine": 1}]


def test_another_folder_of_that_name_does_not_take_the_table(tmp_path: Path) -> None:
    uri = str(tmp_path / "database")
    info = whole(build(tmp_path / "one" / "index", uri=uri))
    with pytest.raises(SteperError, match="not made for this index"):
        build(tmp_path / "two" / "index", MORE, uri=uri)
    assert found(LanceIndex(tmp_path / "one" / "index", info), "band") == ["a"]


def test_a_table_elsewhere_needs_only_its_description(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    info = whole(build(tmp_path / "index", uri="database"))
    shutil.rmtree(tmp_path / "index")
    monkeypatch.chdir("/")
    assert found(LanceIndex(tmp_path / "index", info), "band") == ["a"]


def test_what_is_wrong_with_a_passage_is_told_as_it_is(tmp_path: Path) -> None:
    def broken() -> Iterator[Passage]:
        yield PASSAGES[0]
        raise SteperError("is broken.", where="corpus.jsonl:2")

    with pytest.raises(SteperError, match=r"^corpus.jsonl:2: is broken\.$"):
        build(tmp_path, broken())
    info = whole(build(tmp_path))
    with pytest.raises(SteperError, match=r"^corpus.jsonl:2: is broken\.$"):
        add_to_lance(broken(), tmp_path, info, embedder=None)
    assert found(LanceIndex(tmp_path, info), "band") == ["a"]


@pytest.mark.parametrize("embedder", [None, Words()], ids=["words", "vectors"])
def test_readers_keep_their_version_while_passages_are_added(
    tmp_path: Path, embedder: Words | None
) -> None:
    info = whole(build(tmp_path, embedder=embedder))
    reader = LanceIndex(tmp_path, info, embedder=embedder)
    before = reader.search(["bands", "kites fly"], 9)
    grown = whole(add_to_lance(MORE, tmp_path, info, embedder=embedder), 5)
    new = LanceIndex(tmp_path, grown, embedder=embedder)
    assert found(new, "bands")[:2] == ["a", "d"]  # they tie
    assert found(new, "kites fly")[0] == "e"
    again = LanceIndex(tmp_path, info, embedder=embedder)
    assert reader.search(["bands", "kites fly"], 9) == before
    assert again.search(["bands", "kites fly"], 9) == before
    assert (len(again), len(new)) == (3, 5)


def test_what_is_added_is_in_the_words_index(tmp_path: Path) -> None:
    info = whole(build(tmp_path))
    version = add_to_lance(MORE, tmp_path, info, embedder=None).version
    table = lancedb.connect(tmp_path / "lance").open_table("passages", version=version)
    assert table.index_stats("searched_idx").num_unindexed_rows == 0


def test_an_interrupted_addition_is_undone_by_the_next(tmp_path: Path) -> None:
    info = whole(build(tmp_path))
    add_to_lance([Passage("x", "X", "bands left behind")], tmp_path, info, embedder=None)
    # Its info.json was never written, so the next one begins with the old.
    grown = whole(add_to_lance(MORE, tmp_path, info, embedder=None), 5)
    index = LanceIndex(tmp_path, grown)
    assert found(index, "bands") == ["a", "d"]
    assert found(index, "behind") == []


def test_words_are_stemmed_by_language(tmp_path: Path) -> None:
    german = [Passage("de", "", "Die Häuser stehen im Wald")]
    index = LanceIndex(tmp_path / "de", whole(build(tmp_path / "de", german, language="de"), 1))
    assert found(index, "Haus") == found(index, "Wälder") == ["de"]
    assert found(index, "die im") == []  # stopwords
    plain = build(tmp_path / "none", german, language="none")
    index = LanceIndex(tmp_path / "none", whole(plain, 1))
    assert found(index, "Haus") == []
    assert found(index, "die häuser") == ["de"]


def test_an_unknown_language_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SteperError, match="unknown language 'xx'"):
        build(tmp_path, language="xx")
    assert not (tmp_path / "lance").exists()


def test_vectors_find_what_is_said_in_other_words(tmp_path: Path) -> None:
    index = LanceIndex(tmp_path, whole(build(tmp_path, embedder=Words())), embedder=Words())
    assert found(index, "auto", 1) == ["b"]
    assert found(index, "bands", 1) == ["a"]


def test_another_model_is_refused(tmp_path: Path) -> None:
    info = whole(build(tmp_path, embedder=Words()))
    with pytest.raises(SteperError, match="gives other vectors"):
        LanceIndex(tmp_path, info, embedder=Words("others"))
    with pytest.raises(SteperError, match="gives other vectors"):
        add_to_lance(MORE, tmp_path, info, embedder=Words("others"))


def test_a_large_table_gets_a_vector_index_that_finds_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(0)
    texts = [" ".join(f"w{n}" for n in draw.integers(300, size=6)) for _ in range(2000)]
    passages = [Passage(str(n), "", text) for n, text in enumerate(texts)]
    exact = build(tmp_path / "exact", passages, embedder=Words())
    monkeypatch.setattr(lance_table, "VECTOR_INDEX_FROM", 1000)
    approximate = build(tmp_path / "approximate", passages, embedder=Words())
    assert approximate.version > exact.version  # one more index
    rankings = [
        LanceIndex(folder, whole(table, 2000), embedder=Words())._by_vector(vector, 10)
        for folder, table in ((tmp_path / "exact", exact), (tmp_path / "approximate", approximate))
        for vector in Words().queries(texts[:50])
    ]
    shared = [len({*a} & {*b}) / 10 for a, b in zip(rankings[:50], rankings[50:], strict=True)]
    assert sum(shared) / 50 > 0.9


def test_a_lost_file_is_told_in_one_sentence(tmp_path: Path) -> None:
    info = whole(build(tmp_path))
    for file in (tmp_path / "lance").rglob("data/*.lance"):
        file.unlink()
    with pytest.raises(SteperError, match=r"lance: LanceDB failed: .*build the index again"):
        LanceIndex(tmp_path, info).search(["bands"], 3)


def test_a_lost_version_or_table_is_refused(tmp_path: Path) -> None:
    table = build(tmp_path)
    with pytest.raises(SteperError, match="LanceDB failed"):
        LanceIndex(tmp_path, whole(replace(table, version=99)))
    with pytest.raises(SteperError, match="LanceDB failed"):
        LanceIndex(tmp_path / "nowhere", whole(table))
    with pytest.raises(SteperError, match="has 3 passages, 4 were written"):
        LanceIndex(tmp_path, whole(table, 4))


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(SteperError, match=r"steper\[lancedb\]"):
        build(tmp_path)
