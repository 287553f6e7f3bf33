"""Evaluated arms as tables and figures.

>>> results(arms)  # doctest: +SKIP
Table(name='results', …)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import fmean
from typing import Any, Literal

from steper.arms import Arm
from steper.report import plots
from steper.report.parts import Cell, Figure, Table
from steper.scores import ABILITIES, SHARES, mean_line
from steper.types import Interval

ACCURACY: Mapping[str, str] = {
    "em": "EM",
    "f1": "F1",
    "acc": "Acc",
    "recall": "recall",
    "initialization": "initialization",
    "expansion": "expansion",
    "aggregation": "aggregation",
    "subquestion_acc": "sub-questions",
}
"""Measures of the first table with their headings."""

AMOUNTS: Mapping[str, str] = {
    "steps": "steps",
    "searches": "searches",
    "prompt_tokens": "tokens read",
    "cached_tokens": "of them cached",
    "cost": "cost",
}
"""Measures of the second."""

LINES = 8
"""Most lines in one figure."""


# ---- tables ----------------------------------------------------------------------------------


def results(arms: Mapping[str, Arm]) -> Table:
    """How well each arm does."""
    return Table(
        "results",
        *_measured(arms, ACCURACY),
        note="Percent, with 95% bootstrap intervals over questions; means over seeds. Recall: "
        "share of the gold passages that a run retrieved. Sub-questions: share of the gold chain's "
        "answers that its reasoning states.",
    )


def took(arms: Mapping[str, Arm]) -> Table:
    """What a question took each arm."""
    heads, rows = _measured(arms, AMOUNTS)
    heads += [("median, s",), ("p95, s",), ("whole run, s",)]
    for (_, cells), arm in zip(rows, arms.values(), strict=True):
        seconds = [_latency(arm, name) for name in ("median_s", "p95_s")]
        seconds.append(fmean(result["seconds"] for result in arm.results))
        cells += [(f"{value:,.3g}",) for value in seconds]
    return Table(
        "what a question took",
        heads,
        rows,
        note="For each question, with 95% bootstrap intervals over questions; means over seeds. "
        "Seconds from its first search to its answer include waits for questions that run at the "
        "same time; the last column is the whole run.",
    )


def each_seed(arms: Mapping[str, Arm]) -> Table | None:
    """Each run's own values, as ``steper evaluate`` found them; none where no arm has two."""
    if all(len(arm.results) == 1 for arm in arms.values()):
        return None
    shown = [measure for measure in ACCURACY if _known(arms, measure)]
    rows = []
    for arm in arms.values():
        values = zip(*(arm.by_seed(measure) for measure in shown), strict=True)
        rows += [
            (arm.label, [(str(n),), *((_number(v, m),) for v, m in zip(run, shown, strict=True))])
            for n, run in enumerate(values, start=1)
        ]
    return Table("results of each seed", [("run",), *((ACCURACY[m],) for m in shown)], rows)


def by_group(arms: Mapping[str, Arm], field: Literal["type", "hops"]) -> Table | None:
    """Accuracy in each group of questions; none where there is only one."""
    names = sorted(
        {row[field] for arm in arms.values() for seed in arm.scores for row in seed.values()}
    )
    if len(names) < 2:
        return None
    groups = {name: {label: _only(arm, field, name) for label, arm in arms.items()}
              for name in names}  # fmt: skip
    heads = []
    for name, parts in groups.items():
        n = max(sum(map(len, part.scores)) for part in parts.values())
        heads.append((str(name or "unknown"), f"n = {n}"))
    rows = [(label, [_accuracy(parts[label]) for parts in groups.values()]) for label in arms]
    return Table(f"results by {field}", heads, rows)


def _measured(
    arms: Mapping[str, Arm], measures: Mapping[str, str]
) -> tuple[list[Cell], list[tuple[str, list[Cell]]]]:
    """Headings and rows of the measures that some arm knows; a cost of 0 tells nothing."""
    shown = [m for m in measures if _known(arms, m, but=0.0 if m == "cost" else None)]
    heads: list[Cell] = [(measures[m],) for m in shown]
    rows = [(arm.label, [_cell(arm.interval(m), m) for m in shown]) for arm in arms.values()]
    return heads, rows


def _known(arms: Mapping[str, Arm], measure: str, *, but: float | None = None) -> bool:
    return any(value not in (None, but) for arm in arms.values() for value in arm.by_seed(measure))


def _cell(interval: Interval | None, measure: str) -> Cell:
    if interval is None:
        return ("–",)
    low, high = _number(interval.low, measure), _number(interval.high, measure)
    return _number(interval.value, measure), f"{low} to {high}"


