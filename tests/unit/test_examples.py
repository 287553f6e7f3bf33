"""Which examples a trajectory gives, and when they teach which ability."""

from __future__ import annotations

import pytest

from steper.examples import step_examples, task_of
from steper.templates import load_template
from steper.types import Passage, Question, Step, Trajectory

TEMPLATE = load_template("world")


def trajectory(steps: int) -> Trajectory:
    made = tuple(
        Step(f"q{s}", (Passage(f"p{s}", f"T{s}", "text"),), f"r{s}.") for s in range(1, steps + 1)
    )
    return Trajectory(Question("q", "Who?", "A"), made, "A")


@pytest.mark.parametrize(
    ("steps", "tasks"),
    [
        (1, ["aggregation"]),
        (2, ["initialization", "aggregation"]),
        (3, ["initialization", "expansion", "aggregation"]),
        (5, ["initialization", "expansion", "expansion", "expansion", "aggregation"]),
    ],
)
def test_tasks(steps: int, tasks: list[str]) -> None:
    examples = step_examples(trajectory(steps), TEMPLATE)
    assert [example.task for example in examples] == tasks
    assert [task_of(s, steps) for s in range(1, steps + 1)] == tasks
    assert [example.id for example in examples] == [f"q#{s}" for s in range(1, steps + 1)]


def test_a_prompt_holds_no_later_passage() -> None:
    for number, example in enumerate(step_examples(trajectory(4), TEMPLATE), start=1):
        assert [f"T{s}" in example.prompt for s in range(1, 5)] == [
            s <= number for s in range(1, 5)
        ]
