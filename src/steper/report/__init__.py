"""`steper report`: one self-contained HTML page about trained and evaluated runs.

Runs with the same label are taken as seeds of one arm and averaged. The verdicts are computed from
paired differences on the same questions, and the page says so when there are none.

>>> write_report([Path("runs/eval")], Path("report.html"))  # doctest: +SKIP
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment

from steper.arms import RESULTS, Arm, notes, read_arms
from steper.config import ReportConfig
from steper.errors import SteperError
from steper.report.curves import Training, curves, given, read_trainings
from steper.report.excerpts import excerpts
from steper.report.figures import abilities, accuracy, by_group, each_seed, results, took
from steper.report.parts import Cell, Table
from steper.report.verdicts import (
    QUESTION,
    SENTENCES,
    answer,
    are_stepers,
    compare_pairs,
    default_pairs,
    tally,
    verdicts,
)
from steper.store import from_json, require_finished, write_atomic

SHORT = 12
"""Characters shown of a hash, which the manifests hold whole."""


@dataclass(frozen=True)
class _Experiment:
    """What a page needs of an experiment's ``results.json``; its figures are counted anew."""

    kind: Literal["experiment"]
    question: str
    command: str
    pairs: tuple[tuple[str, str], ...]
    evaluations: tuple[str, ...]
    trainings: tuple[str, ...]
    title: str = ""


def report(config: ReportConfig) -> Path:
    """Write the page that the command asks for and return its path.

    Raises:
        SteperError: as ``write_report`` does; or where an experiment is given with other runs, or
            runs without an ``--out``.
    """
    experiments = [folder for folder in config.evaluations if _is_experiment(folder)]
    if experiments:
        if len(config.evaluations) + len(config.trainings) > 1:
            raise SteperError(
                "is an experiment, and a page of one shows its own runs only.",
                where=str(experiments[0]),
                fix="Give it alone.",
            )
        return _report_experiment(experiments[0], config.out)
    for folder in config.evaluations:
        require_finished(folder, stage="evaluate")
    if config.out is None:
        raise SteperError("no page named.", where="steper report", fix="Name it: --out FILE.html")
    return write_report(config.evaluations, config.out, trainings=config.trainings)


def _is_experiment(folder: Path) -> bool:
    """A run has a manifest; an experiment has only the figures of its runs."""
    return (folder / RESULTS).is_file() and not (folder / "manifest.json").exists()


def _report_experiment(folder: Path, out: Path | None) -> Path:
    path = folder / RESULTS
    fix = "Run the experiment's command again."
    found = from_json(_Experiment, path.read_bytes(), where=str(path), fix=fix)
    return write_report(
        [folder / name for name in found.evaluations],
        out or folder / "report.html",
        trainings=[folder / name for name in found.trainings],
        title=found.title or folder.resolve().name,
        question=found.question,
        pairs=found.pairs,
        command=found.command,
    )


