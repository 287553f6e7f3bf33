"""`steper experiment FILE.toml`: arms times seeds, run as resumable cells, compared and reported.

Every stage is the command a user would call, in a folder of its own (``steper.plan``); what several
arms share is computed once. The same command resumes. Writes ``results.json`` (each arm's figures
with intervals, each comparison) and ``report.html``.
"""

from __future__ import annotations

import shlex
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from tabulate import tabulate

from steper.arms import RESULTS, Arm, Comparison, compare, read_arms
from steper.cells import Pool, run_cell
from steper.config import ExperimentConfig
from steper.evaluate import evaluation_table
from steper.plan import Cell, Plan, make_plan
from steper.report import write_report
from steper.scores import MEASURES, SHARES
from steper.store import is_finished, require_finished, versions, write_json
from steper.study import Experiment, read_experiment, with_seeds

COMPARED = (*SHARES, "steps", "searches")
"""Measures that pairs of arms are compared in."""


def experiment(config: ExperimentConfig, *, say: Callable[[str], None] = print) -> Path:
    """Run or resume an experiment and return the report's path.

    Raises:
        SteperError: on a mistake in the file, before anything runs; or where a cell fails.
    """
    out = config.out or Path("runs") / config.file.stem
    settings = [part for setting in config.set for part in ("--set", setting)]
    found = read_experiment(config.file, config.set)
    if config.seeds:
        found = with_seeds(found, config.seeds)
        settings += ["--seeds", *map(str, config.seeds)]
    plan = make_plan(found, out, where=str(config.file))
    command = shlex.join(["steper", "experiment", str(config.file), *settings, "--out", str(out)])
    if config.dry_run:
        say(plan_table(plan))
        return out
    pool = Pool(config.workers, engine=config.engine, gpus=config.worker_gpus, logs=out / "logs")
    seconds = run_plan(plan, pool, say=say)
    return finish(found, plan, out, command=command, seconds=seconds, say=say)


def run_plan(plan: Plan, pool: Pool | None = None, *, say: Callable[[str], None]) -> float:
    """Run all cells, each once what it needs is there; returns the seconds it took."""
    begin = time.monotonic()
    progress = _Progress(list(plan.cells.values()), say)
    if pool is None or pool.size == 1:
        for cell in plan.cells.values():
            progress.begin(cell)
            progress.end(cell, run_cell(cell, say=_quiet).seconds)
    else:
        for cell, ran in pool.run(list(plan.cells.values()), on_begin=progress.begin):
            progress.end(cell, ran.seconds)
    return time.monotonic() - begin


def finish(
    found: Experiment,
    plan: Plan,
    out: Path,
    *,
    command: str,
    seconds: float,
    say: Callable[[str], None],
) -> Path:
    """Compare the arms, write figures and report, and print both tables; returns the report."""
    evaluations = [folder for folders in plan.evaluations.values() for folder in folders]
    arms = read_arms(evaluations)
    comparisons = [
        one
        for a, b in plan.pairs
        for measure in COMPARED
        if (one := compare(arms[a], arms[b], measure))
    ]
    trainings = list(dict.fromkeys(f for folders in plan.trainings.values() for f in folders))
    results = {
        "kind": "experiment",
        "question": found.question,
        "seeds": list(found.seeds),
        "command": command,
        "versions": versions(),
        "total_seconds": round(seconds, 1),
        "arms": {label: _figures(arm, plan) for label, arm in arms.items()},
        "comparisons": [asdict(one) for one in comparisons],
        "pairs": [list(pair) for pair in plan.pairs],
        "evaluations": [str(folder.relative_to(out)) for folder in evaluations],
        "trainings": [str(folder.relative_to(out)) for folder in trainings],
        "experiment": found.model_dump(mode="json", exclude_defaults=True),
    }
    write_json(out / RESULTS, results)
    say(evaluation_table(evaluations))
    if comparisons:
        say(f"\n{comparison_table(comparisons)}")
    report = write_report(
        evaluations,
        out / "report.html",
        trainings=trainings,
        title=out.resolve().name,
        question=found.question,
        pairs=plan.pairs,
        command=command,
    )
    say(f"\nFigures: {out / RESULTS}\nReport:  {report}")
    return report


