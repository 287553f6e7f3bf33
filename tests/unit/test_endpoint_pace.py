"""How many calls the endpoint LM has under way, and which server gets them."""

from __future__ import annotations

import asyncio

from asking import closed_port, complete, lm, numbered, refused
from faults import Call, Stub, said
from steper.lm.endpoint.pace import Host, Pace, choose

# ---- pace and several servers ----------------------------------------------------------------


def test_pace_grows_fast_is_halved_once_per_congestion_and_grows_slowly() -> None:
    async def main() -> None:
        pace = Pace(32)
        assert pace.width == 8
        calls = []
        for _ in range(8):
            async with pace.slot() as call:
                calls.append(call)
                pace.went_well()
        assert pace.width == 16
        for call in calls:
            pace.too_busy(call)
        assert pace.width == 8
        for _ in range(8):
            pace.went_well()
        assert 8.8 < pace.width < 9
        for _ in range(2000):
            pace.went_well()
        assert pace.width == 32

    asyncio.run(main())


def test_slots_are_given_in_order_and_not_lost_when_a_waiter_gives_up() -> None:
    async def main() -> None:
        pace, order, most = Pace(2), [], 0

        async def work(number: int) -> None:
            nonlocal most
            async with pace.slot():
                most = max(most, pace.busy)
                order.append(number)
                await asyncio.sleep(0.001)

        tasks = [asyncio.create_task(work(n)) for n in range(30)]
        await asyncio.sleep(0)
        for task in tasks[1::3]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == sorted(order)
        assert set(range(0, 30, 3)) <= set(order)
        assert (most, pace.busy) == (2, 0)

    asyncio.run(main())


def test_a_slot_given_to_someone_just_cancelled_is_passed_on() -> None:
    async def main() -> None:
        pace = Pace(1)
        holding = pace.slot()
        await holding.__aenter__()
        waiter = asyncio.create_task(pace.slot().__aenter__())
        await asyncio.sleep(0)
        await holding.__aexit__(None, None, None)  # gives the slot to the waiter …
        waiter.cancel()  # … who is gone before it can take it
        await asyncio.gather(waiter, return_exceptions=True)
        async with asyncio.timeout(1), pace.slot():
            pass
        assert pace.busy == 0

    asyncio.run(main())


def test_a_busy_server_gets_fewer_calls_at_once() -> None:
    under_way = most = 0

    async def answer(call: Call) -> bytes:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        try:
            if under_way > 3:
                return refused(429, "later")
            await asyncio.sleep(0.002)
            return said("x")
        finally:
            under_way -= 1

    with Stub(answer) as stub:
        model = lm(stub.url, retries=50)
        assert len(complete(model, *(numbered(n) for n in range(100)))) == 100
        assert model._caller._pace.width < 8
    assert most <= 16


def test_a_sick_server_is_set_aside_longer_each_time_and_tried_by_one_call() -> None:
    sick, well = Host("a"), Host("b", busy=9)
    for _ in range(2):
        sick.failed(now=0.0, unit_s=0.5)
    assert sick.well(0.0)
    sick.failed(now=0.0, unit_s=0.5)
    assert (sick.well(4.9), sick.well(5.0)) == (False, True)
    assert choose([sick, well], 4.9, run="q") is well
    assert choose([sick, well], 5.0, run="q") is sick
    with sick.serving():
        assert choose([sick, well], 5.0, run="q") is well
    for expected_s in (10.0, 20.0, 40.0, 60.0, 60.0):
        now = sick.until
        sick.failed(now, 0.5)
        sick.failed(now + 0.1, 0.5)  # a call begun earlier changes nothing
        assert sick.until - now == expected_s
    sick.went_well()
    assert sick.well(0.0)
    assert choose([sick, well], 0.0, run="q", avoid=sick) is well


def test_the_calls_of_a_run_lean_to_one_server() -> None:
    hosts = [Host("a"), Host("b")]
    homes = [choose(hosts, 0.0, run=f"q{n}").url for n in range(20)]
    assert set(homes) == {"a", "b"}
    assert [choose(hosts, 0.0, run=f"q{n}").url for n in range(20)] == homes
    home = choose(hosts, 0.0, run="q")
    home.busy = 5
    assert choose(hosts, 0.0, run="q") is not home


def test_a_dead_server_among_two_costs_few_calls() -> None:
    dead = f"http://127.0.0.1:{closed_port()}/v1"
    with Stub(lambda call: said("x")) as stub:
        model = lm(dead, stub.url, backoff_s=0.05)
        assert len(complete(model, *(numbered(n) for n in range(60)))) == 60
    assert len(stub.calls) == 60
    assert 0 < model.tally.retries <= 12  # three in a row, as many under way, a try or two
