"""A small world on disk, rolled out and built once for all end-to-end tests."""

from __future__ import annotations

import pytest

from models import save_tiny_model
from road import Road, rollout_config
from steper.build import build
from steper.config import BuildConfig, IndexConfig
from steper.index import build_index
from steper.rollout import rollout
from steper.store import write_records
from steper.world.generator import World


@pytest.fixture(scope="session")
def road(tmp_path_factory: pytest.TempPathFactory) -> Road:
    folder = tmp_path_factory.mktemp("road")
    world = World.generate(seed=0, part="train", entities=60)
    write_records(folder / "corpus.jsonl", world.passages.values())
    write_records(folder / "questions.jsonl", world.questions(24, seed=0))
    build_index(IndexConfig(source=str(folder / "corpus.jsonl"), out=folder / "index"))
    rollout(rollout_config(folder, folder / "rollout"))
    build(BuildConfig(rollout=folder / "rollout", out=folder / "examples"))
    texts = [passage.text for passage in world.passages.values()]
    return Road(
        corpus=folder / "corpus.jsonl",
        questions=folder / "questions.jsonl",
        index=str(folder / "index"),
        rollout=folder / "rollout",
        examples=folder / "examples",
        model=save_tiny_model(folder / "model", texts),
    )
