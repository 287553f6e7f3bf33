"""`steper judge`: a language model grades the abilities and the reasoning of an evaluated model.

By the rubrics in templates/abilities.toml: step 1 of a run for initialization, steps 2 … S-1 for
expansion, step S for aggregation, each right or wrong; and the reasoning as a whole from 1 to 5 by
four criteria. Where questions have gold chains, ``results.json`` also says how often the judge
agrees with them (``steper.scores.gold_steps``), and with ``--repeats`` how often with itself.

>>> agreement([1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 1.0])["kappa"]
0.5
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

from tabulate import tabulate

from steper.arms import RESULTS
from steper.config import MEANS, JudgeConfig
from steper.driver import wait_for
from steper.grading import CRITERIA, RUBRIC, Judgment, Place, gradings
from steper.judge import ask_all, rubric_sha256
from steper.metrics import Rules, mean_interval, score
from steper.models import API, COMPLETIONS, build_lm, model_path, telling
from steper.protocols import LM, Completion, Request, Usage
from steper.rollout import TRAJECTORIES, open_purse, read_trajectories
from steper.scores import ABILITIES, gold_steps
from steper.store import Run, read_json, require_finished, versions, write_json
from steper.types import Trajectory

VERDICTS = "verdicts"


def judge_evaluation(
    config: JudgeConfig, *, judge_lm: LM | None = None, say: Callable[[str], None] = print
) -> Path:
    """Run the stage and return its folder.

    Args:
        config: what to judge, and who judges.
        judge_lm: who judges, in place of the model that the configuration names.
        say: receives what the judge has to tell of its calls.

    Raises:
        SteperError: on bad input, if no request can be answered, or where the folder holds another
            run.
    """
    require_finished(config.evaluation, stage="evaluate")
    evaluated = read_json(config.evaluation / RESULTS)
    # What the files hold is among the inputs; the folder may be spelled otherwise.
    exclude = {"out", "evaluation", "retry_failed", *MEANS.split()}
    identity = config.model_dump(mode="json", exclude=exclude) | {
        "endpoint": bool(config.base_url),
        "rubric": rubric_sha256(RUBRIC),
        "rules": evaluated["rules"],
    }
    read = {"trajectories": config.evaluation / f"{TRAJECTORIES}.jsonl"}
    if not config.base_url and Path(path := model_path(config.judge)).is_dir():
        read["judge"] = Path(path)
    with Run.open(config.out, stage="judge", config=identity, inputs=read) as stage:
        if stage.finished and not (config.retry_failed and stage.counts["failed"]):
            return stage.path
        stage.reopen()
        trajectories = _drawn(read_trajectories(config.evaluation), config)
        items = [item for t in trajectories for item in gradings(t, config.repeats)]
        log = stage.log(VERDICTS, Judgment, key=lambda judgment: judgment.id)
        lm = judge_lm or _build_judge(config, stage.path)
        with telling(lm, say):
            wait_for(lambda: ask_all(items, lm, log, unit="item", in_flight=config.concurrency))
        judgments = list(log)
        result = {
            "kind": "judgment",
            "label": evaluated["label"],
            **_made_of(config),
            "n": len(trajectories),
            **figures(trajectories, judgments, evaluated["rules"], seed=config.seed),
            "failed": sum(bool(j.error) for j in judgments),
            "usage": asdict(sum((j.usage for j in judgments), Usage())),
        }
        write_json(stage.path / RESULTS, result)
        stage.finish(
            {
                "trajectories": len(trajectories),
                "asked": len(judgments),
                "unscored": sum(j.scores is None for j in judgments),
                "failed": result["failed"],
            }
        )
    return stage.path


def _drawn(trajectories: list[Trajectory], config: JudgeConfig) -> list[Trajectory]:
    """Those to judge. Drawn, because the file is sorted by id, which may tell the kind."""
    if config.limit is None or config.limit >= len(trajectories):
        return trajectories
    chosen = random.Random(config.seed).sample(range(len(trajectories)), config.limit)
    return [trajectories[place] for place in sorted(chosen)]


def _made_of(config: JudgeConfig) -> dict[str, Any]:
    """How the run was made."""
    return {
        "judge": config.judge,
        "endpoint": bool(config.base_url),
        "temperature": config.temperature,
        "repeats": config.repeats,
        "evaluation": str(config.evaluation),
        "rubric_sha256": rubric_sha256(RUBRIC),
        "versions": versions(),
    }


# ---- the judges ------------------------------------------------------------------------------


class Repeats:
    """A judge for each time something is asked: one alone would replay its earlier answers."""

    def __init__(self, judges: Sequence[LM]) -> None:
        self.judges = judges

    async def complete(self, request: Request) -> Completion:
        """The answer of the judge whose turn it is; see ``steper.protocols.LM``."""
        return await self.judges[request.candidate].complete(request)

    def remarks(self) -> list[str]:
        """What each has to tell."""
        return [
            f"repeat {number}: {remark}" if len(self.judges) > 1 else remark
            for number, judge in enumerate(self.judges, start=1)
            for remark in getattr(judge, "remarks", list)()
        ]


def _build_judge(config: JudgeConfig, folder: Path) -> LM:
    """The model that judges; in process nothing is replayed, and seeds differ by repeat."""
    purse = open_purse(folder, config.budget)

    def build(cache: str) -> LM:
        options = config.model_copy(update={"cache": cache})
        return build_lm(config.judge, options, seed=config.seed, purse=purse, pin=folder / API)

    if not config.base_url:
        return build(config.cache)
    caches = [str(folder / f"{COMPLETIONS}.{repeat}") for repeat in range(1, config.repeats)]
    if config.cache == "none":
        caches = ["none"] * len(caches)
    return Repeats([build(cache) for cache in (config.cache, *caches)])


# ---- figures ---------------------------------------------------------------------------------


def figures(
    trajectories: Sequence[Trajectory], judgments: Iterable[Judgment], rules: Rules, *, seed: int
) -> dict[str, Any]:
    """What the judge found, how often it agrees with gold chains and with itself, what is missing.

    An item's value is the mean over its scored repeats. The unscored are left out.
    """
    grades: dict[str, dict[Place, list[int]]] = {name: {} for name in (*ABILITIES, *CRITERIA)}
    asked, unscored = Counter[str](), Counter[str]()
    for judgment in judgments:
        asked[judgment.subject] += 1
        unscored[judgment.subject] += judgment.scores is None
        for name, grade in (judgment.scores or {}).items():
            grades[name].setdefault((judgment.trajectory_id, judgment.step), []).append(grade)
    values = {
        name: {place: fmean(given) for place, given in places.items()}
        for name, places in grades.items()
    }
    gold = _gold(trajectories, rules)
    compared = {name: sorted(values[name].keys() & gold.keys()) for name in ABILITIES}
    return {
        "asked": {subject: asked[subject] for subject in (*ABILITIES, "quality")},
        "unscored": {subject: unscored[subject] for subject in (*ABILITIES, "quality")},
        "metrics": {name: _mean(name, values[name], trajectories, seed) for name in grades},
        "repeatability": {name: repeatability(grades[name].values()) for name in grades},
        "agreement": {
            name: agreement([values[name][p] for p in places], [gold[p] for p in places])
            for name, places in compared.items()
        },
    }


def _mean(
    name: str, values: Mapping[Place, float], trajectories: Sequence[Trajectory], seed: int
) -> dict[str, Any] | None:
    """Mean and interval over questions, of each the mean over its steps."""
    found: dict[str, list[float]] = defaultdict(list)
    for (id_, _), value in values.items():
        found[id_].append(value)
    if name == "initialization":
        # As in ``steper.scores``: a run of one step skipped the beginning.
        found.update({t.id: [0.0] for t in trajectories if len(t.steps) == 1})
    means = [fmean(found[t.id]) for t in trajectories if t.id in found]
    return asdict(mean_interval(means, seed=seed)) if means else None


def _gold(trajectories: Sequence[Trajectory], rules: Rules) -> dict[Place, float]:
    """Whether each step is right: by the gold chain, where there is one; the last by EM."""
    gold: dict[Place, float] = {}
    for t in trajectories:
        gold |= {(t.id, n): right for n, right in enumerate(gold_steps(t) or (), start=1)}
        gold[t.id, len(t.steps)] = score(t.answer, t.question.answers, rules=rules).em
    return gold


def agreement(judged: Sequence[float], gold: Sequence[float]) -> dict[str, Any] | None:
    """How often judge and gold say the same, and Cohen's kappa: the part that is not by chance.

    κ = (a - c) / (1 - c), with the agreement a, and c that of two who say "right" as often as
    these do, at random. It is ``None`` where c is 1: both always say the same one thing.

    Args:
        judged: shares of an item's repeats that call it right.
        gold: 1 or 0 for each item, in the same order.
    """
    if not gold:
        return None
    agreed = fmean(1 - abs(j - g) for j, g in zip(judged, gold, strict=True))
    by_judge, by_gold = fmean(judged), fmean(gold)
    chance = by_judge * by_gold + (1 - by_judge) * (1 - by_gold)
    return {
        "agreement": agreed,
        "kappa": (agreed - chance) / (1 - chance) if chance < 1 else None,
        "judged": by_judge,
        "gold": by_gold,
        "n": len(gold),
    }


def repeatability(repeats: Iterable[Sequence[int]]) -> dict[str, Any] | None:
    """The share of pairs of an item's repeats that are equal; ``None`` without a pair."""
    pairs = [a == b for grades in repeats for a, b in combinations(grades, 2)]
    return {"value": fmean(pairs), "n": len(pairs)} if pairs else None


