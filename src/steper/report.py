"""`steper report`: one self-contained HTML page about trained and evaluated runs.

Runs with the same label are taken as seeds of one arm and averaged. The verdict is computed from
paired differences on the same questions, and says so when there is none.

>>> write_report([Path("runs/eval")], Path("report.html"))  # doctest: +SKIP
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2 import Environment

from steper import plots
from steper.arms import Arm, compare, read_arms, refuse_repeats
from steper.errors import SteperError
from steper.metrics import normalize
from steper.rollout import TRAJECTORIES
from steper.scores import ABILITIES, SHARES
from steper.store import from_json, read_lines, require_finished, write_atomic
from steper.types import TASKS, Interval, Passage, Trajectory

BASELINE = "vanilla_kd"
TEACHER = "teacher"
MEASURES: Mapping[str, str] = {
    "em": "EM",
    "f1": "F1",
    "acc": "Acc",
    "recall": "recall",
    "initialization": "initialization",
    "expansion": "expansion",
    "aggregation": "aggregation",
    "steps": "steps",
}
"""The measures of the table with their headings."""
EXAMPLES_SHOWN = 5


@dataclass(frozen=True)
class Training:
    """One run of ``steper train``."""

    label: str
    folder: Path
    manifest: dict[str, Any]
    history: list[dict[str, Any]]


def write_report(
    evaluations: Sequence[Path],
    out: Path,
    *,
    trainings: Sequence[Path] = (),
    title: str = "steper report",
    intro: str = "",
) -> Path:
    """Write the page and return its path.

    Args:
        evaluations: folders made by ``steper evaluate``.
        out: HTML file; written whole or not at all.
        trainings: folders made by ``steper train`` whose curves to draw.
        title: heading of the page.
        intro: plain text shown below the question; a blank line starts a paragraph.

    Raises:
        SteperError: if a folder is not a finished run of its stage, or is given twice, or there
            is none.
    """
    if not evaluations:
        raise SteperError("no evaluation given.", where="steper report", fix="Name a folder.")
    arms = read_arms(evaluations)
    runs = _read_trainings(trainings)
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    source = (resources.files("steper") / "report.html").read_text(encoding="utf-8")
    page = environment.from_string(source).render(
        title=title,
        intro=[part for part in intro.split("\n\n") if part.strip()],
        answer=_answer(arms),
        verdicts=verdicts(arms),
        notes=_notes(arms),
        measures=MEASURES.values(),
        rows=[_row(arm) for arm in arms.values()],
        seeds=max(len(arm.results) for arm in arms.values()),
        seed_rows=[row for arm in arms.values() for row in _seed_rows(arm)],
        accuracy=_accuracy_figures(arms),
        types=_types(arms),
        curves=_training_figures(runs),
        trainings=[_training_row(run) for run in runs],
        examples=_examples(arms),
        facts=_facts(arms),
        manifests=_manifests(arms, runs),
        baseline=BASELINE,
        version=version("steper"),
    )
    write_atomic(out, page)
    return out


def _read_trainings(folders: Sequence[Path]) -> list[Training]:
    """Training folders with their histories; the seeds of a label (a name) together."""
    refuse_repeats(folders)
    runs = []
    for folder in folders:
        manifest = require_finished(folder, stage="train")
        history = [json.loads(line) for _, line in read_lines(folder / "history.jsonl")]
        label = str(manifest["config"].get("label") or folder.resolve().name)
        runs.append(Training(label, folder, manifest, history))
    labels = list(dict.fromkeys(run.label for run in runs))
    return sorted(runs, key=lambda run: labels.index(run.label))


# ---- verdict ---------------------------------------------------------------------------------


def verdicts(arms: Mapping[str, Arm]) -> list[tuple[str, str]]:
    """How each StepER arm compares with final-answer distillation, and with the other StepER arm.

    Returns:
        ("better", "worse" or "open", sentence) pairs; none where no questions are shared.
    """
    ours = [arm for label, arm in arms.items() if label.startswith("steper")]
    # Final-answer distillation with another budget has a label that starts with the baseline's.
    bases = [arm for label, arm in arms.items() if label.startswith(BASELINE)]
    pairs = [(arm, base) for base in sorted(bases, key=lambda a: len(a.label)) for arm in ours]
    if {"steper_difficulty", "steper_uniform"} <= arms.keys():
        pairs.append((arms["steper_difficulty"], arms["steper_uniform"]))
    return [verdict for arm, base in pairs if (verdict := _compare(arm, base))]


def _compare(arm: Arm, base: Arm) -> tuple[str, str] | None:
    found = compare(arm, base, "em")
    if found is None:
        return None
    gain, p = found.difference, found.p
    points = f"{100 * abs(gain.value):.1f} points of EM"
    match found.verdict:
        case "higher":
            kind, verdict = "better", f"beats {base.label} by {points}"
        case "lower":
            kind, verdict = "worse", f"is worse than {base.label} by {points}"
        case _:
            difference = f"(difference {100 * gain.value:+.1f} points of EM)"
            kind, verdict = "open", f"cannot be told from {base.label} {difference}"
    # The test draws 10,000 patterns, so that it cannot tell smaller values apart.
    p_text = f"p\u00a0=\u00a0{p:.2g}" if p > 1e-4 else "p\u00a0≤\u00a00.0001"
    seeds = _count(min(len(arm.results), len(base.results)), "seed")
    return kind, (
        f"{arm.label} {verdict}; 95% interval {100 * gain.low:+.1f} to {100 * gain.high:+.1f}, "
        f"paired {p_text}, {_count(gain.n, 'question')}, {seeds}."
    )


def _answer(arms: Mapping[str, Arm]) -> str:
    """The page's question answered in a sentence, from the arms it is about and nothing else."""
    base = arms.get(BASELINE)
    ours = [arm for label, arm in arms.items() if label.startswith("steper")]
    if base is None or not ours:
        return f"Not answered here: that takes evaluations of {BASELINE} and of a StepER arm."
    kinds = {found[0] for arm in ours if (found := _compare(arm, base))}
    match sorted(kinds):
        case []:
            return "No answer: these runs share no questions, so they cannot be compared."
        case ["better"]:
            return "Yes, here it does."
        case ["worse"]:
            return "No: here it is worse."
        case ["open"]:
            return "These runs cannot tell."
        case _:
            return "It depends on the weights: the StepER arms do not agree."


