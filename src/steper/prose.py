r"""Cut prose into passages: Markdown sections, sentences, and runs of sentences of even length.

A passage must be short enough that several fit into a prompt, and should not end in the middle of
a sentence, because the reader is shown it as it is.

>>> sections("# Guide\n## Linux\nInstall it.")[-1]
(('Guide', 'Linux'), 'Install it.')
"""

from __future__ import annotations

import re

PASSAGE_WORDS = 100
"""The length aimed at when prose is cut; the usual unit of open-domain retrieval."""

_FENCE = re.compile(r"\s{0,3}(```+|~~~+)")
_HEADING = re.compile(r"\s{0,3}(#{1,6})\s+(.*?)\s*#*\s*$")


def sections(markdown: str) -> list[tuple[tuple[str, ...], str]]:
    """Split Markdown at its ``#`` headings: (heading path, body) pairs.

    Front matter between ``---`` lines at the top is settings, not prose, and is left out. A ``#``
    inside a code fence is no heading.
    """
    markdown = re.sub(r"\A---\s*\n.*?\n---\s*(\n|\Z)", "", markdown, flags=re.DOTALL)
    path: list[tuple[int, str]] = []
    found: list[tuple[tuple[str, ...], list[str]]] = [((), [])]
    fence = ""
    for line in markdown.splitlines():
        mark = _FENCE.match(line)
        if mark and (not fence or mark[1].startswith(fence)):
            fence = "" if fence else mark[1]
        heading = None if fence else _HEADING.match(line)
        if heading:
            level = len(heading[1])
            path = [(depth, title) for depth, title in path if depth < level]
            path.append((level, heading[2]))
            found.append((tuple(title for _, title in path if title), []))
        else:
            found[-1][1].append(line)
    return [(headings, "\n".join(lines)) for headings, lines in found]


def split_passages(text: str, *, words: int = PASSAGE_WORDS) -> list[str]:
    """Cut prose into passages of about ``words`` words, evenly long, at sentence ends.

    A sentence longer than ``words`` is cut between words, and white space is folded.

    >>> split_passages("One two three. Four five six. Seven eight nine.", words=3)
    ['One two three.', 'Four five six.', 'Seven eight nine.']
    """
    pieces = [piece for sentence in split_sentences(text) for piece in _cut(sentence, words)]
    total = sum(len(piece) for piece in pieces)
    count = max(1, round(total / words))
    passages: list[list[str]] = [[] for _ in range(count)]
    before = 0
    for piece in pieces:
        # The middle of the piece decides, so passages come out even, without a short last one.
        middle = before + len(piece) / 2
        passages[min(count - 1, int(middle * count / total))] += piece
        before += len(piece)
    return [" ".join(passage) for passage in passages if passage]


_MAX_WORD = 200
"""Characters; longer unbroken runs (base64, scripts without spaces) are cut into such words."""


def _cut(sentence: str, words: int) -> list[list[str]]:
    """The words of a sentence, in pieces of at most ``words`` words."""
    parts = [
        word[start : start + _MAX_WORD]
        for word in sentence.split()
        for start in range(0, len(word), _MAX_WORD)
    ]
    return [parts[start : start + words] for start in range(0, len(parts), words)]


# Closing quotes and a space follow a full stop; neither follows a Chinese or Japanese one.
_SENTENCE_END = re.compile(r"[.!?…]+[\"'\u201d\u2019)\]]*\s+|[。\uff01\uff1f]+\s*|\n\s*\n")
_ABBREVIATION = re.compile(r"(?:\b[^\W\d_]|\b(?:Mr|Mrs|Ms|Dr|St|Prof|Jr|Sr|No|vs|cf|etc))\.\s+$")


def split_sentences(text: str) -> list[str]:
    """Split prose at sentence ends and blank lines; initials and titles ("Dr. ") are no ends.

    >>> split_sentences("Dr. J. Lee sang. He was 12.5 years old! Then?")
    ['Dr. J. Lee sang.', 'He was 12.5 years old!', 'Then?']
    """
    sentences: list[str] = []
    begin = 0
    for end in _SENTENCE_END.finditer(text):
        stop = end.end()
        abbreviated = _ABBREVIATION.search(text, max(begin, end.start() - 8), stop)
        paragraph = end[0].count("\n") > 1
        if not paragraph and (abbreviated or text[stop : stop + 1].islower()):
            continue
        sentences.append(text[begin:stop].strip())
        begin = stop
    sentences.append(text[begin:].strip())
    return [sentence for sentence in sentences if sentence]
