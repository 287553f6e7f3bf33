"""Filters: which teacher trajectories are worth learning from. Pure; each says why it drops.

>>> filter_ = AnswerFilter(measure="em", threshold=1.0, rules="hotpotqa")
>>> filter_.name
'answer'
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from steper.grounding import Ground, content, count_words, same_word, words
from steper.metrics import Rules, recall, score
from steper.prompts import ANSWER_CUE, one_line
from steper.protocols import Drop, Filter
from steper.types import Trajectory

Measure = Literal["em", "f1", "acc"]
Choice = Literal["best", "all"]

CHOICE = "choice"
"""The filter named for a trajectory that was good, but not the best of its question."""


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
    """Drops a trajectory in which a sentence is written twice: it went in a circle.

    The same words in another order count as the same sentence. They name nothing new, and where
    the order matters ("A is the father of B", then the reverse) one of the two is false.
    """

    name: str = "repeat"

    def check(self, trajectory: Trajectory) -> Drop | None:
        """Drop on the first sentence whose words all came before, in any order, case and form."""
        seen: dict[tuple[str, ...], int] = {}
        for number, step in enumerate(trajectory.steps, start=1):
            sentence = tuple(sorted(words(step.reasoning))) or (one_line(step.reasoning),)
            if sentence in seen:
                return Drop(self.name, f"step {number} repeats step {seen[sentence]}")
            seen[sentence] = number
        return None


@dataclass(frozen=True, slots=True)
class LengthFilter:
    """Drops a trajectory that has a sentence of unusual length, or too many steps.

    Attributes:
        min_words: fewest words of a sentence; more than 1 drops the Korean 서울이다.
        max_words: most words of a sentence; Han and kana count one word each.
        max_steps: most steps, ``None`` for any number.
    """

    min_words: int = 1
    max_words: int = 80
    max_steps: int | None = None
    name: str = "length"

    def check(self, trajectory: Trajectory) -> Drop | None:
        """Drop on the number of steps, then on the first sentence out of bounds."""
        steps = len(trajectory.steps)
        if self.max_steps is not None and steps > self.max_steps:
            return Drop(self.name, f"{steps} steps, more than {self.max_steps}")
        for number, step in enumerate(trajectory.steps, start=1):
            length = count_words(step.reasoning)
            if not self.min_words <= length <= self.max_words:
                return Drop(
                    self.name,
                    f"step {number} has {length} words, not {self.min_words} to {self.max_words}",
                )
        return None


@dataclass(frozen=True, slots=True)
class UngroundedFilter:
    """Drops a trajectory that names what it has not read: a student would learn to make things up.

    A step may name what stands in the question and in P≤s. Earlier sentences are no ground of
    their own: what they named rightly is in P≤s already, and what they made up is made up still.

    Attributes:
        cue: the wording's answer cue.
    """

    cue: str = ANSWER_CUE
    name: str = "ungrounded"

    def check(self, trajectory: Trajectory) -> Drop | None:
        """Drop on the first step with a name, number or quoted title from nowhere."""
        ground = Ground([trajectory.question.question])
        for number, step in enumerate(trajectory.steps, start=1):
            for passage in step.passages:
                ground.add(f"{passage.title}\n{passage.text}")
            if missing := ground.missing(step.reasoning, self.cue):
                return Drop(
                    self.name,
                    f"step {number} names {', '.join(map(repr, missing))}, which neither the "
                    "question nor a passage so far does",
                )
        return None


@dataclass(frozen=True, slots=True)
class NoGainFilter:
    """Drops a trajectory with a wasted step: its sentence says nothing new and found nothing new.

    StepSearch's information gain minus redundancy, without a model. A step is wasted where no new
    passage came before its sentence, the sentence has no word that the question and the earlier
    sentences lack, and the search made with it brought no new passage either: "I need to find the
    seat of Linen Zinc." repeats known words, but may find the passage. The last step is let off,
    since an answer may have been named before.
    """

    name: str = "no-gain"

    def check(self, trajectory: Trajectory) -> Drop | None:
        """Drop on the first wasted step."""
        said = set(content(trajectory.question.question))
        for number, (step, after) in enumerate(pairwise(trajectory.steps), start=1):
            new = {
                word
                for word in content(step.reasoning) - said
                if not any(same_word(word, other) for other in said)
            }
            if not (new or step.passages or after.passages):
                return Drop(self.name, f"step {number} brings no new word and no new passage")
            said |= new
        return None


@dataclass(frozen=True, slots=True)
class GoldFilter:
    """Drops a trajectory that did not find the passages its answer rests on.

    Of a whole trajectory only: were every search to bring a gold passage, then a teacher that
    searches again after it missed one would be dropped, which is what a student has to learn.

    Attributes:
        min_recall: least share of the question's supporting titles, in [0, 1]. Questions without
            labels pass.
    """

    min_recall: float = 1.0
    name: str = "gold"

    def check(self, trajectory: Trajectory) -> Drop | None:
        """Drop where too few supporting titles are among the passages."""
        gold = trajectory.question.supporting_titles
        titles = [passage.title for passage in trajectory.passages]
        if not gold or recall(titles, gold) >= self.min_recall:
            return None
        missed = sorted(set(gold).difference(titles))
        return Drop(
            self.name,
            f"found {recall(titles, gold):.2f} of the gold titles, less than "
            f"{self.min_recall:g}; not {', '.join(map(repr, missed))}",
        )


Rejects = list[tuple[Trajectory, tuple[Drop, ...]]]
"""Dropped trajectories, each with what every filter that dropped it said; the first one counts."""


def sift(
    trajectories: Iterable[Trajectory], filters: Sequence[Filter]
) -> tuple[list[Trajectory], Rejects]:
    """Split into kept and dropped. Every filter sees every trajectory, dropped or not."""
    kept: list[Trajectory] = []
    dropped: Rejects = []
    for trajectory in trajectories:
        drops = tuple(drop for f in filters if (drop := f.check(trajectory)))
        if drops:
            dropped.append((trajectory, drops))
        else:
            kept.append(trajectory)
    return kept, dropped


def choose(trajectories: Sequence[Trajectory], choice: Choice) -> tuple[list[Trajectory], Rejects]:
    """Split into those to learn from and those left out, for one trajectory a question.

    The best of a question has the fewest steps; of these the most gold titles found; of these it
    was drawn first. ``all`` leaves none out.
    """
    if choice == "all":
        return list(trajectories), []
    best: dict[str, Trajectory] = {}
    for trajectory in trajectories:
        rival = best.setdefault(trajectory.question.id, trajectory)
        if _rank(trajectory) < _rank(rival):
            best[trajectory.question.id] = trajectory
    chosen: list[Trajectory] = []
    left: Rejects = []
    for trajectory in trajectories:
        winner = best[trajectory.question.id]
        if trajectory is winner:
            chosen.append(trajectory)
        else:
            left.append((trajectory, (Drop(CHOICE, f"{winner.id} is better or was first"),)))
    return chosen, left


def _rank(trajectory: Trajectory) -> tuple[int, int, int]:
    titles = {passage.title for passage in trajectory.passages}
    found = len(titles.intersection(trajectory.question.supporting_titles))
    return len(trajectory.steps), -found, trajectory.sample
