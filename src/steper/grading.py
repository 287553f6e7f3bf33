"""What a judge is asked about a run, by templates/abilities.toml, and how its grades are read.

Every step is graded for its ability, right or wrong, and the reasoning as a whole from 1 to 5 by
four criteria. What `steper judge` makes of the grades: ``steper.judging``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from typing import Literal

from steper.examples import task_of
from steper.judge import LONGEST, Item, judge_request, load_rubric, read_object, read_reason
from steper.protocols import Completion, Request, Usage
from steper.types import STRICT, Task, Trajectory

RUBRIC = "abilities"
"""Name of the rubric file."""

CRITERIA = ("grounded", "coherent", "complete", "concise")
"""Of the reasoning as a whole, each from 1 to 5."""

Subject = Literal[Task, "quality"]
"""What a request is about: the ability of one step, or the quality of the whole."""

Place = tuple[str, int]
"""A trajectory's id, and the step that is graded, 0 for the whole."""


@dataclass(frozen=True, slots=True)
class Judgment:
    """One answer of the judge; one line of ``verdicts.jsonl``.

    Attributes:
        step: the step that is graded, from 1; 0 for the reasoning as a whole.
        repeat: which time it was asked about, from 0.
        scores: of an ability 1 or 0, of each criterion 1 to 5; ``None`` where it is unscored.
        raw: what the judge wrote, where that could not be read.
        error: why it wrote nothing, where it did not.
    """

    __pydantic_config__ = STRICT

    trajectory_id: str
    subject: Subject
    step: int
    repeat: int
    scores: dict[str, int] | None = None
    reason: str = ""
    raw: str = ""
    error: str = ""
    usage: Usage = field(default_factory=Usage)

    @property
    def id(self) -> str:
        """Trajectory, step and repeat."""
        return f"{self.trajectory_id}#{self.step}.{self.repeat}"


@dataclass(frozen=True, slots=True)
class _Grading:
    """Something to ask about; its judgment so far says what."""

    trajectory: Trajectory
    asked: Judgment

    @property
    def id(self) -> str:
        return self.asked.id

    def request(self) -> Request:
        step = self.asked.step or len(self.trajectory.steps)
        request = judge_request(self.trajectory, step, rubric(self.asked.subject))
        return replace(request, candidate=self.asked.repeat)

    def verdict(self, completion: Completion) -> Judgment:
        read = read_scores(completion.text, self.asked.subject)
        if read is None:
            raw = completion.text[:LONGEST]
            return replace(self.asked, raw=raw, usage=completion.usage)
        scores, reason = read
        return replace(self.asked, scores=scores, reason=reason, usage=completion.usage)

    def failure(self, error: str) -> Judgment:
        return replace(self.asked, error=error)


def gradings(trajectory: Trajectory, repeats: int) -> list[Item[Judgment]]:
    """Every step for its ability, and the whole."""
    last = len(trajectory.steps)
    subjects: list[tuple[Subject, int]] = [(task_of(n, last), n) for n in range(1, last + 1)]
    return [
        _Grading(trajectory, Judgment(trajectory.id, subject, step, repeat))
        for subject, step in [*subjects, ("quality", 0)]
        for repeat in range(repeats)
    ]


@cache
def rubric(subject: Subject) -> dict[str, str]:
    """The wording of a request about that."""
    texts = load_rubric(RUBRIC)
    if subject == "quality":
        return texts | {"rubric": texts["quality"], "step": texts["whole"]}
    parts = (texts["intro"], texts[subject], texts["answer"])
    return texts | {"rubric": "\n\n".join(parts)}


def read_scores(text: str, subject: Subject) -> tuple[dict[str, int], str] | None:
    """Scores and reason in a judge's answer, ``None`` unless it is flawless; see ``read_object``.

    >>> read_scores('{"reason": "Not read anywhere.", "right": false}', "expansion")
    ({'expansion': 0}, 'Not read anywhere.')
    """
    names = CRITERIA if subject == "quality" else ("right",)
    values = read_object(text, ("reason", *names))
    if values is None or not isinstance(values["reason"], str):
        return None
    reason, given = read_reason(values["reason"]), [values[name] for name in names]
    if subject != "quality":
        return ({subject: int(given[0])}, reason) if isinstance(given[0], bool) else None
    if all(type(grade) is int and 1 <= grade <= 5 for grade in given):
        return dict(zip(names, given, strict=True)), reason
    return None
