"""Reading records: every kind of file, and a named place for everything that is wrong."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from steper.corpus import Reading, Reject, corpus_size, read_corpus
from steper.errors import SteperError
from steper.store import from_json, to_json
from steper.types import Passage

LINE = {"id": "a", "title": "T", "text": "Some text."}
PASSAGE = Passage("a", "T", "Some text.")
PLAIN = Reading()


def lines(*rows: object) -> bytes:
    texts = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    return "".join(f"{text}\n" for text in texts).encode()


def jsonl(path: Path, *rows: object) -> Path:
    path.write_bytes(lines(*rows))
    return path


def read(source: Path | str, reading: Reading = PLAIN) -> tuple[list[Passage], list[Reject]]:
    rejects: list[Reject] = []
    passages = list(read_corpus(str(source), reading, reject=rejects.append))
    assert all(from_json(Reject, to_json(reject), where="") == reject for reject in rejects)
    return passages, rejects


def refused(source: Path | str, reading: Reading = PLAIN) -> str:
    with pytest.raises(SteperError) as error:
        read(source, reading)
    return str(error.value)


# ---- every kind of file ------------------------------------------------------------------------


def test_jsonl(tmp_path: Path) -> None:
    rows = [LINE, {"text": "Bare."}, {**LINE, "id": 7, "sources": [], "metadata": {"x": 1}}]
    passages, rejects = read(jsonl(tmp_path / "c.jsonl", *rows))
    assert passages[0] == PASSAGE and passages[2].id == "7" and rejects == []
    # 16 hex digits of SHA-256 over title, newline, text: pinned, since corpora keep them.
    assert passages[1] == Passage("bbe7e5a4a3909f38", "", "Bare.")


def csv_bytes(separator: str) -> bytes:
    return "\ufeffid,title,text\r\na,T,Some text.\r\n".replace(",", separator).encode()


def parquet_bytes(*rows: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), file)
    return file.getvalue()


FILES = {
    "c.jsonl": b"\xef\xbb\xbf" + lines(LINE),
    "C.JSONL": lines(LINE).replace(b"\n", b"\r\n\r\n"),
    "lines.json": lines(LINE),
    "array.json": json.dumps([LINE], indent=2).encode(),
    "c.csv": csv_bytes(","),
    "c.tsv": csv_bytes("\t"),
    "c.parquet": parquet_bytes(LINE),
    "wiki_00": lines(LINE),
}
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


@pytest.mark.parametrize("name", FILES)
def test_each_kind_plain_and_packed(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    assert read(tmp_path / name) == ([PASSAGE], [])
    if not name.endswith(".parquet"):
        for ending, pack in PACKERS.items():
            (tmp_path / f"{name}{ending}").write_bytes(pack(FILES[name]))
            assert read(tmp_path / f"{name}{ending}") == ([PASSAGE], [])


def tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, f"w:{path.suffix[1:].replace('tar', '')}") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".tar.bz2", ".tar.xz"])
def test_archives(tmp_path: Path, ending: str) -> None:
    files = {f"./sub/{name}": content for name, content in FILES.items()}
    files |= {"sub/in.jsonl.bz2": bz2.compress(lines(LINE)), ".hidden/c.jsonl": b"{", "._x.md": b""}
    source = tar(
        tmp_path / f"all{ending}", files | {"a.txt": b"Prose.", "inner.tar": b"", "x": b""}
    )
    passages, rejects = read(source)
    assert passages[:-1] == [PASSAGE] * (len(FILES) + 1)
    assert passages[-1] == Passage(f"all{ending}/a.txt#1", "a", "Prose.")
    assert [reject.reason.split(":")[0] for reject in rejects] == [
        "1 file with .tar",
        "1 file with no ending",
    ]


def test_a_saved_data_set(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    one = datasets.Dataset.from_list([LINE, {**LINE, "id": "b", "text": None}])
    one.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"dev": one}).save_to_disk(tmp_path / "more")
    passages, rejects = read(tmp_path / "one")
    assert passages == [PASSAGE]
    assert rejects[0].where.endswith("one: row 2") and rejects[0].reason.startswith("text: is null")
    assert read(tmp_path / "more", Reading(hub_split="dev"))[0] == [PASSAGE]
    assert "no split 'train'. Choose with `--hub-split`: dev." in refused(tmp_path / "more")
    assert "body: required field is missing" in refused(tmp_path / "one", Reading({"text": "body"}))
    size = corpus_size(str(tmp_path / "one"))
    told: list[int] = []
    list(read_corpus(str(tmp_path / "one"), reject=lambda _: None, progress=told.append))
    assert (size.rows, size.total, size.unit) == (2, 2, "rows") and sum(told) == 2


def test_a_data_set_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own stream over rows at hand: there is no network here."""
    datasets = pytest.importorskip("datasets")
    asked: list[Any] = []

    def load_dataset(*arguments: object, **options: object) -> Any:
        asked.append((arguments, options))
        rows = [{**LINE, "url": "x"}] * 3
        return datasets.Dataset.from_list(rows).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    reading = Reading(other_fields="ignore", hub_config="20231101.ko", hub_split="dev")
    assert read("owner/name", reading)[0] == [PASSAGE] * 3
    assert asked == [(("owner/name", "20231101.ko"), {"split": "dev", "streaming": True})]
    assert "url: unknown field" in refused("owner/name")
    assert corpus_size("owner/name").total is None