def _number(value: float | None, measure: str) -> str:
    if value is None:
        return "–"
    if measure in SHARES:
        return f"{100 * value:.1f}"
    if measure == "cost":
        return f"{value:.2g}"
    return f"{value:,.0f}" if measure.endswith("tokens") else f"{value:.1f}"


def _only(arm: Arm, field: str, name: Any) -> Arm:
    """The arm on the questions of one group."""
    scores = [{k: row for k, row in seed.items() if row[field] == name} for seed in arm.scores]
    return replace(arm, scores=scores)


def _accuracy(arm: Arm) -> Cell:
    em, f1, acc = (_cell(arm.interval(measure), measure) for measure in ("em", "f1", "acc"))
    return *em, f"{f1[0]} / {acc[0]}"


def _latency(arm: Arm, name: str) -> float:
    return fmean(result["latency"][name] for result in arm.results)


# ---- figures ---------------------------------------------------------------------------------


def accuracy(arms: Mapping[str, Arm]) -> list[Figure]:
    """Exact match of each arm, against what it takes, and what it finds step by step."""
    em = {label: _percent(arm, "em") for label, arm in arms.items()}
    bars = plots.bars(em, title="Exact match of each arm, in percent")
    caption = "Exact match on the evaluated questions; whiskers are 95% intervals."
    return [
        Figure([bars], caption),
        *_recall(arms),
        *_against(
            arms,
            lambda arm: arm.results[0]["parameters"],
            xlabel="parameters",
            caption="Size against accuracy. Arms of one size stand side by side.",
        ),
        *_against(
            arms,
            lambda arm: _latency(arm, "median_s"),
            xlabel="median seconds of a question",
            caption="Latency against accuracy; waits for questions that run at the same time "
            "are part of it.",
        ),
    ]


def abilities(arms: Mapping[str, Arm]) -> Figure | None:
    """The three abilities; none where no question has a gold chain."""
    known = [name for name in ABILITIES if _known(arms, name)]
    if not known:
        return None
    svgs = []
    for name in known:
        values = {label: _percent(arm, name) for label, arm in arms.items()}
        svgs.append(plots.bars(values, title=f"{name} of each arm, in percent", panel=name))
    caption = (
        "The three abilities on gold chains, with 95% intervals. Initialization and expansion: "
        "share of the first and of the middle steps that state a fact of the chain that the run "
        "has read, or search where the next passage is missing and find it. Aggregation: share of "
        "right answers where every gold passage was retrieved."
    )
    return Figure(svgs, caption, small=True)


def _against(
    arms: Mapping[str, Arm],
    amount: Callable[[Arm], float | None],
    *,
    xlabel: str,
    caption: str,
) -> list[Figure]:
    """Exact match against an amount; none where fewer than two arms differ in it."""
    points: dict[str, tuple[float, plots.Interval] | None] = {}
    for label, arm in arms.items():
        x, em = amount(arm), _percent(arm, "em")
        points[label] = (x, em) if x and em else None
    if len({point[0] for point in points.values() if point}) < 2:
        return []
    title = f"{caption.partition('.')[0].partition(';')[0]} of each arm"
    return [Figure([plots.scatter(points, xlabel=xlabel, title=title)], caption)]


def _recall(arms: Mapping[str, Arm]) -> list[Figure]:
    """Recall after each step, a few arms in each figure; none where there are no gold passages."""
    lines = [(label, recall_line(arm)) for label, arm in arms.items()]
    found = []
    size = math.ceil(len(lines) / math.ceil(len(lines) / LINES))
    for first in range(0, len(lines), size):
        some = dict(lines[first : first + size])
        if not any(some.values()):
            continue
        which = f"Arms {first + 1} to {first + len(some)}: " if len(lines) > LINES else ""
        caption = (
            f"{which}recall by step, the share of the gold passages retrieved by the end of each "
            "step. A run that has ended keeps what it had."
        )
        title = f"{which}recall by step, in percent"
        svg = plots.lines(some, title=_sentence(title), first=first)
        found.append(Figure([svg], _sentence(caption)))
    return found


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def recall_line(arm: Arm) -> list[float]:
    """Recall in percent after each step, the mean over seeds."""
    return [100 * share for share in mean_line([r["recall_by_step"] for r in arm.results])]


def _percent(arm: Arm, measure: str) -> plots.Interval | None:
    interval = arm.interval(measure)
    if interval is None:
        return None
    return 100 * interval.value, 100 * interval.low, 100 * interval.high
