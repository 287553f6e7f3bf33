"""`steper evaluate`: run a student, base model or teacher on questions and score it.

Scores come with bootstrap 95% intervals. Where questions have gold chains, the three abilities
are scored too, exactly and for free: see ``step_accuracies``. Writes ``trajectories.jsonl``,
``scores.jsonl`` (one line a question) and ``evaluation.json``.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from tabulate import tabulate

from steper.config import EvaluateConfig
from steper.errors import SteperError
from steper.metrics import Rules, mean_interval, normalize, recall, score
from steper.models import (
    API,
    COMPLETIONS,
    build_lm,
    default_setting,
    model_path,
    taught_setting,
)
from steper.retrieval.indexes import describe_index
from steper.rollout import (
    Logs,
    answerable,
    counts,
    identity,
    inputs,
    open_purse,
    read_questions,
    roll,
)
from steper.setting import Setting
from steper.store import Run, read_json, write_json, write_records
from steper.templates import load_template
from steper.types import STRICT, Trajectory

MEASURES = (
    "em", "f1", "acc", "recall", "first_step_acc", "middle_step_acc", "last_step_acc", "steps",
)  # fmt: skip


OPTIONS = ("k", "max_steps", "max_passages", "max_run_tokens", "early_stop", "force_search")
"""Options of the command that are fields of the setting, too."""


@dataclass(frozen=True, slots=True)
class QuestionScore:
    """All measures of one question; ``None`` where a measure does not apply to it."""

    __pydantic_config__ = STRICT

    id: str
    em: float
    f1: float
    acc: float
    recall: float | None
    first_step_acc: float | None
    middle_step_acc: float | None
    last_step_acc: float | None
    steps: int


def step_accuracies(trajectory: Trajectory) -> tuple[float | None, float | None, float | None]:
    """The three abilities on the gold chain: (first, middle, last), ``None`` where unknown.

    A step before the last is right if its sentence states the answer of a hop that was not stated
    before and whose passage has been retrieved; or, where the next hop's passage has not been
    retrieved, if searching with the sentence brings that passage. Everything is checked on the
    trajectory itself, so no judge is needed. First is step 1, middle the mean over steps 2 … S-1,
    last whether the run's answer is right (EM).
    """
    hops = [hop for hop in trajectory.question.chain if hop.answer and hop.title]
    if not hops or not trajectory.steps:
        return None, None, None
    steps = trajectory.steps
    unstated, seen, right = list(hops), set[str](), list[float]()
    for step, following in pairwise(steps):
        seen |= {passage.title for passage in step.passages}
        said = f" {normalize(step.reasoning)} "
        stated = [h for h in unstated if h.title in seen and f" {normalize(h.answer)} " in said]
        # Of hops with equal answers, one sentence states one.
        stated = list({normalize(h.answer): h for h in reversed(stated)}.values())
        if stated or not unstated:
            right.append(float(bool(stated)))
        else:
            found = {passage.title for passage in following.passages}
            right.append(float(unstated[0].title in found))
        unstated = [hop for hop in unstated if hop not in stated]
    last = score(trajectory.answer, trajectory.question.answers).em
    # A run of one step skipped the beginning: it answered without any reasoning of its own.
    return (right[0] if right else 0.0), (fmean(right[1:]) if right[1:] else None), last


def score_trajectory(trajectory: Trajectory, rules: Rules) -> QuestionScore:
    """All measures of one run."""
    question = trajectory.question
    answer = score(trajectory.answer, question.answers, rules=rules)
    first, middle, last = step_accuracies(trajectory)
    titles = [passage.title for passage in trajectory.passages]
    gold = question.supporting_titles
    return QuestionScore(
        id=question.id,
        em=answer.em,
        f1=answer.f1,
        acc=answer.acc,
        recall=recall(titles, gold) if gold else None,
        first_step_acc=first,
        middle_step_acc=middle,
        last_step_acc=last,
        steps=len(trajectory.steps),
    )


def evaluate(
    config: EvaluateConfig, *, label: str = "", say: Callable[[str], None] = print
) -> Path:
    """Run the stage and return its folder.

    Args:
        config: what to evaluate on what.
        label: name of the run in tables; by default the output folder's.
        say: receives what the model has to tell of its calls.

    Raises:
        SteperError: on bad input, a setting other than the student's own, or where the folder
            holds another run.
    """
    setting = _setting(config)
    questions = read_questions(
        config.questions, split=config.split, limit=config.limit, chains=config.chains
    )
    if config.model == "annotated" and not config.base_url:
        questions = answerable(questions, config.questions, say=say)
    index = describe_index(config.index)
    read = inputs(config)
    if not config.base_url and Path(path := model_path(config.model)).is_dir():
        read["model"] = Path(path)
    with Run.open(
        config.out,
        stage="evaluate",
        config=identity(config, index, "retry_failed setting") | setting.record(),
        inputs=read,
    ) as stage:
        if stage.finished and not config.retry_failed:
            return stage.path
        logs = Logs(stage)
        if stage.finished and not len(logs.failed):
            return stage.path
        stage.reopen()
        lm = build_lm(
            config.model,
            config,
            error_rate=config.error_rate,
            seed=config.seed,
            purse=open_purse(config.out, config.budget),
            # Not shared: students are often served under one name, and answer differently.
            cache=config.out / COMPLETIONS,
            pin=config.out / API,
        )
        begin = time.monotonic()
        runs = [(question, 0) for question in questions]
        roll(runs, logs, config, setting=setting, lm=lm, say=say)
        seconds = round(time.monotonic() - begin, 2)
        logs.finish()
        done = list(logs.trajectories)
        if len(logs.failed):
            say(
                f"{len(logs.failed)} questions failed and are not scored; --retry-failed tries "
                "them again"
            )
        scores = [score_trajectory(trajectory, config.rules) for trajectory in done]
        write_records(stage.path / "scores.jsonl", scores)
        result: dict[str, Any] = {
            "label": label or config.out.name,
            "model": config.model,
            "split": config.split or "all",
            "n": len(scores),
            "failed": len(logs.failed),
            "usage": counts(logs),
            "questions_sha256": stage.inputs["questions"],
            "corpus_sha256": index.corpus_sha256,
            "retriever": index.kind,
            "rules": config.rules,
            "setting": setting.record(),
            "seconds": seconds,
            "metrics": summarise(scores, seed=config.seed),
            "by_type": _by_type(done, scores),
        }
        write_json(stage.path / "evaluation.json", result)
        stage.finish({"questions": len(scores), "em": result["metrics"]["em"]["value"]})
    return stage.path


def summarise(scores: Sequence[QuestionScore], *, seed: int) -> dict[str, Any]:
    """Each measure's mean and bootstrap 95% interval over the questions it applies to."""
    summary: dict[str, Any] = {}
    for measure in MEASURES:
        values = [v for s in scores if (v := getattr(s, measure)) is not None]
        summary[measure] = asdict(mean_interval(values, seed=seed)) if values else None
    return summary


