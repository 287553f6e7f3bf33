"""Single-step RAG: one search with the question, then reasoning to the answer (Eq. 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from steper.protocols import Finish, Generate, Search
from steper.strategies.ircot import finished
from steper.types import Question, Step


@dataclass(frozen=True, slots=True)
class SingleStep:
    """Search once; later steps only write.

    Attributes:
        max_steps: the most sentences, that of the answer included.
    """

    max_steps: int = 5

    def next(
        self, question: Question, steps: Sequence[Step], searched: Search | None
    ) -> Search | Generate | Finish:
        """See ``steper.protocols.Strategy.next``."""
        if finish := finished(steps, self.max_steps):
            return finish
        if not steps and searched is None:
            return Search(question.question)
        return Generate(final=len(steps) + 1 == self.max_steps)
