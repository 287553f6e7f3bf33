"""Which examples a trajectory gives, and when they teach which ability."""

from __future__ import annotations

from itertools import pairwise

import pytest

from steper.errors import SteperError
from steper.examples import Targets, step_examples, targets_of, task_of
from steper.templates import load_template
from steper.types import Passage, Question, Step, Trajectory

TEMPLATE = load_template("world")
INTERLEAVED = TEMPLATE.laid_out("interleaved")
QUESTION = Question("q", "Who?", "A")


def trajectory(steps: int) -> Trajectory:
    made = tuple(
        Step(f"q{s}", (Passage(f"p{s}", f"T{s}", "text"),), f"r{s}.") for s in range(1, steps + 1)
    )
    return Trajectory(QUESTION, made, "A")


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


@pytest.mark.parametrize("targets", ["cumulative", "incremental"])
def test_a_run_of_one_step_teaches_its_answer_and_nothing_else(targets: Targets) -> None:
    run = Trajectory(QUESTION, (Step("q", (), "So the answer is: A."),), "A")
    (only,) = step_examples(run, TEMPLATE, targets=targets)
    assert (only.task, only.step, only.target) == ("aggregation", 1, "So the answer is: A.\n")


def test_cumulative_targets_repeat_what_was_written_before() -> None:
    targets = [example.target for example in step_examples(trajectory(3), TEMPLATE)]
    assert targets == ["r1.\n", "r1.\nr2.\n", "r1.\nr2.\nr3.\n"]


def test_incremental_prompts_hold_what_was_written_before() -> None:
    examples = step_examples(trajectory(3), TEMPLATE, targets="incremental")
    assert [example.target for example in examples] == ["r1.\n", "r2.\n", "r3.\n"]
    endings = [example.prompt.split("Reasoning:\n")[1] for example in examples]
    assert endings == ["", "r1.\n", "r1.\nr2.\n"]


@pytest.mark.parametrize("targets", ["cumulative", "incremental"])
def test_a_prompt_is_the_one_the_model_sees_at_inference(targets: Targets) -> None:
    """Incremental prompts are the driver's own; cumulative ones are these without reasoning."""
    run = trajectory(4)
    for number, example in enumerate(step_examples(run, TEMPLATE, targets=targets), start=1):
        seen = [step.passages for step in run.steps[:number]]
        said = [step.reasoning for step in run.steps[: number - 1]]
        written = said if targets == "incremental" else []
        assert example.prompt == TEMPLATE.render("Who?", seen, written)


@pytest.mark.parametrize("targets", [None, "incremental"])
def test_interleaved_examples_are_one_text(targets: Targets | None) -> None:
    examples = step_examples(trajectory(3), INTERLEAVED, targets=targets)
    assert [example.target for example in examples] == ["r1.\n", "r2.\n", "r3.\n"]
    for example, following in pairwise(examples):
        written = example.prompt + example.target
        assert following.prompt.startswith(written)
        assert following.prompt.removeprefix(written) == (
            f"Passage: T{following.step}. text\nReasoning:\n"
        )


def test_interleaved_prompts_have_no_cumulative_targets() -> None:
    with pytest.raises(SteperError, match=r"--targets cumulative.*interleaved.*--layout grouped"):
        step_examples(trajectory(3), INTERLEAVED, targets="cumulative")


def test_the_targets_of_a_layout() -> None:
    assert targets_of("grouped") == "cumulative"
    assert targets_of("grouped", "incremental") == "incremental"
    assert targets_of("interleaved") == targets_of("interleaved", "incremental") == "incremental"
