"""`steper recall`: how often the index finds the gold passages, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tabulate import tabulate
from tqdm import tqdm

from steper.config import RecallConfig
from steper.datasets import load_questions
from steper.errors import SteperError
from steper.index import open_index
from steper.metrics import mean_interval, recall
from steper.protocols import Retriever
from steper.store import require_finished, sha256, write_json
from steper.types import Interval, Question

DEPTHS = (2, 5, 10)


def gold_recall(
    retriever: Retriever, questions: Sequence[Question], *, seed: int = 0
) -> dict[int, Interval]:
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
    for question in tqdm(known, unit="question", desc="recall"):
        (found,) = retriever.search([question.question], max(DEPTHS))
        titles = [passage.title for passage in found]
        for depth in DEPTHS:
            values[depth].append(recall(titles, question.supporting_titles, depth))
    return {depth: mean_interval(values[depth], seed=seed) for depth in DEPTHS}


def measure_recall(config: RecallConfig) -> str:
    """Run the command; returns the table to print."""
    questions = load_questions(config.questions, split=config.split)
    intervals = gold_recall(open_index(config.index), questions, seed=config.seed)
    counts = require_finished(config.index, stage="index")["counts"]
    result: dict[str, Any] = {
        "split": config.split or "all",
        "questions_sha256": sha256(config.questions),
        "corpus_sha256": counts["corpus_sha256"],
        "passages": counts["passages"],
        "recall": {str(depth): asdict(interval) for depth, interval in intervals.items()},
    }
    if config.json_out:
        write_json(config.json_out, result)
    rows = [
        (f"recall@{d}", f"{100 * i.value:.1f}", f"{100 * i.low:.1f} to {100 * i.high:.1f}", i.n)
        for d, i in intervals.items()
    ]
    table = tabulate(rows, headers=("", "%", "95% interval", "questions"), disable_numparse=True)
    return (
        f"{table}\nsplit {result['split']}, corpus {counts['corpus_sha256'][:12]} "
        f"({counts['passages']} passages)"
    )