# ---- for people ------------------------------------------------------------------------------


def judgment_table(folder: Path) -> str:
    """A judgment as a table; abilities and shares in percent, criteria from 1 to 5."""
    result = read_json(folder / RESULTS)
    headers = ["", "judged [95%]", "n", "gold", "agreement", "kappa", "repeatability", "unscored"]
    rows = [_row(result, name) for name in result["metrics"]]
    times = f", each item {result['repeats']} times" if result["repeats"] > 1 else ""
    lines = [
        f"{result['n']} runs of {result['label']}, judged by {result['judge']} at temperature "
        f"{result['temperature']:g}{times}",
        tabulate(rows, headers=headers, stralign="right", disable_numparse=True),
    ]
    if result["failed"]:
        lines.append(f"{result['failed']} calls failed; --retry-failed makes them again")
    return "\n\n".join(lines)


def _row(result: Mapping[str, Any], name: str) -> list[str]:
    mean, same = result["metrics"][name], result["repeatability"][name]
    compared = result["agreement"].get(name)
    subject = name if name in ABILITIES else "quality"

    def cell(value: float | None, scale: float = 100, digits: int = 1) -> str:
        return "-" if value is None else f"{value * scale:.{digits}f}"

    judged = "-"
    if mean:
        unit = (100, 1) if name in ABILITIES else (1, 2)
        value, low, high = (cell(mean[part], *unit) for part in ("value", "low", "high"))
        judged = f"{value} [{low}, {high}]"
    return [
        name,
        judged,
        str(mean["n"] if mean else 0),
        cell(compared and compared["gold"]),
        cell(compared and compared["agreement"]),
        cell(compared and compared["kappa"], 1, 2),
        cell(same and same["value"]),
        f"{result['unscored'][subject]} of {result['asked'][subject]}",
    ]
