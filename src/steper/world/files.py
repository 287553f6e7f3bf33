"""An offline world on disk: one corpus, and questions for the teacher and for the test."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from steper.store import Run, write_records
from steper.world.generator import World


class Size(Protocol):
    """How large a world is."""

    @property
    def train_questions(self) -> int:
        """Questions for the teacher."""

    @property
    def test_questions(self) -> int:
        """Held-out questions."""

    @property
    def split(self) -> float:
        """Share of entities told of in two passages."""


def make_world(folder: Path, size: Size, *, seed: int) -> None:
    """Write one corpus of two worlds, and questions whose entities never meet."""
    stage = Run.open(
        folder,
        stage="world",
        config={
            "seed": seed,
            "train": size.train_questions,
            "test": size.test_questions,
            "split": size.split,
        },
        inputs={},
    )
    if stage.finished:
        return
    worlds = {
        "train": World.generate(
            seed=seed, part="train", entities=max(100, size.train_questions), split=size.split
        ),
        "test": World.generate(
            seed=seed, part="test", entities=size.test_questions + 100, split=size.split
        ),
    }
    counts = {"train": size.train_questions, "test": size.test_questions}
    passages = [p for world in worlds.values() for p in world.passages.values()]
    questions = [q for part, w in worlds.items() for q in w.questions(counts[part], seed=seed)]
    write_records(folder / "corpus.jsonl", passages)
    write_records(folder / "questions.jsonl", questions)
    stage.finish({"passages": len(passages), "questions": len(questions)})
