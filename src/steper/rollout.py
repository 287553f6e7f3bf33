"""`steper rollout`: a teacher answers questions step by step, searching the index.

Writes ``trajectories.jsonl`` (every run, right or wrong), ``usage.jsonl`` (what each step took),
``failed.jsonl`` (runs that came to no end, with the reason) and ``setting.json``. Each finished run
is on disk at once; the same command goes on where it was stopped.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate
from tqdm import tqdm

from steper.accounts import LEDGERS, Purse, paid
from steper.config import MEANS, EvaluateConfig, RolloutConfig
from steper.datasets import load_chains, load_questions, with_chains
from steper.driver import Hope, Outcome, in_step, outcomes
from steper.errors import SteperError
from steper.metrics import mean_interval
from steper.models import API, RUN_SETTING, build_lm, telling, write_setting
from steper.protocols import LM, Usage
from steper.retrieval.indexes import describe_index, open_index
from steper.retrieval.info import IndexInfo
from steper.setting import Setting
from steper.store import Run, fingerprint, read_records
from steper.templates import load_template
from steper.types import STRICT, Failure, Question, Trajectory, run_id

TRAJECTORIES = "trajectories"

NO_PRICES = ["cost", "give --price-prompt", "and --price-completion", ""]
"""A row of the estimate."""


@dataclass(frozen=True, slots=True)
class RunUsage:
    """What one run took, step by step, and how long it was under way."""

    __pydantic_config__ = STRICT

    id: str
    steps: tuple[Usage, ...]
    seconds: float = 0.0

    @property
    def total(self) -> Usage:
        """All steps together."""
        return sum(self.steps, Usage())


class Logs:
    """The three files of a rollout, each append-only until it is finished."""

    def __init__(self, stage: Run) -> None:
        self.trajectories = stage.log(TRAJECTORIES, Trajectory, key=lambda t: t.id)
        self.failed = stage.log("failed", Failure, key=lambda f: f.id)
        self.usage = stage.log("usage", RunUsage, key=lambda u: u.id)

    def missing(
        self, runs: Iterable[tuple[Question, int]], *, retry_failed: bool
    ) -> list[tuple[Question, int]]:
        """The runs that are still to be made."""
        return [
            run
            for run in runs
            if (id_ := run_id(*run)) not in self.trajectories
            and (retry_failed or id_ not in self.failed)
        ]

    def add(self, outcome: Outcome) -> None:
        """Put one ended run on disk. What it took first: a run without usage would look free."""
        self.usage.append(RunUsage(outcome.result.id, outcome.usage, outcome.seconds))
        if isinstance(outcome.result, Failure):
            self.failed.append(outcome.result)
        else:
            self.trajectories.append(outcome.result)

    def finish(self) -> None:
        """Sort the files; a run that ended well after all is no failure any more.

        Raises:
            SteperError: if no run ended well.
        """
        if not len(self.trajectories):
            raise SteperError(
                f"all {len(self.failed)} questions failed.",
                where=str(self.failed.path),
                fix="Mend the cause written there and run the same command with --retry-failed.",
            )
        self.trajectories.finish()
        self.usage.finish()
        self.failed.finish(without=self.trajectories)


def rollout(config: RolloutConfig, *, say: Callable[[str], None] = print) -> Path:
    """Run the stage and return its folder.

    Args:
        config: who answers what, and how.
        say: receives what --dry-run found, and what the model has to tell of its calls.

    Raises:
        SteperError: on bad input, or where the folder holds another run.
    """
    setting = _setting(config)
    questions = read_questions(
        config.questions, split=config.split, limit=config.limit, chains=config.chains
    )
    if config.teacher == "annotated" and not config.base_url:
        questions = answerable(questions, config.questions, say=say)
    if config.temperature == 0 and max(config.samples, config.candidates) > 1:
        raise SteperError(
            "draws the same each time at temperature 0.",
            where="--samples" if config.samples > 1 else "--candidates",
            fix="Give a --temperature, such as 0.7.",
        )
    _check_ids(questions, config)
    with Run.open(
        config.out,
        stage="rollout",
        config=identity(
            config,
            describe_index(config.index),
            "retry_failed dry_run dry_run_questions engine workers worker_gpus",
        )
        # A file of that name may change under a run.
        | {"prompt": _named(config.prompt or config.strategy, setting)},
        inputs=inputs(config),
    ) as stage:
        if stage.finished and (config.dry_run or not config.retry_failed):
            return stage.path
        logs = Logs(stage)
        if stage.finished and not len(logs.failed):
            return stage.path
        stage.reopen()
        write_setting(stage.path / RUN_SETTING, setting)
        if config.dry_run:
            rng = random.Random(config.seed)
            sample = rng.sample(questions, min(config.dry_run_questions, len(questions)))
            begin = time.monotonic()
            _roll(sample, logs, config, setting, say)
            say(_estimate(logs, sample, len(questions), config, time.monotonic() - begin))
            return stage.path
        _roll(questions, logs, config, setting, say)
        logs.finish()
        found = counts(logs)
        if "cost" in found:
            # What replayed completions cost was paid elsewhere, or earlier.
            found["paid"] = round(paid(*config.out.glob(LEDGERS)), 6)
        stage.finish(found)
    return stage.path


def open_purse(folder: Path, budget: float | None) -> Purse:
    """The purse of a run folder, less what its earlier sessions have spent."""
    return Purse(budget, spent=paid(*folder.glob(LEDGERS)), ledger=folder / "spent.log")


def identity(
    config: RolloutConfig | EvaluateConfig, index: IndexInfo, without: str
) -> dict[str, Any]:
    """What of a configuration makes a run what it is, for its manifest."""
    # What files hold is among the manifest's inputs; their paths may be spelled otherwise.
    paths = ("out", "index", "questions", "chains")
    exclude = {*paths, *MEANS.split(), *without.split()}
    return config.model_dump(mode="json", exclude=exclude) | {
        "endpoint": bool(config.base_url),
        "index": index.fingerprint,
    }


def inputs(config: RolloutConfig | EvaluateConfig) -> dict[str, Path]:
    """The files whose content makes a run what it is, by name."""
    chains = {"chains": config.chains} if config.chains else {}
    return {"questions": config.questions, **chains}


def _named(prompt: str, setting: Setting) -> str:
    """A wording's name with a fingerprint of its content."""
    return f"{prompt} {fingerprint(setting.record()['template'])[:12]}"


