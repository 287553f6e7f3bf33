"""Turn a trajectory into the supervised examples of Eq. 3.

A trajectory of S steps gives one initialization example (s = 1), an expansion example for each
1 < s < S, and one aggregation example (s = S). S = 1 gives one aggregation example and no other.
The prompt of step s holds the question and P≤s. The target is what was written:

====================  ==============================  ================================
target of step s       ``cumulative`` (Eq. 3)          ``incremental`` (Eq. 2)
====================  ==============================  ================================
prompt holds           question, P≤s                   question, P≤s, R<s
s < S                  R≤s                             r_s
s = S                  R<S ‖ a                         a
layout                 grouped (its default)           grouped, interleaved (its only one)
====================  ==============================  ================================

``a`` is the sentence that gives the answer ("So the answer is: Hee Haw."). An interleaved prompt
holds every earlier sentence in the turn it was written in, so no target can repeat it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from steper.errors import SteperError
from steper.prompts import Template
from steper.types import Passage, PromptLayout, StepExample, Task, Trajectory

Targets = Literal["cumulative", "incremental"]


def task_of(step: int, steps: int) -> Task:
    """The ability that step ``step`` (from 1) of ``steps`` supervises.

    >>> [task_of(s, 4) for s in (1, 2, 3, 4)]
    ['initialization', 'expansion', 'expansion', 'aggregation']
    >>> task_of(1, 1)
    'aggregation'
    """
    if step == steps:
        return "aggregation"
    return "initialization" if step == 1 else "expansion"


def targets_of(layout: PromptLayout, targets: Targets | None = None) -> Targets:
    """The targets asked for, or the layout's own for ``None``.

    >>> targets_of("grouped"), targets_of("interleaved")
    ('cumulative', 'incremental')

    Raises:
        SteperError: if the layout has no such targets.
    """
    if layout == "grouped":
        return targets or "cumulative"
    if targets == "cumulative":
        raise SteperError(
            "cumulative targets repeat the earlier reasoning, which an interleaved prompt already "
            "holds.",
            where="--targets cumulative with layout interleaved",
            fix="Leave --targets out, or build with --layout grouped.",
        )
    return "incremental"


def step_examples(
    trajectory: Trajectory, template: Template, *, targets: Targets | None = None
) -> list[StepExample]:
    """The S examples of one trajectory, in step order.

    Args:
        trajectory: at least one step.
        template: the prompt wording and layout; they must be those used at inference.
        targets: whether a target repeats the earlier reasoning (see the module's table); by
            default the layout's own.

    Raises:
        SteperError: if the layout has no such targets.
    """
    targets = targets_of(template.layout, targets)
    reasoning = [step.reasoning for step in trajectory.steps]
    passages: list[Sequence[Passage]] = []
    examples = []
    for number, step in enumerate(trajectory.steps, start=1):
        passages.append(step.passages)
        written = reasoning[: number - 1] if targets == "incremental" else []
        target = reasoning[len(written) : number]
        examples.append(
            StepExample(
                id=f"{trajectory.id}#{number}",
                trajectory_id=trajectory.id,
                task=task_of(number, len(reasoning)),
                step=number,
                prompt=template.render(trajectory.question.question, passages, written),
                target="".join(f"{sentence}\n" for sentence in target),
            )
        )
    return examples
