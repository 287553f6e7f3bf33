"""An offline world on disk: one corpus, and questions for the teacher and for the test."""

from __future__ import annotations

from pathlib import Path

from steper.store import Run, write_records
from steper.world.generator import World


def make_world(
    folder: Path, *, seed: int, train_questions: int, test_questions: int, split: float
) -> None:
    """Write one corpus of two worlds, and questions whose entities never meet."""
    stage = Run.open(
        folder,
        stage="world",
        config={
            "seed": seed,
            "train": train_questions,
            "test": test_questions,
            "split": split,
        },
        inputs={},
    )
    if stage.finished:
        return
    worlds = {
        "train": World.generate(
            seed=seed, part="train", entities=max(100, train_questions), split=split
        ),
        "test": World.generate(seed=seed, part="test", entities=test_questions + 100, split=split),
    }
    counts = {"train": train_questions, "test": test_questions}
    passages = [p for world in worlds.values() for p in world.passages.values()]
    questions = [q for part, w in worlds.items() for q in w.questions(counts[part], seed=seed)]
    write_records(folder / "corpus.jsonl", passages)
    write_records(folder / "questions.jsonl", questions)
    stage.finish({"passages": len(passages), "questions": len(questions)})