def test_the_hub_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    message = refused("owner/name")
    assert message.startswith("owner/name: there is no such file or folder, and the hub's data set")


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "dataset_dict.json").touch()
    assert "pip install 'steper[hub]'" in refused(tmp_path)


# ---- the dump ----------------------------------------------------------------------------------

ARTICLE = {
    "id": "12",
    "url": "https://en.wikipedia.org/wiki?curid=12",
    "title": "Hee Haw",
    "text": ["Hee Haw is a show.", " It has music."],
    "charoffset": [[[0, 3]], []],
    "text_with_links": ["Hee Haw is a <a href=x>show</a>.", " It has music."],
    "charoffset_with_links": [[[0, 3]], []],
}


def test_the_dump_of_hotpotqa(tmp_path: Path) -> None:
    paragraphs = [["Hee Haw"], ["Hee Haw is a show.", "It has music."], []]
    pieces = {
        "AA/wiki_00.bz2": bz2.compress(lines(ARTICLE)),
        "AB/wiki_01.bz2": bz2.compress(
            lines({**ARTICLE, "id": "13", "text": paragraphs}, {**ARTICLE, "text": [[""]]})
        ),
        "AB/wiki_02.bz2": bz2.compress(lines({**ARTICLE, "text": ["One", 2]})),
    }
    passages, rejects = read(tar(tmp_path / "enwiki-abstracts.tar.bz2", pieces))
    text = "Hee Haw is a show. It has music."
    assert passages == [
        Passage("12", "Hee Haw", text),
        Passage("13", "Hee Haw", f"Hee Haw\n{text}"),
    ]
    assert [(r.where.split("tar.bz2/")[1], r.reason) for r in rejects] == [
        ("AB/wiki_01.bz2:2", "text: is empty."),
        ("AB/wiki_02.bz2:1", "text: is null, not text."),
    ]


# ---- columns -----------------------------------------------------------------------------------

BODY = {"url": "u1", "name": "N", "body": "Body."}
FIELDS = {"id": "url", "title": "name", "text": "body"}


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_columns_can_be_named_and_others_left_out(tmp_path: Path, kind: str) -> None:
    content = {
        "jsonl": lines(BODY),
        "json": json.dumps([BODY]).encode(),
        "csv": b"url,name,body\nu1,N,Body.\n",
        "parquet": parquet_bytes(BODY),
    }[kind]
    path = tmp_path / f"c.{kind}"
    path.write_bytes(content)
    expected = [Passage("u1", "N", "Body.")]
    assert read(path, Reading(FIELDS)) == (expected, [])
    only = Reading({"text": "body", "id": "url"}, other_fields="ignore")
    assert read(path, only)[0] == [Passage("u1", "", "Body.")]
    # What would spoil every record ends at once, although rejects are asked for.
    message = refused(path, Reading({"text": "body"}))
    assert "url: unknown field." in message and "`--other-fields ignore`" in message
    message = refused(path)
    assert "text: required field is missing." in message and "`--fields text COLUMN`" in message
    assert "url, name, body" in message
    # A mistyped column would otherwise leave every title empty.
    message = refused(path, Reading({"title": "nmae", "text": "body"}, other_fields="ignore"))
    assert "nmae: required field is missing" in message


