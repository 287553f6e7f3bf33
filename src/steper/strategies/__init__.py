"""Strategies: the order in which one run searches, writes and stops. Pure; no I/O."""

from __future__ import annotations

from steper.protocols import Strategy
from steper.strategies.asking import Asking
from steper.strategies.closed_book import ClosedBook
from steper.strategies.ircot import IRCoT
from steper.strategies.limits import Limits
from steper.strategies.single_step import SingleStep
from steper.types import StrategyName


def build_strategy(
    name: StrategyName, limits: Limits, *, search_cue: str = "", force_search: bool = False
) -> Strategy:
    """The strategy of that name.

    Args:
        name: one of ``StrategyName``.
        limits: how far a run may go.
        search_cue: what announces a query, where the model chooses its queries.
        force_search: whether every step searches there, asked or not.
    """
    match name:
        case "ircot":
            return IRCoT(limits)
        case "single-step":
            return SingleStep(limits)
        case "closed-book":
            return ClosedBook(limits)
        case "self-ask" | "interleaved":
            return Asking(
                limits,
                search_cue=search_cue,
                search_first=name == "self-ask",
                force_search=force_search,
            )
