"""What a sentence names, and whether the texts it rests on say so too. Pure; for any language.

Names are told by their capitals, beside them numbers and quoted titles. A script without case
has numbers and quotes only: nothing else there tells a name from a noun without a dictionary.

>>> ground = Ground(["Who managed Roy Clark?"])
>>> ground.add("Jim Halsey managed the singer Roy Clark from 1969.")
>>> ground.missing("In 1969 he was managed by Halsey, then by Colonel Parker.")
('Colonel Parker',)
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

from steper.prompts import ANSWER_CUE

WORD = re.compile(r"[^\W\d_]+")
# Bounded, because int() refuses thousands of digits.
NUMBER = re.compile(r"\d{1,30}(?:[.,]\d{1,30}){0,9}")
# Kana and Han are written without spaces, so that a sentence would count as one word.
COUNTED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+")
QUOTED = re.compile(
    r'"([^"]+)"|“([^”]+)”|„([^“”]+)[“”]|«([^»]+)»|‘([^’]+)’(?![a-z])|「([^」]+)」|『([^』]+)』|《([^》]+)》'
    r"|(?<!\w)'([^']+)'(?![a-z])"  # not the apostrophe of "Clark's"
)
# The first word of a sentence. The full stop of "J. Rowling" ends none.
FIRST = re.compile(r"(?:^|(?:[!?:]|(?<!\b\w)\.)[\"”’»)\]]?\s)\W*(\w+)")
# What may stand between two words of one name: "Anglo-Saxon", "Samuel L. Jackson".
WITHIN_NAME = re.compile(r"[\s'’-]|\s\w\.?\s")
# The dots of "U.S." and "J. K." come and go, so they are taken out.
DOTTED = re.compile(r"\b([^\W\d_])\.\s?(?=[^\W\d_]\.)")
LETTERS = str.maketrans({"ł": "l", "ø": "o", "đ": "d", "ı": "i", "æ": "ae", "œ": "oe"})

CLOSED = frozenset(["yes", "no", "both", "neither", "none", "true", "false", "unknown"])
"""Answers that name nothing."""

COUNTABLE = 12
"""Up to this, a number is often counted by the reader, or spelled out in a passage."""

ENDING = 3
"""Most letters by which two forms of a word differ: 서울 / 서울에서, America / Americans."""


@dataclass(frozen=True, slots=True)
class Mentions:
    """What one sentence names.

    Attributes:
        names: each as its capitalised words, without the sentence's first word, whose capital
            tells nothing, and without single letters.
        numbers: as plain digits, ``1,234`` as ``1234``.
        quotes: the text between quotation marks.
    """

    names: tuple[tuple[str, ...], ...]
    numbers: tuple[str, ...]
    quotes: tuple[str, ...]


def mentions(sentence: str, cue: str = ANSWER_CUE) -> Mentions:
    """The names, numbers and quoted titles of a sentence, in order.

    Args:
        sentence: one or more sentences.
        cue: what an answer begins with. The word behind it is no first word: its capital counts.

    >>> mentions("The film “Heat” (1995) stars Al Pacino.")
    Mentions(names=(('Al', 'Pacino'),), numbers=('1995',), quotes=('Heat',))
    """
    text = _plain(sentence.replace(cue, "so"))
    quotes = tuple(next(filter(None, match.groups())) for match in QUOTED.finditer(text))
    unquoted = QUOTED.sub(lambda match: "," * len(match[0]), text)
    return Mentions(tuple(_names(unquoted)), numbers(text), quotes)


def words(text: str) -> tuple[str, ...]:
    """The words of a text, numbers among them, without case and diacritics.

    >>> words("Antonín Dvořák’s Op. 95")
    ('antonin', 'dvorak', 's', 'op', '95')
    """
    return tuple(re.findall(r"[^\W\d_]+|\d+", _fold(_plain(text))))


def numbers(text: str) -> tuple[str, ...]:
    """The numbers of a text as plain digits, whatever their separators and script.

    >>> numbers("1,234 of 05 or 3,5")
    ('1234', '5', '3.5')
    """
    return tuple(_number(match[0]) for match in NUMBER.finditer(text))


def content(sentence: str) -> frozenset[str]:
    """The words that carry a sentence: names, numbers, and those of more than three letters.

    Without stopword lists, that is what leaves out most of a language's smallest words. In a
    script without case every word counts.
    """
    found = mentions(sentence)
    named = {_fold(word) for name in found.names for word in name}
    long = {word for word in words(sentence) if len(word) > 3 or word.upper() == word.lower()}
    return frozenset(named | long | set(found.numbers))


def unsupported(sentence: str, sources: Iterable[str]) -> tuple[str, ...]:
    """What one sentence names and none of the sources says; see ``Ground.missing``."""
    return Ground(sources).missing(sentence)


def count_words(sentence: str) -> int:
    """How many words a sentence has; where none are spaced apart, how many characters."""
    return len(COUNTED.findall(sentence))


def same_word(one: str, other: str) -> bool:
    """Whether two folded words may be forms of one: they differ in their last letters only.

    In a script with case the longer begins with the shorter, of at least four letters. Without
    case, two letters in common are enough, and both may have a particle.

    >>> same_word("서울은", "서울이다"), same_word("americans", "america"), same_word("ann", "anne")
    (True, True, False)
    """
    short, long = sorted((one, other), key=len)
    if short.isdigit():
        return short == long
    if short.upper() == short.lower():
        stem = max(2, len(long) - ENDING)
        return short == long or (len(short) >= stem and long.startswith(short[:stem]))
    return short == long or (
        len(short) >= 4 and len(long) - len(short) <= ENDING and long.startswith(short)
    )


class Ground:
    """The texts that a sentence may rest on: the question, and passages as they come in.

    Args:
        texts: the first of them.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._texts: list[tuple[frozenset[str], str]] = []
        self._numbers: set[str] = set()
        self._said: set[str] = set()
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        """Let sentences rest on this text, too."""
        found = words(text)
        self._texts.append((frozenset(found), f" {' '.join(found)} "))
        self._numbers |= {*numbers(_plain(text))}

    def missing(self, sentence: str, cue: str = ANSWER_CUE) -> tuple[str, ...]:
        """What the sentence names and no text says.

        A name is said where all its words stand in one text, in any order and form; a quoted
        title, where its words stand in a row. A number may also be the sum or the difference of
        two that this sentence and earlier ones say, as an age is. ``cue``: see ``mentions``.
        """
        found = mentions(sentence, cue)
        self._said |= {*found.numbers}
        return (
            *(" ".join(name) for name in found.names if not self._says_name(name)),
            *(quote for quote in found.quotes if not self._says_quote(quote)),
            *(number for number in found.numbers if not self._says_number(number)),
        )

    def _says_name(self, name: tuple[str, ...]) -> bool:
        folded = [_fold(word) for word in name]
        return any(
            all(word in said or any(same_word(word, w) for w in said) for word in folded)
            for said, _ in self._texts
        )

    def _says_quote(self, quote: str) -> bool:
        phrase = " ".join(words(quote))
        # No blank behind it: a particle may follow, 오징어 게임은.
        return any(f" {phrase}" in row for _, row in self._texts)

    def _says_number(self, number: str) -> bool:
        if number in self._numbers:
            return True
        if not number.isdigit():
            return False
        if int(number) <= COUNTABLE:
            return True
        known = sorted(int(n) for n in self._said & self._numbers if n.isdigit())
        return any(int(number) in (b - a, b + a) for a, b in combinations(known, 2))


