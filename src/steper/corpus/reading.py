"""How a corpus is read, and what could not be.

>>> Reading(fields={"text": "body"}, other_fields="ignore").fields["text"]
'body'
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from steper.errors import SteperError
from steper.prose import PASSAGE_WORDS
from steper.types import STRICT


@dataclass(frozen=True, slots=True)
class Reading:
    """How a corpus is read.

    Attributes:
        fields: our name (id, title, text) -> the file's column, where they differ.
        other_fields: what to do about columns that are none of these.
        chunk_words: most words of a passage cut from prose.
        chunk_tokens: most tokens of it, instead of words.
        tokenizer: folder or hub id of the tokenizer that counts them.
        overlap: sentences repeated from the end of the passage before.
        cut_records: also cut the texts of records that are longer.
        hub_config: which configuration of a data set on the Hugging Face hub.
        hub_split: which of a data set's splits.
    """

    fields: Mapping[str, str] = field(default_factory=dict)
    other_fields: Literal["refuse", "ignore"] = "refuse"
    chunk_words: int = PASSAGE_WORDS
    chunk_tokens: int | None = None
    tokenizer: str = ""
    overlap: int = 0
    cut_records: bool = False
    hub_config: str = ""
    hub_split: str = "train"

    def __post_init__(self) -> None:
        unknown = [name for name in self.fields if name not in ("id", "title", "text")]
        if unknown:
            raise SteperError(
                f"{unknown[0]}: a passage has no such field.",
                where="--fields",
                fix="Name id, title or text, as in `--fields text COLUMN`.",
            )
        if self.chunk_words < 1 or (self.chunk_tokens is not None and self.chunk_tokens < 1):
            raise SteperError("must be at least 1.", where="--chunk-words or --chunk-tokens")
        if self.overlap < 0:
            raise SteperError("must not be negative.", where="--overlap")
        if self.chunk_tokens is not None and not self.tokenizer:
            raise SteperError(
                "says how many tokens, but not of which tokenizer.",
                where="--chunk-tokens",
                fix="Add `--tokenizer FOLDER-OR-HUB-ID`.",
            )


@dataclass(frozen=True, slots=True)
class Reject:
    """A record or document that could not be read, or was left out; a line of ``rejected.jsonl``.

    Attributes:
        where: file, line or row.
        reason: what is wrong with it.
        fix: what can be done about it.
    """

    __pydantic_config__ = STRICT

    where: str
    reason: str
    fix: str


Report = Callable[[SteperError], None]
"""Told of what cannot be read; reading goes on unless it raises."""

Progress = Callable[[int], None]
"""Told how many bytes or rows have been read since it was last told."""


def reporter(reject: Callable[[Reject], None] | None) -> Report:
    """What to call with each problem: it is kept by ``reject``, or raised if there is none."""

    def report(error: SteperError) -> None:
        if reject is None:
            raise error
        reject(Reject(error.where, error.what, error.fix))

    return report