def _notes(arms: Mapping[str, Arm]) -> list[str]:
    """What a reader must know before comparing rows: everything in which the runs differ."""
    checks: dict[str, Callable[[dict[str, Any]], Any]] = {
        "questions": lambda r: r["questions_sha256"],
        "number of questions": lambda r: r["n"],
        "corpora": lambda r: r["corpus_sha256"],
        "splits": lambda r: r["split"],
        "scoring rules": lambda r: r.get("rules"),
        "retrieval settings or prompts": lambda r: json.dumps(r["setting"], sort_keys=True),
    }
    notes = [
        f"The arms were evaluated with different {name}; compare their rows with care."
        for name, value in checks.items()
        if len({frozenset(map(value, arm.results)) for arm in arms.values()}) > 1
    ]
    if len({len(arm.results) for arm in arms.values()}) > 1:
        notes.append("The arms have different numbers of seeds.")
    return notes


# ---- tables and figures ----------------------------------------------------------------------


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _number(value: float | None, measure: str) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.1f}" if measure in SHARES else f"{value:.1f}"


def _row(arm: Arm) -> dict[str, Any]:
    cells = []
    for measure in MEASURES:
        interval = arm.interval(measure)
        values = (interval.value, interval.low, interval.high) if interval else (None,)
        texts = [_number(value, measure) for value in values]
        cells.append({"value": texts[0], "range": " to ".join(texts[1:])})
    seconds = fmean(result["seconds"] for result in arm.results)
    return {"label": arm.label, "cells": cells, "seconds": seconds}


def _seed_rows(arm: Arm) -> list[dict[str, Any]]:
    """Each run's own values, as ``steper evaluate`` found them."""
    return [
        {
            "label": arm.label,
            "number": number,
            "cells": [_number((result["metrics"][m] or {}).get("value"), m) for m in MEASURES],
            "seconds": result["seconds"],
        }
        for number, result in enumerate(arm.results, start=1)
    ]


