"""Turn text into search terms: lower-case words, without stopwords, stemmed.

Passages and queries must be analyzed alike, today and after the libraries have moved on. So the
settings hold everything, the stopwords too, and an index stores them.

>>> Analyzer(settings("en")).terms("The bands hosted shows.")
['band', 'host', 'show']
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class AnalyzerSettings:
    """Everything that decides which terms a text has.

    Attributes:
        language: the code the user gave, as "en".
        word_pattern: regular expression of one word in lower-case text.
        stopwords: words left out, compared before stemming.
        stemmer: name of the Snowball algorithm, ``None`` to leave words as they are.
    """

    __pydantic_config__ = STRICT

    language: str
    word_pattern: str
    stopwords: tuple[str, ...]
    stemmer: str | None


def settings(language: str) -> AnalyzerSettings:
    """The default settings for a language, or for ``none``: no stopwords, no stemmer.

    Raises:
        SteperError: if the language has no stemmer and stopwords here.
    """
    if language != "none" and language not in STEMMERS:
        raise SteperError(
            f"unknown language {language!r}.",
            where="--language",
            fix=f"Choose one of {', '.join(STEMMERS)}, or none.",
        )
    from bm25s.tokenization import _infer_stopwords

    return AnalyzerSettings(
        language=language,
        word_pattern=r"\b\w\w+\b",
        stopwords=tuple(_infer_stopwords(None if language == "none" else language)),
        stemmer=STEMMERS.get(language),
    )


class Analyzer:
    """Splits text into terms by fixed settings.

    Attributes:
        settings: what it was made with.
    """

    def __init__(self, settings: AnalyzerSettings) -> None:
        self.settings = settings
        self._words = re.compile(settings.word_pattern).findall
        self._stopwords = frozenset(settings.stopwords)
        self._stem: Callable[[list[str]], list[str]] = (
            list if settings.stemmer is None else _stemmer(settings.stemmer)
        )

    def terms(self, text: str) -> list[str]:
        """The terms of a text, in order, repeated where the words are."""
        words = self._words(text.lower())
        return self._stem([word for word in words if word not in self._stopwords])


def _stemmer(name: str) -> Callable[[list[str]], list[str]]:
    import Stemmer

    stem: Callable[[list[str]], list[str]] = Stemmer.Stemmer(name).stemWords
    return stem
