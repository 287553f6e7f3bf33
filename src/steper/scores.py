"""Every measure of one run, from its trajectory alone: exact, free, no judge needed.

The three abilities of StepER (Figure 3 of the paper) are scored on the gold chain of the question,
where it has one: see ``abilities``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

from steper.metrics import Rules, mean_interval, normalize, recall, score
from steper.protocols import Usage
from steper.types import STRICT, Trajectory

ABILITIES = ("initialization", "expansion", "aggregation")
SHARES = ("em", "f1", "acc", "recall", *ABILITIES, "subquestion_acc")
"""Measures between 0 and 1, the higher the better."""
AMOUNTS = (
    "steps", "searches", "prompt_tokens", "cached_tokens", "completion_tokens", "seconds", "cost",
)  # fmt: skip
"""Measures of what a question took, the lower the better."""
MEASURES = (*SHARES, *AMOUNTS)


@dataclass(frozen=True, slots=True)
class QuestionScore:
    """All measures of one question; ``None`` where a measure does not apply to it.

    Attributes:
        type: the data set's word for the kind of question; empty where it has none.
        hops: links of its gold chain, 0 where unknown.
        recall: share of its gold passages that the run retrieved.
        recall_by_step: the same after each step; empty where there are no gold passages.
        initialization: whether step 1 was right; see ``abilities``.
        expansion: share of steps 2 … S-1 that were right.
        aggregation: whether the answer is right (EM), where every gold passage was retrieved.
        subquestion_acc: share of the gold chain's answers that the reasoning states.
        prompt_tokens: tokens read, cached ones included; ``None`` for a teacher without tokens.
        seconds: from the question's first search to its answer, waits for others included.
        cost: in the currency of the prices given.
    """

    __pydantic_config__ = STRICT

    id: str
    type: str
    hops: int
    em: float
    f1: float
    acc: float
    recall: float | None
    recall_by_step: tuple[float, ...]
    initialization: float | None
    expansion: float | None
    aggregation: float | None
    subquestion_acc: float | None
    steps: int
    searches: int
    prompt_tokens: int | None
    cached_tokens: int | None
    completion_tokens: int | None
    seconds: float | None
    cost: float | None


def score_trajectory(
    trajectory: Trajectory,
    rules: Rules,
    *,
    usage: Usage | None = None,
    seconds: float | None = None,
) -> QuestionScore:
    """All measures of one run.

    Args:
        trajectory: the run.
        rules: whose official scoring rules apply.
        usage: what its steps took together; without tokens it says nothing.
        seconds: how long it took.
    """
    question = trajectory.question
    answer = score(trajectory.answer, question.answers, rules=rules)
    right = gold_steps(trajectory)
    recalls = _recall_by_step(trajectory)
    used = usage if usage and usage.prompt_tokens else None
    return QuestionScore(
        id=question.id,
        type=question.type,
        hops=question.hops or len(question.chain),
        em=answer.em,
        f1=answer.f1,
        acc=answer.acc,
        recall=recalls[-1] if recalls else None,
        recall_by_step=recalls,
        # A run of one step skipped the beginning: it answered without reasoning of its own.
        initialization=None if right is None else right[0] if right else 0.0,
        expansion=fmean(right[1:]) if right and right[1:] else None,
        aggregation=answer.em if recalls and recalls[-1] == 1.0 else None,
        subquestion_acc=_subquestions(trajectory),
        steps=len(trajectory.steps),
        searches=sum(bool(step.query) for step in trajectory.steps),
        prompt_tokens=used.prompt_tokens if used else None,
        cached_tokens=used.cached_tokens if used else None,
        completion_tokens=used.completion_tokens if used else None,
        seconds=seconds,
        cost=used.cost if used else None,
    )


def gold_steps(trajectory: Trajectory) -> list[float] | None:
    """Whether each step before the last is right on the gold chain; ``None`` without a chain.

    A step is right if its sentence states the answer of a hop that was not stated before and whose
    passage has been retrieved; or, where the next hop's passage has not been retrieved, if
    searching with the sentence brings that passage. Step 1 is initialization, the mean over
    steps 2 … S-1 expansion.
    """
    hops = [hop for hop in trajectory.question.chain if hop.answer and hop.title]
    if not hops or not trajectory.steps:
        return None
    unstated, seen, right = list(hops), set[str](), list[float]()
    for step, following in pairwise(trajectory.steps):
        seen |= {passage.title for passage in step.passages}
        said = f" {normalize(step.reasoning)} "
        stated = [h for h in unstated if h.title in seen and f" {normalize(h.answer)} " in said]
        # Of hops with equal answers, one sentence states one.
        stated = list({normalize(h.answer): h for h in reversed(stated)}.values())
        if stated or not unstated:
            right.append(float(bool(stated)))
        else:
            found = {passage.title for passage in following.passages}
            right.append(float(unstated[0].title in found))
        unstated = [hop for hop in unstated if hop not in stated]
    return right


def _subquestions(trajectory: Trajectory) -> float | None:
    """Share of the gold chain's answers found in the reasoning, as whole words."""
    answers = [normalize(hop.answer) for hop in trajectory.question.chain if hop.answer]
    said = " ".join(f" {normalize(step.reasoning)} " for step in trajectory.steps)
    return fmean(f" {answer} " in said for answer in answers) if answers else None


def _recall_by_step(trajectory: Trajectory) -> tuple[float, ...]:
    gold = trajectory.question.supporting_titles
    titles: list[str] = []
    found = []
    for step in trajectory.steps if gold else ():
        titles += [passage.title for passage in step.passages]
        found.append(recall(titles, gold))
    return tuple(found)


# ---- over questions --------------------------------------------------------------------------


def summarise(scores: Sequence[QuestionScore], *, seed: int) -> dict[str, Any]:
    """Each measure's mean and bootstrap 95% interval over the questions it applies to."""
    summary: dict[str, Any] = {}
    for measure in MEASURES:
        values = [v for s in scores if (v := getattr(s, measure)) is not None]
        summary[measure] = asdict(mean_interval(values, seed=seed)) if values else None
    return summary


def breakdown(
    scores: Sequence[QuestionScore], by: Callable[[QuestionScore], str], *, seed: int
) -> dict[str, Any]:
    """EM, F1 and Acc with their intervals in each group of questions."""
    groups: dict[str, list[QuestionScore]] = defaultdict(list)
    for question_score in scores:
        groups[by(question_score)].append(question_score)
    return {
        name: {"n": len(group)}
        | {
            m: asdict(mean_interval([getattr(s, m) for s in group], seed=seed))
            for m in ("em", "f1", "acc")
        }
        for name, group in sorted(groups.items())
    }


def recall_by_step(scores: Sequence[QuestionScore]) -> list[float]:
    """Mean share of the gold passages retrieved by the end of each step.

    A run that ended keeps what it had, so every step's mean is over the same questions.
    """
    return mean_line([s.recall_by_step for s in scores])


def mean_line(lines: Sequence[Sequence[float]]) -> list[float]:
    """The mean of lines place by place; a shorter one keeps its end, an empty one is left out."""
    known = [line for line in lines if line]
    longest = max(map(len, known), default=0)
    return [fmean(line[min(n, len(line) - 1)] for line in known) for n in range(longest)]
