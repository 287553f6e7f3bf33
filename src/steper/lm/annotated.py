"""A teacher without a language model: people's own reasoning chains, spoken step by step.

MuSiQue's decompositions, 2Wiki's evidence triples and people's IRCoT chains say which fact is
needed at each hop and in which passage it stands. This teacher states a hop's fact once a passage
with the hop's title has been retrieved, and otherwise says what to look for. So its trajectories
are real step-wise reasoning on real retrieval, at no cost, and fail where retrieval fails.
"""

from __future__ import annotations

from collections.abc import Sequence

from steper.errors import SteperError
from steper.prompts import answer_sentence, one_line, parse_query, statement_of
from steper.protocols import Completion, Request
from steper.types import Hop


class AnnotatedTeacher:
    """Implements ``steper.protocols.LM`` from ``Question.chain``."""

    async def complete(self, request: Request) -> Completion:
        """The next sentence of the question's chain.

        Raises:
            SteperError: if the question has no chain.
        """
        return Completion(_next_sentence(request))


def _next_sentence(request: Request) -> str:
    question = request.question
    if not question.chain:
        raise SteperError(
            "the question has no gold chain, so the annotated teacher cannot answer it.",
            where=f"question {question.id}",
            fix="Use questions with a decomposition or evidence triples, or another teacher.",
        )
    written = [statement_of(step.reasoning, cue=request.search_cue) for step in request.steps]
    hop = next((h for h in question.chain if h.statement not in written), None)
    known = hop is None or _can_read(hop, request)
    if request.final:
        # Asked too early, it answers with what it has read so far, as a model would.
        done = hop is None or (known and hop is question.chain[-1])
        answer = question.answer if done else _last_answer(question.chain, written)
        return answer_sentence(answer, cue=request.answer_cue).removeprefix(request.answer_cue)
    if hop is None:
        return answer_sentence(question.answer, cue=request.answer_cue)
    if request.search_cue:
        return _asking_sentence(hop, written, request, known=known)
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


def _asking_sentence(hop: Hop, written: Sequence[str], request: Request, *, known: bool) -> str:
    """The fact where it can be read, and in the same breath the query for what is missing next."""
    said = [*written, hop.statement] if known else written
    missing = next((h for h in request.question.chain if h.statement not in said), None)
    if missing is None or _can_read(missing, request):
        return hop.statement
    queries = [one_line(query) for query in (missing.question, missing.title) if query]
    tried = [parse_query(step.reasoning, cue=request.search_cue) for step in request.steps]
    query = next((q for q in queries if q not in tried), queries[-1])
    order = f"{request.search_cue} {query}"
    return f"{hop.statement} {order}" if known else order


def _last_answer(chain: Sequence[Hop], written: Sequence[str]) -> str:
    answers = [hop.answer for hop in chain if hop.answer and hop.statement in written]
    return answers[-1] if answers else "unknown"


def fold(text: str) -> str:
    """A text without case and outer white space, for comparing."""
    return text.strip().casefold()
