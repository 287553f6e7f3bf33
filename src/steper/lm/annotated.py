"""A teacher without a language model: people's own reasoning chains, spoken step by step.

MuSiQue's decompositions, 2Wiki's evidence triples and people's IRCoT chains say which fact is
needed at each hop and in which passage it stands. This teacher states a hop's fact once a passage
with the hop's title has been retrieved, and otherwise says what to look for. So its trajectories
are real step-wise reasoning on real retrieval, at no cost, and fail where retrieval fails.
"""

from __future__ import annotations

from collections.abc import Sequence

from steper.errors import SteperError
from steper.prompts import ANSWER_CUE, answer_sentence
from steper.protocols import Request
from steper.types import Hop


class AnnotatedTeacher:
    """Implements ``steper.protocols.LM`` from ``Question.chain``."""

    def complete(self, requests: Sequence[Request]) -> list[str]:
        """The next sentence of each question's chain.

        Raises:
            SteperError: if a question has no chain.
        """
        return [_next_sentence(request) for request in requests]


def _next_sentence(request: Request) -> str:
    question = request.question
    if not question.chain:
        raise SteperError(
            "the question has no gold chain, so the annotated teacher cannot answer it.",
            where=f"question {question.id}",
            fix="Use questions with a decomposition or evidence triples, or another teacher.",
        )
    written = [step.reasoning for step in request.steps]
    hop = next((h for h in question.chain if h.statement not in written), None)
    known = hop is None or _can_read(hop, request)
    if request.final:
        # Asked too early, it answers with what it has read so far, as a model would.
        done = hop is None or (known and hop is question.chain[-1])
        answer = question.answer if done else _last_answer(question.chain, written)
        return answer_sentence(answer).removeprefix(ANSWER_CUE)
    if hop is None:
        return answer_sentence(question.answer)
    return hop.statement if known else _search_sentence(hop, written)


def _can_read(hop: Hop, request: Request) -> bool:
    """Whether a retrieved passage states the hop; a hop without title follows from earlier ones.

    Titles are not unique, so the passage must be a labelled one or contain the hop's answer.
    """
    return not hop.title or any(
        fold(passage.title) == fold(hop.title)
        and (
            passage.id in request.question.supporting_ids or fold(hop.answer) in fold(passage.text)
        )
        for passage in request.passages
    )


def _search_sentence(hop: Hop, written: Sequence[str]) -> str:
    """What to look for: the open question, and where that did not help, the passage's title."""
    by_title = f"I need to read about {hop.title}."
    if not hop.question:
        return by_title
    by_question = f"I need to find out: {hop.question.rstrip('?').strip()}?"
    return by_title if by_question in written else by_question


def _last_answer(chain: Sequence[Hop], written: Sequence[str]) -> str:
    answers = [hop.answer for hop in chain if hop.answer and hop.statement in written]
    return answers[-1] if answers else "unknown"


def fold(text: str) -> str:
    """A text without case and outer white space, for comparing."""
    return text.strip().casefold()
