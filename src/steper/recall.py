"""`steper recall`: how often indexes find the gold passages, with intervals, and how fast.

An index that is put together from others (words and vectors, a reranker) is measured with each of
them, so that one command tells what each adds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from steper.config import RecallConfig
from steper.datasets import load_questions
from steper.errors import SteperError
from steper.metrics import mean_interval, recall
from steper.protocols import Retriever
from steper.retrieval.indexes import open_parts, without_login
from steper.store import sha256, write_json
from steper.types import Interval, Question

DEPTHS = (2, 5, 10)


@dataclass(frozen=True, slots=True)
class Recall:
    """What searching with the questions themselves found.

    Attributes:
        depths: recall of gold titles among the first passages, by how many those are.
        query_ms: time of each search, one question at a time, in milliseconds.
    """

    depths: dict[int, Interval]
    query_ms: list[float]


def gold_recall(
    retriever: Retriever, questions: Sequence[Question], *, seed: int = 0, desc: str = "recall"
) -> Recall:
    """Recall of gold titles at each of ``DEPTHS``, searching with the question itself.

    Raises:
        SteperError: if no question has supporting titles.
    """
    known = [question for question in questions if question.supporting_titles]
    if not known:
        raise SteperError(
            "no question has supporting_titles, so there is nothing to find.",
            where="questions",
            fix="Add them to the questions file.",
        )
    values: dict[int, list[float]] = {depth: [] for depth in DEPTHS}
    times = []
    for question in tqdm(known, unit=" questions", desc=desc):
        begin = time.perf_counter()
        (found,) = retriever.search([question.question], max(DEPTHS))
        times.append(1000 * (time.perf_counter() - begin))
        titles = [passage.title for passage in found]
        for depth in DEPTHS:
            values[depth].append(recall(titles, question.supporting_titles, depth))
    return Recall(
        {depth: mean_interval(values[depth], seed=seed) for depth in DEPTHS}, query_ms=times
    )


def measure_recall(config: RecallConfig) -> str:
    """Run the command; returns the table to print.

    Raises:
        SteperError: if there are neither as many question files as indexes nor one, or a file or
            index cannot be read.
    """
    files = config.questions * (len(config.index) if len(config.questions) == 1 else 1)
    if len(files) != len(config.index):
        raise SteperError(
            f"{len(files)} files of questions for {len(config.index)} indexes.",
            where="--questions",
            fix="Name one for each index, in the same order, or one for all.",
        )
    if config.json_out and config.json_out.is_dir():
        raise SteperError("is a folder.", where=str(config.json_out), fix="Name a file.")
    sets = [_measure(where, file, config) for where, file in zip(config.index, files, strict=True)]
    if config.json_out:
        write_json(config.json_out, {"split": config.split or "all", "sets": sets})
    return "\n\n".join(_table(found, config.split) for found in sets)


def _measure(where: str, file: Path, config: RecallConfig) -> dict[str, Any]:
    questions = load_questions(file, split=config.split)
    parts = open_parts(where)
    info = next(reversed(parts.values())).info
    engines, shown = {}, without_login(where)
    for name, index in parts.items():
        found = gold_recall(index, questions, seed=config.seed, desc=f"{shown}: {name}")
        engines[name] = {
            "recall": {str(depth): asdict(value) for depth, value in found.depths.items()},
            "query_p50_ms": round(float(np.median(found.query_ms)), 2),
            "query_p95_ms": round(float(np.quantile(found.query_ms, 0.95)), 2),
        }
    return {
        "index": shown,
        "questions": str(file),
        "questions_sha256": sha256(file),
        "corpus_sha256": info.corpus_sha256,
        "passages": info.passages,
        "engines": engines,
    }


def _table(found: dict[str, Any], split: str | None) -> str:
    rows, asked = [], 0
    for name, figures in found["engines"].items():
        intervals = {depth: Interval(**value) for depth, value in figures["recall"].items()}
        asked = next(iter(intervals.values())).n
        cells = [
            f"{100 * i.value:.1f} [{100 * i.low:.1f}, {100 * i.high:.1f}]"
            for i in intervals.values()
        ]
        rows.append((name, *cells, figures["query_p50_ms"], figures["query_p95_ms"]))
    headers = ("", *(f"recall@{depth} [95%]" for depth in DEPTHS), "ms, median", "ms, 95%")
    return (
        f"{tabulate(rows, headers=headers, disable_numparse=True)}\n"
        f"{asked} questions of {found['questions']}, split {split or 'all'}; corpus "
        f"{found['corpus_sha256'][:12]} ({found['passages']:,} passages)"
    )
