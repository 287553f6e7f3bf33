"""The inner loops of BM25: add up columns of scores; compiled where numba is installed.

Without numba, NumPy does the same in several passes over the column, some three times slower.
What is found does not depend on which of them runs (tested).

>>> sums = np.zeros(4, dtype=np.float32)
>>> passages, scores = np.array([0, 2], dtype=np.int32), np.array([1, 2], dtype=np.float32)
>>> add_all(sums, passages, scores, np.float32(2), np.float32(3))[1].tolist(), sums.tolist()
([4.0], [2.0, 0.0, 4.0, 0.0])
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Numbers = NDArray[np.int32]


# ---- with NumPy ------------------------------------------------------------------------------


def _add_all(
    sums: Floats, passages: Numbers, scores: Floats, weight: np.float32, floor: np.float32
) -> tuple[Numbers, Floats]:
    """Add ``weight · scores`` to the sums of passages.

    Returns:
        The passages whose sum was 0, and the new sums above ``floor``.
    """
    before = sums[passages]
    after = before + weight * scores
    sums[passages] = after
    return passages[before == 0], after[after > floor]


def _add_begun(sums: Floats, passages: Numbers, scores: Floats, weight: np.float32) -> None:
    """Add ``weight · scores`` to the sums of those passages that have one already."""
    before = sums[passages]
    begun = before > 0
    sums[passages[begun]] = before[begun] + weight * scores[begun]


def _reaching(sums: Floats, passages: Numbers, floor: np.float32) -> Numbers:
    """The passages whose sum is at least ``floor``."""
    found: Numbers = passages[sums[passages] >= floor]
    return found


# ---- compiled --------------------------------------------------------------------------------


def _add_all_loop(
    sums: Floats, passages: Numbers, scores: Floats, weight: np.float32, floor: np.float32
) -> tuple[Numbers, Floats]:
    new = np.empty(len(passages), dtype=np.int32)
    high = np.empty(len(passages), dtype=np.float32)
    begun = above = 0
    for i in range(len(passages)):
        passage = passages[i]
        before = sums[passage]
        after = before + weight * scores[i]
        sums[passage] = after
        if before == 0:
            new[begun] = passage
            begun += 1
        if after > floor:
            high[above] = after
            above += 1
    return new[:begun], high[:above]


def _add_begun_loop(sums: Floats, passages: Numbers, scores: Floats, weight: np.float32) -> None:
    for i in range(len(passages)):
        passage = passages[i]
        if sums[passage] > 0:
            sums[passage] += weight * scores[i]


def _reaching_loop(sums: Floats, passages: Numbers, floor: np.float32) -> Numbers:
    found = np.empty(len(passages), dtype=np.int32)
    count = 0
    for passage in passages:
        if sums[passage] >= floor:
            found[count] = passage
            count += 1
    return found[:count]


def _compiled(*loops: Any) -> Any:
    from numba import njit

    try:
        return [njit(nogil=True, cache=True)(loop) for loop in loops]
    except RuntimeError:  # no folder to keep them in, as in a container that is read-only
        return [njit(nogil=True)(loop) for loop in loops]


try:
    add_all, add_begun, reaching = _compiled(_add_all_loop, _add_begun_loop, _reaching_loop)
    COMPILED = True
except ImportError:
    add_all, add_begun, reaching = _add_all, _add_begun, _reaching
    COMPILED = False
