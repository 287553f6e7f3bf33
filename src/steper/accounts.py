"""What completions cost, and a purse that is never overdrawn.

>>> Prices(prompt=2.0, cached=0.5, completion=8.0).cost(
...     Usage(prompt_tokens=1_000_000, cached_tokens=500_000, completion_tokens=100_000))
2.05
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from steper.errors import BudgetSpent
from steper.protocols import Usage

LEDGERS = "spent*.log"
"""The ledgers of a run folder: its own, and those of workers."""


@dataclass(frozen=True, slots=True)
class Prices:
    """Money per million tokens, in any one currency.

    Attributes:
        prompt: tokens of the prompt that were not in the server's cache.
        cached: tokens of the prompt that were.
        completion: tokens written.
    """

    prompt: float = 0.0
    cached: float = 0.0
    completion: float = 0.0

    def cost(self, usage: Usage) -> float:
        """The price of what was used."""
        fresh = usage.prompt_tokens - usage.cached_tokens
        return (
            fresh * self.prompt
            + usage.cached_tokens * self.cached
            + usage.completion_tokens * self.completion
        ) / 1e6


class Purse:
    """Money for one run. Every call holds the most it can cost until it has been settled.

    Args:
        budget: the most to spend, all sessions of the run together; ``None`` for no limit.
        spent: what earlier sessions have paid; see ``paid``.
        ledger: file that every payment is written to, so that a run that is resumed knows what has
            gone, also on questions that were under way when it stopped.
    """

    def __init__(
        self, budget: float | None = None, *, spent: float = 0.0, ledger: Path | None = None
    ) -> None:
        self.budget, self.spent, self._ledger = budget, spent, ledger
        if ledger and ledger.exists():
            whole = ledger.read_bytes().rpartition(b"\n")
            os.truncate(ledger, len(whole[0] + whole[1]))  # a torn line would spoil the next
        self._held = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None

    @asynccontextmanager
    async def hold(self, most: float) -> AsyncIterator[None]:
        """Set aside ``most`` for the calls made inside; ``pay`` what they did cost.

        Waits while calls under way hold too much, because they may turn out cheaper.

        Raises:
            BudgetSpent: if the budget could not bear it even after all calls under way.
        """
        settled = self._condition()
        async with settled:
            while self.budget is not None and self.spent + self._held + most > self.budget:
                if self.spent + most > self.budget or not self._held:
                    raise BudgetSpent(
                        f"the budget of {self.budget:g} is used up: {self.spent:.4g} spent, and "
                        f"the next call can cost {most:.2g}.",
                        where="--budget",
                        fix="Raise it and run the same command: it goes on where it stopped.",
                    )
                await settled.wait()
            self._held += most
        try:
            yield
        finally:
            async with settled:
                self._held -= most
                settled.notify_all()

    def _condition(self) -> asyncio.Condition:
        """Of the loop that runs: a purse outlives loops, a condition does not."""
        if self._loop is not (loop := asyncio.get_running_loop()):
            self._loop, self._settled, self._held = loop, asyncio.Condition(), 0.0
        return self._settled

    def pay(self, cost: float) -> None:
        """Count money as spent."""
        self.spent += cost
        if self._ledger and cost:
            with self._ledger.open("a") as file:
                file.write(f"{cost!r}\n")


def paid(*ledgers: Path) -> float:
    """The sum of those ledgers that there are; a last line that a kill has torn is left out."""
    there = [path for path in ledgers if path.exists()]
    lines = [line for path in there for line in path.read_text().splitlines(True)]
    return sum(float(line) for line in lines if line.endswith("\n"))