def _by_type(
    trajectories: Sequence[Trajectory], scores: Sequence[QuestionScore]
) -> dict[str, dict[str, float]]:
    groups: dict[str, list[QuestionScore]] = defaultdict(list)
    for trajectory, question_score in zip(trajectories, scores, strict=True):
        groups[trajectory.question.type or "all"].append(question_score)
    return {
        type_: {m: fmean(getattr(s, m) for s in group) for m in ("em", "f1", "acc")}
        | {"n": len(group)}
        for type_, group in sorted(groups.items())
    }


def _setting(config: EvaluateConfig) -> Setting:
    """The student's own setting, or the one given on the command line for other models."""
    own = taught_setting(config.model, config.setting)
    if own is not None:
        _refuse_other(own, config)
        return own
    default = default_setting()
    strategy = config.strategy or default.strategy
    asked = {name: value for name in OPTIONS if (value := getattr(config, name)) is not None}
    template = load_template(config.prompt or strategy).laid_out(config.layout)
    return replace(default, strategy=strategy, template=template, **asked)


def _refuse_other(own: Setting, config: EvaluateConfig) -> None:
    """Raise where the command line asks for another setting than the student's own."""
    template = load_template(config.prompt) if config.prompt else None
    if template and not own.template.examples:
        template = template.bare()  # a student inherits a wording without its examples
    if template and template.layout == "grouped":
        # A wording that names no layout says nothing against the student's.
        template = template.laid_out(own.template.layout)
    wanted: dict[str, tuple[object, object]] = {
        "strategy": (own.strategy, config.strategy),
        "prompt": (own.template, template),
        "layout": (own.template.layout, config.layout),
    } | {name: (getattr(own, name), getattr(config, name)) for name in OPTIONS}
    for name, (taught, asked) in wanted.items():
        if asked is not None and asked != taught:
            raise SteperError(
                f"the student was taught with {name} = {taught!r}, not {asked!r}.",
                where=str(config.setting or Path(config.model) / "steper.json"),
                fix=f"Leave --{name.replace('_', '-')} out.",
            )


def evaluation_table(folders: Sequence[Path]) -> str:
    """One row a label: each measure's mean over its runs, in percent but for steps and seconds."""
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for folder in folders:
        result = read_json(folder / "evaluation.json")
        runs[result["label"]].append(result)

    def cell(results: list[dict[str, Any]], measure: str) -> str:
        values = [r["metrics"][measure]["value"] for r in results if r["metrics"][measure]]
        if not values:
            return "-"
        return f"{fmean(values):.1f}" if measure == "steps" else f"{100 * fmean(values):.1f}"

    rows = [
        [
            label,
            f"{sum(r['n'] for r in results)}",
            f"{sum(r.get('failed', 0) for r in results)}",
            *(cell(results, measure) for measure in MEASURES),
            f"{fmean(r['seconds'] for r in results):.0f}",
        ]
        for label, results in runs.items()
    ]
    headers = [
        *("", "n", "failed", "EM", "F1", "Acc", "recall", "first", "middle", "last", "steps"),
        "seconds",
    ]
    return tabulate(rows, headers=headers, stralign="right", disable_numparse=True)
