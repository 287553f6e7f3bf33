"""`steper report`: one self-contained HTML page about trained and evaluated runs.

Runs with the same label are taken as seeds of one arm and averaged. The verdict is computed from
paired differences on the same questions, and says so when there is none.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2 import Environment

from steper import plots
from steper.errors import SteperError
from steper.metrics import mean_interval, paired_p_value
from steper.rollout import read_trajectories
from steper.store import read_json, read_lines, require_finished, write_atomic
from steper.types import TASKS, Trajectory

BASELINE = "vanilla_kd"
MEASURES = {
    "em": "EM",
    "f1": "F1",
    "acc": "Acc",
    "recall": "recall",
    "first_step_acc": "first step",
    "middle_step_acc": "middle steps",
    "last_step_acc": "last step",
    "steps": "steps",
}
EXAMPLES_SHOWN = 5


@dataclass(frozen=True)
class Arm:
    """All evaluations of one label.

    Attributes:
        results: ``evaluation.json`` of each seed.
        scores: of each seed, every measure by question id.
        trajectories: of the first seed, by question id.
    """

    label: str
    results: list[dict[str, Any]]
    scores: list[dict[str, dict[str, float | None]]]
    trajectories: dict[str, Trajectory]

    def interval(self, measure: str) -> plots.Interval | None:
        """Mean over all seeds' questions, and its bootstrap interval; ``None`` where unknown."""
        rows = [row for seed in self.scores for row in seed.values()]
        values = [value for row in rows if (value := row[measure]) is not None]
        if not values:
            return None
        found = mean_interval(values, seed=0)
        return found.value, found.low, found.high


def write_report(
    evaluations: Sequence[Path],
    out: Path,
    *,
    trainings: Sequence[Path] = (),
    title: str = "steper report",
) -> Path:
    """Write the page and return its path.

    Args:
        evaluations: folders made by ``steper evaluate``.
        out: HTML file; written whole or not at all.
        trainings: folders made by ``steper train`` whose curves to draw.
        title: heading of the page.

    Raises:
        SteperError: if a folder is not a finished run of its stage, or there is none.
    """
    if not evaluations:
        raise SteperError("no evaluation given.", where="steper report", fix="Name a folder.")
    arms = read_arms(evaluations)
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    source = (resources.files("steper") / "report.html").read_text(encoding="utf-8")
    page = environment.from_string(source).render(
        title=title,
        verdicts=verdicts(arms),
        measures=MEASURES.values(),
        rows=[_row(arm) for arm in arms.values()],
        types=_types(arms),
        seeds=max(len(arm.results) for arm in arms.values()),
        figures=_figures(arms, trainings),
        examples=_examples(arms),
        facts=_facts(arms),
        version=version("steper"),
    )
    write_atomic(out, page)
    return out


def read_arms(evaluations: Sequence[Path]) -> dict[str, Arm]:
    """Evaluation folders grouped by label, in the order given."""
    arms: dict[str, Arm] = {}
    for folder in evaluations:
        require_finished(folder, stage="evaluate")
        result = read_json(folder / "evaluation.json")
        rows = [json.loads(line) for _, line in read_lines(folder / "scores.jsonl")]
        scores = {row.pop("id"): row for row in rows}
        arm = arms.get(result["label"])
        if arm is None:
            runs = {t.question.id: t for t in read_trajectories(folder)}
            arms[result["label"]] = Arm(result["label"], [result], [scores], runs)
        else:
            arm.results.append(result)
            arm.scores.append(scores)
    return arms


# ---- verdict ---------------------------------------------------------------------------------


def verdicts(arms: dict[str, Arm]) -> list[tuple[str, str]]:
    """For each StepER arm, how it compares with final-answer distillation.

    Returns:
        ("better", "worse" or "open", sentence) pairs; none without the baseline.
    """
    base = arms.get(BASELINE)
    if base is None:
        return []
    return [
        verdict
        for label, arm in arms.items()
        if label.startswith("steper") and (verdict := _compare(arm, base))
    ]