def _figures(arm: Arm, plan: Plan) -> dict[str, Any]:
    """One arm's figures: mean over seeds, interval over questions, and each seed's own value."""
    metrics = {}
    for measure in MEASURES:
        interval = arm.interval(measure)
        metrics[measure] = interval and asdict(interval) | {"by_seed": arm.by_seed(measure)}
    trained = [
        require_finished(folder, stage="train")["counts"]["tokens"]
        for folder in plan.trainings.get(arm.label, [])
    ]
    return {
        "n": arm.n,
        "failed": sum(result["failed"] for result in arm.results),
        "seeds": arm.seeds,
        "parameters": arm.results[0]["parameters"],
        "train_tokens": trained,
        "median_s": fmean(result["latency"]["median_s"] for result in arm.results),
        "seconds": round(sum(result["seconds"] for result in arm.results), 1),
        "metrics": metrics,
    }


def comparison_table(comparisons: Sequence[Comparison], measure: str = "em") -> str:
    """One row a pair: its difference in a measure, in points."""
    rows = []
    for one in comparisons:
        if one.measure != measure:
            continue
        gain, seeds = one.difference, one.over_seeds
        rows.append(
            [
                f"{one.a} − {one.b}",
                f"{100 * gain.value:+.1f}",
                f"{100 * gain.low:+.1f} to {100 * gain.high:+.1f}",
                f"{one.p:.2g}",
                f"{gain.n}",
                f"{100 * seeds.low:+.1f} to {100 * seeds.high:+.1f}" if seeds else "-",
                one.verdict,
            ]
        )
    headers = [f"{measure.upper()}, points", "", "over questions", "p", "n", "over seeds", ""]
    return tabulate(rows, headers=headers, stralign="right", disable_numparse=True)


def plan_table(plan: Plan) -> str:
    """What would run: the cells of each stage, and the arms."""
    stages: dict[str, int] = defaultdict(int)
    done: dict[str, int] = defaultdict(int)
    for cell in plan.cells.values():
        stages[cell.stage] += 1
        done[cell.stage] += is_finished(cell.folder)
    rows = [[stage, str(number), str(done[stage])] for stage, number in stages.items()]
    table = tabulate(rows, headers=["stage", "cells", "finished"], disable_numparse=True)
    return f"{table}\n\nArms: {', '.join(plan.evaluations)}"


def _quiet(_: str) -> None:
    """Cells say the same over and over; their folders hold it."""


class _Progress:
    """A line for each cell, with the time that is left by the mean of each stage so far."""

    def __init__(self, cells: Sequence[Cell], say: Callable[[str], None]) -> None:
        self._left = [cell for cell in cells if not is_finished(cell.folder)]
        self._total, self._done, self._say = len(cells), len(cells) - len(self._left), say
        self._took: dict[str, list[float]] = defaultdict(list)
        if self._done:
            say(f"{self._done} of {self._total} cells are finished already")

    def begin(self, cell: Cell) -> None:
        if cell not in self._left:
            return
        known = {stage: fmean(took) for stage, took in self._took.items()}
        rest = sum(known.get(other.stage, 0.0) for other in self._left)
        text = f", about {rest / 60:.0f} min of cells left" if rest > 60 else ""
        number = self._done + 1
        self._say(f"\n== [{number}/{self._total}] {cell.stage}: {cell.folder}{text}")

    def end(self, cell: Cell, seconds: float) -> None:
        if cell in self._left:
            self._left.remove(cell)
            self._done += 1
            self._took[cell.stage].append(seconds)