def _check_ids(questions: Iterable[Question], config: RolloutConfig) -> None:
    """Raise where the id of one question is that of another's further sample."""
    ids = {question.id for question in questions}
    for id_ in ids:
        name, _, number = id_.rpartition("~")
        if name in ids and number in map(str, range(1, config.samples)):
            raise SteperError(
                f"id: {id_!r} is also what sample {number} of question {name!r} is called.",
                where=str(config.questions),
                fix="Give one of the questions another id.",
            )


def _setting(config: RolloutConfig) -> Setting:
    template = load_template(config.prompt or config.strategy).laid_out(config.layout)
    return Setting(
        config.strategy,
        template,
        config.k,
        config.max_steps,
        max_passages=config.max_passages,
        max_run_tokens=config.max_run_tokens,
        early_stop=config.early_stop,
        force_search=config.force_search,
    )


def _roll(
    questions: list[Question],
    logs: Logs,
    config: RolloutConfig,
    setting: Setting,
    say: Callable[[str], None],
) -> None:
    """Run the questions on this machine or on a cluster."""
    runs = [(question, sample) for question in questions for sample in range(config.samples)]
    if config.engine == "ray":
        from steper.cluster import ray_outcomes

        missing = logs.missing(runs, retry_failed=config.retry_failed)
        ended = ray_outcomes(missing, config, setting)
        follow(ended, logs, done=len(runs) - len(missing), total=len(runs))
        return
    lm = build_lm(
        config.teacher,
        config,
        error_rate=config.error_rate,
        seed=config.seed,
        purse=open_purse(config.out, config.budget),
        pin=config.out / API,
    )
    roll(runs, logs, config, setting=setting, lm=lm, candidates=config.candidates, say=say)


def roll(
    runs: Sequence[tuple[Question, int]],
    logs: Logs,
    config: RolloutConfig | EvaluateConfig,
    *,
    setting: Setting,
    lm: LM,
    candidates: int = 1,
    say: Callable[[str], None],
) -> None:
    """Make the runs that the logs do not hold yet, in this process; see ``outcomes``."""
    missing = logs.missing(runs, retry_failed=config.retry_failed)
    ended = outcomes(
        missing,
        setting=setting,
        retriever=open_index(config.index),
        lm=lm,
        in_flight=config.concurrency,
        candidates=candidates,
    )
    with telling(lm, say):
        follow(in_step(ended), logs, done=len(runs) - len(missing), total=len(runs))


