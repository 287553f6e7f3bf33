"""`steper rollout`: a teacher answers questions step by step, searching the index.

Writes ``trajectories.jsonl`` (every run, right or wrong) and ``setting.json``. Each finished
question is on disk at once; the same command goes on where it was stopped.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from steper.config import RolloutConfig
from steper.datasets import load_chains, load_questions, with_chains
from steper.driver import run
from steper.errors import SteperError
from steper.index import open_index
from steper.models import RUN_SETTING, build_lm, write_setting
from steper.protocols import LM, Retriever
from steper.setting import Setting
from steper.store import Log, Run, read_records
from steper.templates import load_template
from steper.types import Question, Trajectory

TRAJECTORIES = "trajectories"


def rollout(config: RolloutConfig) -> Path:
    """Run the stage and return its folder.

    Raises:
        SteperError: on bad input, or where the folder holds another run.
    """
    template = load_template(config.prompt).laid_out(config.layout)
    setting = Setting(config.strategy, template, config.k, config.max_steps)
    questions = read_questions(
        config.questions, split=config.split, limit=config.limit, chains=config.chains
    )
    if config.teacher == "annotated":
        questions = answerable(questions, config.questions)
    stage = Run.open(
        config.out,
        stage="rollout",
        config=config.model_dump(mode="json", exclude={"out", "device"}),
        inputs={"index": config.index / "manifest.json", "questions": config.questions},
    )
    if stage.finished:
        return stage.path
    teacher = build_lm(
        config.teacher,
        device=config.device,
        max_tokens=config.max_tokens,
        error_rate=config.error_rate,
        seed=config.seed,
    )
    write_setting(stage.path / RUN_SETTING, setting)
    log = stage.log(TRAJECTORIES, Trajectory, key=lambda t: t.question.id)
    done = roll(questions, log, setting=setting, retriever=open_index(config.index), lm=teacher)
    stage.finish(
        {
            "questions": len(done),
            "answered": sum(bool(t.answer) for t in done),
            "steps": sum(len(t.steps) for t in done),
            "passages": sum(len(t.passages) for t in done),
        }
    )
    return stage.path


def roll(
    questions: list[Question],
    log: Log[Trajectory],
    *,
    setting: Setting,
    retriever: Retriever,
    lm: LM,
) -> list[Trajectory]:
    """Run the questions not yet in the log, then sort the log; returns all trajectories."""
    waiting = [question for question in questions if question.id not in log.records]
    bar = tqdm(
        total=len(questions),
        initial=len(questions) - len(waiting),
        unit="question",
        desc="answering",
    )
    with bar:
        for trajectory in run(waiting, setting=setting, retriever=retriever, lm=lm):
            log.append(trajectory)
            bar.update()
    return log.finish()


def read_questions(
    path: Path, *, split: str | None, limit: int | None, chains: Path | None
) -> list[Question]:
    """Questions of a file, with people's chains attached where a file of them is given."""
    questions = load_questions(path, split=split, limit=limit)
    return with_chains(questions, load_chains(chains)) if chains else questions


def answerable(questions: Iterable[Question], path: Path) -> list[Question]:
    """The questions that have a gold chain, for the annotated teacher.

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
    return kept


def read_trajectories(folder: Path) -> list[Trajectory]:
    """All trajectories of a finished rollout or evaluation folder."""
    return read_records(folder / f"{TRAJECTORIES}.jsonl", Trajectory)
