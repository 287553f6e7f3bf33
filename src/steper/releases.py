"""The official release files of HotpotQA, 2WikiMultiHopQA and MuSiQue: their records, and ours.

The shapes are those of the files as downloaded. Public test files lack the answers and labels;
their records are read too, because their paragraphs still make a corpus.

>>> musique = MusiqueQuestion("2hop__1_2", "Who?", (MusiqueParagraph(0, "Green", "An album."),))
>>> [passage.title for passage in passages_of(musique)]
['Green']
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from steper.chains import Triple, decomposition_chain, triple_chain
from steper.prompts import one_line
from steper.records import content_id
from steper.types import STRICT, Passage, Question

# ---- the records as they stand in the files --------------------------------------------------


@dataclass(frozen=True, slots=True)
class HotpotQuestion:
    """One question of HotpotQA, or of 2WikiMultiHopQA, which adds the last four fields.

    A passage is its title and its sentences; a supporting fact is a title and a sentence's place.
    """

    __pydantic_config__ = STRICT

    id: Annotated[str, Field(alias="_id")]
    question: str
    context: tuple[tuple[str, tuple[str, ...]], ...]
    answer: str | None = None
    type: str | None = None
    level: str | None = None
    supporting_facts: tuple[tuple[str, int], ...] | None = None
    evidences: tuple[Triple, ...] | None = None
    evidences_id: tuple[tuple[str | None, ...], ...] | None = None
    answer_id: str | None = None
    entity_ids: str | None = None


@dataclass(frozen=True, slots=True)
class MusiqueParagraph:
    """One paragraph of a MuSiQue question."""

    __pydantic_config__ = STRICT

    idx: int
    title: str
    paragraph_text: str
    is_supporting: bool = False


@dataclass(frozen=True, slots=True)
class MusiqueHop:
    """One sub-question; ``paragraph_support_idx`` is the ``idx`` of the paragraph that answers."""

    __pydantic_config__ = STRICT

    id: int | str
    question: str
    answer: str
    paragraph_support_idx: int | None = None


@dataclass(frozen=True, slots=True)
class MusiqueQuestion:
    """One question of MuSiQue-Ans or MuSiQue-Full."""

    __pydantic_config__ = STRICT

    id: str
    question: str
    paragraphs: tuple[MusiqueParagraph, ...]
    question_decomposition: tuple[MusiqueHop, ...] = ()
    answer: str | None = None
    answer_aliases: tuple[str, ...] = ()
    answerable: bool = True


@dataclass(frozen=True, slots=True)
class AliasLine:
    """One entity of 2WikiMultiHopQA's ``id_aliases.json``; further keys are of no use here."""

    Q_id: str
    aliases: tuple[str, ...] = ()
    demonyms: tuple[str, ...] = ()


# ---- what we make of them --------------------------------------------------------------------


def passages_of(record: HotpotQuestion | MusiqueQuestion) -> list[Passage]:
    """The record's paragraphs, in order and one for one."""
    match record:
        case HotpotQuestion():
            # HotpotQA's sentences begin with the space between them, 2WikiMultiHopQA's do not.
            return [_passage(title, " ".join(sentences)) for title, sentences in record.context]
        case MusiqueQuestion():
            return [_passage(p.title, p.paragraph_text) for p in record.paragraphs]


def from_hotpot(record: HotpotQuestion, *, split: str, aliases: Iterable[str] = ()) -> Question:
    """A HotpotQA or 2WikiMultiHopQA record as a question; a missing answer becomes empty.

    ``supporting_ids`` holds the gold passages that are among the record's own: in HotpotQA's
    full-wiki files some are not.
    """
    titles = tuple(dict.fromkeys(title for title, _ in record.supporting_facts or ()))
    chain = triple_chain(record.evidences or (), titles)
    ids = {passage.title: passage.id for passage in passages_of(record) if passage.text}
    answer = record.answer or ""
    return Question(
        id=record.id,
        question=record.question,
        answer=answer,
        answer_aliases=_others(answer, aliases),
        type=record.type or "",
        hops=len(chain) or len(titles),
        supporting_titles=titles,
        supporting_ids=tuple(ids[title] for title in titles if title in ids),
        chain=chain,
        split=split,
    )


def from_musique(record: MusiqueQuestion, *, split: str) -> Question:
    """A MuSiQue record as a question; a missing answer becomes empty.

    The gold passages are in the order of the hops. The type is the id's first part, "3hop1".
    """
    passages = passages_of(record)
    found = {p.idx: passage for p, passage in zip(record.paragraphs, passages, strict=True)}
    gold = [hop.paragraph_support_idx for hop in record.question_decomposition]
    gold += [p.idx for p in record.paragraphs if p.is_supporting]
    supporting = [found[idx] for idx in gold if idx in found]
    answer = record.answer or ""
    chain = [
        (hop.question, hop.answer, found[idx].title if idx in found else "")
        for hop, idx in zip(record.question_decomposition, gold, strict=False)
    ]
    return Question(
        id=record.id,
        question=record.question,
        answer=answer,
        answer_aliases=_others(answer, record.answer_aliases),
        type=record.id.partition("__")[0],
        hops=len(chain),
        supporting_titles=tuple(dict.fromkeys(p.title for p in supporting)),
        supporting_ids=tuple(dict.fromkeys(p.id for p in supporting if p.text)),
        chain=decomposition_chain(chain),
        split=split,
    )


def split_of(path: Path) -> str:
    """The split a release file's name tells: "hotpot_dev_distractor_v1.json" is "dev"."""
    words = re.split(r"[^a-z]+", path.name.lower())
    return next((word for word in words if word in ("train", "dev", "test")), "")


def _passage(title: str, text: str) -> Passage:
    text = one_line(text)
    return Passage(id=content_id(title, text), title=title, text=text)


def _others(answer: str, aliases: Iterable[str]) -> tuple[str, ...]:
    """The aliases, each once, without blank ones and without the answer itself."""
    return tuple(dict.fromkeys(a for a in aliases if a.strip() and a != answer))