def _types(arms: Mapping[str, Arm]) -> dict[str, Any]:
    """EM, F1 and Acc of each question type, the mean over seeds."""
    counts: dict[str, int] = {}
    for arm in arms.values():
        for name in {name for result in arm.results for name in result["by_type"]}:
            n = sum(r["by_type"][name]["n"] for r in arm.results if name in r["by_type"])
            counts[name] = max(n, counts.get(name, 0))
    names = sorted(counts)
    rows = []
    for arm in arms.values():
        cells = []
        for name in names:
            found = [r["by_type"][name] for r in arm.results if name in r["by_type"]]
            texts = [_number(fmean(f[m]["value"] for f in found) if found else None, m)
                     for m in ("em", "f1", "acc")]  # fmt: skip
            cells.append({"value": texts[0], "range": f"{texts[1]} / {texts[2]}"})
        rows.append((arm.label, cells))
    return {"names": [(name, counts[name]) for name in names], "rows": rows}


def _accuracy_figures(arms: Mapping[str, Arm]) -> list[dict[str, Any]]:
    em = {label: _percent(arm.interval("em")) for label, arm in arms.items()}
    figures = [
        {
            "svgs": [plots.bars(em, title="Exact match of each arm, in percent")],
            "caption": "Exact match on the evaluated questions; whiskers are 95% intervals.",
        }
    ]
    steps = {label: [_percent(arm.interval(n)) for n in ABILITIES] for label, arm in arms.items()}
    if any(value for values in steps.values() for value in values):
        ticks = ABILITIES
        title = "The three abilities of each arm, in percent"
        caption = (
            "The three abilities on gold chains. Initialization and expansion: share of the first "
            "and of the middle steps that state a fact of the chain that the run has read, or "
            "search where the next passage is missing and find it. Aggregation: share of right "
            "answers where every gold passage was retrieved."
        )
        svgs = [plots.grouped_bars(steps, ticks, title=title)]
        figures.append({"svgs": svgs, "caption": caption})
    return figures


def _training_figures(trainings: Sequence[Training]) -> list[dict[str, Any]]:
    by_label: dict[str, list[list[dict[str, Any]]]] = defaultdict(list)
    for training in trainings:
        by_label[training.label].append(training.history)
    names = [str(task) for task in TASKS]
    many = " The bold line is the mean over seeds." if len(trainings) > len(by_label) else ""
    # Exactly 0 means that the step had no example of the task.
    losses = {label: [_lines(rows, "losses") for rows in runs] for label, runs in by_label.items()}
    learned = {
        label: runs
        for label, runs in by_label.items()
        if any(row["weights"] != rows[0]["weights"] for rows in runs for row in rows)
    }
    weights = {label: [_lines(rows, "weights") for rows in runs] for label, runs in learned.items()}
    # Eq. 4 weighs a task by 1/2σ².
    sigmas = {
        label: [
            {n: [v and (0.5 / v) ** 0.5 for v in line] for n, line in run.items()} for run in runs
        ]
        for label, runs in weights.items()
    }
    loss_panels = plots.panels(losses, names, ylabel="loss", log=True)
    figures = [
        {
            "svgs": loss_panels,
            "key": [plots.legend(names, title="Key of the losses")],
            "caption": "L_init, L_exp and L_agg at each optimizer step (Eq. 3), on one logarithmic "
            "axis. Expansion sums over a trajectory's middle steps, so it can be higher. A task "
            f"that a training or a step has no example of leaves a gap.{many}",
        }
    ]
    weight_panels = plots.panels(sigmas, names, ylabel="σ")
    weight_panels += plots.panels(weights, names, ylabel="weight 1/2σ²")
    figures.append(
        {
            "svgs": weight_panels,
            "key": [plots.legend(names, title="Key of σ and the weights")],
            "caption": "The learned σ and the task weights they give (Eq. 4), from σ = 1 on. σ² is "
            f"pulled toward its task's loss, so a task gains weight as its loss falls.{many}",
        }
    )
    return [figure for figure in figures if figure["svgs"]]


def _lines(rows: Sequence[Mapping[str, Any]], field: str) -> dict[str, list[float | None]]:
    lines = {str(task): [row[field][j] or None for row in rows] for j, task in enumerate(TASKS)}
    return {name: line for name, line in lines.items() if any(line)}


def _percent(interval: Interval | None) -> plots.Interval | None:
    if interval is None:
        return None
    return 100 * interval.value, 100 * interval.low, 100 * interval.high


def _training_row(run: Training) -> list[str]:
    """What the arms were given, so that a reader sees whether the comparison is fair."""
    config, counts = run.manifest["config"], run.manifest["counts"]
    shown = [config.get("objective"), config.get("seed")]
    shown += [counts.get(name) for name in ("trajectories", "examples", "steps", "tokens")]
    texts = [f"{v:,}" if isinstance(v, int) else "–" if v is None else str(v) for v in shown]
    return [run.label, *texts]


