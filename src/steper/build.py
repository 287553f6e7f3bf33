"""`steper build`: keep the trajectories worth learning from, and turn them into step examples.

Writes ``examples.jsonl``, ``rejected.jsonl`` (every dropped trajectory with filter and reason)
and the rollout's ``setting.json``, in another layout where one is asked for. The student takes
its setting from there, so it is asked in the layout it was taught in. A judge's verdicts go to
``verdicts.jsonl`` one by one, so the same command goes on where it was stopped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tabulate import tabulate
from tqdm import tqdm

from steper.config import MEANS, BuildConfig, FilterName, ModelOptions
from steper.driver import wait_for
from steper.errors import SteperError
from steper.examples import step_examples, targets_of
from steper.filters import (
    CHOICE,
    AnswerFilter,
    EmptyFilter,
    GoldFilter,
    LengthFilter,
    NoGainFilter,
    Rejects,
    RepeatFilter,
    UngroundedFilter,
    choose,
    sift,
)
from steper.judge import JudgeFilter, Verdict, judge, rubric_sha256
from steper.models import API, RUN_SETTING, build_lm, read_setting, telling, write_setting
from steper.protocols import LM, Drop, Filter
from steper.rollout import TRAJECTORIES, open_purse, read_trajectories
from steper.setting import Setting
from steper.store import Run, read_records, require_finished, write_records
from steper.types import STRICT, TASKS, StepExample, Trajectory

EXAMPLES = "examples.jsonl"
REJECTED = "rejected.jsonl"
VERDICTS = "verdicts"
JUDGE: FilterName = "judge"


@dataclass(frozen=True, slots=True)
class Rejected:
    """A dropped trajectory and why.

    Attributes:
        filter: the first that dropped it; ``choice`` where it was good, but not the best.
        reason: that filter's.
        also: the other filters that drop it.
    """

    __pydantic_config__ = STRICT

    filter: str
    reason: str
    trajectory: Trajectory
    also: tuple[str, ...] = ()


def build(
    config: BuildConfig, *, judge_lm: LM | None = None, say: Callable[[str], None] = print
) -> Path:
    """Run the stage and return its folder.

    Args:
        config: what to filter by and how to write the examples.
        judge_lm: who judges, in place of the model that the configuration names.
        say: receives what the judge has to tell of its calls.

    Raises:
        SteperError: on bad input, targets that the layout does not have, or if no trajectory is
            left.
    """
    _check_filters(config, judge_lm)
    require_finished(config.rollout, stage="rollout")
    setting = _setting(config)
    targets = targets_of(setting.template.layout, config.targets)
    with Run.open(
        config.out,
        stage="build",
        config=_identity(config) | {"targets": targets},
        inputs={
            "trajectories": config.rollout / f"{TRAJECTORIES}.jsonl",
            "setting": config.rollout / RUN_SETTING,
        },
    ) as stage:
        if stage.finished and not (config.retry_failed and stage.counts.get("failed")):
            return stage.path
        stage.reopen()
        trajectories = read_trajectories(config.rollout)
        good, dropped = _sift(
            trajectories, config, setting, stage=stage, judge_lm=judge_lm, say=say
        )
        if not good:
            raise _nothing_left(dropped, config)
        kept, left = choose(good, config.choose)
        tasks: Counter[str] = Counter()

        def examples() -> Iterator[StepExample]:
            """One by one, because prompts repeat their passages and together take much memory."""
            for trajectory in kept:
                for example in step_examples(trajectory, setting.template, targets=targets):
                    tasks[example.task] += 1
                    yield example

        write_records(stage.path / REJECTED, (_rejected(*item) for item in dropped + left))
        write_records(stage.path / EXAMPLES, examples())
        write_setting(stage.path / RUN_SETTING, setting)
        verdicts = list(stage.log(VERDICTS, Verdict, key=lambda v: v.id))
        stage.finish(
            {
                **_counts(trajectories, kept, dropped, config.filters),
                "not_chosen": len(left),
                "judged": len(verdicts),
                "unscored": sum(verdict.rating is None for verdict in verdicts),
                "failed": sum(bool(verdict.error) for verdict in verdicts),
                "types": _by_type(trajectories, kept, dropped, config.filters),
                "examples": {task: tasks[task] for task in TASKS},
            }
        )
    return stage.path


def read_examples(folder: Path) -> list[StepExample]:
    """All examples of a finished build folder."""
    require_finished(folder, stage="build")
    return read_records(folder / EXAMPLES, StepExample)


# ---- filtering -------------------------------------------------------------------------------


def build_filter(name: FilterName, config: BuildConfig, setting: Setting) -> Filter:
    """The filter of that name with the thresholds asked for; the judge needs its verdicts first."""
    match name:
        case "answer":
            return AnswerFilter(config.measure, config.threshold, config.rules)
        case "empty":
            return EmptyFilter()
        case "repeat":
            return RepeatFilter()
        case "length":
            return LengthFilter(config.min_words, config.max_words, config.max_steps)
        case "ungrounded":
            return UngroundedFilter(setting.template.answer_cue)
        case "no-gain":
            return NoGainFilter()
        case "gold":
            return GoldFilter(config.min_gold_recall)
        case "judge":
            return JudgeFilter({})


def _sift(
    trajectories: Sequence[Trajectory],
    config: BuildConfig,
    setting: Setting,
    *,
    stage: Run,
    judge_lm: LM | None,
    say: Callable[[str], None],
) -> tuple[list[Trajectory], Rejects]:
    """Keep or drop by the filters asked for; the judge sees only what the others keep."""
    filters = [build_filter(name, config, setting) for name in config.filters if name != JUDGE]
    kept, dropped = sift(tqdm(trajectories, unit="trajectory", desc="filter"), filters)
    if JUDGE not in config.filters:
        return kept, dropped
    purse = open_purse(stage.path, config.budget)
    lm = judge_lm or build_lm(config.judge or "", config, purse=purse, pin=stage.path / API)
    log = stage.log(VERDICTS, Verdict, key=lambda verdict: verdict.id)
    with telling(lm, say):
        verdicts = wait_for(lambda: judge(kept, lm, log, in_flight=config.concurrency))
    kept, judged = sift(kept, [JudgeFilter(verdicts)])
    order = {trajectory.id: place for place, trajectory in enumerate(trajectories)}
    return kept, sorted(dropped + judged, key=lambda item: order[item[0].id])


def _check_filters(config: BuildConfig, judge_lm: LM | None) -> None:
    """Raise on a filter named twice, and on a judge without its filter or the reverse."""
    twice = [name for name, times in Counter(config.filters).items() if times > 1]
    if twice:
        raise SteperError(f"names {twice[0]!r} twice.", where="--filters", fix="Name it once.")
    named, wanted = bool(config.judge or judge_lm), JUDGE in config.filters
    if wanted and not named:
        raise SteperError(
            "the judge filter needs a model that judges.",
            where="--filters",
            fix="Name one with --judge (and --base-url, for a server), or leave the filter out.",
        )
    if named and not wanted:
        raise SteperError(
            "a judge is named, but its filter is not asked for.",
            where="--judge",
            fix=f"Use --filters {' '.join((*config.filters, JUDGE))}, or leave --judge out.",
        )


def _setting(config: BuildConfig) -> Setting:
    """How the student will be asked: as the teacher was, but for the layout and the examples."""
    rolled = read_setting(config.rollout / RUN_SETTING)
    template = rolled.template.laid_out(config.layout)
    return replace(rolled, template=template if config.few_shot else template.bare())


def _identity(config: BuildConfig) -> dict[str, Any]:
    """What of the configuration makes the run what it is; a judge's options only with a judge."""
    if JUDGE not in config.filters:
        return config.model_dump(
            mode="json", exclude={"out", "rollout", "retry_failed", *ModelOptions.model_fields}
        )
    kept = config.model_dump(
        mode="json", exclude={"out", "rollout", "retry_failed", *MEANS.split()}
    )
    return kept | {"endpoint": bool(config.base_url), "rubric": rubric_sha256()}


