"""What the page says of pairs of arms: sentences computed from paired differences, and no others.

>>> verdicts(compare_pairs(arms, [("steper_uniform", "vanilla_kd")]))  # doctest: +SKIP
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from steper.arms import Arm, Comparison, compare
from steper.report.parts import count
from steper.types import Interval

QUESTION = (
    "Does supervising every step of a teacher's search and reasoning teach a small model more than "
    "supervising its final answer only?"
)
BASELINE = "vanilla_kd"
SENTENCES = 6
"""Most verdicts to show at once."""


def are_stepers(arms: Mapping[str, Arm]) -> bool:
    """Whether these are the arms that ``QUESTION`` is about."""
    return BASELINE in arms and any(map(_is_ours, arms))


def _is_ours(label: str) -> bool:
    return label.startswith("steper")


def default_pairs(arms: Mapping[str, Arm]) -> list[tuple[str, str]]:
    """Each StepER arm with final-answer distillation, and with the other; else all with the first.

    Final-answer distillation with another budget has a label that starts with the baseline's.
    """
    if not are_stepers(arms):
        first, *others = arms
        return [(label, first) for label in others]
    ours = [label for label in arms if _is_ours(label)]
    bases = sorted((label for label in arms if label.startswith(BASELINE)), key=len)
    pairs = [(label, base) for base in bases for label in ours]
    if {"steper_difficulty", "steper_uniform"} <= arms.keys():
        pairs.append(("steper_difficulty", "steper_uniform"))
    return pairs


def compare_pairs(arms: Mapping[str, Arm], pairs: Sequence[tuple[str, str]]) -> list[Comparison]:
    """The pairs compared in EM, but for those that share no questions."""
    return [found for a, b in pairs if (found := compare(arms[a], arms[b], "em"))]


def verdicts(comparisons: Sequence[Comparison]) -> list[tuple[str, str]]:
    """("higher", "lower" or "open", sentence) pairs.

    Where there are more than can be taken in at once, those that tell something come first.
    """
    many = len(comparisons) > SENTENCES
    order = sorted(comparisons, key=lambda one: many and one.verdict == "open")
    return [(one.verdict, _sentence(one)) for one in order]


def _sentence(one: Comparison) -> str:
    gain = one.difference
    points = f"{100 * abs(gain.value):.1f} points of EM"
    match one.verdict:
        case "higher" | "lower" as verdict:
            said = f"is {verdict} than {one.b} by {points}"
        case _:
            said = f"cannot be told from {one.b} (difference {_signed(gain.value)} points of EM)"
    # The test draws 10,000 patterns, so that it cannot tell smaller values apart.
    p = f"p\u00a0=\u00a0{one.p:.2g}" if one.p > 1e-4 else "p\u00a0≤\u00a00.0001"
    over = f"over {count(gain.n, 'question')} {_range(gain)} (paired {p})"
    if one.over_seeds:
        over += f", over {count(one.over_seeds.n, 'seed')} {_range(one.over_seeds)}"
    elif one.by_seed:
        over += ", one seed"
    return f"{one.a} {said}; 95% interval {over}."


def _signed(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def _range(interval: Interval) -> str:
    return f"{_signed(interval.low)} to {_signed(interval.high)}"


def answer(comparisons: Sequence[Comparison]) -> str:
    """``QUESTION`` answered in a sentence, from the arms it is about and nothing else."""
    asked = [one for one in comparisons if one.b == BASELINE and _is_ours(one.a)]
    match sorted({one.verdict for one in asked}):
        case []:
            return "No answer: these runs share no questions, so they cannot be compared."
        case ["higher"]:
            return "Yes, here it does."
        case ["lower"]:
            return "No: here it is worse."
        case ["open"]:
            return "These runs cannot tell."
        case _:
            return "It depends on the weights: the StepER arms do not agree."


def tally(comparisons: Sequence[Comparison]) -> str:
    """How many of many comparisons tell something; empty for a few."""
    if len(comparisons) <= SENTENCES:
        return ""
    times = Counter(one.verdict for one in comparisons)
    return (
        f"Of {len(comparisons)} comparisons, {times['higher']} find the first arm higher and "
        f"{times['lower']} lower; {times['open']} cannot tell."
    )
