"""Ray workers on a local cluster: the same files as one process, also when a worker is killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from faults import Call, Stub, said
from road import Road, rollout_config
from steper.accounts import paid
from steper.cluster import ray_outcomes
from steper.config import RolloutConfig
from steper.errors import BudgetSpent
from steper.models import RUN_SETTING, read_setting
from steper.rollout import RunUsage, read_questions, read_trajectories, rollout
from steper.store import read_records
from steper.types import Trajectory

pytest.importorskip("ray", reason="needs Ray: pip install 'steper[ray]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own


def workers() -> set[int]:
    """Process ids of the actors that Ray runs for this process."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        try:
            if " ".join(process.cmdline()).startswith("ray::_Worker"):
                found.add(process.pid)
        except psutil.Error:
            continue
    return found


def test_two_workers_write_what_one_process_writes(road: Road, tmp_path: Path) -> None:
    config = rollout_config(road.corpus.parent, tmp_path / "ray", engine="ray", workers=2)
    folder = rollout(config)
    for name in ("trajectories.jsonl", "failed.jsonl", RUN_SETTING):
        assert (folder / name).read_bytes() == (road.rollout / name).read_bytes(), name
    # How long a run took by the clock is its own.
    here, there = (read_records(f / "usage.jsonl", RunUsage) for f in (road.rollout, folder))
    assert [(run.id, run.steps) for run in there] == [(run.id, run.steps) for run in here]


def test_a_killed_worker_is_replaced_and_nothing_is_lost_or_doubled(
    road: Road, tmp_path: Path
) -> None:
    """The teacher is a neural model, so that the killed worker is in the middle of its shard."""
    config: RolloutConfig = rollout_config(
        road.corpus.parent,
        tmp_path / "local",
        teacher=str(road.model),
        max_steps=4,
        max_tokens=24,
        device="cpu",
    )
    expected = {t.id: t for t in read_trajectories(rollout(config))}

    questions = read_questions(road.questions, split=None, limit=None, chains=None)
    runs = [(question, 0) for question in questions]
    setting = read_setting(tmp_path / "local" / RUN_SETTING)
    seen: set[int] = set()
    killed: int | None = None
    got: list[Trajectory] = []
    for outcome in ray_outcomes(runs, config, setting):
        assert isinstance(outcome.result, Trajectory)
        got.append(outcome.result)
        seen |= workers()
        if killed is None:
            killed = min(seen)
            os.kill(killed, signal.SIGKILL)
    assert len(got) == len(expected)
    assert {t.id: t for t in got} == expected
    assert len(seen) >= 3, "two workers, and the one that took the killed one's place"


def test_a_budget_is_shared_out_and_a_higher_one_goes_on(road: Road, tmp_path: Path) -> None:
    """Each worker has its part; together they never spend more, and lose no answer they paid."""

    def answer(call: Call) -> bytes:
        prompt = call.asked["prompt"]
        text = " x." if prompt.endswith("is:") else "I need to find more."
        return said(text, prompt_tokens=len(prompt.encode()))  # as dense as tokens come

    with Stub(answer) as stub:
        config = rollout_config(
            road.corpus.parent,
            tmp_path / "out",
            teacher="stub",
            base_url=(stub.url,),
            api="completions",
            max_steps=3,
            cache=str(tmp_path / "cache.sqlite"),
            price_prompt=1000.0,
            engine="ray",
            workers=2,
            budget=8.0,
        )
        with pytest.raises(BudgetSpent, match="Raise it and run the same command"):
            rollout(config)
        assert 2 < paid(*(tmp_path / "out").glob("spent*.log")) <= 8
        folder = rollout(config.model_copy(update={"budget": 1000.0, "engine": "local"}))
    bodies = [call.body for call in stub.calls]
    assert len(set(bodies)) == len(bodies), "no call was made a second time"
    assert len(read_trajectories(folder)) == len(road.questions.read_text().splitlines())
    whole = sum(len(call.asked["prompt"].encode()) for call in stub.calls) / 1000
    assert paid(*folder.glob("spent*.log")) == pytest.approx(whole)
