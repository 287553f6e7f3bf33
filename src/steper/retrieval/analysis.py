"""Turn text into search terms: lower-case words, without stopwords, stemmed.

Passages and queries must be analyzed alike, today and after the libraries have moved on. So the
settings hold everything, the stopwords too, and an index stores them.

Scripts that are written without spaces between words, and Korean, whose words carry their
particles, become pairs of neighboring characters, as search engines do it: 서울은 ("Seoul" as a
topic) gives 서울 and 울은, so that 서울 finds it.

>>> Analyzer(settings("en")).terms("The bands hosted shows in 서울은.")
['band', 'host', 'show', '서울', '울은']
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import regex

from steper.errors import SteperError
from steper.types import STRICT

STEMMERS = {
    "da": "danish",
    "de": "german",
    "en": "english",
    "es": "spanish",
    "fr": "french",
    "it": "italian",
    "nl": "dutch",
    "no": "norwegian",
    "pt": "portuguese",
    "ru": "russian",
    "sv": "swedish",
    "tr": "turkish",
}
"""Language code to the name of its Snowball stemmer; all have a stopword list in bm25s."""

IN_PAIRS = ("ja", "ko", "th", "zh")
"""Languages that need no stemmer: their text becomes pairs of characters, whatever is chosen."""

WORD = r"\w\w+"
"""A word; marks that belong to a letter, as the vowel signs of Hindi, are part of it."""

_UNSEEN = regex.compile(r"[\u00ad\u2060\p{Variation_Selector}]").sub
"""Signs within words that are not seen: soft hyphens, word joiners, selectors of forms."""

_SCRIPTS = ("Han", "Hiragana", "Katakana", "Hangul", "Thai", "Lao", "Khmer", "Myanmar")
PAIRED = "".join(rf"\p{{{script}}}" for script in _SCRIPTS)
"""The scripts whose runs become pairs of characters."""


@dataclass(frozen=True, slots=True)
class AnalyzerSettings:
    """Everything that decides which terms a text has.

    Attributes:
        language: the code the user gave, as "en".
        normal_form: Unicode form that text is brought to first; a letter and its accent may be
            written as one character or as two, and Korean syllables as one or as three.
        word_pattern: regular expression of one word in lower-case text.
        paired: the characters, as in a regular expression's brackets, that are taken in pairs.
        stopwords: words left out, compared before stemming.
        stemmer: name of the Snowball algorithm, ``None`` to leave words as they are.
    """

    __pydantic_config__ = STRICT

    language: str
    normal_form: Literal["NFC", "NFKC"]
    word_pattern: str
    paired: str
    stopwords: tuple[str, ...]
    stemmer: str | None


def settings(language: str) -> AnalyzerSettings:
    """The default settings for a language, or for ``none``: no stopwords, no stemmer.

    Raises:
        SteperError: if the language has no stemmer and stopwords here.
    """
    if language not in (*STEMMERS, *IN_PAIRS, "none"):
        raise SteperError(
            f"unknown language {language!r}.",
            where="--language",
            fix=f"Choose one of {', '.join(sorted((*STEMMERS, *IN_PAIRS)))}, or none.",
        )
    from bm25s import stopwords

    name = STEMMERS.get(language, "")
    listed = getattr(stopwords, f"STOPWORDS_{'EN' if language == 'en' else name.upper()}", ())
    return AnalyzerSettings(
        language=language,
        normal_form="NFKC",
        word_pattern=WORD,
        paired=PAIRED,
        stopwords=tuple(listed),
        stemmer=name or None,
    )


class Analyzer:
    """Splits text into terms by fixed settings.

    Attributes:
        settings: what it was made with.
    """

    def __init__(self, settings: AnalyzerSettings) -> None:
        self.settings = settings
        self._words: Callable[[str], list[str]] = regex.compile(settings.word_pattern).findall
        self._paired = regex.compile(f"[{settings.paired}]").search
        # A run of such characters with their marks, or what stands between two runs.
        self._runs = regex.compile(
            rf"[{settings.paired}][{settings.paired}\p{{M}}ー]*|[^{settings.paired}]+"
        ).findall
        self._stopwords = frozenset(settings.stopwords)
        self._stem: Callable[[str], str] = (
            str if settings.stemmer is None else _stemmer(settings.stemmer)
        )

    def words(self, text: str) -> list[str]:
        """The words of a text, in order and in lower case, before stopwords and stemmer."""
        if text.isascii():
            return self._words(text.lower())
        # İ in lower case is i and a dot above, which nobody writes.
        text = unicodedata.normalize(self.settings.normal_form, _UNSEEN("", text)).lower()
        text = text.replace("i\u0307", "i")
        if not self._paired(text):
            return self._words(text)
        return [
            word
            for run in self._runs(text)
            for word in (_pairs(run) if self._paired(run) else self._words(run))
        ]

    def term(self, word: str) -> str | None:
        """The term that a word is searched by; ``None`` for a stopword."""
        return None if word in self._stopwords else self._stem(word)

    def terms(self, text: str) -> list[str]:
        """The terms of a text, in order, repeated where the words are."""
        found = (self.term(word) for word in self.words(text))
        return [term for term in found if term is not None]


def _pairs(run: str) -> list[str]:
    """Neighboring characters of a run, each with its marks; a single one stands for itself."""
    letters = regex.findall(r"\X", run)
    return [a + b for a, b in pairwise(letters)] or letters


def _stemmer(name: str) -> Callable[[str], str]:
    import Stemmer

    stem: Callable[[str], str] = Stemmer.Stemmer(name).stemWord
    return stem
