"""When a run ends, the same for every strategy: at an answer, or where its means are used up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from steper.prompts import one_line, parse_answer
from steper.protocols import ANSWER_CUE, Finish, Generate
from steper.types import Step, Stopped


@dataclass(frozen=True, slots=True)
class Limits:
    """How far a run may go before it is asked for its answer.

    Attributes:
        max_steps: S, the most steps of a run; the paper's is 5.
        max_passages: most passages of a run; 0 for no limit.
        max_tokens: most tokens read and written in a run, all steps together; 0 for no limit.
        early_stop: ask for the answer as soon as a sentence comes a second time.
        answer_cue: a sentence containing this ends the run.
    """

    max_steps: int = 5
    max_passages: int = 0
    max_tokens: int = 0
    early_stop: bool = False
    answer_cue: str = ANSWER_CUE

    def finish(self, steps: Sequence[Step]) -> Finish | None:
        """The end of a run whose last sentence answers, or whose steps are used up."""
        answer = parse_answer(steps[-1].reasoning, cue=self.answer_cue) if steps else None
        if answer is None and len(steps) < self.max_steps:
            return None
        return Finish(answer or "")

    def spent(self, steps: Sequence[Step], tokens: int) -> Stopped | None:
        """Why no further search is to be made, ``None`` where one may be."""
        if self.max_passages and sum(len(s.passages) for s in steps) >= self.max_passages:
            return "budget"
        if self.max_tokens and tokens >= self.max_tokens:
            return "budget"
        if self.early_stop and _repeats(steps):
            return "stuck"
        return None

    def generate(self, steps: Sequence[Step], tokens: int) -> Generate:
        """The order to write, asking for the answer at the last step that is allowed."""
        if len(steps) + 1 == self.max_steps:
            return Generate("limit")
        return Generate(self.spent(steps, tokens))


def _repeats(steps: Sequence[Step]) -> bool:
    """Whether the last sentence stands in the run already, case and white space aside."""
    said = [one_line(step.reasoning).casefold() for step in steps]
    return bool(said) and said[-1] in said[:-1]