def write_report(
    evaluations: Sequence[Path],
    out: Path,
    *,
    trainings: Sequence[Path] = (),
    title: str = "steper report",
    intro: str = "",
    question: str | None = None,
    pairs: Sequence[tuple[str, str]] | None = None,
    command: str = "",
) -> Path:
    """Write the page and return its path.

    Args:
        evaluations: folders made by ``steper evaluate``.
        out: HTML file; written whole or not at all.
        trainings: folders made by ``steper train`` whose curves to draw.
        title: heading of the page.
        intro: plain text shown below the question; a blank line starts a paragraph.
        question: what the runs are to answer; by default StepER's own, of its arms.
        pairs: labels of arms to compare; by default StepER's with the baseline, or all with the
            first.
        command: what made all the runs, where it was one command.

    Raises:
        SteperError: if a folder is not a finished run of its stage, or is given twice, or there
            is none; or where a pair names an arm that there is not.
    """
    if not evaluations:
        raise SteperError("no evaluation given.", where="steper report", fix="Name a folder.")
    arms = read_arms(evaluations)
    pairs = default_pairs(arms) if pairs is None else pairs
    if missing := {label for pair in pairs for label in pair} - arms.keys():
        raise SteperError(
            f"no evaluation is labeled {min(missing)!r}, which is to be compared.",
            where="steper report",
            fix=f"There is: {', '.join(arms)}.",
        )
    if question is None:
        question = QUESTION if are_stepers(arms) else ""
    comparisons = compare_pairs(arms, pairs)
    runs = read_trainings(trainings, arms)
    page = _template().render(
        title=title,
        question=question,
        answer=answer(comparisons) if question == QUESTION else tally(comparisons),
        intro=[part for part in intro.split("\n\n") if part.strip()],
        verdicts=verdicts(comparisons),
        sentences=SENTENCES,
        notes=notes(arms),
        results=results(arms),
        took=took(arms),
        seeds=each_seed(arms),
        accuracy=accuracy(arms),
        abilities=abilities(arms),
        groups={field: by_group(arms, field) for field in ("type", "hops")},
        curves=curves(runs),
        given=given(runs),
        arms=list(arms),
        excerpts=excerpts(arms, pairs),
        command=command,
        facts=_facts(arms),
        asked=_asked(arms),
        manifests=_manifests(arms, runs),
    )
    write_atomic(out, page)
    return out


def _template() -> Any:
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    source = (resources.files("steper.report") / "page.html").read_text(encoding="utf-8")
    return environment.from_string(source)


# ---- how to make it again --------------------------------------------------------------------


def _facts(arms: Mapping[str, Arm]) -> list[tuple[str, str]]:
    """Everything needed to compare this page with another."""
    found = [result for arm in arms.values() for result in arm.results]

    def all_of(describe: Callable[[dict[str, Any]], str]) -> str:
        return "; ".join(dict.fromkeys(describe(result) for result in found))

    def questions(r: dict[str, Any]) -> str:
        failed = f", {r['failed']} more failed and are not scored" if r["failed"] else ""
        return f"{r['n']} of split {r['split']}{failed}, SHA-256 {r['questions_sha256'][:SHORT]}"

    versions = ("{} {}".format(*pair) for r in found for pair in r["versions"].items())
    return [
        ("questions", all_of(questions)),
        ("corpus", all_of(lambda r: f"SHA-256 {r['corpus_sha256'][:SHORT]}")),
        ("retriever", all_of(lambda r: str(r["retriever"]))),
        ("scoring rules", all_of(lambda r: str(r["rules"]))),
        ("evaluated with", ", ".join(dict.fromkeys(versions))),
        ("page made by", f"steper {version('steper')}"),
    ]


def _asked(arms: Mapping[str, Arm]) -> Table:
    """How each arm was asked."""
    heads: list[Cell] = [
        (name,) for name in ("seeds", "parameters", "strategy", "k", "steps, at most", "prompt")
    ]
    rows: list[tuple[str, list[Cell]]] = []
    for arm in arms.values():
        setting, first = arm.results[0]["setting"], arm.results[0]
        cells = [
            ", ".join(map(str, arm.seeds)),
            f"{first['parameters']:,}" if first["parameters"] else "–",
            setting["strategy"],
            str(setting["k"]),
            str(setting["max_steps"]),
            first["prompt_sha256"][:SHORT],
        ]
        rows.append((arm.label, [(cell,) for cell in cells]))
    return Table("how each arm was asked", heads, rows, note="Prompt: SHA-256 of its wording.")


def _manifests(
    arms: Mapping[str, Arm], trainings: Mapping[str, Sequence[Training]]
) -> list[tuple[str, str]]:
    """Each run's stage and folder, and its manifest as text."""
    found = [
        (f"steper train: {run.folder}", run.manifest)
        for seeds in trainings.values()
        for run in seeds
    ]
    found += [
        (f"steper evaluate: {folder}", require_finished(folder, stage="evaluate"))
        for arm in arms.values()
        for folder in arm.folders
    ]
    return [(name, json.dumps(data, indent=1, ensure_ascii=False)) for name, data in found]
