"""What an index must get over: kills, Ctrl-C, forks, full disks, damaged files, replaced models."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steper.errors import SteperError
from steper.retrieval import bm25, indexes
from steper.retrieval.analysis import Analyzer, settings
from steper.retrieval.indexes import Engine, add_to_index, make_index, open_index
from steper.types import IndexKind, Passage

PASSAGES = [Passage(f"p{i}", "", f"alpha unique{i} common words of all") for i in range(1000)]


def test_blocks_that_a_kill_left_are_no_files_of_the_index(tmp_path: Path) -> None:
    clean = make_index(PASSAGES, tmp_path / "clean").info
    left = tmp_path / "killed" / "bm25" / ".blocks-x"
    left.mkdir(parents=True)
    (left / "0.npy").write_bytes(b"left")
    assert make_index(PASSAGES, tmp_path / "killed").info == clean


def test_a_search_that_is_stopped_spoils_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = make_index(PASSAGES, tmp_path)
    expected = index.search(["unique7 common"], 3)

    real, calls = bm25._raised, []

    def stopped(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(bm25, "_raised", stopped)
        with pytest.raises(KeyboardInterrupt):
            index.search(["alpha unique500 words"], 3)
    assert index.search(["unique7 common"], 3) == expected


def test_a_forked_process_searches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bm25, "_THREADS_FROM", 0)
    monkeypatch.setattr(bm25, "COMPILED", True)
    index = make_index(PASSAGES, tmp_path)
    queries = ["unique1", "unique2", "unique3"]
    index.search(queries, 1)
    child = multiprocessing.get_context("fork").Process(target=index.search, args=(queries, 1))
    child.start()
    child.join(20)
    ended = child.exitcode
    child.kill()
    assert ended == 0


def test_room_for_the_scores_is_taken_before_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(SteperError, match="No space"):
        make_index(PASSAGES, tmp_path)


def test_loops_are_compiled_where_nothing_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    numba = pytest.importorskip("numba")
    from steper.retrieval import columns

    real = numba.njit

    def njit(**options: Any) -> Any:
        if options.pop("cache", False):
            raise RuntimeError("cannot cache function: no locator available")
        return real(**options)

    monkeypatch.setattr(numba, "njit", njit)
    assert columns._compiled(columns._add_begun_loop)


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("İki kent", "iki"),
        ("İstanbul", "istanbul"),
        ("infor\u00admation", "information"),
        ("❤\ufe0flove", "love"),
    ],
)
def test_what_is_not_seen_does_not_matter(text: str, query: str) -> None:
    analyzer = Analyzer(settings("tr" if "İ" in text else "en"))
    assert set(analyzer.terms(query)) <= set(analyzer.terms(text))


def table(tmp_path: Path, *passages: Passage) -> Path:
    pytest.importorskip("lancedb")
    make_index(passages, tmp_path / "table", Engine(kind="lancedb"))
    return tmp_path / "table"


def test_what_is_left_out_for_its_id_is_reported(tmp_path: Path) -> None:
    folder = table(tmp_path, Passage("README.md#1", "A", "boats"))
    rejects: list[Any] = []
    add_to_index(
        [Passage("README.md#1", "B", "clocks"), Passage("x", "A", "boats")],
        folder,
        reject=rejects.append,
    )
    assert ["README.md#1" in reject.where for reject in rejects] == [True]


def test_a_title_is_no_text(tmp_path: Path) -> None:
    folder = table(tmp_path, Passage("1", "", "Rome is a city"))
    assert add_to_index([Passage("2", "Rome", "is a city")], folder) == 1


def test_hashes_half_written_do_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = table(tmp_path, *PASSAGES[:3])

    real = np.save

    def half(file: Any, array: Any) -> None:
        if "known" not in str(getattr(file, "name", file)):
            return real(file, array)
        stream = file.open("wb") if isinstance(file, Path) else file
        stream.write(b"\x93NUMPY")
        stream.flush()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", half)
        with pytest.raises(KeyboardInterrupt):
            add_to_index(PASSAGES[3:5], folder)
    assert add_to_index(PASSAGES[3:5], folder) == 2


def test_a_language_that_is_none_is_refused_before_the_corpus_is_read(tmp_path: Path) -> None:
    def corpus() -> Any:
        raise AssertionError("read")
        yield

    with pytest.raises(SteperError, match="unknown language"):
        make_index(corpus(), tmp_path, Engine(language="english"))


def test_vectors_are_kept_until_the_index_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from steper.retrieval.embedding import Embedder

    class Words(Embedder):
        def __init__(self) -> None:
            self.model, self.dimensions, self.embedded = "words", 4, 0
            self.query_prompt = self.passage_prompt = ""

        def passages(self, passages: Any) -> Any:
            self.embedded += len(passages)
            return np.full((len(passages), 4), 0.5, np.float32)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(indexes, "file_infos", killed)
        with pytest.raises(KeyboardInterrupt):
            make_index(PASSAGES, tmp_path, Engine(kind="dense", embedder=Words()))
    again = Words()
    index = make_index(PASSAGES, tmp_path, Engine(kind="dense", embedder=again))
    assert again.embedded < 10
    assert sorted(path.name for path in (tmp_path / "dense").iterdir()) == ["vectors.faiss"]
    assert set(index.info.files) == {"passages.jsonl", "offsets.npy", "dense/vectors.faiss"}


def test_another_copy_of_the_folder_does_not_overwrite_what_was_added(tmp_path: Path) -> None:
    pytest.importorskip("opensearchpy")
    import shutil

    from searching import StandIn

    with StandIn("opensearch") as server:
        make_index(
            PASSAGES[:1], tmp_path / "a", Engine(kind="opensearch", urls=(server.url,), name="x")
        )
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        add_to_index([Passage("ann", "", "ann wrote apples")], tmp_path / "a")
        with pytest.raises(SteperError, match="another copy"):
            add_to_index([Passage("bob", "", "bob wrote pears")], tmp_path / "b")
        assert [p.id for p in open_index(tmp_path / "a").search(["ann apples"], 3)[0]] == ["ann"]


def test_a_damaged_file_of_a_table_is_named(tmp_path: Path) -> None:
    pytest.importorskip("lancedb")
    make_index(PASSAGES[:50], tmp_path, Engine("lancedb"))
    assert "files are as they were written" in indexes.verify_index(tmp_path)
    data = max((tmp_path / "lance").rglob("*.lance"), key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    content[100] ^= 255
    data.write_bytes(content)
    with pytest.raises(SteperError, match=f"{data.name}: has changed"):
        indexes.verify_index(tmp_path)


def test_a_table_made_twice_has_one_fingerprint(tmp_path: Path) -> None:
    pytest.importorskip("lancedb")
    one, other = (make_index(PASSAGES[:50], tmp_path / n, Engine("lancedb")).info for n in "ab")
    assert one.files != other.files
    assert one.fingerprint == other.fingerprint


def unread() -> Iterator[Passage]:
    pytest.fail("the corpus was read before the engine was checked")
    yield


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (Engine(language="xx"), "unknown language"),
        (Engine("opensearch", urls=("http://127.0.0.1:9",)), "no answer from the cluster"),
        (Engine("elasticsearch", urls=("http://127.0.0.1:9",)), "no answer from the cluster"),
    ],
)
def test_what_cannot_be_built_is_told_of_before_the_corpus_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: Engine, message: str
) -> None:
    monkeypatch.setattr("steper.retrieval.search_client.PAUSES_S", ())
    with pytest.raises(SteperError, match=message):
        make_index(unread(), tmp_path, engine)


@pytest.mark.parametrize("kind", ["hybrid", "lancedb", "opensearch"])
def test_a_missing_library_is_told_of_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: IndexKind
) -> None:
    monkeypatch.setattr(indexes, "find_spec", lambda name: None)
    with pytest.raises(SteperError, match=r"pip install 'steper\["):
        make_index(unread(), tmp_path, Engine(kind, urls=("http://127.0.0.1:9",)))
