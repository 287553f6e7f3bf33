"""The trajectories of a run folder as rows: enough of each to list it, and where the rest is.

Works on runs of ``steper rollout`` and ``steper evaluate``, finished or still growing, with the
verdicts of a ``steper build`` where one is given.

>>> run = RunFolder(Path("runs/rollout")); run.refresh()  # doctest: +SKIP
>>> [row.question for row in run.rows.values() if row.outcome == "wrong"]  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from steper.arms import RESULTS
from steper.build import REJECTED, VERDICTS, Rejected
from steper.errors import SteperError
from steper.judge import Verdict
from steper.metrics import score
from steper.rollout import TRAJECTORIES
from steper.store import from_json, read_json, require_finished
from steper.trajectories.lines import Lines, Records, Span
from steper.types import Failure, Trajectory

STAGES = ("rollout", "evaluate")


@dataclass(frozen=True, slots=True)
class Row:
    """What the list shows of one trajectory, and where the rest of it is.

    Attributes:
        outcome: one of ``OUTCOMES``.
        stopped: see ``Trajectory``; empty where there is no trajectory, as are ``span`` and steps.
        why: why there is none.
    """

    id: str
    question_id: str
    question: str
    outcome: str
    gold: str = ""
    answer: str = ""
    type: str = ""
    stopped: str = ""
    steps: int = 0
    span: Span | None = None
    why: str = ""


def _row(trajectory: Trajectory, span: Span) -> Row:
    question = trajectory.question
    if not trajectory.answer.strip():
        outcome = "none"
    else:  # EM is the same under the rules of every data set.
        right = score(trajectory.answer, question.answers).em == 1.0
        outcome = "right" if right else "wrong"
    return Row(
        id=trajectory.id,
        question_id=question.id,
        question=question.question,
        outcome=outcome,
        gold=question.answer,
        answer=trajectory.answer,
        type=question.type,
        stopped=trajectory.stopped,
        steps=len(trajectory.steps),
        span=span,
    )


class RunFolder:
    """One run's trajectories, indexed, with its scores, usage and failures where it has them.

    Attributes:
        label: the evaluation's label, or the folder's name.
        running: whether the stage has not finished.
        rows: by trajectory id, in file order, then the failed questions.
        verdicts: of ``steper build``, for what it dropped; ``None`` where no build is shown.
        judged: of the build's judge, by trajectory id, where each step's verdict stands.

    Raises:
        SteperError: if the folder holds no trajectories.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stage = _stage(path)
        self.label = path.resolve().name
        if (path / RESULTS).is_file():
            self.label = str(_object(path / RESULTS).get("label", self.label))
        self.running = True
        self.lines = Lines(path / f"{TRAJECTORIES}.jsonl")
        self._own: dict[str, Row] = {}
        self.rows: dict[str, Row] = {}
        self._side = {n: Records(path / f"{n}.jsonl") for n in ("failed", "scores", "usage")}
        self.verdicts: dict[str, dict[str, Any]] | None = None
        self.judged: dict[str, list[Span]] = {}
        self._judge: Lines | None = None

    @property
    def problems(self) -> list[str]:
        """What could not be read in the side files."""
        return [p for records in self._side.values() for p in records.problems]

    def refresh(self) -> bool:
        """Take in what the run has written since; returns whether anything has changed."""
        was_running = self.running
        self.running = _object(self.path / "manifest.json").get("status") != "finished"
        changed = self.running != was_running
        for records in self._side.values():
            changed |= records.refresh(growing=self.running)
        if self.lines.poll():
            self._own, changed = {}, True
        for span, line in _with_bar(self.lines, growing=self.running):
            changed = True
            where = f"{self.label}/{self.lines.path.name}:{span.line}"
            try:
                row = _row(from_json(Trajectory, line, where=where), span)
            except SteperError as error:
                row = Row(where, where, where, "unreadable", why=str(error))
            self._own[row.id] = row
        if changed:
            self.rows = self._own | {r.id: r for r in self._failed() if r.id not in self._own}
        return changed

    def _failed(self) -> Iterator[Row]:
        failed = self._side["failed"]
        for key, span in failed.spans.items():
            where = f"{self.label}/failed.jsonl:{span.line}"
            try:
                failure = from_json(Failure, failed.line(span), where=where)
            except SteperError as error:
                yield Row(where, where, where, "unreadable", why=str(error))
                continue
            asked, why = failure.question, f"step {failure.step}: {failure.reason}"
            yield Row(
                key, asked.id, asked.question, "failed", asked.answer, type=asked.type, why=why
            )

    def side(self, row: Row) -> dict[str, Any]:
        """All there is to show of one trajectory."""
        shown: dict[str, Any] = {"outcome": row.outcome, "why": row.why, "trajectory": None}
        if row.span is not None:
            where = f"{self.label}/{self.lines.path.name}:{row.span.line}"
            trajectory = from_json(Trajectory, self.lines.read(row.span), where=where)
            shown["trajectory"] = asdict(trajectory)
        shown["scores"] = self._side["scores"].get(row.id) or {}
        shown["usage"] = (self._side["usage"].get(row.id) or {}).get("steps", [])
        shown["verdict"] = self.verdict(row)
        shown["judged"] = {v.step: asdict(v) for v in self._judgments(row)}
        return shown

    def verdict(self, row: Row) -> dict[str, Any] | None:
        """What ``steper build`` made of a trajectory: with an empty filter, it was kept."""
        if self.verdicts is None or row.span is None or row.outcome == "unreadable":
            return None
        return self.verdicts.get(row.id, {"filter": "", "reason": "", "also": []})

    def overlay(self, build: Path) -> None:
        """Take over the verdicts of a build of this run: it keeps whatever it did not reject."""
        self.verdicts = {}
        lines = Lines(build / REJECTED)
        lines.poll()
        for span, line in _with_bar(lines, growing=False):
            record = from_json(Rejected, line, where=f"{lines.path}:{span.line}")
            self.verdicts[record.trajectory.id] = {
                "filter": record.filter,
                "reason": record.reason,
                "also": list(record.also),
            }
        self._judge = Lines(build / f"{VERDICTS}.jsonl")
        self._judge.poll()
        for span, line in _with_bar(self._judge, growing=False):
            verdict = from_json(Verdict, line, where=f"{self._judge.path}:{span.line}")
            self.judged.setdefault(verdict.trajectory_id, []).append(span)

    def _judgments(self, row: Row) -> Iterator[Verdict]:
        for span in self.judged.get(row.id, ()):
            assert self._judge is not None, "the spans are of its file"
            where = f"{self._judge.path}:{span.line}"
            yield from_json(Verdict, self._judge.read(span), where=where)