def _compare(arm: Arm, base: Arm) -> tuple[str, str] | None:
    pairs = [
        (float(ours[key]["em"] or 0), float(theirs[key]["em"] or 0))
        for ours, theirs in zip(arm.scores, base.scores, strict=False)
        for key in sorted(ours.keys() & theirs.keys())
    ]
    if not pairs:
        return None
    ours, theirs = zip(*pairs, strict=True)
    gain = mean_interval([a - b for a, b in pairs], seed=0)
    p = paired_p_value(ours, theirs, seed=0)
    points = f"{100 * abs(gain.value):.1f} points of EM"
    if gain.low > 0:
        kind, verdict = "better", f"beats {base.label} by {points}"
    elif gain.high < 0:
        kind, verdict = "worse", f"is worse than {base.label} by {points}"
    else:
        difference = f"(difference {100 * gain.value:+.1f} points)"
        kind, verdict = "open", f"cannot be told from {base.label} {difference}"
    seeds = len(arm.results)
    return kind, (
        f"{arm.label} {verdict}; 95% interval {100 * gain.low:+.1f} to {100 * gain.high:+.1f}, "
        f"paired p = {p:.2g}, {len(pairs)} answers over {seeds} seed{'s' if seeds > 1 else ''}."
    )


# ---- tables and figures ----------------------------------------------------------------------


def _row(arm: Arm) -> dict[str, Any]:
    cells = []
    for measure in MEASURES:
        interval = arm.interval(measure)
        if interval is None:
            cells.append({"value": "–", "range": ""})
            continue
        value, low, high = interval if measure == "steps" else (100 * x for x in interval)
        cells.append({"value": f"{value:.1f}", "range": f"{low:.1f} to {high:.1f}"})
    seeds = [f"{100 * result['metrics']['em']['value']:.1f}" for result in arm.results]
    seconds = fmean(result["seconds"] for result in arm.results)
    return {"label": arm.label, "cells": cells, "seeds": ", ".join(seeds), "seconds": seconds}


def _types(arms: dict[str, Arm]) -> dict[str, Any]:
    names = sorted({type_ for arm in arms.values() for type_ in arm.results[0]["by_type"]})
    rows = []
    for arm in arms.values():
        values = [
            [r["by_type"][name]["em"] for r in arm.results if name in r["by_type"]]
            for name in names
        ]
        rows.append((arm.label, [f"{100 * fmean(v):.1f}" if v else "–" for v in values]))
    return {"names": names, "rows": rows}


def _figures(arms: dict[str, Arm], trainings: Sequence[Path]) -> list[dict[str, str]]:
    em = {label: _percent(arm.interval("em")) or (0.0, 0.0, 0.0) for label, arm in arms.items()}
    figures = [
        {
            "svg": plots.bars(em, title="exact match by arm"),
            "caption": "Exact match on held-out questions, with 95% bootstrap intervals.",
        }
    ]
    names = ("first_step_acc", "middle_step_acc", "last_step_acc")
    steps = {label: [_percent(arm.interval(n)) for n in names] for label, arm in arms.items()}
    if any(value for values in steps.values() for value in values):
        ticks = ("first (initialization)", "middle (expansion)", "last (aggregation)")
        caption = (
            "Where runs go right: a step before the last is right if it states a fact of the gold "
            "chain that it has read, or searches where the next passage is missing and finds it."
        )
        figures.append({"svg": plots.grouped_bars(steps, ticks), "caption": caption})
    # Of several seeds of a training, named alike, the first is drawn.
    histories = {folder.name: _history(folder) for folder in reversed(trainings)}
    if histories:
        figures += _training_figures(histories)
    return figures


