"""The three official scripts from a file of answers to EM and F1, worked out another way.

Restated from what hotpot_evaluate_v1.py, 2wikimultihop_evaluate_v1.1.py and MuSiQue's
evaluate_v1.0.py do, and unlike ``steper.metrics`` where there is a choice: articles are found word
by word, shared words crossed off one by one, F1 is Dice's coefficient.
"""

from __future__ import annotations

import json
import random
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import get_args

import pytest

from steper.metrics import Rules, score
from steper.predictions import write_predictions

PAIRS = 10_000
WORDS = (
    "a", "an", "the", "The", "yes", "no", "noanswer", "Roy", "roy", "Clark", "hee-haw", "U.S.",
    "A.N.", "don't", "1990–1995", "naïve", "a\u0301", "中", "a中", "“x”", "...", "_", "the_end",
    "and", "\u00a0", "\u200b", "Straße", "2", "$5,000",
)  # fmt: skip
all_rules = pytest.mark.parametrize("rules", get_args(Rules))


# ---- what the scripts do ---------------------------------------------------------------------


def words(text: str) -> list[str]:
    """What is compared: lower case, no ASCII punctuation, then no articles."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\w+", lambda m: m[0] if m[0] not in ("a", "an", "the") else " ", kept).split()


def f1(said: list[str], gold: list[str], rules: Rules) -> float:
    if rules == "musique":
        if not said or not gold:
            return float(said == gold)
    elif said != gold and any(side in (["yes"], ["no"], ["noanswer"]) for side in (said, gold)):
        return 0.0
    left = list(gold)
    for word in said:
        if word in left:
            left.remove(word)
    shared = len(gold) - len(left)
    return 2 * shared / (len(said) + len(gold)) if shared else 0.0


def answer_scores(prediction: str, answers: Sequence[str], rules: Rules) -> tuple[float, float]:
    said, golds = words(prediction), [words(answer) for answer in answers]
    return float(said in golds), max(f1(said, gold, rules) for gold in golds)


def script(folder: Path, golds: Mapping[str, Sequence[str]], rules: Rules) -> tuple[float, float]:
    """Mean EM and F1 over the official file's questions, with what a script insists on."""
    if rules == "musique":
        lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        assert [row["id"] for row in rows] == list(golds), "all questions, in the file's order"
        assert all(row["predicted_answerable"] is True for row in rows)
        assert all(set(row["predicted_support_idxs"]) == set() for row in rows)
        said = {row["id"]: row["predicted_answer"] for row in rows}
    else:
        found = json.loads((folder / "predictions.json").read_text(encoding="utf-8"))
        for section in ("sp", "evidence") if rules == "2wikimultihopqa" else ("sp",):
            assert set(found[section]) == set(golds), "else the script complains of each question"
            assert all(set(map(tuple, facts)) == set() for facts in found[section].values())
        said = found["answer"]
    # A question without an answer adds nothing, and is divided by all the same.
    each = [answer_scores(said[id_], golds[id_], rules) for id_ in golds if id_ in said]
    em, f1 = (sum(values) / len(golds) for values in zip(*each, strict=True))
    return em, f1


# ---- answers to try --------------------------------------------------------------------------


def pairs(seed: int) -> Iterator[tuple[str, list[str]]]:
    """Predictions with one to three accepted answers, often made of the same words."""
    rng = random.Random(seed)
    for _ in range(PAIRS):
        said = rng.choices(WORDS, k=rng.randrange(8))
        answers = []
        for _ in range(rng.randint(1, 3)):
            kept = [word for word in said if rng.random() < 0.6]
            more = rng.choices(WORDS, k=rng.choice([0, 0, 1, 2]))
            answer = kept + more if rng.random() < 0.8 else rng.sample(said, len(said))
            answers.append(" ".join(answer) + rng.choice(["", ".", " "]))
        yield " ".join(said), answers


@all_rules
def test_generated_pairs_score_as_by_the_script(rules: Rules) -> None:
    exact = partial = 0
    for prediction, answers in pairs(seed=get_args(Rules).index(rules)):
        em, f1 = answer_scores(prediction, answers, rules)
        ours = score(prediction, answers, rules=rules)
        assert ours.em == em, (prediction, answers)
        assert ours.f1 == pytest.approx(f1, abs=1e-12), (prediction, answers)
        exact += em == 1
        partial += 0 < f1 < 1
    assert exact > PAIRS / 10 and partial > PAIRS / 4, "pairs of every kind"


def test_the_rules_differ_on_the_pairs() -> None:
    """Else a mix-up of rules would go unnoticed."""
    differ = sum(
        score(*pair, rules="hotpotqa").f1 != score(*pair, rules="musique").f1 for pair in pairs(0)
    )
    assert differ > PAIRS / 100


@all_rules
def test_the_script_reads_our_figures_from_our_file(tmp_path: Path, rules: Rules) -> None:
    asked = {f"q{n}": pair for n, pair in enumerate(pairs(seed=9)) if n < 500}
    write_predictions(tmp_path, {id_: said for id_, (said, _) in asked.items()}, rules=rules)
    ours = [score(*pair, rules=rules) for pair in asked.values()]
    em, f1 = script(tmp_path, {id_: answers for id_, (_, answers) in asked.items()}, rules)
    assert em == pytest.approx(sum(s.em for s in ours) / len(ours))
    assert f1 == pytest.approx(sum(s.f1 for s in ours) / len(ours))
