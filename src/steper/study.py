"""An experiment file: what all arms share, the arms, and what to compare; read strictly.

>>> study = read_experiment(Path("configs/experiments/baselines.toml"))  # doctest: +SKIP
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from steper.config import (
    BuildConfig,
    Config,
    EvaluateConfig,
    IndexConfig,
    RolloutConfig,
    Rules,
    TrainConfig,
)
from steper.errors import SteperError
from steper.store import read_toml

Stage = Literal["index", "rollout", "build", "train", "evaluate"]
Options = dict[str, Any]

STAGES: Mapping[Stage, type[Config]] = {
    "index": IndexConfig,
    "rollout": RolloutConfig,
    "build": BuildConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
}
OWN: Mapping[Stage, frozenset[str]] = {
    "index": frozenset({"source", "out"}),
    "rollout": frozenset({"index", "questions", "out", "split", "seed"}),
    "build": frozenset({"rollout", "out"}),
    "train": frozenset({"data", "out", "seed", "dry_run"}),
    "evaluate": frozenset({"model", "index", "questions", "out", "split", "seed", "label"}),
}
"""What the experiment itself says of each stage."""


class World(Config):
    """An offline world, made anew for each seed (see docs/world.md)."""

    train_questions: int = Field(default=400, ge=20)
    """Questions for the teacher."""
    test_questions: int = Field(default=200, ge=10)
    """Held-out questions, of entities that the others never meet."""
    split: float = Field(default=1.0, ge=0.0, le=1.0)
    """Share of entities told of in two passages."""


class Data(Config):
    """A corpus with questions: an offline world, or files."""

    world: World | None = None
    """An offline world instead of files."""
    corpus: str = ""
    """Documents, as `steper index` takes them."""
    questions: Path | None = None
    """Questions file."""
    train_split: str | None = "train"
    """Split that the teacher answers."""
    test_split: str | None = "test"
    """Split that the arms answer."""
    rules: Rules = "hotpotqa"
    """Whose official scoring rules apply."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if bool(self.world) == bool(self.corpus and self.questions):
            raise ValueError("needs either world, or both corpus and questions")
        return self


class Overrides(Config):
    """Options by stage."""

    index: Options = Field(default_factory=dict)
    rollout: Options = Field(default_factory=dict)
    build: Options = Field(default_factory=dict)
    train: Options = Field(default_factory=dict)
    evaluate: Options = Field(default_factory=dict)


class ArmSpec(Overrides):
    """One way to get answers: a student taught in some way, or a model as it is."""

    model: str = ""
    """A model that is not trained, as `steper evaluate --model` takes it."""
    train_on: str = ""
    """Data set that the student is taught on; by default the file's first."""
    test_on: str = ""
    """Data set that is answered; by default the one taught on."""
    equal_tokens_to: str = ""
    """Train for as many epochs as make up the training tokens of that arm."""
    grid: dict[str, list[Any]] = Field(default_factory=dict)
    """As the file's, for this arm only."""


class Experiment(Overrides):
    """An experiment file: what all arms share, the arms, and what to compare."""

    question: str = Field(min_length=1)
    """What the experiment is to answer, in one sentence."""
    seeds: tuple[int, ...] = Field(default=(0, 1, 2, 3, 4), min_length=1)
    """One world, order of training data and set of draws each."""
    data: dict[str, Data] = Field(min_length=1)
    """Data sets by name."""
    arms: dict[str, ArmSpec] = Field(min_length=1)
    """Arms by name."""
    grid: dict[str, list[Any]] = Field(default_factory=dict)
    """Every combination of these values makes an arm of each arm, as `"train.lr" = [1e-4, 1e-3]`.
    Models that are not trained take the axes of `index`, `evaluate` and `test_on` only."""
    compare: tuple[tuple[str, str], ...] = ()
    """Pairs of arms; by default every arm with the baseline."""
    baseline: str = ""
    """By default the first arm."""


def with_seeds(experiment: Experiment, seeds: Sequence[int]) -> Experiment:
    """The experiment with other seeds.

    Raises:
        SteperError: if one is given twice.
    """
    _check_seeds(seeds, "--seeds")
    return experiment.model_copy(update={"seeds": tuple(seeds)})


def _check_seeds(seeds: Sequence[int], where: str) -> None:
    """Raise on a seed given twice: its runs would count twice."""
    for seed in seeds:
        if seeds.count(seed) > 1:
            raise SteperError(f"seeds: {seed} is given twice.", where=where, fix="Name it once.")


# ---- reading ---------------------------------------------------------------------------------


def read_experiment(path: Path, settings: Sequence[str] = ()) -> Experiment:
    """Read an experiment file; ``settings`` are ``dotted.key=TOML value`` that take precedence.

    Raises:
        SteperError: naming the key, if something in it is unknown or out of range.
    """
    data = read_toml(path)
    for setting in settings:
        _set(data, setting)
    return parse_experiment(data, where=str(path))


def parse_experiment(data: Mapping[str, Any], *, where: str) -> Experiment:
    """An experiment from plain data, checked down to every option of every stage."""
    try:
        found = Experiment.model_validate(data)
    except ValidationError as error:
        raise invalid(error, where) from None
    _check_seeds(found.seeds, where)
    check_options(found, "", where)
    for name, spec in found.arms.items():
        check_options(spec, f"arms.{name}.", where)
    return found


def _set(data: dict[str, Any], setting: str) -> None:
    """Put one ``--set`` into the file's data."""
    key, equals, text = setting.partition("=")
    if not equals:
        raise SteperError(f"{setting!r} has no value.", where="--set", fix="Write --set key=value.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is text
    *tables, last = key.strip().split(".")
    for table in tables:
        data = data.setdefault(table, {})
        if not isinstance(data, dict):
            raise SteperError(f"{key}: {table} is no table.", where="--set")
    data[last] = value


def check_options(found: Overrides, prefix: str, where: str) -> None:
    """Raise on a stage's option that it does not have, or that the experiment itself sets."""
    for stage, type_ in STAGES.items():
        for key in getattr(found, stage):
            place = f"{prefix}{stage}.{key}"
            if key in OWN[stage]:
                raise SteperError(
                    f"{place}: the experiment sets it.", where=where, fix="Leave it out."
                )
            if key not in type_.model_fields:
                raise unknown_name(place, key, set(type_.model_fields) - OWN[stage], where)


def unknown_name(place: str, name: str, known: set[str], where: str) -> SteperError:
    """The error for a name that is none of the known ones, with the nearest of them."""
    near = get_close_matches(name, known, n=1)
    return SteperError(
        f"{place}: there is no {name!r}.",
        where=where,
        fix=f"Perhaps you meant {near[0]!r}." if near else f"There is: {', '.join(sorted(known))}.",
    )


def invalid(error: ValidationError, where: str, prefix: str = "") -> SteperError:
    """The error for what pydantic refuses, naming the key."""
    first = error.errors()[0]
    place = prefix + ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        kinds: dict[str, type[Config]] = {"data": Data, "arms": ArmSpec}
        kind = kinds.get(str(first["loc"][0]), Experiment)
        known = set((World if "world" in first["loc"][2:] else kind).model_fields)
        return unknown_name(place, str(first["loc"][-1]), known, where)
    return SteperError(f"{place}: {first['msg']}, got {first['input']!r}.", where=where)
