"""Filters: which teacher trajectories are worth learning from. Pure; each says why it drops.

>>> filter_ = AnswerFilter(measure="em", threshold=1.0, rules="hotpotqa")
>>> filter_.name
'answer'
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from steper.metrics import Rules, score
from steper.prompts import one_line
from steper.protocols import Drop, Filter
from steper.types import Trajectory

Measure = Literal["em", "f1", "acc"]


@dataclass(frozen=True, slots=True)
class AnswerFilter:
    """Keeps a trajectory whose final answer is right: the paper's own filter.

    Attributes:
        measure: EM, F1 or Acc against the gold answer and its aliases.
        threshold: least value that passes, in (0, 1].
    """

    measure: Measure
    threshold: float
    rules: Rules
    name: str = "answer"

    def check(self, trajectory: Trajectory) -> Drop | None:
        """Drop a trajectory whose answer scores below the threshold."""
        if not trajectory.answer:
            return Drop(self.name, "no answer")
        value = getattr(
            score(trajectory.answer, trajectory.question.answers, rules=self.rules), self.measure
        )
        if value >= self.threshold:
            return None
        return Drop(
            self.name,
            f"{self.measure} {value:.2f} < {self.threshold:g}: answered "
            f"{trajectory.answer!r}, expected {trajectory.question.answer!r}",
        )


@dataclass(frozen=True, slots=True)
class EmptyFilter:
    """Drops a trajectory with a step in which nothing was written: nothing to learn from."""

    name: str = "empty"

    def check(self, trajectory: Trajectory) -> Drop | None:
        """Drop on the first step without reasoning."""
        for number, step in enumerate(trajectory.steps, start=1):
            if not step.reasoning.strip():
                return Drop(self.name, f"step {number} is empty")
        return None


@dataclass(frozen=True, slots=True)
class RepeatFilter:
    """Drops a trajectory in which a sentence is written twice: it went in a circle."""

    name: str = "repeat"

    def check(self, trajectory: Trajectory) -> Drop | None:
        """Drop on the first sentence that repeats, case and white space aside."""
        seen: dict[str, int] = {}
        for number, step in enumerate(trajectory.steps, start=1):
            sentence = one_line(step.reasoning).lower()
            if sentence in seen:
                return Drop(self.name, f"step {number} repeats step {seen[sentence]}")
            seen[sentence] = number
        return None


def sift(
    trajectories: Iterable[Trajectory], filters: Sequence[Filter]
) -> tuple[list[Trajectory], list[tuple[Trajectory, Drop]]]:
    """Split into kept and dropped; the first filter that drops is the one named."""
    kept, dropped = [], []
    for trajectory in trajectories:
        drop = next((d for f in filters if (d := f.check(trajectory))), None)
        if drop is None:
            kept.append(trajectory)
        else:
            dropped.append((trajectory, drop))
    return kept, dropped
