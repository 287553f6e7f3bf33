"""`steper build`: keep the trajectories worth learning from, and turn them into step examples.

Writes ``examples.jsonl``, ``rejected.jsonl`` (every dropped trajectory with filter and reason)
and the rollout's ``setting.json``, in another layout where one is asked for. The student takes
its setting from there, so it is asked in the layout it was taught in.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from tabulate import tabulate
from tqdm import tqdm

from steper.config import BuildConfig
from steper.errors import SteperError
from steper.examples import step_examples, targets_of
from steper.filters import AnswerFilter, EmptyFilter, RepeatFilter, sift
from steper.models import RUN_SETTING, read_setting, write_setting
from steper.protocols import Filter
from steper.rollout import TRAJECTORIES, read_trajectories
from steper.store import Run, read_records, require_finished, write_records
from steper.types import STRICT, TASKS, StepExample, Trajectory

EXAMPLES = "examples.jsonl"
REJECTED = "rejected.jsonl"


@dataclass(frozen=True, slots=True)
class Rejected:
    """A dropped trajectory and why."""

    __pydantic_config__ = STRICT

    filter: str
    reason: str
    trajectory: Trajectory


def build(config: BuildConfig) -> Path:
    """Run the stage and return its folder.

    Raises:
        SteperError: on bad input, targets that the layout does not have, or if no trajectory is
            left.
    """
    require_finished(config.rollout, stage="rollout")
    rolled = read_setting(config.rollout / RUN_SETTING)
    setting = replace(rolled, template=rolled.template.laid_out(config.layout))
    targets = targets_of(setting.template.layout, config.targets)
    stage = Run.open(
        config.out,
        stage="build",
        config=config.model_dump(mode="json", exclude={"out", "rollout"}) | {"targets": targets},
        inputs={
            "trajectories": config.rollout / f"{TRAJECTORIES}.jsonl",
            "setting": config.rollout / RUN_SETTING,
        },
    )
    if stage.finished:
        return stage.path
    filters: list[Filter] = [
        AnswerFilter(config.measure, config.threshold, config.rules),
        EmptyFilter(),
        RepeatFilter(),
    ]
    trajectories = read_trajectories(config.rollout)
    kept, dropped = sift(tqdm(trajectories, unit="trajectory", desc="filter"), filters)
    if not kept:
        raise SteperError(
            f"none of {len(trajectories)} trajectories passed the filters; the first was dropped "
            f"by {dropped[0][1].filter!r}: {dropped[0][1].reason}.",
            where=str(config.rollout),
            fix="Lower --threshold, choose another --measure, or use a better teacher.",
        )
    examples = [
        example
        for trajectory in kept
        for example in step_examples(trajectory, setting.template, targets=targets)
    ]
    write_records(stage.path / REJECTED, (Rejected(d.filter, d.reason, t) for t, d in dropped))
    write_records(stage.path / EXAMPLES, examples)
    write_setting(stage.path / RUN_SETTING, setting)
    reasons = Counter(drop.filter for _, drop in dropped)
    tasks = Counter(example.task for example in examples)
    stage.finish(
        {
            "trajectories": len(trajectories),
            "kept": len(kept),
            "dropped": {filter_.name: reasons[filter_.name] for filter_ in filters},
            "examples": {task: tasks[task] for task in TASKS},
        }
    )
    return stage.path


def yield_table(counts: dict[str, object]) -> str:
    """The stage's counts as a table for people: what each filter let through, what was made."""
    total, dropped = counts["trajectories"], counts["dropped"]
    assert isinstance(total, int) and isinstance(dropped, dict)
    rows: list[tuple[str, int, str]] = [("trajectories", total, "")]
    left = total
    for name, number in dropped.items():
        left -= number
        rows.append((f"after {name} filter", left, f"{left / total:.0%}"))
    examples = counts["examples"]
    assert isinstance(examples, dict)
    rows += [(f"{task} examples", number, "") for task, number in examples.items()]
    return tabulate(rows, headers=("", "count", "yield"))


def read_examples(folder: Path) -> list[StepExample]:
    """All examples of a finished build folder."""
    require_finished(folder, stage="build")
    return read_records(folder / EXAMPLES, StepExample)