def _training_figures(histories: dict[str, list[dict[str, Any]]]) -> list[dict[str, str]]:
    losses: dict[str, plots.Lines] = {
        name: {
            # Exactly 0 means that the step had no example of the task.
            task: [row["losses"][j] or None for row in rows]
            for j, task in enumerate(TASKS)
            if any(row["losses"][j] for row in rows)
        }
        for name, rows in histories.items()
    }
    panels: dict[str, plots.Lines] = dict(sorted(losses.items(), key=lambda i: -len(i[1])))
    figures = [
        {
            "svg": plots.curves(panels, xlabel="optimizer step", ylabel="loss per task"),
            "caption": "L_init, L_exp and L_agg of each training (Eq. 3). Expansion sums over a "
            "trajectory's middle steps. Vanilla-KD sees aggregation only. First seed.",
        }
    ]
    learned = [rows for rows in histories.values() if rows[0]["state"]]
    if learned:
        rows = learned[0]
        sigma: plots.Lines = {
            str(task): [_sigma(row["weights"][j]) for row in rows] for j, task in enumerate(TASKS)
        }
        weight: plots.Lines = {
            str(task): [row["weights"][j] for row in rows] for j, task in enumerate(TASKS)
        }
        both: dict[str, plots.Lines] = {"σ": sigma, "weight 1/2σ²": weight}
        figures.append(
            {
                "svg": plots.curves(both, xlabel="optimizer step", ylabel="σ and task weight"),
                "caption": "Difficulty-aware weights (Eq. 4): σ falls first for the task whose "
                "loss falls first, and its weight rises.",
            }
        )
    return figures


def _sigma(weight: float) -> float:
    return float((0.5 / weight) ** 0.5)


def _percent(interval: plots.Interval | None) -> plots.Interval | None:
    return None if interval is None else (100 * interval[0], 100 * interval[1], 100 * interval[2])


def _history(folder: Path) -> list[dict[str, Any]]:
    require_finished(folder, stage="train")
    return [json.loads(line) for _, line in read_lines(folder / "history.jsonl")]


# ---- trajectories ----------------------------------------------------------------------------


def _examples(arms: dict[str, Arm]) -> list[dict[str, Any]]:
    """Five questions, those first on which the arms differ most, every arm's run side by side."""
    shared = set.intersection(*(set(arm.trajectories) for arm in arms.values()))

    def agreement(key: str) -> tuple[float, str]:
        right = fmean(float(arm.scores[0][key]["em"] or 0) for arm in arms.values())
        return abs(right - 0.5), key

    order = ["teacher"] if "teacher" in arms else []
    order += [label for label in arms if label not in order]
    return [
        {
            "question": arms[order[0]].trajectories[key].question,
            "runs": [_run(arms[label], key) for label in order],
        }
        for key in sorted(shared, key=agreement)[:EXAMPLES_SHOWN]
    ]


def _run(arm: Arm, key: str) -> dict[str, Any]:
    trajectory = arm.trajectories[key]
    gold = set(trajectory.question.supporting_titles)
    steps = [
        {
            "query": step.query,
            "reasoning": step.reasoning,
            "passages": [
                {"title": p.title, "text": p.text, "gold": p.title in gold} for p in step.passages
            ],
        }
        for step in trajectory.steps
    ]
    right = bool(arm.scores[0][key]["em"])
    return {"label": arm.label, "right": right, "answer": trajectory.answer, "steps": steps}


def _facts(arms: dict[str, Arm]) -> list[tuple[str, str]]:
    """Settings shown at the end: everything needed to compare this page with another."""
    first = next(iter(arms.values())).results[0]
    setting = first["setting"]
    return [
        (
            "questions",
            f"{first['n']} of split {first['split']}, SHA-256 {first['questions_sha256']}",
        ),
        ("corpus", f"SHA-256 {first['corpus_sha256']}"),
        ("scoring rules", first["rules"]),
        ("strategy", f"{setting['strategy']}, k = {setting['k']}, S ≤ {setting['max_steps']}"),
        ("models", "; ".join(f"{arm.label}: {arm.results[0]['model']}" for arm in arms.values())),
    ]
