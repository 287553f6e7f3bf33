r"""Cut prose into passages: Markdown sections, sentences, and runs of sentences of even length.

A passage must be short enough that several fit into a prompt, and should not end in the middle of
a sentence, because the reader is shown it as it is.

>>> sections("# Guide\n## Linux\nInstall it.")[-1]
(('Guide', 'Linux'), 'Install it.')
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import chain

PASSAGE_WORDS = 100
"""The length aimed at when prose is cut; the usual unit of open-domain retrieval."""

Span = tuple[int, int]
"""Where a stretch of text begins and ends."""

_FRONT_MATTER = re.compile(r"\A---[ \t]*\n.*?\n---[ \t]*(?:\n|\Z)", re.DOTALL)
_FENCE = re.compile(r"\s{0,3}(```+|~~~+)")
_HEADING = re.compile(r"\s{0,3}(#{1,6})(?:\s(.*))?$")


def sections(markdown: str) -> list[tuple[tuple[str, ...], str]]:
    """Split Markdown at its ``#`` headings: (heading path, body) pairs.

    Front matter between ``---`` lines at the top is settings, not prose, and is left out. A ``#``
    inside a code fence is no heading.
    """
    path: list[tuple[int, str]] = []
    found: list[tuple[tuple[str, ...], list[str]]] = [((), [])]
    fence = ""
    for line in _FRONT_MATTER.sub("", markdown).splitlines():
        mark = _FENCE.match(line)
        if mark and (not fence or mark[1].startswith(fence)):
            fence = "" if fence else mark[1]
        heading = None if fence else _HEADING.match(line)
        if heading:
            path = below(path, len(heading[1]), _heading_text(heading[2] or ""))
            found.append((tuple(title for _, title in path if title), []))
        else:
            found[-1][1].append(line)
    return [(headings, "\n".join(lines)) for headings, lines in found]


def below(path: Sequence[tuple[int, str]], level: int, title: str) -> list[tuple[int, str]]:
    """The path of headings at a new heading: those above it that are larger, and itself."""
    return [*((depth, name) for depth, name in path if depth < level), (level, title)]


def _heading_text(text: str) -> str:
    """A heading without the ``#`` signs that may close it; "C#" keeps its own."""
    text = text.strip()
    bare = text.rstrip("#")
    return bare.rstrip() if not bare or bare[-1].isspace() else text


