"""The cells an experiment takes: one run folder for each stage, shared where it can be.

Cells of several arms that would do the same are one, and a folder is named by the options in which
its cell differs from the file's, so adding an arm later recomputes nothing.

>>> plan = make_plan(read_experiment(Path("study.toml")), Path("runs/study"))  # doctest: +SKIP
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from steper.config import Config
from steper.errors import SteperError
from steper.evaluate import OPTIONS
from steper.store import fingerprint
from steper.study import (
    STAGES,
    ArmSpec,
    Data,
    Experiment,
    Options,
    Stage,
    check_options,
    invalid,
    unknown_name,
)
from steper.train import STUDENT

TAUGHT = frozenset({*OPTIONS, "strategy", "prompt", "layout"})
"""Options of `steper evaluate` that a student brings itself."""

LONGEST = 80
"""Characters of a folder's name."""


@dataclass(frozen=True)
class Cell:
    """One run folder of a stage.

    Attributes:
        options: of the stage's command, its folders included.
        needs: folders of the cells that must be finished before.
        equal_tokens: a training of the same with its plain epochs, and the training whose tokens
            it should take.
    """

    stage: Stage | Literal["world"]
    folder: Path
    options: Options
    needs: tuple[Path, ...] = ()
    equal_tokens: tuple[Path, Path] | None = None

    def config(self, **more: Any) -> Config:
        """The configuration of the stage's command."""
        assert self.stage != "world", "a world is made by no command"
        return STAGES[self.stage](**(self.options | more))


@dataclass
class Plan:
    """All cells in an order in which they can run, and what comes of them.

    Attributes:
        cells: by folder.
        evaluations: of each arm, by label: one folder a seed.
        trainings: of each trained arm, likewise.
        pairs: labels of arms to compare.
    """

    cells: dict[Path, Cell] = field(default_factory=dict)
    evaluations: dict[str, list[Path]] = field(default_factory=dict)
    trainings: dict[str, list[Path]] = field(default_factory=dict)
    pairs: list[tuple[str, str]] = field(default_factory=list)


def make_plan(experiment: Experiment, out: Path, *, where: str = "") -> Plan:
    """The cells of an experiment below the folder ``out``.

    Raises:
        SteperError: on a name that does not exist, or a value that a stage refuses.
    """
    planner = _Planner(experiment, out, where)
    for label, arm in planner.arms.items():
        for seed in experiment.seeds:
            planner.evaluate(label, arm, seed)
    known = set(planner.arms)
    for name in (*(name for pair in experiment.compare for name in pair), experiment.baseline):
        if name and name not in known:
            raise unknown_name("compare" if experiment.compare else "baseline", name, known, where)
    base = experiment.baseline or next(iter(planner.arms))
    planner.plan.pairs = list(experiment.compare) or [(a, base) for a in planner.arms if a != base]
    return planner.plan


def _expand(experiment: Experiment, where: str) -> dict[str, ArmSpec]:
    """Every arm with every combination of its grid's values, by label."""
    arms: dict[str, ArmSpec] = {}
    for name, spec in experiment.arms.items():
        axes = experiment.grid | spec.grid
        if spec.model:
            axes = {k: v for k, v in axes.items() if re.match(r"(index|evaluate)\.|test_on$", k)}
        for values in product(*axes.values()):
            chosen = dict(zip(axes, values, strict=True))
            data = spec.model_dump(exclude={"grid"})
            for key, value in chosen.items():
                _place(data, key, value, where)
            shown = [f"{key.rpartition('.')[2]}={_text(value)}" for key, value in chosen.items()]
            label = " ".join([name, *shown])
            try:
                arms[label] = ArmSpec.model_validate(data)
            except ValidationError as error:
                raise invalid(error, where, f"arms.{name}.") from None
            check_options(arms[label], f"arms.{label}.", where)
    return arms


def _place(data: Options, key: str, value: Any, where: str) -> None:
    stage, dot, option = key.partition(".")
    if dot and stage in STAGES:
        data[stage] = data[stage] | {option: value}
    elif key in ("model", "train_on", "test_on", "equal_tokens_to"):
        data[key] = value
    else:
        raise SteperError(
            f"grid: {key!r} is no axis.",
            where=where,
            fix="Use stage.option, as train.objective, or model, train_on, test_on.",
        )


