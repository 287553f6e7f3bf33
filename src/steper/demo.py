"""`steper demo`: the whole road in the offline world, with the same verbs a user calls.

World -> corpus and index -> teacher rollout -> filter and examples -> three students -> real
multi-step inference on held-out questions -> one table, one report. It is an experiment like any
other (``steper.experiment``), written here so that it needs no file. Nothing is downloaded, and the
same command resumes.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from steper.build import yield_table
from steper.config import DemoConfig
from steper.datasets import load_questions
from steper.experiment import finish, run_plan
from steper.plan import make_plan
from steper.report.verdicts import QUESTION
from steper.store import require_finished
from steper.study import Experiment, parse_experiment
from steper.train import STUDENT

DATA = "world"
ASKED = {"prompt": "world", "k": 2, "max_steps": 8}
"""How the teacher and whoever is not taught are asked."""

MISREADS = {"error_rate": 0.08}
"""How often the teacher misreads a fact."""


def demo(config: DemoConfig) -> Path:
    """Run or resume the demo and return the report's path.

    Raises:
        SteperError: where a folder holds a run with other settings.
    """
    found = demo_experiment(config)
    plan = make_plan(found, config.out)
    seconds = run_plan(plan, say=_say)
    given = config.model_dump(exclude_defaults=True, exclude={"equal_tokens"})
    command = ["steper", "demo", *(["--equal-tokens"] if config.equal_tokens else [])]
    for name, value in given.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    _say("")
    for cell in plan.cells.values():
        if cell.stage == "build":
            _say(yield_table(require_finished(cell.folder, stage="build")["counts"]))
    report = finish(found, plan, config.out, command=shlex.join(command), seconds=seconds, say=_say)
    if config.seeds == 1:
        home = config.out / DATA / "seed-0"
        question = load_questions(home / "world" / "questions.jsonl", split="test", limit=1)[0]
        index, uniform = home / "index" / "plain", plan.trainings["steper_uniform"][0]
        ours, theirs = (plan.evaluations[arm][0] for arm in ("steper_uniform", "vanilla_kd"))
        _say(f"Read it: {sys.argv[0]} trajectories {ours} {theirs}")
        asked = f'"{question.question}" --model {uniform / STUDENT} --index {index}'
        _say(f"Try it:  {sys.argv[0]} ask {asked}")
    return report


def demo_experiment(config: DemoConfig) -> Experiment:
    """The demo as an experiment."""
    arms = {
        "base": {"model": "base-reader", "evaluate": ASKED},
        "vanilla_kd": {"train": {"objective": "vanilla"}},
        "steper_uniform": {"train": {"objective": "uniform"}},
        "steper_difficulty": {"train": {"objective": "difficulty"}},
        "teacher": {"model": "world", "evaluate": ASKED | MISREADS},
    }
    pairs = [
        ("steper_uniform", "vanilla_kd"),
        ("steper_difficulty", "vanilla_kd"),
        ("steper_difficulty", "steper_uniform"),
    ]
    if config.equal_tokens:
        arms["vanilla_kd_equal_tokens"] = {
            "train": {"objective": "vanilla"},
            "equal_tokens_to": "steper_uniform",
        }
        pairs += [("steper_uniform", "vanilla_kd_equal_tokens")]
    world = config.model_dump(include={"train_questions", "test_questions", "split"})
    return parse_experiment(
        {
            "question": QUESTION,
            "seeds": tuple(range(config.seeds)),
            "data": {DATA: {"world": world}},
            "rollout": {"teacher": "world", **ASKED, **MISREADS},
            "train": {"base": "base-reader", "lr": 1e-3},
            "evaluate": {"max_tokens": 32},  # a sentence of this world has 10
            "arms": arms,
            "compare": tuple(pairs),
        },
        where="the demo",
    )


def _say(text: str) -> None:
    print(text, flush=True)
