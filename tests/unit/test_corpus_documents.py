"""Reading prose: text, Markdown, HTML and PDF, cut into passages."""

from __future__ import annotations

import gzip
import io
import logging
import sys
from pathlib import Path

import pytest

from steper.corpus import Reading, Reject, read_corpus
from steper.errors import SteperError
from steper.types import Passage

PLAIN = Reading()


def read(source: Path, reading: Reading = PLAIN) -> tuple[list[Passage], list[Reject]]:
    rejects: list[Reject] = []
    return list(read_corpus(str(source), reading, reject=rejects.append)), rejects


def refused(source: Path, reading: Reading = PLAIN) -> str:
    with pytest.raises(SteperError) as error:
        read(source, reading)
    return str(error.value)


# ---- text and Markdown -------------------------------------------------------------------------


def test_a_folder_of_prose(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "notes.txt").write_text("\ufeff" + "One sentence. " * 80, encoding="utf-8")
    (tmp_path / "guide.md").write_text("# Set-up\n\n## Linux\n\nInstall it.\n", encoding="utf-8")
    (tmp_path / "old.md.gz").write_bytes(gzip.compress(b"No heading."))
    (tmp_path / ".hidden").write_text("no", encoding="utf-8")
    passages, rejects = read(tmp_path)
    assert rejects == []
    ids = ["guide.md#1", "old.md.gz#1", "sub/notes.txt#1", "sub/notes.txt#2"]
    assert [p.id for p in passages] == ids
    assert passages[0] == Passage("guide.md#1", "Set-up > Linux", "Install it.")
    assert passages[1] == Passage("old.md.gz#1", "old", "No heading.")
    assert passages[2].title == "notes" and len(passages[2].text.split()) <= 100
    assert " ".join(p.text for p in passages[2:]) == ("One sentence. " * 80).strip()


def test_korean_is_kept_as_written(tmp_path: Path) -> None:
    text = "서울은 대한민국의 수도이다. " + "한강이 흐른다. " * 60
    decomposed = "카페"  # as some systems write it: not changed either
    (tmp_path / "서울.md").write_text(f"# 서울 {decomposed}\n{text}", encoding="utf-8")
    passages, _ = read(tmp_path)
    assert " ".join(p.text for p in passages) == text.strip()
    assert passages[0].id == "서울.md#1" and passages[0].title == f"서울 {decomposed}"
    assert all(len(p.text.split()) <= 100 and p.text.endswith("다.") for p in passages)


def test_length_and_overlap(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(f"Word number {n} here. " for n in range(9)))
    passages, _ = read(tmp_path, Reading(chunk_words=12, overlap=1))
    assert passages[0].text == "Word number 0 here. Word number 1 here. Word number 2 here."
    assert passages[1].text == "Word number 2 here. Word number 3 here. Word number 4 here."


