"""IRCoT: search, write one sentence, search with that sentence, and so on (Eq. 2).

Step 1 searches with the question, each later step with the last reasoning sentence. A sentence
that contains the answer cue ends the run; at the last allowed step the answer is asked for.

>>> IRCoT(Limits()).next(Question("1", "Who hosted Hee Haw?", "Roy Clark"), [], None)
Search(query='Who hosted Hee Haw?')
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from steper.protocols import Finish, Generate, Search
from steper.strategies.limits import Limits
from steper.types import Question, Step


@dataclass(frozen=True, slots=True)
class IRCoT:
    """Interleaved retrieval and chain-of-thought, one sentence a step."""

    limits: Limits

    def next(
        self, question: Question, steps: Sequence[Step], searched: Search | None, *, tokens: int = 0
    ) -> Search | Generate | Finish:
        """See ``steper.protocols.Strategy.next``."""
        if finish := self.limits.finish(steps):
            return finish
        if searched is None and not self.limits.spent(steps, tokens):
            # A model that wrote nothing leaves nothing to search with but the question.
            return Search((steps[-1].reasoning if steps else "") or question.question)
        return self.limits.generate(steps, tokens)