class _Planner:
    def __init__(self, experiment: Experiment, out: Path, where: str) -> None:
        self.experiment, self.out, self.where = experiment, out, where
        self.arms = _expand(experiment, where)
        self.plan = Plan()

    def evaluate(self, label: str, arm: ArmSpec, seed: int) -> None:
        """Add the evaluation of an arm with one seed, and all it needs."""
        name = self._data_name(label, arm.test_on or arm.train_on)
        data, home = self.experiment.data[name], self._home(name, seed)
        if arm.model and not data.world and self.plan.evaluations.get(label):
            return  # the same model on the same files: another seed would only repeat it
        index = self._index(arm, name, seed)
        options = dict(self.experiment.evaluate)
        needs = [index]
        if arm.model:
            model: str | Path = arm.model
        else:
            training = self._train(label, arm, seed)
            self.plan.trainings.setdefault(label, []).append(training)
            needs.append(training)
            model = training / STUDENT
            options = {k: v for k, v in options.items() if k not in TAUGHT}
        options |= arm.evaluate | {
            "model": str(model),
            "index": str(index),
            "questions": self._questions(data, home),
            "split": data.test_split,
            "seed": seed,
            "label": label,
        }
        options.setdefault("rules", data.rules)
        folder = self._seed_home(name, seed)
        cell = self._add("evaluate", folder / "evaluate" / _safe(label), options, needs)
        self.plan.evaluations.setdefault(label, []).append(cell)

    def _train(self, label: str, arm: ArmSpec, seed: int) -> Path:
        examples, overrides = self._build(label, arm, seed)
        options = self.experiment.train | arm.train
        if "base" not in options:
            raise SteperError(
                f"arms.{label}: no model to start from.",
                where=self.where,
                fix='Say train.base = "base-reader" or another model.',
            )
        options |= {"data": examples, "seed": seed}
        slug = _slug(overrides | _named("train", arm.train))
        folder = self._seed_home(self._data_name(label, arm.train_on), seed)
        plain = self._add("train", folder / "train" / slug, options, [examples])
        if not arm.equal_tokens_to:
            return plain
        other = self.arms.get(arm.equal_tokens_to)
        if other is None or other.model or other.equal_tokens_to:
            raise unknown_name(
                f"arms.{label}.equal_tokens_to",
                arm.equal_tokens_to,
                {n for n, a in self.arms.items() if not a.model and not a.equal_tokens_to},
                self.where,
            )
        theirs = self._train(arm.equal_tokens_to, other, seed)
        name = _safe(f"{slug}-tokens-of-{theirs.name}")
        return self._add(
            "train", folder / "train" / name, options, [plain, theirs], (plain, theirs)
        )

    def _build(self, label: str, arm: ArmSpec, seed: int) -> tuple[Path, Options]:
        """The examples' folder, and in what they differ from the file's."""
        name = self._data_name(label, arm.train_on)
        data, home = self.experiment.data[name], self._home(name, seed)
        index = self._index(arm, name, seed)
        overrides = _named("index", arm.index) | _named("rollout", arm.rollout)
        options = self.experiment.rollout | arm.rollout
        options |= {
            "index": str(index),
            "questions": self._questions(data, home),
            "split": data.train_split,
            "seed": seed if data.world else 0,
        }
        rolled = self._add("rollout", home / "rollout" / _slug(overrides), options, [index])
        overrides |= _named("build", arm.build)
        options = {"rules": data.rules} | self.experiment.build | arm.build | {"rollout": rolled}
        return self._add(
            "build", home / "examples" / _slug(overrides), options, [rolled]
        ), overrides

    def _index(self, arm: ArmSpec, name: str, seed: int) -> Path:
        data, home = self.experiment.data[name], self._home(name, seed)
        needs, source = [], data.corpus
        if data.world:
            world = home / "world"
            options = data.world.model_dump() | {"seed": seed}
            self.plan.cells.setdefault(world, Cell("world", world, options))
            needs, source = [world], str(world / "corpus.jsonl")
        options = self.experiment.index | arm.index | {"source": source}
        slug = _slug(_named("index", arm.index))
        return self._add("index", home / "index" / slug, options, needs)

    def _add(
        self,
        stage: Stage,
        folder: Path,
        options: Options,
        needs: Sequence[Path],
        equal: tuple[Path, Path] | None = None,
    ) -> Path:
        cell = Cell(stage, folder, options | {"out": folder}, tuple(needs), equal)
        try:
            cell.config()
        except ValidationError as error:
            raise invalid(error, self.where, f"{stage}.") from None
        if self.plan.cells.setdefault(folder, cell) != cell:
            raise SteperError(
                f"two arms would share the folder {folder} with different options.",
                where=self.where,
                fix="Give the arms other names.",
            )
        return folder

    def _data_name(self, label: str, name: str) -> str:
        known = self.experiment.data
        if name and name not in known:
            raise unknown_name(f"arms.{label}", name, set(known), self.where)
        return name or next(iter(known))

    def _home(self, name: str, seed: int) -> Path:
        """Where a data set's index and rollout lie: a world is another with each seed."""
        seeded = self._seed_home(name, seed)
        return seeded if self.experiment.data[name].world else seeded.parent

    def _seed_home(self, name: str, seed: int) -> Path:
        """Where what depends on the seed lies: trainings and evaluations."""
        return self.out / _safe(name) / f"seed-{seed}"

    @staticmethod
    def _questions(data: Data, home: Path) -> Path:
        return data.questions or home / "world" / "questions.jsonl"


def _named(stage: str, options: Options) -> Options:
    """Options under names that say little: a second stage's option of that name says its stage."""
    return {key if stage == "train" else f"{stage}.{key}": value for key, value in options.items()}


def _slug(overrides: Options) -> str:
    """A folder's name from the options that are not the file's."""
    parts = [f"{key}={_text(value)}" for key, value in sorted(overrides.items())]
    return _safe(" ".join(parts)) or "plain"


def _text(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _safe(text: str) -> str:
    """A file name for the text; what had to be changed or cut is told apart by a fingerprint."""
    name = re.sub(r"[^\w.=+ -]", "_", text).replace(" ", "-")
    if name.replace("-", " ") != text.replace("-", " ") or len(name) > LONGEST:
        name = f"{name[: LONGEST - 9]}-{fingerprint(text)[:8]}"
    return name
