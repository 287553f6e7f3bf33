"""The real command against a server, killed at any moment: nothing lost, doubled or paid twice."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from faults import Call, Stub, said
from road import Road
from steper.accounts import paid
from steper.lm.calls import CallCache
from steper.rollout import RunUsage, read_trajectories
from steper.store import read_json, read_records

CONCURRENCY = 4
KILLS = 5


async def reasoned(call: Call) -> bytes:
    """A teacher that answers after one to four sentences, told by the prompt alone."""
    await asyncio.sleep(0.01)
    prompt = call.asked["prompt"]
    digest = hashlib.sha256(prompt.encode()).hexdigest()
    if prompt.endswith("is:") or digest[0] in "0123":
        return said(f"{'' if prompt.endswith(':') else 'So the answer is:'} {digest[:6]}.")
    return said(f"I need to find {digest[:8]}.", prompt_tokens=len(prompt))


def command(road: Road, out: Path, url: str, cache: Path) -> list[str]:
    options = {
        "index": road.index,
        "questions": road.questions,
        "out": out,
        "teacher": "stub",
        "prompt": "world",
        "k": 2,
        "base-url": url,
        "api": "completions",
        "cache": cache,
        "concurrency": CONCURRENCY,
        "price-prompt": 1000,
    }
    flags = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    return [sys.executable, "-m", "steper.cli", "rollout", *flags]


def files(folder: Path) -> dict[str, bytes]:
    """The content of each file, without how long the runs took by the clock."""
    return {
        path.name: re.sub(rb', "seconds": [\d.]+}\n', b"}\n", path.read_bytes())
        for path in folder.glob("*.json*")
        if path.stem != "manifest"
    }


def test_killed_at_any_moment_it_ends_as_if_nothing_had_happened(
    road: Road, tmp_path: Path
) -> None:
    out, cache = tmp_path / "out", tmp_path / "cache.sqlite"
    with Stub(reasoned) as stub:
        kills = 0
        while True:
            before = len(stub.calls)
            process = subprocess.Popen(
                command(road, out, stub.url, cache), stderr=subprocess.PIPE, stdout=subprocess.PIPE
            )
            # Each session gets a little further, and is killed in the middle of its calls.
            while process.poll() is None:
                if kills < KILLS and len(stub.calls) >= before + 7 + kills:
                    os.kill(process.pid, signal.SIGKILL)
                    kills += 1
                    break
                time.sleep(0.002)
            _, errors = process.communicate()
            if process.returncode != -signal.SIGKILL:
                break
        assert process.returncode == 0, errors.decode()
        assert kills == KILLS
        made = len(stub.calls)

        clean = tmp_path / "clean"
        replay = command(road, clean, stub.url, cache)
        subprocess.run(replay, check=True, capture_output=True)
        assert len(stub.calls) == made, "the clean run is one of replayed completions"

    assert files(out) == files(clean)
    ids = [trajectory.id for trajectory in read_trajectories(out)]
    assert len(ids) == len(set(ids)) == len(road.questions.read_text().splitlines())

    asked = Counter(json.dumps(call.asked, sort_keys=True) for call in stub.calls)
    assert CallCache(cache).count() == len(asked)
    # Only what was under way at a kill, and so never came back, is asked for again.
    assert made - len(asked) <= KILLS * CONCURRENCY

    steps = [step.cost for run in read_records(out / "usage.jsonl", RunUsage) for step in run.steps]
    cost = sum(steps)
    assert abs(read_json(out / "manifest.json")["counts"]["cost"] - cost) < 1e-6
    # A kill may fall between paying and counting, or between counting and keeping.
    slack = KILLS * CONCURRENCY * max(steps)
    assert abs(paid(out / "spent.log") - cost) <= slack
    assert not (clean / "spent.log").exists(), "nothing was paid for what was replayed"


def test_a_budget_in_the_real_command(road: Road, tmp_path: Path) -> None:
    out, cache = tmp_path / "out", tmp_path / "cache.sqlite"
    with Stub(reasoned) as stub:
        base = command(road, out, stub.url, cache)
        stopped = subprocess.run([*base, "--budget", "10"], capture_output=True, text=True)
        assert stopped.returncode == 2 and "Traceback" not in stopped.stderr
        assert "the budget of 10 is used up" in stopped.stderr.splitlines()[-1]
        assert 0 < paid(out / "spent.log") <= 10
        gone = len(stub.calls)
        subprocess.run([*base, "--budget", "1000"], check=True, capture_output=True)
    bodies = [call.body for call in stub.calls]
    assert len(set(bodies)) == len(bodies) > gone, "no call was made a second time"
    whole = read_json(out / "manifest.json")["counts"]["cost"]
    assert abs(paid(out / "spent.log") - whole) < 1e-6


def test_a_server_that_is_not_there_is_named(road: Road, tmp_path: Path) -> None:
    url = "http://127.0.0.1:9/v1"
    arguments = command(road, tmp_path / "out", url, tmp_path / "cache.sqlite")
    result = subprocess.run([*arguments, "--retries", "1"], capture_output=True, text=True)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert f"{url}: no server answers." in result.stderr