def test_length_in_tokens(tmp_path: Path) -> None:
    """With a real tokenizer; that it was saved with truncation must not cut anything off."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    prose = "Seoul lies on the river. 서울은 수도이다. " * 40
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([prose], trainer)
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    (tmp_path / "tok").mkdir()
    tokenizer.save(str(tmp_path / "tok" / "tokenizer.json"))
    (tmp_path / "a.txt").write_text(prose, encoding="utf-8")
    reading = Reading(chunk_tokens=64, tokenizer=str(tmp_path / "tok"))
    passages, _ = read(tmp_path / "a.txt", reading)
    assert " ".join(p.text for p in passages) == prose.strip() and len(passages) > 1
    tokenizer.no_truncation()
    tokenizer.no_padding()
    assert all(32 < len(tokenizer.encode(p.text).ids) <= 65 for p in passages)
    message = refused(tmp_path / "a.txt", Reading(chunk_tokens=64, tokenizer=str(tmp_path)))
    assert "no tokenizer can be read" in message and "tokenizer.json" in message


def test_text_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"fine\n\xff\xfe")
    (tmp_path / "b.md").write_text(" \n# Only a heading\n")
    (tmp_path / "c.txt").write_text("Read.")
    passages, rejects = read(tmp_path)
    assert [p.text for p in passages] == ["Read."]
    assert [(r.where.rsplit("/")[-1], r.reason) for r in rejects] == [
        ("a.txt:2", "byte 1 is not valid UTF-8."),
        ("b.md", "holds no text."),
    ]


# ---- HTML --------------------------------------------------------------------------------------

PAGE = """<!doctype html><html><head><title>The   Guide</title><script>var x = "hidden";</script>
<style>p { color: red }</style></head><body>
<nav><a href="/">Home</a> <a href="/x">Other pages</a></nav>
<article><p>Before any heading stands a sentence of the page.</p>
<h2>Linux</h2><p>On <b>Linux</b>, use<br>the package manager. It is &lt;easy&gt; &amp; quick.</p>
<h3>Ubuntu</h3><ul><li>First item</li><li>Second item</li></ul>
<table><tr><th>Key</th><td>Value</td></tr></table>
<h2>Windows</h2><pre># no heading
x = 1</pre></article><footer>Copyright and imprint</footer></body></html>"""


def test_html_is_cut_at_its_headings(tmp_path: Path) -> None:
    pytest.importorskip("trafilatura")
    (tmp_path / "page.html").write_text(PAGE, encoding="utf-8")
    passages, rejects = read(tmp_path / "page.html")
    assert rejects == []
    assert [(p.title, p.text) for p in passages] == [
        ("The Guide", "Before any heading stands a sentence of the page."),
        (
            "The Guide > Linux",
            "On Linux, use the package manager. It is <easy> & quick.",
        ),
        ("The Guide > Linux > Ubuntu", "First item Second item Key Value"),
        ("The Guide > Windows", "# no heading x = 1"),
    ]
    assert passages[1].id == "page.html#2"


def test_a_first_heading_takes_the_place_of_the_title(tmp_path: Path) -> None:
    pytest.importorskip("trafilatura")
    page = (
        "<title>Guide | Site</title><h1>Guide</h1><p>One thing is said.</p><h2>End</h2><p>Bye.</p>"
    )
    (tmp_path / "page.htm").write_text(page)
    passages, _ = read(tmp_path)
    assert [p.title for p in passages] == ["Guide", "Guide > End"]


def test_html_in_other_encodings(tmp_path: Path) -> None:
    pytest.importorskip("trafilatura")
    page = '<meta charset="euc-kr"><title>서울</title><p>서울은 대한민국의 수도이다.</p>'
    (tmp_path / "a.html").write_bytes(page.encode("euc-kr"))
    (tmp_path / "b.html").write_bytes(b"<p>caf\xe9</p>")
    (tmp_path / "c.html").write_bytes(b"<meta charset=utf-8><p>caf\xe9</p>")
    (tmp_path / "d.html").write_bytes(b"<meta charset=klingon><p>caf\xe9</p>")
    passages, rejects = read(tmp_path)
    assert [(p.title, p.text) for p in passages] == [("서울", "서울은 대한민국의 수도이다.")]
    assert rejects[0].reason == "byte 7 is not valid UTF-8."
    assert [r.reason for r in rejects[1:]] == [
        "is not in the encoding that it names, utf-8.",
        "is not in the encoding that it names, klingon.",
    ]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "<",
        "\0\0",
        "<html></html>",
        "<script>alert('x')</script>",
        "<!--" * 1000,
        "<div>" * 5000 + "deep" + "</div>" * 5000,
        "&#xD800;&#0;&nosuch;",
        "<p " + "a=b " * 20_000 + ">",
        "<table>" * 500,
    ],
)
def test_hostile_html_is_read_or_rejected(tmp_path: Path, content: str) -> None:
    pytest.importorskip("trafilatura")
    (tmp_path / "a.html").write_text(content, encoding="utf-8")
    (tmp_path / "z.txt").write_text("Read.")
    passages, rejects = read(tmp_path)
    assert passages[-1].text == "Read."
    assert len(rejects) == (len(passages) == 1)
    assert not any("alert" in passage.text for passage in passages)


def test_a_short_page_is_read_whole(tmp_path: Path) -> None:
    """Where no main content can be told from the rest."""
    pytest.importorskip("trafilatura")
    (tmp_path / "a.html").write_text("<html><body>Just words.</body></html>")
    assert [(p.title, p.text) for p in read(tmp_path)[0]] == [("a", "Just words.")]


# ---- PDF ---------------------------------------------------------------------------------------


def pdf(pages: list[list[str]], title: str = "") -> bytes:
    """A minimal PDF with these lines on its pages."""
    kids = " ".join(f"{4 + 2 * n} 0 R" for n in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, lines in enumerate(pages):
        shown = " T* ".join(f"({line}) Tj" for line in lines)
        stream = f"BT /F1 12 Tf 14 TL 72 720 Td {shown} ET" if lines else ""
        objects += [
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] "
            f"/Resources << /Font << /F1 3 0 R >> >> /Contents {5 + 2 * number} 0 R >>",
            f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream",
        ]
    objects.append(f"<< /Title ({title}) >>")
    content, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(content))
        content += f"{number} 0 obj\n{body}\nendobj\n".encode("latin-1")
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    end = (
        f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}"
        f"trailer << /Size {len(objects) + 1} /Root 1 0 R /Info {len(objects)} 0 R >>\n"
        f"startxref\n{len(content)}\n%%EOF\n"
    )
    return content + end.encode()


PAGES = [
    ["Roy Clark was a singer and tele-", "vision host. He hosted"],
    ["Hee Haw, a country variety", "show of the South-", "West."],
]
TEXT = (
    "Roy Clark was a singer and television host. He hosted Hee Haw, a country variety show of the "
    "South- West."
)


def encrypted(content: bytes, password: str) -> bytes:
    import pypdf

    writer = pypdf.PdfWriter(io.BytesIO(content))
    writer.encrypt(password, "owner", algorithm="RC4-128")
    file = io.BytesIO()
    writer.write(file)
    return file.getvalue()


def test_pdf(tmp_path: Path) -> None:
    pytest.importorskip("pypdf")
    (tmp_path / "a.pdf").write_bytes(pdf(PAGES, title="Roy  Clark"))
    (tmp_path / "b.PDF").write_bytes(pdf(PAGES))
    (tmp_path / "c.pdf").write_bytes(encrypted(pdf(PAGES), ""))
    passages, rejects = read(tmp_path)
    assert rejects == []
    assert passages == [
        Passage("a.pdf#1", "Roy Clark", TEXT),
        Passage("b.PDF#1", "b", TEXT),
        Passage("c.pdf#1", "c", TEXT),
    ]


def test_what_is_wrong_with_a_pdf(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("pypdf")
    (tmp_path / "a.pdf").write_bytes(encrypted(pdf(PAGES), "secret"))
    (tmp_path / "b.pdf").write_bytes(pdf([[], []]))
    (tmp_path / "c.pdf").write_bytes(b"no PDF at all")
    (tmp_path / "d.pdf").write_bytes(b"")
    (tmp_path / "e.pdf").write_bytes(pdf(PAGES)[:300])
    (tmp_path / "z.pdf").write_bytes(pdf(PAGES))
    with caplog.at_level(logging.DEBUG, logger="pypdf"):
        passages, rejects = read(tmp_path)
    assert [p.text for p in passages] == [TEXT] and caplog.records == []
    assert [r.where for r in rejects] == [str(tmp_path / f"{name}.pdf") for name in "abcde"]
    assert rejects[0].reason == "is encrypted." and "password" in rejects[0].fix
    assert rejects[1].reason == "holds no text." and "ocrmypdf" in rejects[1].fix
    assert all(r.reason.startswith("cannot be read as PDF: ") for r in rejects[2:])


def test_one_page_that_is_broken(tmp_path: Path) -> None:
    pytest.importorskip("pypdf")
    content = pdf(PAGES)
    first = content.index(b"<< /Length")
    unknown = content[first:].replace(b"<< /Length", b"<< /Filter /Klingon /Length", 1)
    (tmp_path / "a.pdf").write_bytes(content[:first] + unknown)
    passages, rejects = read(tmp_path)
    assert passages[0].text.startswith("Hee Haw, a country variety")
    assert [r.where for r in rejects] == [f"{tmp_path / 'a.pdf'}: page 1"]


@pytest.mark.parametrize(("name", "library"), [("a.html", "trafilatura"), ("a.pdf", "pypdf")])
def test_a_missing_library_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    (tmp_path / name).write_bytes(b"x")
    assert "pip install 'steper[documents]'" in refused(tmp_path)
