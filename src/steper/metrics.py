"""Score answers by each data set's official rules, and say how sure a mean or a difference is.

Published numbers are comparable only where the scoring is the same to the letter, so the corner
cases of the three official scripts are kept: see ``score``. Everything here is pure; randomness
comes from the ``seed`` the caller passes.

>>> score("The Hee Haw show", ["Hee Haw"])
Score(em=0.0, f1=0.8, acc=1.0)
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal, assert_never

import numpy as np
from numpy.typing import NDArray

from steper.types import Interval, Score

Rules = Literal["hotpotqa", "2wikimultihopqa", "musique"]
"""Whose official evaluation script to follow."""

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_CLOSED = ("yes", "no", "noanswer")

_EXACT_LIMIT = 12
"""Up to this many pairs all sign patterns (at most 4096) are counted instead of sampled."""

_BLOCK = 1 << 21
"""Most numbers drawn at once, so that memory does not grow with ``resamples`` times ``n``."""


# ---- answers ---------------------------------------------------------------------------------


def normalize(text: str) -> str:
    """Lower-case, drop ASCII punctuation, drop the articles, fold white space: in that order.

    The order shows: dropping punctuation first makes "A.N." the article "an". Punctuation outside
    ASCII stays, as in the official scripts.

    >>> normalize("The  U.S.")
    'us'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def score(prediction: str, answers: Sequence[str], *, rules: Rules = "hotpotqa") -> Score:
    """Score one answer against every accepted answer, keeping the best of each measure.

    EM is equality after ``normalize`` under all three rules. F1 is token overlap (as multisets):
    by HotpotQA's and 2WikiMultiHopQA's rule it is 0 where one side is "yes", "no" or "noanswer"
    and the other differs, and 0 where a side has no tokens; MuSiQue has no such words, and two
    sides without tokens agree. Acc is 1 where an accepted answer is contained in the prediction,
    as a plain substring of the normalized strings: "us" is contained in "august". An accepted
    answer that normalizes to nothing is contained only in a prediction that does too.

    Args:
        prediction: the model's answer, as written.
        answers: the gold answer and its aliases. HotpotQA itself has no aliases.
        rules: the data set whose rules apply.

    Raises:
        ValueError: if there are no answers.
    """
    if not answers:
        raise ValueError("cannot score a prediction without an accepted answer")
    said = normalize(prediction)
    golds = [normalize(answer) for answer in answers]
    return Score(
        em=float(said in golds),
        f1=max(_f1(said, gold, rules) for gold in golds),
        acc=float(any(gold in said if gold else not said for gold in golds)),
    )


def _f1(said: str, gold: str, rules: Rules) -> float:
    """Token F1 of two normalized strings."""
    match rules:
        case "hotpotqa" | "2wikimultihopqa":
            if said != gold and (said in _CLOSED or gold in _CLOSED):
                return 0.0
        case "musique":
            if not said or not gold:
                return float(said == gold)
        case _:
            assert_never(rules)
    said_tokens, gold_tokens = said.split(), gold.split()
    shared = (Counter(said_tokens) & Counter(gold_tokens)).total()
    if shared == 0:
        return 0.0
    precision, recalled = shared / len(said_tokens), shared / len(gold_tokens)
    return 2 * precision * recalled / (precision + recalled)


def recall(
    retrieved_titles: Sequence[str], gold_titles: Sequence[str], k: int | None = None
) -> float:
    """Share of the distinct gold titles found among the first ``k`` retrieved, all if ``None``.

    Raises:
        ValueError: if there are no gold titles, or ``k`` is negative.
    """
    if k is not None and k < 0:
        raise ValueError(f"k must not be negative, got {k}")
    gold = set(gold_titles)
    if not gold:
        raise ValueError("recall needs at least one gold title")
    return len(gold.intersection(retrieved_titles[:k])) / len(gold)


# ---- certainty -------------------------------------------------------------------------------


def mean_interval(
    values: Sequence[float], *, seed: int, resamples: int = 2000, level: float = 0.95
) -> Interval:
    """The mean with its percentile bootstrap interval; one value gives an interval of no width.

    Args:
        values: one number per question.
        seed: of the resampling; the same seed gives the same interval.
        resamples: how many times ``len(values)`` values are drawn with replacement.
        level: the interval's nominal coverage, between 0 and 1.

    Raises:
        ValueError: if there are no values, one is not finite, or an argument is out of range.
    """
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(f"need resamples >= 1 and 0 < level < 1, got {resamples} and {level}")
    data = _finite(values)
    rng = np.random.default_rng(seed)
    means = np.concatenate(
        [
            data[rng.integers(data.size, size=(rows, data.size))].mean(axis=1)
            for rows in _blocks(resamples, data.size)
        ]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value=float(data.mean()), low=float(low), high=float(high), n=data.size)


def t_interval(values: Sequence[float], *, level: float = 0.95) -> Interval:
    """The mean with Student's interval, for a handful of values such as one a seed.

    The bootstrap is too narrow there; this is exact where the values are normal.

    Raises:
        ValueError: if there are fewer than two values, or one is not finite.
    """
    from scipy.stats import t  # slow to import, and not needed by most commands

    data = _finite(values)
    if data.size < 2:
        raise ValueError("need at least two values")
    mean = float(data.mean())
    reach = float(t.ppf((1 + level) / 2, data.size - 1) * data.std(ddof=1) / data.size**0.5)
    return Interval(value=mean, low=mean - reach, high=mean + reach, n=data.size)


def paired_p_value(
    a: Sequence[float], b: Sequence[float], *, seed: int, resamples: int = 10_000
) -> float:
    """Two-sided p-value that paired values have the same mean, by flipping signs of differences.

    Up to 12 pairs every sign pattern is counted. Beyond, ``resamples`` patterns are drawn and the
    observed one is counted with them, so that the p-value is never 0. Ties (differences of 0) are
    kept; they change nothing.

    Args:
        a: one number per question.
        b: one number per question, in the same order.
        seed: of the sampling; unused up to 12 pairs.
        resamples: how many sign patterns are drawn beyond 12 pairs.

    Raises:
        ValueError: if the lengths differ, there are no pairs, or a value is not finite.
    """
    if len(a) != len(b):
        raise ValueError(f"paired values must be equally many, got {len(a)} and {len(b)}")
    if resamples < 1:
        raise ValueError(f"need resamples >= 1, got {resamples}")
    differences = _finite(a) - _finite(b)
    n = differences.size
    # Sums that are equal on paper differ in their last bits by order of addition.
    observed = abs(differences.sum()) - 1e-9 * np.abs(differences).sum()
    if n <= _EXACT_LIMIT:
        signs = 1.0 - 2.0 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)  # (2**n, n)
        return float(np.mean(np.abs(signs @ differences) >= observed))
    rng = np.random.default_rng(seed)
    extreme = sum(
        int(np.sum(np.abs((1.0 - 2.0 * rng.integers(2, size=(rows, n))) @ differences) >= observed))
        for rows in _blocks(resamples, n)
    )
    return (1 + extreme) / (1 + resamples)


def _finite(values: Sequence[float]) -> NDArray[np.float64]:
    """The values as an array of shape ``(n,)``, n > 0."""
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0:
        raise ValueError("need at least one value")
    if not np.isfinite(data).all():
        raise ValueError("values must be finite")
    return data


def _blocks(rows: int, width: int) -> Iterator[int]:
    """Split ``rows`` into block heights of at most ``_BLOCK`` numbers each."""
    height = max(1, _BLOCK // width)
    for start in range(0, rows, height):
        yield min(height, rows - start)
