"""Strategies: the order in which one run searches, writes and stops. Pure; no I/O."""

from __future__ import annotations

from typing import Literal

from steper.protocols import Strategy
from steper.strategies.ircot import IRCoT
from steper.strategies.single_step import SingleStep

StrategyName = Literal["ircot", "single-step"]


def build_strategy(name: StrategyName, *, max_steps: int) -> Strategy:
    """The strategy of that name."""
    match name:
        case "ircot":
            return IRCoT(max_steps=max_steps)
        case "single-step":
            return SingleStep(max_steps=max_steps)