def test_an_option_that_makes_no_sense_is_refused() -> None:
    for options, message in [
        ({"fields": {"txt": "body"}}, "txt: a passage has no such field"),
        ({"chunk_words": 0}, "at least 1"),
        ({"overlap": -1}, "must not be negative"),
        ({"chunk_tokens": 5}, "of which tokenizer"),
    ]:
        with pytest.raises(SteperError, match=message):
            Reading(**options)  # type: ignore[arg-type]


def test_long_records_are_cut_only_on_demand(tmp_path: Path) -> None:
    text = "Four words make one. " * 60
    source = jsonl(tmp_path / "c.jsonl", {**LINE, "text": text}, {**LINE, "id": "b", "text": " x "})
    assert read(source)[0][0].text == text
    passages, _ = read(source, Reading(cut_records=True))
    assert [p.id for p in passages] == ["a#1", "a#2", "a#3", "b"]
    assert " ".join(p.text for p in passages[:3]) == text.strip() and passages[3].text == " x "


# ---- what is wrong with single records ---------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "not JSON: EOF"),
        ("[1]", "is no record."),
        ("null", "is no record."),
        ('{"id": "b", "text": "\\ud800"}', "not JSON: unexpected end of hex escape"),
        ('{"text": ' + "[" * 9999, "not JSON: "),
        ({"id": "b", "title": "T"}, "text: required field is missing."),
        ({**LINE, "id": "b", "txet": ""}, "txet: unknown field."),
        ({**LINE, "id": 3.5}, "id: is of type float, not text."),
        ({**LINE, "id": True}, "id: is of type bool, not text."),
        ({**LINE, "id": " "}, "id: is empty."),
        ({**LINE, "text": " \n"}, "text: is empty."),
        ({**LINE, "text": None}, "text: is null, not text."),
        ({**LINE, "text": ["a"]}, "text: is of type list, not text."),
        ({**LINE, "title": None}, "title: is null, not text."),
    ],
)
def test_a_bad_line_is_rejected_and_the_rest_goes_on(
    tmp_path: Path, row: object, message: str
) -> None:
    path = jsonl(tmp_path / "c.jsonl", LINE, row, {**LINE, "id": "c"})
    passages, rejects = read(path)
    assert [p.id for p in passages] == ["a", "c"]
    assert [r.where for r in rejects] == [f"{path}:2"] and rejects[0].reason.startswith(message)
    with pytest.raises(SteperError, match=r"c\.jsonl:2: "):
        list(read_corpus(str(path)))


def test_a_line_in_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(lines(LINE) + b'{"text": "caf\xe9"}\n' + lines(LINE))
    passages, rejects = read(path)
    assert len(passages) == 2 and rejects[0].reason == "byte 14 is not valid UTF-8."


def test_a_line_without_end_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steper.records.MAX_LINE_BYTES", 1000)
    path = jsonl(tmp_path / "c.jsonl", LINE, {"text": "x" * 5000}, LINE)
    passages, rejects = read(path)
    assert passages == [PASSAGE] * 2 and rejects[0].where.endswith(":2")
    assert "longer than" in rejects[0].reason


