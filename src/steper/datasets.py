"""Read questions, gold chains and the passages that come with them, strictly.

One function takes them all: our own JSONL, the official release files of HotpotQA,
2WikiMultiHopQA and MuSiQue as downloaded, and Parquet. The file's content says which it is, so
there is no format option to get wrong. Anything unexpected is refused with its place in the file.

>>> load_questions(Path("hotpot_dev_distractor_v1.json"), limit=1)  # doctest: +SKIP
[Question(id='5a8b57f25542995d1e6f1371', question='Were Scott Derrickson and ...', ...)]
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from steper.chains import Triple, decomposition_chain, triple_chain
from steper.errors import SteperError
from steper.prompts import one_line, parse_answer
from steper.records import record_texts
from steper.releases import (
    AliasLine,
    HotpotQuestion,
    MusiqueQuestion,
    from_hotpot,
    from_musique,
    passages_of,
    split_of,
)
from steper.store import from_json
from steper.types import STRICT, Hop, Passage, Question

_log = logging.getLogger(__name__)


# ---- our own records -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SubQuestion:
    """A link of a decomposition; ``#1`` in the question stands for the answer of link 1."""

    __pydantic_config__ = STRICT

    question: str
    answer: str
    title: str = ""


@dataclass(frozen=True, slots=True)
class Evidence:
    """A supporting sentence: where it is, and its text where known."""

    __pydantic_config__ = STRICT

    title: str
    sent_id: int
    sentence: str | None = None


