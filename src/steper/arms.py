"""Evaluations grouped into arms (runs of one label: its seeds), and arms compared in pairs.

>>> arms = read_arms([Path("runs/a"), Path("runs/b")])  # doctest: +SKIP
>>> compare(arms["a"], arms["b"], "em")  # doctest: +SKIP
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from steper.errors import SteperError
from steper.metrics import mean_interval, paired_p_value, t_interval
from steper.scores import QuestionScore
from steper.store import read_json, read_records, require_finished
from steper.types import Interval

RESULTS = "results.json"
"""Figures of an evaluation or experiment, for people and programs."""

SCORES = "scores.jsonl"
"""Every measure of each question of an evaluation."""

SIGNIFICANT = 0.05

Key = tuple[str, str]
"""A question: the SHA-256 of its question file, and its id there."""


@dataclass(frozen=True)
class Arm:
    """All evaluations of one label.

    Attributes:
        folders: where each seed's run lies.
        results: ``results.json`` of each seed.
        scores: of each seed, every measure by question id.
    """

    label: str
    folders: list[Path]
    results: list[dict[str, Any]]
    scores: list[dict[str, dict[str, Any]]]

    @property
    def question_sets(self) -> list[str]:
        """The SHA-256 of each seed's question file."""
        return [result["questions_sha256"] for result in self.results]

    @property
    def n(self) -> int:
        """Answers of all seeds."""
        return sum(result["n"] for result in self.results)

    @property
    def seeds(self) -> list[int]:
        """The seed of each run."""
        return [seed for result in self.results for seed in result["seeds"]]

    def by_question(self, measure: str) -> dict[Key, float]:
        """Each question's mean over the seeds that answered it, where the measure is known.

        Seeds on the same questions repeat them, they do not add any: an interval over answers
        would be too narrow.
        """
        values: dict[Key, list[float]] = defaultdict(list)
        for questions, seed in zip(self.question_sets, self.scores, strict=True):
            for key, row in seed.items():
                if (value := row[measure]) is not None:
                    values[questions, key].append(value)
        return {key: fmean(found) for key, found in values.items()}

    def by_seed(self, measure: str) -> list[float | None]:
        """Each seed's mean, ``None`` where the measure is unknown."""
        found = (result["metrics"].get(measure) for result in self.results)
        return [one["value"] if one else None for one in found]

    def interval(self, measure: str) -> Interval | None:
        """Mean over seeds with its bootstrap 95% interval over questions; ``None`` if unknown.

        The mean is of the seeds' means, as in the table that ``steper evaluate`` prints. A
        measure may apply to more questions of one seed than of another, so each value is weighted
        to give every seed its equal share.
        """
        known = [
            {(questions, key): v for key, row in seed.items() if (v := row[measure]) is not None}
            for questions, seed in zip(self.question_sets, self.scores, strict=True)
        ]
        known = [values for values in known if values]
        shares: dict[Key, float] = defaultdict(float)
        for found in known:
            for key, value in found.items():
                shares[key] += value / (len(found) * len(known))
        if not shares:
            return None
        mean = mean_interval([len(shares) * share for share in shares.values()], seed=0)
        # Weighted values can be drawn to a mean that no values of the measure have.
        values: list[float] = [value for found in known for value in found.values()]
        return replace(mean, low=max(mean.low, min(values)), high=min(mean.high, max(values)))


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far arm ``a`` is above arm ``b`` in a measure, on the questions both answered.

    Attributes:
        difference: mean of the paired differences with its bootstrap 95% interval over questions;
            a question counts once, with its mean over seeds.
        p: two-sided, by flipping signs of the questions' differences.
        by_seed: the difference of each seed that has the same questions in both arms.
        over_seeds: mean of ``by_seed`` with Student's 95% interval; ``None`` below two seeds.
    """

    a: str
    b: str
    measure: str
    difference: Interval
    p: float
    by_seed: tuple[float, ...]
    over_seeds: Interval | None

    @property
    def verdict(self) -> str:
        """``higher`` or ``lower`` where interval and p-value agree on it, else ``open``."""
        # With few questions an interval can exclude 0 by luck where the exact test does not.
        if self.difference.low > 0 and self.p < SIGNIFICANT:
            return "higher"
        if self.difference.high < 0 and self.p < SIGNIFICANT:
            return "lower"
        return "open"


def compare(a: Arm, b: Arm, measure: str) -> Comparison | None:
    """The two arms compared on the questions where both know the measure; ``None`` without any."""
    ours, theirs = a.by_question(measure), b.by_question(measure)
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        return None
    ours_shared, theirs_shared = [ours[k] for k in shared], [theirs[k] for k in shared]
    differences = [x - y for x, y in zip(ours_shared, theirs_shared, strict=True)]
    by_seed = _seed_differences(a, b, measure)
    return Comparison(
        a=a.label,
        b=b.label,
        measure=measure,
        difference=mean_interval(differences, seed=0),
        p=paired_p_value(ours_shared, theirs_shared, seed=0),
        by_seed=tuple(by_seed),
        over_seeds=t_interval(by_seed) if len(by_seed) > 1 else None,
    )


def _seed_differences(a: Arm, b: Arm, measure: str) -> list[float]:
    """The difference of each pair of runs on the same questions, first with first and so on."""
    left = list(range(len(b.results)))
    found = []
    for mine, questions in enumerate(a.question_sets):
        other = next((n for n in left if b.question_sets[n] == questions), None)
        if other is None:
            continue
        left.remove(other)
        ours, theirs = a.scores[mine], b.scores[other]
        differences = [
            x - y
            for key in ours.keys() & theirs.keys()
            if (x := ours[key][measure]) is not None and (y := theirs[key][measure]) is not None
        ]
        if differences:
            found.append(fmean(differences))
    return found


def read_arms(evaluations: Sequence[Path]) -> dict[str, Arm]:
    """Evaluation folders grouped by label, in the order given.

    Raises:
        SteperError: if a folder is no finished evaluation, or is given twice.
    """
    refuse_repeats(evaluations)
    arms: dict[str, Arm] = {}
    for folder in evaluations:
        require_finished(folder, stage="evaluate")
        result = read_json(folder / RESULTS)
        rows = [asdict(row) for row in read_records(folder / SCORES, QuestionScore)]
        arm = arms.setdefault(result["label"], Arm(result["label"], [], [], []))
        arm.folders.append(folder)
        arm.results.append(result)
        arm.scores.append({row.pop("id"): row for row in rows})
    return arms


def refuse_repeats(folders: Sequence[Path]) -> None:
    """Raise on a folder given twice: it would count as two seeds."""
    for folder, times in Counter(folder.resolve() for folder in folders).items():
        if times > 1:
            raise SteperError("is given twice.", where=str(folder), fix="Name each run once.")


def notes(arms: Mapping[str, Arm]) -> list[str]:
    """What a reader must know before comparing rows: everything in which the runs differ."""
    checks: dict[str, Callable[[dict[str, Any]], Any]] = {
        "questions": lambda r: r["questions_sha256"],
        "number of questions": lambda r: r["n"],
        "corpora": lambda r: r["corpus_sha256"],
        "splits": lambda r: r["split"],
        "scoring rules": lambda r: r["rules"],
        "retrieval settings or prompts": lambda r: json.dumps(r["setting"], sort_keys=True),
    }
    found = [
        f"The arms were evaluated with different {name}; compare their rows with care."
        for name, value in checks.items()
        if len({frozenset(map(value, arm.results)) for arm in arms.values()}) > 1
    ]
    if len({len(arm.results) for arm in arms.values()}) > 1:
        found.append("The arms have different numbers of seeds.")
    return found
