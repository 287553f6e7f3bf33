"""The stages before training, as folders, for end-to-end tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from steper.config import RolloutConfig


@dataclass(frozen=True)
class Road:
    """The folders of every stage before training."""

    corpus: Path
    questions: Path
    index: Path
    rollout: Path
    examples: Path
    model: Path


def rollout_config(road: Path, out: Path, **changes: object) -> RolloutConfig:
    settings: dict[str, object] = {
        "index": road / "index",
        "questions": road / "questions.jsonl",
        "out": out,
        "teacher": "world",
        "prompt": "world",
        "k": 2,
        "max_steps": 6,
    }
    return RolloutConfig(**(settings | changes))  # type: ignore[arg-type]