@dataclass(frozen=True, slots=True)
class QuestionLine(Question):
    """Our own format: the fields of ``Question``, and the labels a chain can be made from."""

    __pydantic_config__ = STRICT

    answer: str = ""
    decomposition: tuple[SubQuestion, ...] = ()
    evidence_triples: tuple[Triple, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    explanation: str = ""
    level: str = ""
    selection: str = ""
    gold_how: str = ""
    answer_id: str = ""


@dataclass(frozen=True, slots=True)
class ChainStep:
    """One sentence written by a person, and the titles it was read from."""

    __pydantic_config__ = STRICT

    sentence: str
    titles: tuple[str, ...] = ()
    text_substrings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ChainLine:
    """The reasoning a person wrote for one question of a data set."""

    __pydantic_config__ = STRICT

    dataset: str
    id: str
    steps: tuple[ChainStep, ...]
    question: str = ""
    answer: str = ""
    supporting_titles: tuple[str, ...] = ()
    supporting_ids: tuple[str, ...] = ()
    split: str = ""


Record = QuestionLine | HotpotQuestion | MusiqueQuestion


# ---- what callers use ------------------------------------------------------------------------


def load_questions(
    path: Path, *, split: str | None = None, limit: int | None = None
) -> list[Question]:
    """Read questions, in file order.

    Official files do not say their split, so theirs is "train", "dev" or "test" by the file's
    name, else empty. MuSiQue's unanswerable questions are left out, and a warning is logged with
    their number. An ``id_aliases.json`` beside a 2WikiMultiHopQA file gives the answer aliases.

    Args:
        path: JSONL, Parquet or an official release file.
        split: keep only the questions of this split.
        limit: keep only the first so many; the rest of the file is not looked at.

    Raises:
        SteperError: if anything in the file is not as docs/formats.md says, an id comes twice, an
            answer is missing, or nothing is left.
    """
    if limit is not None and limit < 1:
        raise SteperError(
            f"the limit must be at least 1, got {limit}.", where=str(path), fix="Raise it."
        )
    questions: list[Question] = []
    places: dict[str, str] = {}
    left_out: Counter[str] = Counter()
    for where, question in _questions(path):
        if question is None:
            left_out["unanswerable"] += 1
            continue
        _check(question, where, places)
        if split is not None and question.split != split:
            left_out[f"of split {question.split!r}"] += 1
            continue
        questions.append(question)
        if len(questions) == limit:
            break
    if left_out["unanswerable"]:
        _log.warning("%s: left out %d unanswerable questions", path, left_out["unanswerable"])
    if not questions:
        raise _nothing(path, split, +left_out)
    return questions


def question_passages(path: Path) -> list[Passage]:
    """The paragraphs that come inside an official release file, each once, in file order.

    Two paragraphs are the same if title and text are. The id is made from both, so it is stable
    over files, and ``Question.supporting_ids`` of ``load_questions`` refers to it.

    Raises:
        SteperError: if the file is malformed or holds no paragraphs.
    """
    passages: dict[str, Passage] = {}
    for _, record in _records(path):
        if not isinstance(record, QuestionLine):
            passages |= {p.id: p for p in passages_of(record) if p.text}
    if not passages:
        raise SteperError(
            "holds no passages.",
            where=str(path),
            fix="Give an official release file of HotpotQA, 2WikiMultiHopQA or MuSiQue, or a "
            "file of passages.",
        )
    return list(passages.values())


def load_chains(path: Path) -> dict[tuple[str, str], tuple[Hop, ...]]:
    """Reasoning written by people, by data set and question id.

    Each sentence becomes a hop with ``statement`` and ``title`` only; the title is empty where the
    sentence follows from earlier ones. The sentence that gives the answer is dropped, because the
    run writes its own.

    Raises:
        SteperError: if a line is malformed, a question comes twice, or there are none.
    """
    chains: dict[tuple[str, str], tuple[Hop, ...]] = {}
    for where, text in record_texts(path):
        line = from_json(ChainLine, text, where=where)
        if (line.dataset, line.id) in chains:
            raise SteperError(
                f"id: a second chain for {line.dataset} question {line.id!r}.",
                where=where,
                fix="Keep one of the two.",
            )
        chains[line.dataset, line.id] = tuple(
            Hop("", "", step.titles[0] if step.titles else "", one_line(step.sentence))
            for step in line.steps
            if parse_answer(step.sentence) is None
        )
    if not chains:
        raise SteperError("holds no chains.", where=str(path), fix="Check the file.")
    return chains


def with_chains(
    questions: Iterable[Question],
    chains: Mapping[tuple[str, str], tuple[Hop, ...]],
    *,
    dataset: str | None = None,
) -> list[Question]:
    """The questions, with the given chain in place of their own where there is one for their id.

    Args:
        questions: the questions of one data set.
        chains: what ``load_chains`` read.
        dataset: use only this data set's chains; ``None`` where ids alone tell them apart.
    """
    by_id = {id_: chain for (name, id_), chain in chains.items() if dataset in (None, name)}
    return [replace(q, chain=by_id[q.id]) if by_id.get(q.id) else q for q in questions]


# ---- from file to question -------------------------------------------------------------------


def _records(path: Path) -> Iterator[tuple[str, Record]]:
    """Every record with its place; the first one's keys say what kind all are."""
    kind: type[Record] | None = None
    for where, text in record_texts(path):
        kind = kind or _kind(text)
        yield where, from_json(kind, text, where=where)


def _kind(text: str | bytes) -> type[Record]:
    """Whose record this is; our own where it cannot be told, so that reading it says why."""
    try:
        record = json.loads(text)
    except ValueError:
        return QuestionLine
    keys = set(record) if isinstance(record, dict) else set()
    if keys & {"paragraphs", "question_decomposition"}:
        return MusiqueQuestion
    return HotpotQuestion if keys & {"_id", "context"} else QuestionLine


def _questions(path: Path) -> Iterator[tuple[str, Question | None]]:
    """Every question with its place, ``None`` for an unanswerable one."""
    split = split_of(path)
    aliases: Mapping[str, tuple[str, ...]] | None = None
    for where, record in _records(path):
        match record:
            case QuestionLine():
                yield where, _from_line(record)
            case MusiqueQuestion():
                yield where, from_musique(record, split=split) if record.answerable else None
            case HotpotQuestion():
                # Large, and of no use to HotpotQA itself: read when the first id asks for it.
                if aliases is None and record.answer_id:
                    aliases = _read_aliases(path.with_name("id_aliases.json"))
                names = (aliases or {}).get(record.answer_id or "", ())
                yield where, from_hotpot(record, split=split, aliases=names)


def _from_line(line: QuestionLine) -> Question:
    values: dict[str, Any] = {field.name: getattr(line, field.name) for field in fields(Question)}
    if not line.chain:
        # Triples first: 2WikiMultiHopQA's decompositions answer in sentences, not in names.
        values["chain"] = triple_chain(
            line.evidence_triples, line.supporting_titles
        ) or decomposition_chain([(s.question, s.answer, s.title) for s in line.decomposition])
    values["hops"] = line.hops or len(values["chain"])
    return Question(**values)


def _read_aliases(path: Path) -> dict[str, tuple[str, ...]]:
    """2WikiMultiHopQA's aliases and demonyms by entity id; none where the file is not there."""
    if not path.is_file():
        return {}
    lines = (from_json(AliasLine, text, where=where) for where, text in record_texts(path))
    return {line.Q_id: (*line.aliases, *line.demonyms) for line in lines}


def _check(question: Question, where: str, places: dict[str, str]) -> None:
    """Refuse a question that cannot be asked, cannot be scored, or comes a second time."""
    for field in ("id", "question"):
        if not getattr(question, field).strip():
            raise SteperError(f"{field}: is empty.", where=where, fix="Every question needs one.")
    if not question.answer.strip():
        raise SteperError(
            f"answer: a question without answer (id {question.id!r}).",
            where=where,
            fix="Answers are needed to filter and to score. Public test files hold none: use the "
            "train or dev file.",
        )
    first = places.setdefault(question.id, where)
    if first != where:
        raise SteperError(
            f"id: a second question with id {question.id!r}; the first is at {first}.",
            where=where,
            fix="Keep one of the two.",
        )


def _nothing(path: Path, split: str | None, left_out: Mapping[str, int]) -> SteperError:
    """The error for a file that leaves nothing to ask."""
    wanted = "" if split is None else f" of split {split!r}"
    counts = ", ".join(f"{count} {kind}" for kind, count in left_out.items())
    return SteperError(
        f"holds no questions{wanted}{f' ({counts} left out)' if counts else ''}.",
        where=str(path),
        fix="Check the file." if split is None else "Check the file and the split.",
    )