def _object(path: Path) -> dict[str, Any]:
    data = read_json(path)
    if not isinstance(data, dict):
        raise SteperError("is not a JSON object.", where=str(path))
    return data


def _stage(path: Path) -> str:
    """The stage that made a folder, if it is one that writes trajectories."""
    if not (path / "manifest.json").is_file():
        inside = sorted(p.parent.name for p in path.glob(f"*/{TRAJECTORIES}.jsonl"))
        raise SteperError(
            "holds no manifest.json, so it is not a run folder.",
            where=str(path),
            fix=f"There are runs in it: {', '.join(inside)}."
            if inside
            else "Give a folder made by `steper rollout` or `steper evaluate`.",
        )
    stage = _object(path / "manifest.json").get("stage")
    if stage == "build":
        raise SteperError(
            "holds examples; the trajectories are in the rollout's folder.",
            where=str(path),
            fix=f"Give that folder, and this one with --build {path}.",
        )
    if stage not in STAGES:
        raise SteperError(
            f"is a run of `steper {stage}`, which writes no trajectories.",
            where=str(path),
            fix="Give a folder made by `steper rollout` or `steper evaluate`.",
        )
    return str(stage)


def _with_bar(lines: Lines, *, growing: bool) -> Iterator[tuple[Span, bytes]]:
    """New lines; a progress bar in bytes shows itself where that takes longer than a second."""
    size = lines.path.stat().st_size if lines.path.is_file() else 0
    with tqdm(total=size, unit="B", unit_scale=True, desc="reading", delay=1, leave=False) as bar:
        for span, line in lines.new(growing=growing):
            yield span, line
            bar.update(span.length)


def tell_apart(runs: Sequence[RunFolder]) -> None:
    """Label runs of one name with the folders above them, as far as these differ."""
    if len({run.label for run in runs}) == len(runs):
        return
    parts = [run.path.resolve().parts for run in runs]
    depth = next(n for n in range(1, 99) if len({p[-n:] for p in parts}) == len(runs))
    for run, path in zip(runs, parts, strict=True):
        run.label = "/".join(path[-depth:])


def overlay(runs: Sequence[RunFolder], build: Path) -> None:
    """Give the verdicts of a build to the run that it read.

    Raises:
        SteperError: if it read none of these, or has not finished.
    """
    read = require_finished(build, stage="build")["inputs"].get("trajectories")
    run = next((run for run in runs if run.lines.digest.hexdigest() == read), None)
    if run is None:
        raise SteperError(
            f"was built from other trajectories than those of {runs[0].path}.",
            where=str(build),
            fix="Give the rollout folder that it was built from.",
        )
    run.overlay(build)
