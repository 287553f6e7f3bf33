"""Trainings as curves and a table of what each was given.

>>> trainings = read_trainings([Path("runs/student")], arms)  # doctest: +SKIP
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from steper.arms import Arm, refuse_repeats
from steper.report import plots
from steper.report.parts import Cell, Figure, Table
from steper.store import read_lines, require_finished
from steper.types import TASKS

Lines = dict[str, list[float | None]]
"""By task; ``None`` where a step has no example of it."""


@dataclass(frozen=True)
class Training:
    """One run of ``steper train``."""

    label: str
    folder: Path
    manifest: dict[str, Any]
    history: list[dict[str, Any]]


def read_trainings(folders: Sequence[Path], arms: Mapping[str, Arm]) -> dict[str, list[Training]]:
    """Training folders with their histories, by label: the seeds of one together.

    A training is called as the one arm that evaluates its student, else as its folder.
    """
    refuse_repeats(folders)
    users: dict[Path, set[str]] = defaultdict(set)
    for arm in arms.values():
        for result in arm.results:
            users[Path(result["model"]).resolve().parent].add(arm.label)
    runs: dict[str, list[Training]] = defaultdict(list)
    for folder in folders:
        manifest = require_finished(folder, stage="train")
        history = [json.loads(line) for _, line in read_lines(folder / "history.jsonl")]
        names = users[folder.resolve()]
        label = min(names) if len(names) == 1 else folder.resolve().name
        runs[label].append(Training(label, folder, manifest, history))
    return dict(runs)


def given(runs: Mapping[str, Sequence[Training]]) -> Table:
    """What the trainings were given, so that a reader sees whether the comparison is fair."""
    counts = ("trajectories", "examples", "steps", "tokens")
    rows: list[tuple[str, list[Cell]]] = []
    for label, seeds in runs.items():
        configs = [run.manifest["config"] for run in seeds]
        cells = [
            ", ".join(dict.fromkeys(str(config.get(name, "–")) for config in configs))
            for name in ("objective", "seed")
        ]
        for name in counts:
            known = [n for run in seeds if (n := run.manifest["counts"].get(name)) is not None]
            cells.append(f"{fmean(known):,.0f}" if known else "–")
        rows.append((label, [(cell,) for cell in cells]))
    heads: list[Cell] = [(name,) for name in ("objective", "seeds", *counts)]
    return Table("trainings", heads, rows, note="Means over seeds.")


def curves(runs: Mapping[str, Sequence[Training]]) -> list[Figure]:
    """Losses of each label's trainings, and what was learned of the weights where it was."""
    if not runs:
        return []
    names = [str(task) for task in TASKS]
    many = " The bold line is the mean over seeds." if _repeated(runs) else ""
    losses = {label: [_lines(run, "losses") for run in seeds] for label, seeds in runs.items()}
    found = [
        Figure(
            plots.panels(losses, names, ylabel="loss", log=True),
            "L_init, L_exp and L_agg at each optimizer step (Eq. 3), on one logarithmic axis. "
            "Expansion sums over a trajectory's middle steps, so it can be higher. A task that a "
            f"training or a step has no example of leaves a gap.{many}",
            small=True,
            key=plots.legend(names, title="Key of the losses"),
        )
    ]
    weights = {
        label: [_lines(run, "weights") for run in seeds]
        for label, seeds in runs.items()
        if any(row["weights"] != run.history[0]["weights"] for run in seeds for row in run.history)
    }
    # Eq. 4 weighs a task by 1/2σ².
    sigmas = {
        label: [
            {n: [v and (0.5 / v) ** 0.5 for v in line] for n, line in run.items()} for run in seeds
        ]
        for label, seeds in weights.items()
    }
    if weights:
        found += [
            Figure(
                plots.panels(sigmas, names, ylabel="σ"),
                f"The learned σ, from 1 on. σ² is pulled toward its task's loss.{many}",
                small=True,
                key=plots.legend(names, title="Key of σ"),
            ),
            Figure(
                plots.panels(weights, names, ylabel="weight 1/2σ²"),
                "The task weights that σ gives (Eq. 4): a task gains weight as its loss falls."
                f"{many}",
                small=True,
                key=plots.legend(names, title="Key of the weights"),
            ),
        ]
    return found


def _repeated(runs: Mapping[str, Sequence[Training]]) -> bool:
    return any(len(seeds) > 1 for seeds in runs.values())


def _lines(run: Training, field: str) -> Lines:
    # Exactly 0 means that the step had no example of the task.
    lines = {str(task): [row[field][j] or None for row in run.history]
             for j, task in enumerate(TASKS)}  # fmt: skip
    return {name: line for name, line in lines.items() if any(line)}