def _names(text: str) -> Iterable[tuple[str, ...]]:
    """Runs of capitalised words; none where all is in capitals, or in a script without case."""
    if text.upper() == text:
        return
    firsts = {match.start(1) for match in FIRST.finditer(text)}
    run: list[str] = []
    end = 0
    for match in WORD.finditer(text):
        after_digit = text[match.start() - 1 : match.start()].isdigit()  # "44Th Street"
        if after_digit or not _is_name(match[0], first=match.start() in firsts):
            continue
        if run and not WITHIN_NAME.fullmatch(text, end, match.start()):
            yield tuple(run)
            run = []
        run.append(match[0])
        end = match.end()
    if run:
        yield tuple(run)


def _is_name(word: str, *, first: bool) -> bool:
    if len(word) < 2 or _fold(word) in CLOSED:
        return False
    # "NASA", "McCartney" and "iPhone" show that they are names wherever they stand.
    inner = word[1:] != word[1:].lower()
    return inner or (word[0].isupper() and not first)


def _number(digits: str) -> str:
    if re.fullmatch(r"\d{1,3}(?:[.,]\d{3})+", digits):
        digits = re.sub("[.,]", "", digits)
    # int() reads the digits of every script.
    return ".".join(str(int(part)) for part in re.split("[.,]", digits))


def _plain(text: str) -> str:
    """A text without diacritics and the dots of initials; only marks of letters go, not dakuten."""
    marked = unicodedata.normalize("NFKD", text)
    bare = re.sub("[\u0300-\u036f]", "", marked)
    return DOTTED.sub(r"\1", unicodedata.normalize("NFC", bare))


def _fold(text: str) -> str:
    return text.casefold().translate(LETTERS)