def whole(text: str) -> str:
    r"""A text in which halves of characters (lone surrogates), which no file holds, are replaced.

    >>> whole("a\ud83d\ude00b\ud800") == "a\U0001f600b\ufffd"
    True
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


# ---- words and sentences -----------------------------------------------------------------------

# Scripts written without spaces between words: Thai, Lao, Burmese, Khmer, kana, Chinese characters.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
    "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_MAX_WORD = 200
_WORD = re.compile(rf"[{_UNSPACED}]{{1,2}}|[^\s{_UNSPACED}]{{1,{_MAX_WORD}}}")


def word_starts(text: str) -> list[int]:
    """Where the words of a text begin.

    Words are separated by white space. In scripts without spaces two characters count as a word;
    of a longer unbroken run (base64), every 200 characters.

    >>> word_starts("Hee Haw 東京タワー")
    [0, 4, 8, 10, 12]
    """
    return [word.start() for word in _WORD.finditer(text)]


# Closing quotes and a space follow a full stop; neither follows a Chinese or Japanese one, and the
# space is often missing after a Korean verb's ending. A run of stops is looked at from its first
# one only, or a megabyte of them would take hours.
_SENTENCE_END = re.compile(
    r"(?<![.!?…])[.!?…]++[\"'”’)\]]*+\s++"
    r"|(?<![。！？｡])[。！？｡]++[\"'”’)\]」』）】》]*+\s*+"
    r"|(?<=[다요까죠])[.!?…]++[\"'”’)\]]*+(?=[가-힣])"
)
_ABBREVIATION = re.compile(
    r"(?:\b[^\W\d_\u0e00-\u0eff\u1000-\u11ff\u1780-\u17ff\u3040-\ud7ff]"
    r"|\b(?:Mr|Mrs|Ms|Dr|St|Prof|Jr|Sr|No|vs|cf|etc))\.\s+$"
)
_PARAGRAPH_END = re.compile(r"\n\s*\n")


def sentence_spans(text: str) -> tuple[str, list[Span]]:
    """A text with its white space folded, and the spans of its sentences, which cover all of it."""
    paragraphs = [" ".join(paragraph.split()) for paragraph in _PARAGRAPH_END.split(text)]
    folded = " ".join(paragraph for paragraph in paragraphs if paragraph)
    begin, spans = 0, list[Span]()
    for paragraph in filter(None, paragraphs):
        stop = min(begin + len(paragraph) + 1, len(folded))
        spans += _sentences(folded, begin, stop)
        begin = stop
    return folded, spans


def _sentences(text: str, begin: int, stop: int) -> list[Span]:
    """The spans of the sentences of one paragraph."""
    spans = []
    for end in _SENTENCE_END.finditer(text, begin, stop):
        after = end.end()
        abbreviated = _ABBREVIATION.search(text, max(begin, end.start() - 8), after)
        if after < stop and not abbreviated and not text[after].islower():
            spans.append((begin, after))
            begin = after
    return [*spans, (begin, stop)]


def split_sentences(text: str) -> list[str]:
    """Split prose at sentence ends and blank lines; initials and titles ("Dr. ") are no ends.

    >>> split_sentences("Dr. J. Lee sang. He was 12.5 years old! Then?")
    ['Dr. J. Lee sang.', 'He was 12.5 years old!', 'Then?']
    """
    folded, spans = sentence_spans(text)
    return [folded[begin:end].strip() for begin, end in spans]


# ---- passages ----------------------------------------------------------------------------------


def split_passages(
    text: str,
    *,
    limit: int = PASSAGE_WORDS,
    overlap: int = 0,
    starts: Callable[[str], Sequence[int]] = word_starts,
) -> list[str]:
    """Cut prose at sentence ends into passages of at most ``limit`` words, about evenly long.

    A sentence longer than that is cut between words. White space is folded; but for the overlap
    every word is in exactly one passage, in order.

    Args:
        text: the prose.
        limit: most words of a passage. It is exceeded where the repeated sentences and one more
            are longer.
        overlap: how many sentences (or pieces of too long ones) from the end of a passage the next
            one begins with.
        starts: where the units begin that are counted, in ascending order; by default words.

    >>> split_passages("One two three. Four five six. Seven eight nine.", limit=3)
    ['One two three.', 'Four five six.', 'Seven eight nine.']
    """
    folded, spans = sentence_spans(text)
    # A sentence may begin within a word, where no space follows a stop; it counts from there again.
    units = starts(folded)
    inner = {begin for begin, _ in spans if begin and not folded[begin - 1].isspace()}
    units = sorted([*units, *inner.difference(units)])
    cut = (piece for span in spans for piece in _pieces(folded, span, units, limit))
    pieces = [(begin, end) for begin, end in cut if not folded[begin:end].isspace()]
    # (pieces + 1,): units before each piece, then all.
    before = [bisect_left(units, begin) for begin, _ in pieces] + [len(units)]
    passages = []
    begin = 0
    while begin < len(pieces):
        repeated = max(0, begin - overlap)
        end = _passage_end(before, begin, max(1, limit - before[begin] + before[repeated]))
        passages.append(folded[pieces[repeated][0] : pieces[end - 1][1]].strip())
        begin = end
    return passages


def _passage_end(before: Sequence[int], begin: int, room: int) -> int:
    """Up to which piece the passage from ``begin`` on goes: what fits in, at least one.

    What is left is shared out evenly, so that no short last passage comes out: the middle of a
    piece decides whether it still belongs to this share.
    """
    left = before[-1] - before[begin]
    share = left / max(1, -(-left // room))
    end = begin + 1
    while end < len(before) - 1:
        middle = (before[end] + before[end + 1]) / 2
        if middle - before[begin] > share or before[end + 1] - before[begin] > room:
            break
        end += 1
    return end


def _pieces(text: str, span: Span, units: Sequence[int], limit: int) -> list[Span]:
    """A sentence, cut between words into pieces of at most ``limit`` units if it is longer."""
    begin, stop = span
    last = bisect_left(units, stop)
    pieces = []
    while (first := bisect_left(units, begin)) + limit < last:
        cut = _cut(text, units, first, first + limit)
        if cut >= stop:
            break
        pieces.append((begin, cut))
        begin = cut
    return [*pieces, (begin, stop)]


def _cut(text: str, units: Sequence[int], first: int, beyond: int) -> int:
    """Where to cut between the units ``first`` and ``beyond``: at white space if there is any."""
    inside = [units[n] for n in range(beyond, first, -1) if units[n] > units[first]]
    apart = (at for at in inside if text[at].isspace() or text[at - 1].isspace())
    whole = (at for at in inside if not _is_mark(text[at]))
    # So many units on one character that it alone is over the limit.
    after = [at for at in units[beyond : beyond + _MAX_MARKS] if at > units[first]]
    beside = [at for at in after if not _is_mark(text[at])]
    if len(after) < _MAX_MARKS:
        beside.append(len(text))
    return next(chain(apart, whole, beside, inside, after))


_MAX_MARKS = 16


def _is_mark(character: str) -> bool:
    """Whether it stands on the one before it, as an accent or a vowel sign."""
    return unicodedata.category(character).startswith("M")
