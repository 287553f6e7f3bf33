"""Collect what coroutines ask for at the same time into one call.

Questions run as coroutines, but a retriever and an in-process model are fastest on batches. While
one batch is worked on, the next one gathers.

>>> async def main() -> list[int]:
...     double = Batcher(lambda numbers: [2 * n for n in numbers])
...     return await asyncio.gather(double(1), double(2))
>>> asyncio.run(main())
[2, 4]
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

I = TypeVar("I")  # noqa: E741
O = TypeVar("O")  # noqa: E741


class Batcher(Generic[I, O]):
    """Makes a function of many items one that coroutines call with a single item.

    Args:
        call: takes a batch and returns one result per item, in order, or an exception for an item
            that fails alone; it is raised where that item was asked for. It runs in one thread of
            its own, always the same, so that connections go on meanwhile and torch keeps its pool.
        limit: most items of a batch; ``None`` for all that wait.
    """

    def __init__(
        self, call: Callable[[list[I]], Sequence[O | Exception]], *, limit: int | None = None
    ) -> None:
        self._call, self._limit = call, limit
        self._waiting: list[tuple[I, asyncio.Future[O]]] = []
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._drain: asyncio.Task[None] | None = None

    async def __call__(self, item: I) -> O:
        """The result for ``item``; an error of its batch is raised for every item of it."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[O] = loop.create_future()
        self._waiting.append((item, future))
        if self._drain is None or self._drain.done():
            self._drain = loop.create_task(self._work())
        return await future

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            await _others(lambda: len(self._waiting))
            batch = self._waiting[: self._limit]
            del self._waiting[: self._limit]
            try:
                results = await loop.run_in_executor(
                    self._thread, self._call, [item for item, _ in batch]
                )
                answered = list(zip(batch, results, strict=True))
            except Exception as error:
                # Handed on, not handled: whoever waits for an item of this batch gets it.
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), result in answered:
                if future.done():
                    continue
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)


async def _others(count: Callable[[], int]) -> None:
    """Let every coroutine that is ready go on, until none of them adds to the batch any more."""
    before = -1
    while count() != before:
        before = count()
        for _ in range(3):  # a woken question needs a turn or two to ask again
            await asyncio.sleep(0)
