"""`steper evaluate`: run a student, base model or teacher on questions and score it.

Writes ``trajectories.jsonl``, ``usage.jsonl``, ``scores.jsonl`` (every measure of each question, as
``steper.scores`` defines them) and ``results.json``: each measure's mean with its bootstrap 95%
interval, also by question type and hops, and everything needed to make the run again. The answers
are also in ``predictions.json`` or ``.jsonl``, for the data set's official script
(``steper.predictions``).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from tabulate import tabulate

from steper.arms import RESULTS, SCORES
from steper.config import EvaluateConfig
from steper.errors import SteperError
from steper.models import (
    API,
    COMPLETIONS,
    build_lm,
    default_setting,
    model_path,
    parameter_count,
    taught_setting,
)
from steper.predictions import write_predictions
from steper.retrieval.indexes import describe_index
from steper.retrieval.info import IndexInfo
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
from steper.scores import (
    SHARES,
    QuestionScore,
    breakdown,
    recall_by_step,
    score_trajectory,
    summarise,
)
from steper.setting import Setting
from steper.store import Run, fingerprint, read_json, versions, write_json, write_records
from steper.templates import load_template

OPTIONS = ("k", "max_steps", "max_passages", "max_run_tokens", "early_stop", "force_search")
"""Options of the command that are fields of the setting, too."""


def evaluate(config: EvaluateConfig, *, say: Callable[[str], None] = print) -> Path:
    """Run the stage and return its folder.

    Args:
        config: what to evaluate on what.
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
        if len(logs.failed):
            say(
                f"{len(logs.failed)} questions failed and are not scored; --retry-failed tries "
                "them again"
            )
        took = {run.id: run for run in logs.usage}
        scores = [
            score_trajectory(t, config.rules, usage=took[t.id].total, seconds=took[t.id].seconds)
            for t in logs.trajectories
        ]
        write_records(stage.path / SCORES, scores)
        said = {t.id: t.answer for t in logs.trajectories}
        # In the file's order, which the trajectories are not in.
        answers = {q.id: said[q.id] for q in questions if q.id in said}
        write_predictions(stage.path, answers, rules=config.rules)
        result = {
            "kind": "evaluation",
            "label": config.label or config.out.resolve().name,
            **_made_of(config, setting, index, stage),
            "failed": len(logs.failed),
            "seconds": seconds,
            "usage": counts(logs),
            **_figures(scores, config.seed),
        }
        write_json(stage.path / RESULTS, result)
        stage.finish({"questions": len(scores), "em": result["metrics"]["em"]["value"]})
    return stage.path


def _made_of(
    config: EvaluateConfig, setting: Setting, index: IndexInfo, stage: Run
) -> dict[str, Any]:
    """What the run is of: everything needed to make it again, or to compare it with another."""
    return {
        "model": config.model,
        "endpoint": bool(config.base_url),
        "parameters": None if config.base_url else parameter_count(config.model),
        "split": config.split or "all",
        "seeds": [config.seed],
        "questions_sha256": stage.inputs["questions"],
        "corpus_sha256": index.corpus_sha256,
        "index_fingerprint": index.fingerprint,
        "retriever": index.kind,
        "rules": config.rules,
        "setting": setting.record(),
        "prompt_sha256": fingerprint(setting.record()["template"]),
        "concurrency": config.concurrency,
        "versions": versions(),
    }


def _figures(scores: Sequence[QuestionScore], seed: int) -> dict[str, Any]:
    """Everything counted over questions."""
    took = [s.seconds for s in scores if s.seconds is not None]
    return {
        "n": len(scores),
        "metrics": summarise(scores, seed=seed),
        "by_type": breakdown(scores, lambda s: s.type or "all", seed=seed),
        "by_hops": breakdown(scores, lambda s: str(s.hops or "unknown"), seed=seed),
        "recall_by_step": recall_by_step(scores),
        # Of questions that wait for each other: with --concurrency 1 it is one question's own.
        "latency": {
            "median_s": float(np.quantile(took, 0.5)),
            "p95_s": float(np.quantile(took, 0.95)),
            "n": len(took),
        },
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


COLUMNS: Mapping[str, str] = {
    "em": "EM",
    "f1": "F1",
    "acc": "Acc",
    "recall": "recall",
    "initialization": "init.",
    "expansion": "exp.",
    "aggregation": "agg.",
    "subquestion_acc": "sub-q.",
    "steps": "steps",
    "searches": "searches",
}
"""The measures of the table with their headings."""


def evaluation_table(folders: Sequence[Path]) -> str:
    """One row a label: each measure's mean over its runs, shares in percent."""
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for folder in folders:
        result = read_json(folder / RESULTS)
        runs[result["label"]].append(result)

    def cell(results: list[dict[str, Any]], measure: str) -> str:
        values = [r["metrics"][measure]["value"] for r in results if r["metrics"][measure]]
        if not values:
            return "-"
        return f"{fmean(values) * (100 if measure in SHARES else 1):.1f}"

    rows = [
        [
            label,
            f"{sum(r['n'] for r in results)}",
            f"{sum(r['failed'] for r in results)}",
            *(cell(results, measure) for measure in COLUMNS),
            f"{fmean(r['seconds'] for r in results):.0f}",
        ]
        for label, results in runs.items()
    ]
    headers = ["", "n", "failed", *COLUMNS.values(), "seconds"]
    return tabulate(rows, headers=headers, stralign="right", disable_numparse=True)
