"""How many calls are under way, and where each one goes.

The number of calls adapts as TCP does (additive increase, multiplicative decrease): it grows while
the server keeps up and is halved when it says that it is too busy. Of several servers each call
goes to the least busy one that is well, the calls of one run by preference to the same.

>>> Pace(64).width
8.0
"""

from __future__ import annotations

import asyncio
import zlib
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

FIRST_WIDTH = 8
FAILURES = 3  # in a row, until a server is set aside
LEANING = 4  # more calls that a run's own server may have than the least busy one


class Pace:
    """Slots for calls, given in the order they are asked for.

    Args:
        most: upper bound of calls under way.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.width = float(min(FIRST_WIDTH, most))
        self.busy = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._started = self._cut = 0

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[int]:
        """Wait for a slot; gives the number of the call, for ``went_well`` and ``too_busy``."""
        await self._enter()
        self._started += 1
        try:
            yield self._started
        finally:
            self._leave()

    def went_well(self) -> None:
        """Grow: doubling per round until the server was too busy once, then by one per round."""
        self.width = min(self.most, self.width + (1 / self.width if self._cut else 1))
        self._wake()

    def too_busy(self, call: int) -> None:
        """Halve, at most once per congestion: calls begun before the last cut say nothing new."""
        if call > self._cut:
            self.width = max(1.0, self.width / 2)
            self._cut = self._started

    async def _enter(self) -> None:
        if not self._waiting and self.busy < int(self.width):
            self.busy += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave()  # the slot was given, and is not needed any more
            raise

    def _leave(self) -> None:
        self.busy -= 1
        self._wake()

    def _wake(self) -> None:
        while self._waiting and self.busy < int(self.width):
            turn = self._waiting.popleft()
            if not turn.done():
                self.busy += 1
                turn.set_result(None)


@dataclass(slots=True)
class Host:
    """One server's health, told by its last calls."""

    url: str
    busy: int = 0
    failures: int = 0
    away_s: float = 0.0
    until: float = 0.0

    def well(self, now: float) -> bool:
        """Whether to send it a call; one that was set aside gets a single one to try."""
        return self.failures < FAILURES or (now >= self.until and not self.busy)

    def went_well(self) -> None:
        """It answered, if only to refuse."""
        self.failures, self.away_s = 0, 0.0

    def failed(self, now: float, unit_s: float) -> None:
        """Set it aside at the third failure: for 10, 20, … at most 120 units of ``unit_s``."""
        self.failures += 1
        if self.failures >= FAILURES and now >= self.until:
            self.away_s = min(120 * unit_s, max(10 * unit_s, 2 * self.away_s))
            self.until = now + self.away_s

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Count a call under way."""
        self.busy += 1
        try:
            yield
        finally:
            self.busy -= 1


def choose(hosts: Sequence[Host], now: float, *, run: str, avoid: Host | None = None) -> Host:
    """The least busy server that is well, another than ``avoid`` if possible.

    The calls of one ``run`` lean to the same server, which then has their common prefix at hand.
    Where none is well, it is the one to be tried again first: waiting is the caller's business.
    """
    well = [host for host in hosts if host.well(now)]
    if not well:
        return min(hosts, key=lambda host: host.until)
    home = hosts[zlib.crc32(run.encode()) % len(hosts)]
    return min(
        well, key=lambda h: (h is avoid, max(0, h.busy - LEANING * (h is home)), h is not home)
    )
