"""`steper demo`: the whole road in the offline world, with the same verbs a user calls.

World -> corpus and index -> teacher rollout -> filter and examples -> three students -> real
multi-step inference on held-out questions -> one table, one report. Nothing is downloaded. The
same command resumes; every stage has its own folder below ``OUT``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from steper.build import build, yield_table
from steper.config import (
    BuildConfig,
    DemoConfig,
    EvaluateConfig,
    IndexConfig,
    RolloutConfig,
    TrainConfig,
)
from steper.datasets import load_questions
from steper.evaluate import evaluate, evaluation_table
from steper.index import build_index
from steper.report import write_report
from steper.rollout import rollout
from steper.store import Run, read_json, require_finished, write_json, write_records
from steper.train import STUDENT, train
from steper.world.generator import World

K = 2
MAX_STEPS = 8
ERROR_RATE = 0.08
"""How often the teacher misreads a fact."""

LEARNING_RATE = 1e-3
EPOCHS = 2.0

OBJECTIVES: Mapping[str, str] = {
    "vanilla_kd": "vanilla",
    "steper_uniform": "uniform",
    "steper_difficulty": "difficulty",
}
MEASURES = (
    "em", "f1", "acc", "recall", "initialization", "expansion", "aggregation",
)  # fmt: skip


def demo(config: DemoConfig) -> Path:
    """Run or resume the demo and return the report's path.

    Raises:
        SteperError: where a folder holds a run with other settings.
    """
    begin = time.monotonic()
    evaluations: list[Path] = []
    trainings: list[Path] = []
    for seed in range(config.seeds):
        folder = config.out / f"seed-{seed}"
        _say(f"seed {seed}: world, index, teacher, examples ({folder})")
        _make_world(folder / "world", config, seed)
        corpus = folder / "world" / "corpus.jsonl"
        build_index(IndexConfig(source=str(corpus), out=folder / "index"))
        data = _distil(folder, config, seed)
        print(yield_table(require_finished(data, stage="build")["counts"]))
        students = _train_students(folder, config, seed)
        trainings += [student.parent for student in students.values()]
        models = {"base": "base-reader", **students, "teacher": "world"}
        for arm, model in models.items():
            _say(f"seed {seed}: {arm} answers {config.test_questions} held-out questions")
            evaluations.append(_evaluate(folder, arm, str(model), seed))
    results = _results(evaluations) | {"total_seconds": round(time.monotonic() - begin, 1)}
    write_json(config.out / "results.json", results)
    _say("results" + (f", mean of {config.seeds} seeds" if config.seeds > 1 else ""))
    print(evaluation_table(evaluations))
    report: Path = write_report(
        evaluations, config.out / "report.html", trainings=trainings, title="steper demo"
    )
    print(f"\nFigures: {config.out / 'results.json'}\nReport:  {report}")
    if config.seeds == 1:
        world, index = (config.out / "seed-0" / name for name in ("world", "index"))
        question = load_questions(world / "questions.jsonl", split="test", limit=1)[0].question
        model = trainings[-1] / STUDENT
        arms = [config.out / "seed-0" / f"{arm}-evaluation" for arm in OBJECTIVES]
        print(f"Read it: {sys.argv[0]} trajectories {arms[1]} {arms[0]}")
        print(f'Try it:  {sys.argv[0]} ask "{question}" --model {model} --index {index}')
    return report


def _make_world(folder: Path, config: DemoConfig, seed: int) -> None:
    """Write one corpus of both worlds, and questions whose entities never meet."""
    stage = Run.open(
        folder,
        stage="world",
        config={
            "seed": seed,
            "train": config.train_questions,
            "test": config.test_questions,
            "split": config.split,
        },
        inputs={},
    )
    if stage.finished:
        return
    worlds = {
        "train": World.generate(
            seed=seed, part="train", entities=max(100, config.train_questions), split=config.split
        ),
        "test": World.generate(
            seed=seed, part="test", entities=config.test_questions + 100, split=config.split
        ),
    }
    counts = {"train": config.train_questions, "test": config.test_questions}
    passages = [p for world in worlds.values() for p in world.passages.values()]
    questions = [q for part, w in worlds.items() for q in w.questions(counts[part], seed=seed)]
    write_records(folder / "corpus.jsonl", passages)
    write_records(folder / "questions.jsonl", questions)
    stage.finish({"passages": len(passages), "questions": len(questions)})


def _distil(folder: Path, config: DemoConfig, seed: int) -> Path:
    rolled = rollout(
        RolloutConfig(
            index=str(folder / "index"),
            questions=folder / "world" / "questions.jsonl",
            split="train",
            out=folder / "rollout",
            teacher="world",
            prompt="world",
            k=K,
            max_steps=MAX_STEPS,
            error_rate=ERROR_RATE,
            seed=seed,
        )
    )
    return build(BuildConfig(rollout=rolled, out=folder / "examples"))


def _train_students(folder: Path, config: DemoConfig, seed: int) -> dict[str, Path]:
    """Train every arm on the same trajectories; returns the student folders."""
    students: dict[str, Path] = {}
    tokens: dict[str, int] = {}

    def teach(arm: str, objective: str, epochs: float) -> None:
        _say(f"seed {seed}: training {arm}")
        run = train(
            TrainConfig(
                data=folder / "examples",
                out=folder / arm,
                base="base-reader",
                objective=objective,  # type: ignore[arg-type]
                lr=LEARNING_RATE,
                epochs=epochs,
                seed=seed,
            ),
            say=lambda _: None,  # the token audit, the same for every arm
        )
        students[arm] = run / STUDENT
        tokens[arm] = require_finished(run, stage="train")["counts"]["tokens"]

    for arm, objective in OBJECTIVES.items():
        teach(arm, objective, EPOCHS)
    if config.equal_tokens:
        epochs = EPOCHS * tokens["steper_uniform"] / tokens["vanilla_kd"]
        teach("vanilla_kd_equal_tokens", "vanilla", round(epochs, 2))
    return students


def _evaluate(folder: Path, arm: str, model: str, seed: int) -> Path:
    own = {} if model.endswith(STUDENT) else {"prompt": "world", "k": K, "max_steps": MAX_STEPS}
    return evaluate(
        EvaluateConfig(
            model=model,
            index=str(folder / "index"),
            questions=folder / "world" / "questions.jsonl",
            split="test",
            out=folder / f"{arm}-evaluation",
            error_rate=ERROR_RATE,
            max_tokens=32,  # a sentence of this world has 10
            seed=seed,
            label=arm,
            **own,  # type: ignore[arg-type]
        )
    )


def _results(evaluations: list[Path]) -> dict[str, Any]:
    """Per arm the mean over seeds of each measure, flat, for other programs."""
    arms: dict[str, list[dict[str, Any]]] = {}
    for folder in evaluations:
        result = read_json(folder / "results.json")
        arms.setdefault(result["label"], []).append(result)
    return {
        arm: {
            measure: round(fmean(values), 4)
            for measure in MEASURES
            if (values := [r["metrics"][measure]["value"] for r in runs if r["metrics"][measure]])
        }
        | {
            "n": sum(run["n"] for run in runs),
            "seconds": round(sum(run["seconds"] for run in runs), 1),
        }
        for arm, runs in arms.items()
    }


def _say(text: str) -> None:
    print(f"\n== {text}", flush=True)
