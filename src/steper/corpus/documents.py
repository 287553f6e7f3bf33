r"""Prose: text, Markdown, HTML and PDF files, as titled sections.

A section's title is the path of headings above it ("Set-up > Linux"), or the document's title, or
its file name.

>>> guide = b"# Set-up\n## Linux\nInstall it."
>>> read_document(".md", guide, stem="guide", where="guide.md", report=print)
[('guide', ''), ('Set-up', ''), ('Set-up > Linux', 'Install it.')]
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from steper.corpus.reading import Reading, Report
from steper.corpus.tables import not_utf8
from steper.errors import SteperError
from steper.prose import below, sections, split_passages, whole
from steper.records import BOM, Unreadable
from steper.retrieval.info import needs

Section = tuple[str, str]
"""Title and text."""


def read_document(
    suffix: str, data: bytes, *, stem: str, where: str, report: Report
) -> list[Section]:
    """The sections of a document in its order, empty ones among them.

    Args:
        suffix: what it is, one of ``files.DOCUMENTS``.
        data: the whole file.
        stem: its title where it has no other.
        where: its path, for messages.
        report: told of single pages that cannot be read.

    Raises:
        Unreadable: if it is damaged, encrypted, holds no text, or is in an unknown encoding.
        SteperError: if a library is missing.
    """
    match suffix:
        case ".txt":
            found = [(stem, _decode(data, where))]
        case ".md":
            parts = sections(_decode(data, where))
            found = [(" > ".join(path) or stem, body) for path, body in parts]
        case ".pdf":
            found = _pdf(data, stem, where, report)
        case _:
            found = _html(data, stem, where)
    if not any(text.strip() for _, text in found):
        fix = "If these are scanned pages, have their text recognized first, for example with "
        raise Unreadable(
            "holds no text.", where=where, fix=f"{fix}ocrmypdf." if suffix == ".pdf" else ""
        )
    return found


def cutter(reading: Reading) -> Callable[[str], list[str]]:
    """What cuts a text into those of its passages.

    Raises:
        SteperError: if the tokenizer cannot be had.
    """
    if reading.chunk_tokens is None:
        return lambda text: split_passages(text, limit=reading.chunk_words, overlap=reading.overlap)
    limit, tokenizer = reading.chunk_tokens, _tokenizer(reading.tokenizer)

    def starts(text: str) -> list[int]:
        encoded = tokenizer.encode(text, add_special_tokens=False)
        return sorted(begin for begin, _ in encoded.offsets)

    return lambda text: split_passages(text, limit=limit, overlap=reading.overlap, starts=starts)


def _tokenizer(name: str) -> Any:
    from tokenizers import Tokenizer

    file = Path(name) / "tokenizer.json"
    try:
        found = (
            Tokenizer.from_file(str(file)) if file.is_file() else Tokenizer.from_pretrained(name)
        )
    except Exception as error:  # the library raises nothing narrower
        raise SteperError(
            f"no tokenizer can be read: {' '.join(str(error).split())}.",
            where=name,
            fix="Give a folder that holds a tokenizer.json, or the hub id of a model.",
        ) from None
    # Either may have been saved with the tokenizer, and would spoil the count.
    found.no_truncation()
    found.no_padding()
    return found


def _decode(data: bytes, where: str) -> str:
    """UTF-8 text; an error names the line."""
    try:
        return data.removeprefix(BOM).decode()
    except UnicodeDecodeError as error:
        read = error.object[: error.start]
        line = read.count(b"\n") + 1
        wrong = not_utf8(error.start - read.rfind(b"\n"), f"{where}:{line}")
        raise Unreadable(wrong.what, where=wrong.where, fix=wrong.fix) from None


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Keep libraries from logging what is reported in our own words."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


# ---- HTML --------------------------------------------------------------------------------------

_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset=[\"']?([\w-]{1,40})", re.IGNORECASE)


def _html(data: bytes, stem: str, where: str) -> list[Section]:
    """The main content of a page by its headings; the whole text where none can be told."""
    try:
        import trafilatura
    except ImportError:
        raise needs("documents", "reading HTML") from None
    text = _html_text(data, where)
    with _quiet("trafilatura", "htmldate", "courlan", "justext"):
        try:
            tree = trafilatura.load_html(text)
            if tree is None:
                return []
            title = " ".join((tree.findtext(".//title") or "").split()) or stem
            page = trafilatura.bare_extraction(tree, favor_recall=True, include_comments=False)
            body = getattr(page, "body", None)
            if body is None or not "".join(body.itertext()).strip():
                return [(title, trafilatura.html2txt(text))]
        except Exception as error:  # whatever a parser runs into in other people's pages
            raise Unreadable(
                f"cannot be read as HTML: {' '.join(str(error).split()) or type(error).__name__}.",
                where=where,
            ) from None
    return _html_sections(body, title)


def _html_text(data: bytes, where: str) -> str:
    """A page as text: in UTF-8, or in the encoding that it names."""
    try:
        return _decode(data, where)
    except Unreadable:
        named = _CHARSET.search(data[:4096])
        if named is None:
            raise
        try:
            return data.decode(named[1].decode())
        except (LookupError, UnicodeDecodeError):
            raise Unreadable(
                f"is not in the encoding that it names, {named[1].decode()}.",
                where=where,
                fix="Save the file in UTF-8.",
            ) from None


_BLOCKS = ("head", "p", "item", "row", "quote", "code", "list", "table", "div")


def _html_sections(body: Any, title: str) -> list[Section]:
    """Walk the extracted tree: ``head`` elements are headings, other blocks are paragraphs."""
    path: list[tuple[int, str]] = []
    found: list[tuple[str, list[str]]] = [(title, [])]

    def walk(element: Any) -> None:
        nonlocal path
        if element.tag == "head":
            level = element.get("rend", "")[1:]
            heading = " ".join("".join(element.itertext()).split())
            path = below(path, int(level) if level.isdecimal() else 2, heading)
            names = [name for _, name in path if name]
            # A page's first heading mostly repeats its title.
            found.append((" > ".join(names if path[0][0] == 1 else [title, *names]), []))
        elif any(child.tag in _BLOCKS for child in element):
            found[-1][1].append(element.text or "")
            for child in element:
                walk(child)
                found[-1][1].append(child.tail or "")
        else:
            apart = " " if element.tag in ("row",) else ""
            for line_break in element.iter("lb"):
                line_break.text = " "
            found[-1][1].append(apart.join(element.itertext()))

    walk(body)
    return [
        (heading, "\n\n".join(part for part in parts if part.strip())) for heading, parts in found
    ]


# ---- PDF ---------------------------------------------------------------------------------------

_HYPHENATED = re.compile(r"(?<=[^\W\d_])[-\u00ad\u2010][ \t]*\n[ \t]*(?=[a-zà-öø-ÿ])")


def _pdf(data: bytes, stem: str, where: str, report: Report) -> list[Section]:
    """The text layer of all pages; words hyphenated at the ends of lines are joined."""
    try:
        import pypdf
    except ImportError:
        raise needs("documents", "reading PDF") from None
    with _quiet("pypdf"):
        try:
            reader = pypdf.PdfReader(io.BytesIO(data))
            # Many files are encrypted with an empty password, to forbid printing.
            locked = reader.is_encrypted and not reader.decrypt("")
            pages = [] if locked else list(reader.pages)
            title = "" if locked or reader.metadata is None else reader.metadata.title or ""
        except Exception as error:  # whatever a parser runs into in a damaged file
            raise Unreadable(
                f"cannot be read as PDF: {' '.join(str(error).split()) or type(error).__name__}.",
                where=where,
                fix="Download or export it again.",
            ) from None
        if locked:
            raise Unreadable("is encrypted.", where=where, fix="Save it without a password.")
        texts = []
        for number, page in enumerate(pages, start=1):
            try:
                texts.append(page.extract_text())
            except Exception as error:  # as above; the other pages may be whole
                what = f"cannot be read: {' '.join(str(error).split()) or type(error).__name__}."
                report(SteperError(what, where=f"{where}: page {number}"))
    text = _HYPHENATED.sub("", "\n".join(texts))
    return [(whole(" ".join(str(title).split())) or stem, whole(text))]