def _rejected(trajectory: Trajectory, drops: Sequence[Drop]) -> Rejected:
    first, *others = drops
    return Rejected(first.filter, first.reason, trajectory, tuple(drop.filter for drop in others))


def _nothing_left(dropped: Rejects, config: BuildConfig) -> SteperError:
    if not dropped:
        return SteperError(
            "holds no trajectory.", where=str(config.rollout), fix="Look at its failed.jsonl."
        )
    drop = dropped[0][1][0]
    return SteperError(
        f"none of {len(dropped)} trajectories passed the filters; the first was dropped "
        f"by {drop.filter!r}: {drop.reason}.",
        where=str(config.rollout),
        fix="Lower --threshold, choose another --measure, name fewer --filters, or use a better "
        "teacher.",
    )


# ---- yield -----------------------------------------------------------------------------------


def _counts(
    trajectories: Sequence[Trajectory],
    kept: Sequence[Trajectory],
    dropped: Rejects,
    filters: Sequence[FilterName],
) -> dict[str, Any]:
    """How many each filter drops in its place, and how many it would drop alone."""
    first = Counter(drops[0].filter for _, drops in dropped)
    alone = Counter(drop.filter for _, drops in dropped for drop in drops)
    return {
        "trajectories": len(trajectories),
        "kept": len(kept),
        "dropped": {name: first[name] for name in filters},
        "alone": {name: alone[name] for name in filters},
    }


