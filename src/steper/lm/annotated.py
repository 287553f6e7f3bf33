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
    titles = {fold(passage.title) for passage in request.passages}
    written = {step.reasoning for step in request.steps}
    hop = next((h for h in question.chain if h.statement not in written), None)
    known = hop is None or not hop.title or fold(hop.title) in titles
    if request.final:
        # Asked too early, it answers with what it has read so far, as a model would.
        answer = question.answer if hop is None or (known and hop is question.chain[-1]) else ""
        return answer_sentence(answer or _last_answer(request)).removeprefix(ANSWER_CUE)
    if hop is None:
        return answer_sentence(question.answer)
    return hop.statement if known else search_sentence(hop)


def search_sentence(hop: Hop) -> str:
    """What to look for where a hop's passage has not been retrieved."""
    return f"I need to find out: {hop.question.rstrip('?').strip()}?"


def _last_answer(request: Request) -> str:
    stated = {step.reasoning for step in request.steps}
    answers = [hop.answer for hop in request.question.chain if hop.statement in stated]
    return answers[-1] if answers else "unknown"


def fold(title: str) -> str:
    """A title without case and outer white space, for comparing."""
    return title.strip().casefold()
