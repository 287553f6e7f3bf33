"""Reading corpora: every format, and a named place for everything that is wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from steper.corpus import read_corpus
from steper.errors import SteperError
from steper.types import Passage

LINE = {"id": "a", "title": "T", "text": "Some text."}


def jsonl(path: Path, *lines: object) -> Path:
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def test_jsonl(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "c.jsonl", LINE, {"text": "Bare."}, {**LINE, "id": "c", "sources": []})
    passages = list(read_corpus(path))
    assert passages[0] == Passage("a", "T", "Some text.")
    assert passages[1].title == "" and len(passages[1].id) == 12
    assert list(read_corpus(path)) == passages


def test_gzip_and_parquet(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(json.dumps(LINE).encode()))
    pq.write_table(pa.table({k: [v] for k, v in LINE.items()}), tmp_path / "c.parquet")
    expected = [Passage("a", "T", "Some text.")]
    assert list(read_corpus(tmp_path / "c.jsonl.gz")) == expected
    assert list(read_corpus(tmp_path / "c.parquet")) == expected


def test_a_folder_of_prose(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "notes.txt").write_text("One sentence. " * 80, encoding="utf-8")
    (tmp_path / "guide.md").write_text("# Set-up\n\n## Linux\n\nInstall it.\n", encoding="utf-8")
    (tmp_path / ".hidden").write_text("no", encoding="utf-8")
    passages = list(read_corpus(tmp_path))
    assert [p.id for p in passages] == ["guide.md#1", "sub/notes.txt#1", "sub/notes.txt#2"]
    assert passages[0] == Passage("guide.md#1", "Set-up > Linux", "Install it.")
    assert passages[1].title == "notes" and len(passages[1].text.split()) <= 100
    assert " ".join(p.text for p in passages[1:]) == ("One sentence. " * 80).strip()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"c\.jsonl:2: Invalid JSON"),
        ({"id": "b", "title": "T"}, r"c\.jsonl:2: text: required field is missing"),
        ({**LINE, "id": "b", "txet": ""}, r"c\.jsonl:2: txet: unknown field"),
        ({**LINE, "id": 3}, r"c\.jsonl:2: id: Input should be a valid string"),
        ({**LINE, "id": "b", "text": " "}, r"c\.jsonl:2: text: is empty"),
        (LINE, r"c\.jsonl:2: id: 'a' is used twice, first in .*c\.jsonl:1"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: object, message: str) -> None:
    path = jsonl(tmp_path / "c.jsonl", LINE, line)
    with pytest.raises(SteperError, match=message):
        list(read_corpus(path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.jsonl", b"", "holds no passages"),
        ("c.txt", b"fine\n\xff\xfe", r"c\.txt:2: byte 1 is not valid UTF-8"),
        ("c.docx", b"x", "cannot be read as a corpus file"),
        ("c.parquet", b"PAR1 no", "cannot be read as Parquet"),
        ("c.jsonl.gz", b"not gzip", "cannot be read"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SteperError, match=message):
        list(read_corpus(tmp_path / name))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SteperError, match="no such file or folder"):
        list(read_corpus(tmp_path / "nowhere"))