def _by_type(
    trajectories: Sequence[Trajectory],
    kept: Sequence[Trajectory],
    dropped: Rejects,
    filters: Sequence[FilterName],
) -> dict[str, dict[str, Any]]:
    """The same for each type of question, where there are several."""
    types = sorted({trajectory.question.type for trajectory in trajectories})
    if len(types) < 2:
        return {}

    def of(type_: str, items: Iterable[Trajectory]) -> list[Trajectory]:
        return [trajectory for trajectory in items if trajectory.question.type == type_]

    return {
        type_: _counts(
            of(type_, trajectories),
            of(type_, kept),
            [(t, drops) for t, drops in dropped if t.question.type == type_],
            filters,
        )
        for type_ in types
    }


def yield_table(counts: dict[str, Any]) -> str:
    """The stage's counts as tables for people.

    A row a filter: how many it saw, dropped and left, and how many of all it drops alone; with
    several types of question also the share of each type that is left.
    """
    total, types = counts["trajectories"], counts["types"]
    rows: list[list[object]] = [["(all)", "", "", total, "100%", ""] + ["100%"] * len(types)]
    left = {"": total} | {name: part["trajectories"] for name, part in types.items()}
    for name, dropped in counts["dropped"].items():
        seen = left[""]
        left[""] -= dropped
        for type_, part in types.items():
            left[type_] -= part["dropped"][name]
        shares = [_share(left[type_], part["trajectories"]) for type_, part in types.items()]
        alone = counts["alone"][name]
        rows.append([name, seen, dropped, left[""], _share(left[""], total), alone, *shares])
    if counts["not_chosen"]:
        kept = [_share(part["kept"], part["trajectories"]) for part in types.values()]
        seen, dropped = left[""], counts["not_chosen"]
        rows.append(
            [CHOICE, seen, dropped, seen - dropped, _share(seen - dropped, total), "", *kept]
        )
    headers = [
        "filter",
        "seen",
        "dropped",
        "left",
        "share",
        "alone",
        *(t or "(none)" for t in types),
    ]
    lines = [tabulate(rows, headers=headers, disable_numparse=True)]
    if counts["judged"]:
        lines.append(
            f"judge: {counts['judged']} steps, {counts['unscored']} of them unscored, of which "
            f"{counts['failed']} because the call failed (--retry-failed)"
        )
    made = [f"{number} {task}" for task, number in counts["examples"].items()]
    return "\n\n".join([*lines, f"examples: {', '.join(made)}"])


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "-"
