"""Single-step RAG: one search with the question, then reasoning to the answer (Eq. 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from steper.protocols import Finish, Generate, Search
from steper.strategies.limits import Limits
from steper.types import Question, Step


@dataclass(frozen=True, slots=True)
class SingleStep:
    """Search once; later steps only write."""

    limits: Limits

    def next(
        self, question: Question, steps: Sequence[Step], searched: Search | None, *, tokens: int = 0
    ) -> Search | Generate | Finish:
        """See ``steper.protocols.Strategy.next``."""
        if finish := self.limits.finish(steps):
            return finish
        if not steps and searched is None:
            return Search(question.question)
        return self.limits.generate(steps, tokens)
