"""Batches: one for what is asked at the same time, in order, errors and stragglers included."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from typing import Any

import pytest

from steper.batching import Batcher


class Doubling:
    """Doubles numbers. Records its batches and threads; refuses negative ones."""

    def __init__(self) -> None:
        self.batches, self.threads = list[list[int]](), set[int]()

    def __call__(self, numbers: list[int]) -> Sequence[int]:
        self.batches.append(numbers)
        self.threads.add(threading.get_ident())
        if min(numbers) < 0:
            raise ValueError(f"negative: {min(numbers)}")
        return [2 * number for number in numbers]


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """With an end: a result that never comes is a failure, not a wait."""

    async def bounded() -> Any:
        return await asyncio.wait_for(work, timeout=10)

    return asyncio.run(bounded())


async def ask(batcher: Batcher[int, int], *numbers: int) -> list[Any]:
    return await asyncio.gather(*(batcher(n) for n in numbers), return_exceptions=True)


def test_what_is_asked_at_the_same_time_is_one_batch() -> None:
    double = Doubling()
    assert run(ask(Batcher(double), *range(50))) == [2 * n for n in range(50)]
    assert double.batches == [[*range(50)]]


@pytest.mark.parametrize("limit", [1, 3, 7, 100])
def test_a_batch_holds_no_more_than_its_limit_and_keeps_the_order(limit: int) -> None:
    double = Doubling()
    assert run(ask(Batcher(double, limit=limit), *range(7))) == [2 * n for n in range(7)]
    assert double.batches == [[*range(7)][at : at + limit] for at in range(0, 7, limit)]


def test_coroutines_that_go_on_together_stay_in_step() -> None:
    """A wave of questions asks again right after it was answered; it must not fall apart."""
    double = Doubling()
    batcher = Batcher(double)

    async def thrice(number: int) -> int:
        for _ in range(3):
            number = await batcher(number)
        return number

    async def main() -> list[int]:
        return await asyncio.gather(*(thrice(n) for n in range(1, 6)))

    assert run(main()) == [8, 16, 24, 32, 40]
    assert [len(batch) for batch in double.batches] == [5, 5, 5]


def test_while_one_batch_is_worked_on_the_next_gathers() -> None:
    begun, go_on = threading.Event(), threading.Event()
    batches: list[list[int]] = []

    def slow(numbers: list[int]) -> list[int]:
        batches.append(numbers)
        begun.set()
        assert go_on.wait(10)
        return numbers

    async def main() -> list[int]:
        batcher: Batcher[int, int] = Batcher(slow)

        async def twice() -> int:
            return await batcher(await batcher(0) + 10)

        first = asyncio.create_task(twice())
        await asyncio.to_thread(begun.wait, 10)
        rest = [asyncio.create_task(batcher(n)) for n in range(1, 4)]
        await asyncio.sleep(0)
        assert not first.done()  # the loop was free all the while
        go_on.set()
        return await asyncio.gather(first, *rest)

    assert run(main()) == [10, 1, 2, 3]
    # Who has just been answered joins those who wait.
    assert batches == [[0], [1, 2, 3, 10]]


def test_an_error_reaches_everyone_of_its_batch_and_no_one_else() -> None:
    double = Doubling()
    batcher = Batcher(double, limit=2)
    results = run(ask(batcher, 1, -2, 3, 4))
    assert [str(result) for result in results] == ["negative: -2", "negative: -2", "6", "8"]


def test_after_an_error_it_works_on() -> None:
    batcher = Batcher(Doubling())

    async def main() -> list[Any]:
        return [await ask(batcher, -1), await ask(batcher, 2)]

    failed, fine = run(main())
    assert isinstance(failed[0], ValueError) and fine == [4]


def test_too_few_results_are_an_error_not_a_wait() -> None:
    batcher: Batcher[int, int] = Batcher(lambda numbers: numbers[1:])
    results = run(ask(batcher, 1, 2))
    assert [type(result) for result in results] == [ValueError, ValueError]


def test_who_has_gone_away_does_not_hold_up_the_others() -> None:
    double = Doubling()

    async def main() -> list[int]:
        batcher = Batcher(double)
        tasks = [asyncio.create_task(batcher(n)) for n in range(3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        return await asyncio.gather(tasks[0], tasks[2])

    assert run(main()) == [0, 4]


def test_all_calls_are_made_in_one_thread_of_its_own() -> None:
    double = Doubling()
    batcher = Batcher(double)

    async def main() -> None:
        for number in range(5):
            await batcher(number)

    run(main())
    assert len(double.threads) == 1 and threading.get_ident() not in double.threads


def test_it_can_be_used_in_one_loop_after_the_other() -> None:
    batcher = Batcher(Doubling())
    assert [run(ask(batcher, n)) for n in (1, 2)] == [[2], [4]]