def test_an_array_that_is_torn_keeps_what_came_before(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(json.dumps([LINE, 5, LINE], indent=1).encode()[:-1] + b', {"text": ]')
    passages, rejects = read(path)
    assert passages == [PASSAGE] * 2
    assert [r.reason.split(":")[0] for r in rejects] == ["is no record.", "not JSON"]


def test_an_array_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The window ends in every place of every kind of value."""
    rows = [{**LINE, "id": str(n), "text": 'é"\\ 🙂' * n + "x"} for n in range(30)]
    path = tmp_path / "c.json"
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=2), encoding="utf-8")
    expected = [Passage(**row) for row in rows]
    for size in (1, 7, 64, 1000):
        monkeypatch.setattr("steper.records._BLOCK_CHARS", size)
        assert read(path) == (expected, [])


def test_settings_in_json_are_one_reject(tmp_path: Path) -> None:
    (tmp_path / "package.json").write_text(json.dumps({"a": [1, 2]}, indent=2))
    jsonl(tmp_path / "z.jsonl", LINE)
    passages, rejects = read(tmp_path)
    assert passages == [PASSAGE] and len(rejects) == 1 and "over many lines" in rejects[0].reason


def test_csv_with_quotes_newlines_and_odd_rows(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    big = "word " * 100_000
    path.write_bytes(
        'id,title,text\n1,"A, ""B""","One\nline, two"\n\n2,T\n3,T,\n4,T,\xff\n'.encode("latin-1")
        + f'5,T,"{big}"\n6,서울,텍스트\x00.\n'.encode()
    )
    passages, rejects = read(path)
    assert passages == [
        Passage("1", 'A, "B"', "One\nline, two"),
        Passage("5", "T", big),
        Passage("6", "서울", "텍스트\x00."),
    ]
    assert [(r.where.rsplit(":")[-1], r.reason) for r in rejects] == [
        ("5", "has 2 fields, the first line has 3."),
        ("6", "text: is empty."),
        ("7", "is not valid UTF-8."),
    ]


def test_a_quote_that_is_never_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steper.corpus.tables.MAX_FIELD_CHARS", 1000)
    path = tmp_path / "c.csv"
    path.write_text('text\nfine\n"open\n' + "more\n" * 500, encoding="utf-8")
    passages, rejects = read(path)
    assert passages[0].text == "fine" and rejects[0].where.endswith(":3")
    assert rejects[0].reason.startswith("not CSV: field larger")


