"""Closed-book: reasoning to the answer from what the model knows; nothing is searched.

The baseline that shows what retrieval adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from steper.protocols import Finish, Generate, Search
from steper.strategies.limits import Limits
from steper.types import Question, Step


@dataclass(frozen=True, slots=True)
class ClosedBook:
    """Only writes."""

    limits: Limits

    def next(
        self, question: Question, steps: Sequence[Step], searched: Search | None, *, tokens: int = 0
    ) -> Search | Generate | Finish:
        """See ``steper.protocols.Strategy.next``."""
        return self.limits.finish(steps) or self.limits.generate(steps, tokens)
