"""`steper rollout --engine ray`: the same rollout as Ray actors, on one machine or a cluster.

Every worker is an actor with an index and a model of its own. It is handed one shard of the runs
after another and streams each outcome back as soon as it is there; only this process writes files.
A worker that dies is replaced, and what it had not handed in is run again, so nothing is lost and
nothing doubled. Runs do not depend on each other: the finished files equal those of one process.

A cluster's address is read from ``RAY_ADDRESS``; without one, workers run on this machine. Index
and model must be readable under the same path on every machine.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steper.accounts import LEDGERS, Purse, paid
from steper.config import RolloutConfig
from steper.driver import Outcome, in_step, outcomes
from steper.errors import BudgetSpent, SteperError
from steper.models import API, build_lm
from steper.retrieval.indexes import describe_index, open_index
from steper.setting import Setting
from steper.types import Question, run_id

Work = tuple[Question, int]

SHARDS = 8
"""Shards per worker: few enough to keep every batch full, many enough that all end together."""

DEATHS = 3
"""So many workers in a row that die before they hand anything in will not be the last."""


@dataclass(frozen=True, slots=True)
class Share:
    """A worker's part of what the budget leaves, and the file it keeps its payments in."""

    budget: float | None
    ledger: Path

    def purse(self) -> Purse:
        """The share less what a worker before has spent of it."""
        return Purse(self.budget, spent=paid(self.ledger), ledger=self.ledger)


class _Worker:
    """What runs in each actor."""

    def __init__(
        self, config: RolloutConfig, setting: Setting, share: Share, index: str = ""
    ) -> None:
        self._config, self._setting = config, setting
        self._retriever = open_index(config.index)
        if index and self._retriever.info.fingerprint != index:
            raise SteperError(
                "the index has changed since the run began, and what it finds would be mixed.",
                where=str(config.index),
                fix="Put the former index back, or start anew with another --out.",
            )
        self._lm = build_lm(
            config.teacher,
            config,
            error_rate=config.error_rate,
            seed=config.seed,
            purse=share.purse(),
            pin=config.out / API,
        )

    def answer(self, shard: Sequence[Work]) -> Iterator[Outcome | SteperError]:
        """The outcomes of a shard, and at the end perhaps the error that ended it early."""
        ended = outcomes(
            shard,
            setting=self._setting,
            retriever=self._retriever,
            lm=self._lm,
            in_flight=self._config.concurrency,
            candidates=self._config.candidates,
        )
        try:
            yield from in_step(ended)
        except SteperError as error:
            yield error


def ray_outcomes(
    runs: Sequence[Work], config: RolloutConfig, setting: Setting
) -> Iterator[Outcome]:
    """How each run ends, as soon as it does, in any order.

    Args:
        runs: questions with the numbers of their samples.
        config: workers, model and index.
        setting: the protocol.

    Raises:
        SteperError: if Ray is missing, workers keep dying, or no completion can be had.
    """
    if not runs:
        return
    ray, started = start_ray(config.workers)
    workers = min(config.workers, len(runs))
    actor = ray.remote(num_cpus=1, num_gpus=config.worker_gpus)(_Worker)
    shares, index = _shares(config, workers), describe_index(config.index).fingerprint
    try:
        yield from _share_out(
            ray, runs, workers, lambda n: actor.remote(config, setting, shares[n], index)
        )
    finally:
        if started:
            ray.shutdown()


def _shares(config: RolloutConfig, workers: int) -> list[Share]:
    """An equal share each. A worker that takes another's place takes over its share and ledger."""
    ledgers = [config.out / f"spent-{number}.log" for number in range(workers)]
    if config.budget is None:
        return [Share(None, ledger) for ledger in ledgers]
    left = max(0.0, config.budget - paid(*config.out.glob(LEDGERS))) / workers
    return [Share(left + paid(ledger), ledger) for ledger in ledgers]


def _share_out(
    ray: Any, runs: Sequence[Work], workers: int, hire: Callable[[int], Any]
) -> Iterator[Outcome]:
    """Hand shards to workers and their outcomes on; ``hire`` makes a worker for a share."""
    shards = deque(runs[n :: workers * SHARDS] for n in range(workers * SHARDS) if runs[n:])
    busy: dict[Any, tuple[int, Any, dict[str, Work]]] = {}  # stream: share, worker, what it owes
    deaths = 0
    stopped: SteperError | None = None

    def begin(number: int, worker: Any) -> None:
        if shards and stopped is None:
            shard = shards.popleft()
            stream = worker.answer.options(num_returns="streaming").remote(shard)
            busy[stream] = (number, worker, {run_id(*run): run for run in shard})

    for number in range(workers):
        begin(number, hire(number))
    while busy:
        (stream, *_), _ = ray.wait([*busy], num_returns=1, fetch_local=False)
        number, worker, owed = busy[stream]
        try:
            outcome = ray.get(next(stream))
        except StopIteration:
            del busy[stream]
            begin(number, worker)
        except ray.exceptions.RayError as error:
            deaths += 1
            reason = str(error).strip().splitlines()[-1]
            del busy[stream]
            if deaths >= DEATHS:
                raise SteperError(
                    f"{deaths} workers died in a row; the last: {reason}",
                    where="--engine ray",
                    fix="See Ray's logs; the same command goes on where it stopped.",
                ) from None
            shards.appendleft([*owed.values()])
            begin(number, hire(number))
        else:
            if isinstance(outcome, SteperError):
                stopped = stopped or outcome
                if not isinstance(outcome, BudgetSpent):
                    break
                continue
            deaths = 0
            del owed[outcome.result.id]
            yield outcome
    if stopped:
        raise stopped


def start_ray(workers: int) -> tuple[Any, bool]:
    """Ray, connected to the cluster or started on this machine, and whether that was done here."""
    try:
        import ray
    except ModuleNotFoundError:
        raise SteperError(
            "Ray is not installed.", where="--engine ray", fix="pip install 'steper[ray]'"
        ) from None
    if ray.is_initialized():
        return ray, False
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if "RAY_ADDRESS" not in os.environ:
        options |= {
            "num_cpus": max(workers, os.cpu_count() or 1),
            "include_dashboard": False,
        }
    ray.init(**options)
    return ray, True
