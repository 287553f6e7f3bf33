"""Turn the data sets' labels into gold chains: one hop a fact, each with a sentence that states it.

The annotated teacher writes these sentences as its reasoning, and the next search is made of them,
so they are worded to name both the subject and the answer.

>>> decomposition_chain([("Green >> performer", "Steve Hillage", "Green (album)")])[0].statement
'The performer of Green is Steve Hillage.'
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from steper.types import Hop

Triple = tuple[str, str, str]
"""Subject, relation, object."""

_REFERENCE = re.compile(r"#(\d+)")
_PARENTHESIS = re.compile(r"\s*\([^()]*\)$")
_LOOSE = re.compile(r"\s+(?=['\u2019]s\b|[?,.)])")
"""White space that MuSiQue's sub-questions leave before "'s", "?" and the like."""

_VERBS = ("applies", "contains", "crosses", "follows", "shares")
_STATES = ("located", "member of", "part of", "present in")
_PREPOSITIONS = ("after", "at", "by", "in", "of", "on", "to", "with")


def decomposition_chain(parts: Sequence[tuple[str, str, str]]) -> tuple[Hop, ...]:
    """A chain from sub-questions, their answers and their titles.

    ``#n`` stands for the answer of hop n where n is an earlier hop; any other ``#n`` is text.
    """
    hops: list[Hop] = []
    for question, answer, title in parts:

        def resolved(match: re.Match[str]) -> str:
            number = int(match[1])
            return hops[number - 1].answer if 0 < number <= len(hops) else match[0]

        asked = _LOOSE.sub("", " ".join(_REFERENCE.sub(resolved, question).split()))
        hops.append(Hop(asked, answer, title, _statement(asked, answer)))
    return tuple(hops)


def triple_chain(triples: Sequence[Triple], titles: Sequence[str]) -> tuple[Hop, ...]:
    """A chain from (subject, relation, object) triples and the supporting titles.

    A hop's title is the one that equals its subject, but for case or a parenthesis at the end;
    else the one at its place where there are as many titles as triples; else empty.
    """
    return tuple(
        Hop(
            question=f"{relation} of {subject}",
            answer=answer,
            title=_title(subject, titles) or (titles[place] if len(titles) == len(triples) else ""),
            statement=_sentence(f"The {relation} of {subject} is {answer}"),
        )
        for place, (subject, relation, answer) in enumerate(triples)
    )


def _title(subject: str, titles: Sequence[str]) -> str:
    """The title that names the subject, empty where none or more than one does."""
    named = subject.casefold()
    for title in titles:
        if title.casefold() == named:
            return title
    bare = [title for title in titles if _PARENTHESIS.sub("", title).casefold() == named]
    return bare[0] if len(bare) == 1 else ""


def _statement(question: str, answer: str) -> str:
    """The fact a sub-question and its answer make.

    A question in words cannot be turned into a statement by rule, so it is followed by its
    answer: "When did Sri Lanka leave the British Empire? February 4, 1948." MuSiQue's short form
    "subject >> relation" becomes a sentence that fits the relation.
    """
    subject, arrow, relation = question.rpartition(">>")
    subject, relation = subject.strip(), relation.strip()
    if not arrow or not subject or not relation:
        asked = question[:1].upper() + question[1:]
        return _sentence(f"{asked.rstrip(' ?.')}? {answer}")
    if relation.startswith(_VERBS):
        return _sentence(f"{subject} {relation} {answer}")
    if relation.startswith(_STATES) or relation.endswith(tuple(f" {p}" for p in _PREPOSITIONS)):
        return _sentence(f"{subject} is {relation} {answer}")
    return _sentence(f"The {relation} of {subject} is {answer}")


def _sentence(text: str) -> str:
    """End with one full stop: "U.S." has its own. White space folds, as in a run."""
    text = " ".join(text.split())
    return text if text.endswith(".") else f"{text}."
