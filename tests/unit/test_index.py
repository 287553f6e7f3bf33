"""`steper index`: a finished index is reused, an interrupted or foreign one is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from steper.config import IndexConfig
from steper.errors import SteperError
from steper.index import build_index
from steper.retrieval.indexes import open_index, without_login


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"id": "a", "title": "Hee Haw", "text": "A show."}\n', encoding="utf-8")
    return path


def build(source: Path, out: Path, **options: Any) -> Path:
    return build_index(IndexConfig(source=str(source), out=out, workers=1, **options))


def test_the_same_command_reuses_a_finished_index(corpus: Path, tmp_path: Path) -> None:
    out = build(corpus, tmp_path / "index")
    before = (out / "passages.jsonl").stat().st_mtime_ns
    assert open_index(build(corpus, out)).info.passages == 1
    assert (out / "passages.jsonl").stat().st_mtime_ns == before


def test_another_corpus_or_language_is_refused(corpus: Path, tmp_path: Path) -> None:
    out = build(corpus, tmp_path / "index")
    with pytest.raises(SteperError, match=r"config\.language: 'en' there, 'de' now"):
        build(corpus, out, language="de")
    corpus.write_text('{"text": "Other."}\n', encoding="utf-8")
    with pytest.raises(SteperError, match=r"input\.corpus"):
        build(corpus, out)


def test_an_index_made_twice_is_the_same(corpus: Path, tmp_path: Path) -> None:
    one, other = (open_index(build(corpus, tmp_path / name)).info for name in ("a", "b"))
    assert one.fingerprint == other.fingerprint


def test_an_interrupted_build_is_not_opened_and_starts_again(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "index"

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("steper.retrieval.bm25.build_postings", killed)
        with pytest.raises(KeyboardInterrupt):
            build(corpus, out)
    assert json.loads((out / "manifest.json").read_text())["status"] == "running"
    with pytest.raises(SteperError, match="not finished"):
        open_index(out)
    assert open_index(build(corpus, out)).search(["show"], 1)[0][0].id == "a"


def test_what_cannot_be_read_is_kept_apart(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus.write_bytes(corpus.read_bytes() + b'{\n{"text": ""}\n{"id": "a", "text": "Another."}\n')
    out = build(corpus, tmp_path / "index")
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert [reject["where"].partition(":")[2][:1] for reject in rejected[:2]] == ["2", "3"]
    assert "used twice" in rejected[2]["reason"]
    assert all(reject["reason"] and reject["fix"] for reject in rejected)
    counts = json.loads((out / "manifest.json").read_text())["counts"]
    assert (counts["passages"], counts["left_out"]) == (1, 3)
    assert "3 left out" in capsys.readouterr().err


def test_two_processes_do_not_build_in_one_folder(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    hold = (
        "import sys; from pathlib import Path; from steper.store import Run\n"
        "from steper.config import IndexConfig; import steper.index as verb\n"
        "def wait(*_, **__): print('holding', flush=True); sys.stdin.read()\n"
        "verb.make_index = wait\n"
        f"verb.build_index(IndexConfig(source={str(corpus)!r}, out=Path({str(out)!r}), workers=1))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "holding\n"
        with pytest.raises(SteperError, match="another process is working in this folder"):
            build(corpus, out)
        other.kill()
    assert open_index(build(corpus, out)).info.passages == 1


def test_a_folder_that_is_no_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SteperError, match=r"holds no info\.json"):
        open_index(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(SteperError, match="not empty"):
        build(tmp_path / "file", tmp_path)


def test_an_index_inside_its_corpus_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Some words.")
    with pytest.raises(SteperError, match="inside the corpus folder"):
        build(tmp_path, tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_an_index_of_words_cannot_be_added_to_and_says_why(corpus: Path, tmp_path: Path) -> None:
    out = build(corpus, tmp_path / "index")
    before = (out / "info.json").read_bytes()
    more = tmp_path / "more.jsonl"
    more.write_text('{"text": "More."}\n')
    with pytest.raises(SteperError, match="what a word weighs"):
        build(more, out, add=True)
    assert (out / "info.json").read_bytes() == before
    assert open_index(out).info.passages == 1


def test_building_says_what_it_takes(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(corpus, tmp_path / "index")
    said = capsys.readouterr()
    assert "0 MB of text; needs about" in said.err
    assert said.out == ""


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"vectors": "pq"}, "--vectors: has no meaning for a bm25 index"),
        ({"uri": "s3://x"}, "--uri: has no meaning"),
        ({"embedder": "x"}, "--kind dense or"),
        ({"kind": "dense", "language": "de"}, "--language"),
        ({"kind": "opensearch"}, "--urls: is missing"),
        ({"rerank_depth": 7}, "--rerank-depth: has no meaning without --reranker"),
        ({"tokenizer": "x"}, "--tokenizer: has no meaning without --chunk-tokens"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    corpus: Path, tmp_path: Path, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(SteperError, match=named):
        build(corpus, tmp_path / "index", **options)
    assert not (tmp_path / "index").exists()


def test_a_password_is_not_written_down(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise SteperError("nobody answers.")

    monkeypatch.setattr("steper.index.make_index", unreachable)
    out = tmp_path / "index"
    with pytest.raises(SteperError, match="nobody answers"):
        build(corpus, out, kind="opensearch", urls=("http://me:secret@localhost:9200",))
    written = [path.read_text() for path in out.rglob("*") if path.is_file()]
    assert any("localhost:9200" in text for text in written)
    assert not any("secret" in text for text in written)


def test_a_login_is_not_shown() -> None:
    assert without_login("https://me:se@cret@host:80/x") == "https://host:80/x"
    assert without_login("runs/a@b") == "runs/a@b"


# ---- indexes that grow ---------------------------------------------------------------------------


@pytest.fixture
def table(corpus: Path, tmp_path: Path) -> Path:
    pytest.importorskip("lancedb")
    return build(corpus, tmp_path / "table", kind="lancedb")


@pytest.fixture
def more(tmp_path: Path) -> Path:
    path = tmp_path / "more.jsonl"
    path.write_text(
        '{"id": "a", "text": "The id is taken."}\n'
        '{"id": "b", "title": "Hee Haw", "text": "A  show."}\n'
        '{"id": "c", "title": "Roy Clark", "text": "A singer."}\n'
    )
    return path


def test_what_is_new_is_added_while_readers_go_on(table: Path, more: Path) -> None:
    reader = open_index(table)
    build(more, table, add=True)
    assert [p.id for p in reader.search(["singer show"], 5)[0]] == ["a"]
    grown = open_index(table)
    assert {p.id for p in grown.search(["singer show"], 5)[0]} == {"a", "c"}
    assert grown.info.passages == 2
    assert grown.info.fingerprint != reader.info.fingerprint
    counts = json.loads((table / "manifest.json").read_text())["counts"]
    assert counts["passages"] == 2


def test_adding_the_same_again_changes_nothing(table: Path, more: Path) -> None:
    build(more, table, add=True)
    before = open_index(table).info
    build(more, table, add=True)
    assert open_index(table).info == before


def test_an_interrupted_addition_leaves_the_index_as_it_was(
    table: Path, more: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_index(table).info

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for place in ("np.save", "write_json", "shutil.rmtree"):
        with monkeypatch.context() as patch:
            patch.setattr(f"steper.retrieval.indexes.{place}", killed)
            with pytest.raises(KeyboardInterrupt):
                build(more, table, add=True)
        index = open_index(table)
        assert index.info == before
        assert [p.id for p in index.search(["singer show"], 5)[0]] == ["a"]
    build(more, table, add=True)
    assert {p.id for p in open_index(table).search(["singer show"], 5)[0]} == {"a", "c"}


def test_a_name_that_is_no_text_and_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    with open(os.fsencode(folder) + b"/caf\xe9.md", "wb") as file:
        file.write(b"# Coffee\n\nIt is hot.\n")
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("one")
    out = build(folder, tmp_path / "index")
    assert open_index(out).search(["coffee"], 1)[0][0].title == "Coffee"
    (folder / ".git" / "HEAD").write_text("another")
    assert build(folder, out) == out


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ({}, {"other_fields": "ignore"}),
        ({"other_fields": "ignore", "language": "xx"}, {"other_fields": "ignore"}),
        ({"other_fields": "ignore", "reranker": "no/such"}, {"other_fields": "ignore"}),
    ],
)
def test_after_a_mistake_the_command_that_mends_it_may_go_to_the_same_folder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wrong: dict[str, Any],
    right: dict[str, Any],
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder, out = tmp_path / "notes", tmp_path / "index"
    folder.mkdir()
    (folder / "a.md").write_text("# A\n\nSome words.\n")
    (folder / "b.jsonl").write_text('{"text": "More words.", "lang": "en"}\n')
    with pytest.raises(SteperError):
        build(folder, out, **wrong)
    assert not (out / "info.json").exists()
    assert open_index(build(folder, out, **right)).info.passages == 2


def test_tables_without_texts_are_left_out_on_demand(tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "a.md").write_text("# A\n\nSome words.\n")
    (folder / "prices.csv").write_text("name,price\npen,3\n")
    with pytest.raises(SteperError, match="other-fields ignore"):
        build(folder, tmp_path / "one")
    out = build(folder, tmp_path / "two", other_fields="ignore")
    assert open_index(out).info.passages == 1
    assert "prices.csv" in (out / "rejected.jsonl").read_text()


def test_what_a_kill_left_is_no_part_of_the_index(corpus: Path, tmp_path: Path) -> None:
    whole = open_index(build(corpus, tmp_path / "whole")).info
    out = tmp_path / "index"
    with pytest.raises(SteperError):
        build(tmp_path / "no", out)
    left = out / "bm25" / ".blocks-killed"
    left.mkdir(parents=True)
    (left / "0.npy").write_bytes(b"x" * 100)
    from steper.retrieval.indexes import make_index
    from steper.types import Passage

    made = make_index([Passage("a", "Hee Haw", "A show.")], out).info
    assert not left.exists()
    assert made.fingerprint == whole.fingerprint


@pytest.mark.parametrize("port", ["abc", "99999", "1:2"])
def test_a_port_that_is_none(corpus: Path, tmp_path: Path, port: str) -> None:
    with pytest.raises(SteperError, match="is not the URL of a node"):
        build(corpus, tmp_path / "index", kind="opensearch", urls=(f"http://localhost:{port}",))


def test_what_an_addition_cannot_change_is_refused(corpus: Path, tmp_path: Path) -> None:
    pytest.importorskip("lancedb")
    out = build(corpus, tmp_path / "index", kind="lancedb")
    more = tmp_path / "more.jsonl"
    more.write_text('{"text": "More."}\n')
    for options in ({"language": "ko"}, {"embedder": "x"}, {"kind": "dense"}):
        with pytest.raises(SteperError, match="cannot be changed by --add"):
            build(more, out, add=True, **options)
    (out / "known.npy").write_bytes(b"x")
    with pytest.raises(SteperError, match=r"known\.npy: cannot be read"):
        build(more, out, add=True)


def test_only_what_is_read_counts_in_the_estimate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "a.md").write_text("# A\n\nSome words.\n")
    with (folder / "film.mp4").open("wb") as file:
        file.truncate(50_000_000)
    build(folder, tmp_path / "index")
    assert "about 0 MB of text" in capsys.readouterr().err