# ---- trajectories ----------------------------------------------------------------------------


def _examples(arms: Mapping[str, Arm]) -> list[dict[str, Any]]:
    """Five questions chosen by rule, every arm's run side by side, the teacher first."""
    firsts = Counter(questions for arm in arms.values() for questions in set(arm.question_sets))
    questions = firsts.most_common(1)[0][0]
    order = sorted(
        (arm for arm in arms.values() if questions in arm.question_sets),
        key=lambda arm: arm.label != TEACHER,
    )
    seeds = {arm.label: arm.question_sets.index(questions) for arm in order}
    right = {arm.label: {key: bool(row["em"]) for key, row in arm.scores[seeds[arm.label]].items()}
             for arm in order}  # fmt: skip
    chosen = _choose(right)
    runs = {arm.label: _trajectories(arm.folders[seeds[arm.label]], set(chosen)) for arm in order}
    return [
        {
            "why": why,
            "question": runs[order[0].label][key].question,
            "runs": [_run(label, found[key], right[label][key]) for label, found in runs.items()],
        }
        for key, why in chosen.items()
    ]


def _choose(right: Mapping[str, Mapping[str, bool]]) -> dict[str, str]:
    """Question ids with the reason shown: cases for and against StepER in turn, then the rest.

    Args:
        right: by label, which questions the arm got right.
    """
    ours = [answers for label, answers in right.items() if label.startswith("steper")]
    base = right.get(BASELINE)
    gains, losses, splits, misses, hits = (list[str]() for _ in range(5))
    for key in sorted(set.intersection(*(set(answers) for answers in right.values()))):
        if len({answers[key] for answers in right.values()}) == 1:
            (hits if next(iter(right.values()))[key] else misses).append(key)
        elif base and ours and all(answers[key] > base[key] for answers in ours):
            gains.append(key)
        elif base and ours and all(answers[key] < base[key] for answers in ours):
            losses.append(key)
        else:
            splits.append(key)
    every = "every arm" if len(right) > 1 else "the arm"
    reasons = dict.fromkeys(gains, f"StepER is right and {BASELINE} wrong")
    reasons |= dict.fromkeys(losses, f"{BASELINE} is right and StepER wrong")
    reasons |= dict.fromkeys(splits, "the arms differ")
    reasons |= dict.fromkeys(misses, f"{every} is wrong")
    reasons |= dict.fromkeys(hits, f"{every} is right")
    ordered = [*_in_turn([gains, losses]), *splits, *_in_turn([misses, hits])]
    return {key: reasons[key] for key in ordered[:EXAMPLES_SHOWN]}


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


# ---- settings --------------------------------------------------------------------------------


def _facts(arms: Mapping[str, Arm]) -> list[tuple[str, str]]:
    """Settings shown at the end: everything needed to compare this page with another."""
    results = [result for arm in arms.values() for result in arm.results]

    def all_of(describe: Callable[[dict[str, Any]], str]) -> str:
        return "; ".join(dict.fromkeys(describe(result) for result in results))

    return [
        (
            "questions",
            all_of(
                lambda r: (
                    f"{r['n']} of split {r['split']}"
                    + (f", {r['failed']} more failed and are not scored" if r.get("failed") else "")
                    + f", SHA-256 {r['questions_sha256']}"
                )
            ),
        ),
        ("corpus", all_of(lambda r: f"SHA-256 {r['corpus_sha256']}")),
        ("scoring rules", all_of(lambda r: str(r.get("rules", "–")))),
        (
            "strategy",
            all_of(
                lambda r: "{strategy}, k = {k}, at most {max_steps} steps".format(**r["setting"])
            ),
        ),
    ]


def _manifests(arms: Mapping[str, Arm], trainings: Sequence[Training]) -> list[tuple[str, str]]:
    """Each run's stage and folder, and its manifest as text."""
    runs = [("train", run.folder) for run in trainings]
    runs += [("evaluate", folder) for arm in arms.values() for folder in arm.folders]
    return [
        (
            f"steper {stage}: {folder}",
            json.dumps(require_finished(folder, stage=stage), indent=1, ensure_ascii=False),
        )
        for stage, folder in runs
    ]
