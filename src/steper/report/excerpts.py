"""The trajectories that the page shows: a few questions chosen by rule, arms side by side.

>>> excerpts(arms, pairs=[("steper_uniform", "vanilla_kd")])  # doctest: +SKIP
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steper.arms import Arm
from steper.errors import SteperError
from steper.metrics import normalize
from steper.rollout import TRAJECTORIES
from steper.store import from_json, read_lines
from steper.types import Passage, Question, Trajectory

TEACHER = "teacher"
BASE = "base"
QUESTIONS_SHOWN = 5
ARMS_SHOWN = 5


@dataclass(frozen=True)
class Excerpt:
    """One question with the run of each arm shown, ready for the page."""

    why: str
    question: Question
    runs: list[dict[str, Any]]


def excerpts(arms: Mapping[str, Arm], pairs: Sequence[tuple[str, str]]) -> list[Excerpt]:
    """At most five questions; of at most five arms, the teacher first.

    Args:
        arms: by label.
        pairs: arms compared, the second of the first pair being the baseline.
    """
    shown = [arms[label] for label in _shown(arms, pairs)]
    firsts = Counter(questions for arm in shown for questions in set(arm.question_sets))
    questions = firsts.most_common(1)[0][0]
    shown = [arm for arm in shown if questions in arm.question_sets]
    seeds = {arm.label: arm.question_sets.index(questions) for arm in shown}
    right = {arm.label: {key: bool(row["em"]) for key, row in arm.scores[seeds[arm.label]].items()}
             for arm in shown}  # fmt: skip
    chosen = _choose(right, pairs)
    runs = {arm.label: _trajectories(arm.folders[seeds[arm.label]], set(chosen)) for arm in shown}
    return [
        Excerpt(
            why,
            runs[shown[0].label][key].question,
            [_run(label, found[key], right[label][key]) for label, found in runs.items()],
        )
        for key, why in chosen.items()
    ]


def _shown(arms: Mapping[str, Arm], pairs: Sequence[tuple[str, str]]) -> list[str]:
    """The arms that matter most: teacher, base, baseline, those compared with it, the rest."""
    compared = [label for a, b in pairs for label in (b, a)]
    wanted = dict.fromkeys([TEACHER, BASE, *compared, *arms])
    few = [label for label in wanted if label in arms][:ARMS_SHOWN]
    return sorted(few, key=lambda label: (label != TEACHER, list(arms).index(label)))


def _choose(
    right: Mapping[str, Mapping[str, bool]], pairs: Sequence[tuple[str, str]]
) -> dict[str, str]:
    """Question ids with the reason shown: cases for and against the baseline in turn, then others.

    Args:
        right: by label, which questions the arm got right.
        pairs: arms compared, the second of the first pair being the baseline.
    """
    base = next((b for _, b in pairs), "")
    others = right.keys() - {TEACHER, BASE}  # neither says anything for or against a baseline
    ours = [a for a, b in pairs if b == base and a in others] if base in right else []
    gains, losses, splits, misses, hits = (list[str]() for _ in range(5))
    for key in sorted(set.intersection(*(set(answers) for answers in right.values()))):
        if len({answers[key] for answers in right.values()}) == 1:
            (hits if next(iter(right.values()))[key] else misses).append(key)
        elif ours and all(right[label][key] > right[base][key] for label in ours):
            gains.append(key)
        elif ours and all(right[label][key] < right[base][key] for label in ours):
            losses.append(key)
        else:
            splits.append(key)
    every = "every arm" if len(right) > 1 else "the arm"
    theirs = " and ".join(ours)
    reasons = dict.fromkeys(gains, f"{base} is wrong and {theirs} right")
    reasons |= dict.fromkeys(losses, f"{base} is right and {theirs} wrong")
    reasons |= dict.fromkeys(splits, "the arms differ")
    reasons |= dict.fromkeys(misses, f"{every} is wrong")
    reasons |= dict.fromkeys(hits, f"{every} is right")
    ordered = [*_in_turn([gains, losses]), *splits, *_in_turn([misses, hits])]
    return {key: reasons[key] for key in ordered[:QUESTIONS_SHOWN]}


def _in_turn(groups: Sequence[Sequence[str]]) -> list[str]:
    longest = max((len(group) for group in groups), default=0)
    return [group[i] for i in range(longest) for group in groups if i < len(group)]


def _trajectories(folder: Path, wanted: set[str]) -> dict[str, Trajectory]:
    """Only the wanted runs: a whole evaluation, with its passages, may be larger than memory."""
    path = folder / f"{TRAJECTORIES}.jsonl"
    found: dict[str, Trajectory] = {}
    for number, line in read_lines(path):
        if any(key.encode() in line for key in wanted):
            trajectory = from_json(Trajectory, line, where=f"{path}:{number}")
            if trajectory.question.id in wanted:
                found[trajectory.question.id] = trajectory
    if missing := wanted - found.keys():
        raise SteperError(
            f"has no run of question {min(missing)}, which scores.jsonl lists.",
            where=str(path),
            fix="Evaluate again into a new folder.",
        )
    return found


def _run(label: str, trajectory: Trajectory, right: bool) -> dict[str, Any]:
    steps, before = [], ""
    for step in trajectory.steps:
        searched = {trajectory.question.question: "the question", before: "the sentence before"}
        steps.append(
            {
                "query": step.query,
                "searched": searched.get(step.query, step.query),
                "reasoning": step.reasoning,
                "passages": [_passage(passage, trajectory) for passage in step.passages],
            }
        )
        before = step.reasoning
    return {"label": label, "right": right, "answer": trajectory.answer, "steps": steps}


def _passage(passage: Passage, trajectory: Trajectory) -> dict[str, Any]:
    text = f" {normalize(f'{passage.title} {passage.text}')} "
    answers = {normalize(answer) for answer in trajectory.question.answers} - {"", "yes", "no"}
    return {
        "title": passage.title,
        "text": passage.text,
        "gold": passage.title in trajectory.question.supporting_titles,
        "answer": any(f" {answer} " in text for answer in answers),
    }
