"""`steper compare`: evaluations of several labels, each label compared with the first in pairs.

Runs of one label are the seeds of one arm. The figures are those of ``steper.arms``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tabulate import tabulate
from tqdm import tqdm

from steper.arms import Arm, Comparison, compare, notes, read_arms
from steper.config import CompareConfig
from steper.errors import SteperError
from steper.scores import MEASURES, SHARES
from steper.store import write_json

DIGITS = {"steps": 2, "searches": 2, "seconds": 2, "cost": 6}
"""Decimals of amounts; tokens have none."""

HEADINGS = ("mean [95%]", "difference", "over questions", "p", "n", "over seeds", "")

LEGEND = (
    "Difference to the first row: paired, with its 95% interval over the n questions that both\n"
    "answered, a question counting once with its mean over seeds; p by flipping signs, of each\n"
    "comparison alone. Over seeds: Student's 95% interval (number of seeds)."
)


def compare_evaluations(config: CompareConfig) -> str:
    """Run the command; returns the tables to print.

    Raises:
        SteperError: if a measure is unknown, a folder is no finished evaluation, there is only one
            label, or a label shares no question with the first.
    """
    for measure in config.measures:
        if measure not in MEASURES:
            raise SteperError(
                f"there is no measure {measure!r}.",
                where="--measures",
                fix=f"Choose from {', '.join(MEASURES)}.",
            )
    if config.json_out and config.json_out.is_dir():
        raise SteperError("is a folder.", where=str(config.json_out), fix="Name a file.")
    arms = read_arms(config.evaluations)
    overlaps = _overlaps(arms)
    base, *others = arms.values()
    found = {
        measure: [compare(arm, base, measure) for arm in others]
        for measure in tqdm(config.measures, unit=" measures", desc="comparing")
    }
    if config.json_out:
        write_json(config.json_out, _figures(arms, found))
    tables = [_table(list(arms.values()), measure, each) for measure, each in found.items()]
    return "\n\n".join([*tables, "\n".join([LEGEND, *overlaps, *notes(arms)])])


def _overlaps(arms: Mapping[str, Arm]) -> list[str]:
    """How many questions arms share with the first, where that is not all of them.

    Raises:
        SteperError: if there is nothing to compare.
    """
    if len(arms) < 2:
        raise SteperError(
            f"it takes two labels to compare, found {', '.join(arms) or 'none'}.",
            where="evaluations",
            fix="Runs of one label are seeds of one arm; `steper evaluate --label` sets it, by "
            "default to the folder's name.",
        )
    (first, base), *others = ((label, arm.by_question("em").keys()) for label, arm in arms.items())
    lines = []
    for label, asked in others:
        shared = len(asked & base)
        if not shared:
            raise SteperError(
                f"{label} and {first} share no questions.",
                where=str(arms[label].folders[0]),
                fix="Evaluate both on the same file of questions.",
            )
        if shared < max(len(asked), len(base)):
            lines.append(
                f"{label} answered {len(asked)} questions and {first} {len(base)}, "
                f"{shared} of them the same."
            )
    return lines


def _figures(
    arms: Mapping[str, Arm], found: Mapping[str, Sequence[Comparison | None]]
) -> dict[str, Any]:
    """Everything in the tables, and where it comes from."""
    return {
        "kind": "comparison",
        "arms": [
            {
                "label": arm.label,
                "folders": [str(folder) for folder in arm.folders],
                "n": arm.n,
                "seeds": arm.seeds,
                "questions_sha256": arm.question_sets,
                "metrics": {m: (mean := arm.interval(m)) and asdict(mean) for m in found},
            }
            for arm in arms.values()
        ],
        "comparisons": [asdict(one) for each in found.values() for one in each if one],
    }


def _table(arms: Sequence[Arm], measure: str, found: Sequence[Comparison | None]) -> str:
    """One row an arm: shares in percent and points, amounts as they are."""
    scale, digits = (100, 1) if measure in SHARES else (1, DIGITS.get(measure, 0))

    def shown(value: float, sign: str = "") -> str:
        return f"{scale * value:{sign},.{digits}f}"

    def mean(arm: Arm) -> str:
        found = arm.interval(measure)
        return f"{shown(found.value)} [{shown(found.low)}, {shown(found.high)}]" if found else "-"

    def change(one: Comparison | None) -> list[str]:
        if one is None:
            return ["-"]
        gain, seeds = one.difference, one.over_seeds
        return [
            shown(gain.value, "+"),
            f"{shown(gain.low, '+')} to {shown(gain.high, '+')}",
            f"{one.p:.2g}",
            f"{gain.n}",
            f"{shown(seeds.low, '+')} to {shown(seeds.high, '+')} ({seeds.n})" if seeds else "-",
            one.verdict,
        ]

    base, *others = arms
    rows = [[base.label, mean(base)]]
    rows += [[arm.label, mean(arm), *change(one)] for arm, one in zip(others, found, strict=True)]
    name = f"{measure}, %" if measure in SHARES else measure
    return tabulate(rows, headers=[name, *HEADINGS], stralign="right", disable_numparse=True)
