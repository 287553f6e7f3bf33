"""IRCoT: search, write one sentence, search with that sentence, and so on (Eq. 2).

Step 1 searches with the question, each later step with the last reasoning sentence. A sentence
that contains the answer cue ends the run; at the last allowed step the answer is asked for.

>>> IRCoT(max_steps=5).next(Question("1", "Who hosted Hee Haw?", "Roy Clark"), [], None)
Search(query='Who hosted Hee Haw?')
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from steper.prompts import parse_answer
from steper.protocols import Finish, Generate, Search
from steper.types import Question, Step


@dataclass(frozen=True, slots=True)
class IRCoT:
    """Interleaved retrieval and chain-of-thought, one sentence a step.

    Attributes:
        max_steps: S, the most steps of a run; the paper's is 5.
    """

    max_steps: int = 5

    def next(
        self, question: Question, steps: Sequence[Step], searched: Search | None
    ) -> Search | Generate | Finish:
        """See ``steper.protocols.Strategy.next``."""
        if finish := finished(steps, self.max_steps):
            return finish
        if searched is None:
            # A model that wrote nothing leaves nothing to search with but the question.
            return Search((steps[-1].reasoning if steps else "") or question.question)
        return Generate(final=len(steps) + 1 == self.max_steps)


def finished(steps: Sequence[Step], max_steps: int) -> Finish | None:
    """The end of a run whose last sentence answers, or whose steps are used up."""
    answer = parse_answer(steps[-1].reasoning) if steps else None
    if answer is None and len(steps) < max_steps:
        return None
    return Finish(answer or "", "limit" if len(steps) == max_steps else "answer")
