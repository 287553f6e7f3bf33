"""Corner cases of the three official evaluation scripts.

The expected values were worked out by reading hotpot_evaluate_v1.py (HotpotQA),
2wikimultihop_evaluate_v1.1.py (2WikiMultiHopQA) and metrics/answer.py (MuSiQue).
"""

from __future__ import annotations

from typing import get_args

import pytest

from steper.metrics import Rules, normalize, score

RULES: tuple[Rules, ...] = get_args(Rules)

NORMALIZED = [
    # All three scripts: lower, then punctuation, then articles, then white space.
    ("The Hee-Haw!", "heehaw"),  # a hyphen is dropped, not replaced by a space
    ("A.N. Other", "other"),  # "a.n." becomes "an" before articles are looked for
    ("T.H.E. cat", "cat"),
    ("the_end", "theend"),  # "_" is punctuation, so it is gone before the article is looked for
    ("Theatre an hour", "theatre hour"),  # an article only as a whole word
    ("thea", "thea"),
    ("don't", "dont"),
    ("$5,000.00", "500000"),
    ("“quoted”", "“quoted”"),  # string.punctuation is ASCII: curly quotes stay
    ("1990\u20131995", "1990\u20131995"),  # so does the en dash,
    ("the\u2013end", "\u2013end"),  # but it is no word character, so "the" before it is an article
    ("a中", "a中"),  # letters of any script are word characters, so this is no article
    ("a\u0301", "\u0301"),  # a combining accent is none: "a" before it is an article
    ("a\u00a0b", "b"),  # a no-break space is white space
    ("x\u200by", "x\u200by"),  # a zero-width space is not
    ("Straße", "straße"),  # lower(), not casefold()
    ("  roy \t\n clark ", "roy clark"),
    ("the", ""),
    ("...", ""),
]


@pytest.mark.parametrize(("text", "expected"), NORMALIZED)
def test_normalization(text: str, expected: str) -> None:
    assert normalize(text) == expected


# prediction, answers, (EM, F1) under HotpotQA, 2WikiMultiHopQA, MuSiQue
CASES = [
    # Token overlap is a multiset: "b" counts once, so 2 shared of 3 said and 2 gold: 2·⅔·1/(5/3).
    ("x b b", ["x b"], (0, 0.8), (0, 0.8), (0, 0.8)),
    # Word order does not matter to F1, but to EM.
    ("clark roy", ["Roy Clark"], (0, 1), (0, 1), (0, 1)),
    # yes / no / noanswer: HotpotQA and 2Wiki give no partial credit on either side; MuSiQue does.
    ("yes it is", ["yes"], (0, 0), (0, 0), (0, 0.5)),
    ("no", ["no one"], (0, 0), (0, 0), (0, 2 / 3)),
    ("noanswer", ["noanswer given"], (0, 0), (0, 0), (0, 2 / 3)),
    # The rule looks at normalized strings, so "The Yes!" is "yes", and equal sides score as usual.
    ("The Yes!", ["yes"], (1, 1), (1, 1), (1, 1)),
    ("No.", ["no"], (1, 1), (1, 1), (1, 1)),
    # "no answer" in two words is no such word.
    ("no answer", ["answer"], (0, 2 / 3), (0, 2 / 3), (0, 2 / 3)),
    # Both sides normalize to nothing: EM agrees in all three, but no token is shared, so F1 is 0
    # by HotpotQA and 2Wiki; MuSiQue's SQuAD rule gives 1.
    ("", ["the"], (1, 0), (1, 0), (1, 1)),
    ("...", ["A"], (1, 0), (1, 0), (1, 1)),
    # One side is empty: 0 everywhere.
    ("", ["Hee Haw"], (0, 0), (0, 0), (0, 0)),
    ("Hee Haw", ["the"], (0, 0), (0, 0), (0, 0)),
    # Maxima over answers, EM and F1 each on its own.
    ("Roy", ["Roy Clark", "Clark"], (0, 2 / 3), (0, 2 / 3), (0, 2 / 3)),
    ("the USA", ["United States", "U.S.A."], (1, 1), (1, 1), (1, 1)),
    # The yes/no rule is applied answer by answer: an alias may still give credit.
    ("yes indeed", ["yes", "indeed"], (0, 2 / 3), (0, 2 / 3), (0, 2 / 3)),
]


@pytest.mark.parametrize(("prediction", "answers", "hotpotqa", "twowiki", "musique"), CASES)
def test_em_and_f1(
    prediction: str,
    answers: list[str],
    hotpotqa: tuple[float, float],
    twowiki: tuple[float, float],
    musique: tuple[float, float],
) -> None:
    for rules, (em, f1) in zip(RULES, (hotpotqa, twowiki, musique), strict=True):
        scored = score(prediction, answers, rules=rules)
        assert scored.em == em, rules
        assert scored.f1 == pytest.approx(f1), rules


def test_the_rules_are_told_apart() -> None:
    """The table would miss a mix-up of HotpotQA's and 2Wiki's rules: on answers they are one."""
    for prediction, answers, hotpotqa, twowiki, _ in CASES:
        assert hotpotqa == twowiki, (prediction, answers)
    assert any(hotpotqa != musique for *_, hotpotqa, _, musique in CASES)
