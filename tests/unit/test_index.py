"""`steper index`: a finished index is reused, an interrupted or foreign one is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from steper.errors import SteperError
from steper.index import build_index, open_index


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"id": "a", "title": "Hee Haw", "text": "A show."}\n', encoding="utf-8")
    return path


def test_the_same_command_reuses_a_finished_index(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    build_index(corpus, out)
    before = (out / "passages.jsonl").stat().st_mtime_ns
    assert len(build_index(corpus, out)) == 1
    assert (out / "passages.jsonl").stat().st_mtime_ns == before


def test_another_corpus_or_language_is_refused(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    build_index(corpus, out)
    with pytest.raises(SteperError, match=r"config\.language: 'en' there, 'de' now"):
        build_index(corpus, out, language="de")
    corpus.write_text('{"text": "Other."}\n', encoding="utf-8")
    with pytest.raises(SteperError, match=r"input\.corpus"):
        build_index(corpus, out)


def test_an_interrupted_build_is_not_opened_and_starts_again(corpus: Path, tmp_path: Path) -> None:
    good = corpus.read_bytes()
    corpus.write_bytes(good + b"{\n")
    out = tmp_path / "index"
    with pytest.raises(SteperError, match=r"corpus\.jsonl:2"):
        build_index(corpus, out)
    with pytest.raises(SteperError, match="has not finished"):
        open_index(out)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["status"] == "running"


def test_a_folder_that_is_no_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SteperError, match=r"holds no manifest\.json"):
        open_index(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(SteperError, match="not empty"):
        build_index(tmp_path / "file", tmp_path)


def test_an_index_inside_its_corpus_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Some words.")
    with pytest.raises(SteperError, match="inside the corpus folder"):
        build_index(tmp_path, tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_building_says_what_it_takes(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_index(corpus, tmp_path / "index")
    said = capsys.readouterr()
    assert "1 passages, 0.0 MB of text; needs about" in said.err
    assert said.out == ""