def test_parquet_nulls_and_types(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    path.write_bytes(
        parquet_bytes(
            {"id": 1, "title": "T", "text": "One."},
            {"id": 2, "title": None, "text": "Two."},
            {"id": None, "title": "T", "text": "Three."},
        )
    )
    passages, rejects = read(path)
    assert [p.text for p in passages] == ["One.", "Three."]
    assert passages[0].id == "1" and len(passages[1].id) == 16
    assert rejects[0].where == f"{path}: row 2" and rejects[0].reason.startswith("title: is null")


# ---- what is wrong with whole files ------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.parquet", b"PAR1 no", "is not a readable Parquet file"),
        ("c.parquet", b"", "is not a readable Parquet file"),
        ("c.jsonl.gz", b"not gzip", "cannot be read any further: Not a gzipped file"),
        ("c.csv.bz2", b"not bzip2", "cannot be read any further"),
        ("c.txt.xz", b"not xz", "cannot be read any further"),
        ("c.tar.gz", b"no tar", "cannot be read any further"),
        ("c.tar", b"no tar" * 1000, "cannot be read any further"),
    ],
)
def test_a_broken_file_is_rejected_and_the_rest_goes_on(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert message in refused(tmp_path)  # nothing else can be read: that reason is the error
    jsonl(tmp_path / "z.jsonl", LINE)
    passages, rejects = read(tmp_path)
    assert passages == [PASSAGE]
    assert [r.where for r in rejects] == [str(tmp_path / name)] and message in rejects[0].reason


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz"])
def test_what_stands_before_a_break_is_kept(tmp_path: Path, ending: str) -> None:
    random = Random(0)
    noise = [{"text": f"{n} {random.random()}"} for n in range(40_000)]
    packed = PACKERS[ending](lines(*noise))
    (tmp_path / f"c.jsonl{ending}").write_bytes(packed[: len(packed) * 3 // 4])
    tar(tmp_path / "d.tar", {f"c.jsonl{ending}": packed[:-300], "z.jsonl": lines(LINE)})
    passages, rejects = read(tmp_path)
    assert len(passages) > 40_000 and passages[-1] == PASSAGE and len(rejects) in (2, 3)


def test_files_that_are_nothing_to_read_are_counted(tmp_path: Path) -> None:
    for name in ("a.png", "b.PNG", "c.docx", "LICENSE", ".hidden.docx", "d.pdf.gz", "e.jsonl"):
        (tmp_path / name).write_bytes(lines(LINE))
    passages, rejects = read(tmp_path)
    assert passages == [PASSAGE]
    assert [reject.reason.split(":")[0] for reject in rejects] == [
        "1 file with .docx",
        "1 file with .gz",
        "2 files with .png",
        "1 file with no ending",
    ]
    assert "is nothing to read. Readable are .jsonl" in refused(tmp_path / "c.docx")


def test_nothing_to_read(tmp_path: Path) -> None:
    assert "holds no passages that can be read. it is empty." in refused(tmp_path).lower()
    (tmp_path / "c.jsonl").touch()
    assert "holds no passages that can be read" in refused(tmp_path)
    (tmp_path / "c.jsonl").write_bytes(b"{\n")
    assert "The first: " in refused(tmp_path) and "c.jsonl:1: not JSON" in refused(tmp_path)


def test_a_missing_source_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").mkdir()
    for source in ("nowhere", "notes/guide", "other/guide.md", str(tmp_path / "a" / "b")):
        assert refused(source) == f"{source}: no such file or folder. Check the path."


def test_names_that_are_no_text(tmp_path: Path) -> None:
    name = b"caf\xe9.txt"
    try:
        with open(bytes(tmp_path) + b"/" + name, "wb") as file:
            file.write(b"Prose.")
    except OSError:
        pytest.skip("this file system refuses such names")
    assert read(tmp_path)[0] == [Passage("caf\\xe9.txt#1", "caf\\xe9", "Prose.")]


# ---- progress, size, memory --------------------------------------------------------------------


def test_progress_comes_to_the_size_on_disk(tmp_path: Path) -> None:
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(lines(LINE) * 100_000))
    tar(tmp_path / "t.tar.gz", {"c.csv": FILES["c.csv"]})
    told: list[int] = []
    list(read_corpus(str(tmp_path), reject=lambda _: None, progress=told.append))
    size = corpus_size(str(tmp_path))
    assert sum(told) == size.disk_bytes == size.total > 1 and size.unit == "B"
    assert size.text_bytes > size.disk_bytes and size.rows is None
    assert size.disk_bytes == sum(file.stat().st_size for file in tmp_path.iterdir())


@pytest.mark.parametrize("name", ["c.jsonl", "c.json", "c.csv", "c.tar.gz"])
def test_a_large_file_is_not_held(tmp_path: Path, name: str) -> None:
    """60 MB of text through a process that may grow by 40 MB."""
    if not Path("/proc/self/status").is_file():
        pytest.skip("this system does not tell a process's peak memory")
    text = "word " * 1000
    row = f'{{"text": "{text}"}}'
    body = {
        "c.jsonl": f"{row}\n" * 12_000,
        "c.json": "[" + ",".join([row] * 12_000) + "]",
        "c.csv": "text\n" + f"{text}\n" * 12_000,
        "c.tar.gz": f"{row}\n" * 12_000,
    }[name].encode()
    if name == "c.tar.gz":
        tar(tmp_path / name, {"c.jsonl": body})
    else:
        (tmp_path / name).write_bytes(body)
    code = f"""
from pathlib import Path
from steper.corpus import read_corpus
# Not ru_maxrss: a new process inherits that of its parent.
peak = lambda: int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) >> 10
before = peak()
assert sum(1 for _ in read_corpus({str(tmp_path / name)!r})) == 12_000
print(peak() - before)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert int(result.stdout) < 40


def test_real_corpora_are_read_as_they_are(shared_data: Path) -> None:
    source = shared_data / "musique" / "corpus.jsonl"
    passages, rejects = read(source)
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    assert rejects == [] and [(p.id, p.title, p.text) for p in passages] == [
        (row["id"], row["title"], row["text"]) for row in rows
    ]


def test_csv_whose_first_line_is_broken(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"id,te\rxt\n1,2\n")
    jsonl(tmp_path / "z.jsonl", LINE)
    passages, rejects = read(tmp_path)
    assert passages == [PASSAGE] and rejects[0].reason.startswith("not CSV: new-line character")