def follow(ended: Iterable[Outcome], logs: Logs, *, done: int, total: int) -> None:
    """Put each run on disk as it ends, and show how far it is.

    Raises:
        SteperError: if nothing but failures comes, and whatever ``ended`` raises.
    """
    hope = Hope(good=len(logs.trajectories))
    with tqdm(total=total, initial=done, unit="question", desc="answering") as bar:
        for outcome in ended:
            logs.add(outcome)
            bar.update()
            if isinstance(outcome.result, Trajectory):
                hope.went_well()
                continue
            hope.failed(outage=outcome.outage)
            bar.set_postfix(failed=hope.bad)
            if hope.lost:
                since = "no server answered any more" if hope.good else "none succeeded"
                raise SteperError(
                    f"{hope.bad} questions failed and {since}; the last: {outcome.result.reason}",
                    where=f"question {outcome.result.id}, step {outcome.result.step}",
                    fix="Mend the cause and run the same command with --retry-failed; for other "
                    "options, name another --out (what is in the cache is not paid again).",
                )


def counts(logs: Logs) -> dict[str, Any]:
    """What a finished rollout holds, for its manifest and its table."""
    total: Counter[str] = Counter()
    for trajectory in logs.trajectories:
        steps = trajectory.steps
        total["answered"] += bool(trajectory.answer)
        total["steps"] += len(steps)
        total["searches"] += sum(bool(step.query) for step in steps)
        total["passages"] += sum(len(step.passages) for step in steps)
    return {
        "runs": len(logs.trajectories),
        "answered": total["answered"],
        "failed": len(logs.failed),
        "steps": total["steps"],
        "searches": total["searches"],
        "search_rate": round(total["searches"] / max(1, total["steps"]), 4),
        "passages": total["passages"],
    } | _used(logs)


def _used(logs: Logs) -> dict[str, Any]:
    """What the runs took; empty for a teacher without tokens."""
    used = sum((run.total for run in logs.usage), Usage())
    if not used.prompt_tokens:
        return {}
    return {
        "prompt_tokens": used.prompt_tokens,
        "cached_tokens": used.cached_tokens,
        "completion_tokens": used.completion_tokens,
        "call_seconds": round(used.seconds, 1),
        "cost": round(used.cost, 6),
    }


def _estimate(
    logs: Logs, sample: list[Question], questions: int, config: RolloutConfig, seconds: float
) -> str:
    """What all questions would take, from those of the sample, as a table."""
    ids = {run_id(question, n): question.id for question in sample for n in range(config.samples)}
    per: dict[str, Usage] = {question.id: Usage() for question in sample}
    for run in logs.usage:
        if run.id in ids:
            per[ids[run.id]] = per[ids[run.id]] + run.total

    def row(name: str, values: list[float], digits: int) -> list[str]:
        mean = mean_interval(values, seed=config.seed)
        each, low, high = (
            f"{x * questions:,.{digits}f}" for x in (mean.value, mean.low, mean.high)
        )
        return [name, f"{sum(values):,.{digits}f}", each, f"{low} to {high}"]

    used = list(per.values())
    rows = [
        row("prompt tokens", [float(u.prompt_tokens) for u in used], 0),
        row("of them cached", [float(u.cached_tokens) for u in used], 0),
        row("tokens written", [float(u.completion_tokens) for u in used], 0),
        row("cost", [u.cost for u in used], 4) if any(u.cost for u in used) else NO_PRICES,
        row("minutes of calls", [u.seconds / 60 for u in used], 1),
        ["minutes now", f"{seconds / 60:.1f}", f"{seconds / 60 * questions / len(used):,.1f}", ""],
    ]
    headers = ["", f"{len(used)} questions", f"all {questions:,}", "95% interval"]
    return tabulate(rows, headers=headers, disable_numparse=True, stralign="right")


def read_questions(
    path: Path, *, split: str | None, limit: int | None, chains: Path | None
) -> list[Question]:
    """Questions of a file, with people's chains attached where a file of them is given."""
    questions = load_questions(path, split=split, limit=limit)
    return with_chains(questions, load_chains(chains)) if chains else questions


def answerable(
    questions: Sequence[Question], path: Path, *, say: Callable[[str], None]
) -> list[Question]:
    """The questions that have a gold chain, for the annotated teacher; says how many have none.

    Raises:
        SteperError: if none has one.
    """
    kept = [question for question in questions if question.chain]
    if not kept:
        raise SteperError(
            "no question has a gold chain, so the annotated teacher cannot answer any.",
            where=str(path),
            fix="Give --chains, use MuSiQue or 2WikiMultiHopQA, or name another --teacher.",
        )
    if missing := len(questions) - len(kept):
        say(f"{missing} of {len(questions)} questions have no gold chain and are left out")
    return kept


def read_trajectories(folder: Path) -> list[Trajectory]:
    """All trajectories of a finished rollout or evaluation folder."""
    return read_records(folder / f"{TRAJECTORIES}.jsonl", Trajectory)
