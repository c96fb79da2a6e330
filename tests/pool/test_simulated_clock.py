"""Virtual time: hours pass at once, in order, and only while nothing else can run."""

from __future__ import annotations

import asyncio
import time

from halo_core.pool.clock import RealClock, VirtualClock


async def test_hours_pass_at_once_and_in_order() -> None:
    clock, log, started = VirtualClock(), [], time.monotonic()

    async def sleeper(name: str, *pauses: float) -> None:
        for pause in pauses:
            await clock.sleep(pause)
            log.append((clock.now(), name))

    await asyncio.gather(sleeper("a", 3600, 3600), sleeper("b", 1800, 1800, 10_000), sleeper("c", 7200))
    assert log == [(1800, "b"), (3600, "a"), (3600, "b"), (7200, "c"), (7200, "a"), (13_600, "b")]
    assert time.monotonic() - started < 60


async def test_time_stands_still_while_anything_can_run() -> None:
    clock = VirtualClock()
    alarm = asyncio.ensure_future(clock.sleep(1))
    for _ in range(100):
        await asyncio.sleep(0)
        assert clock.now() == 0.0
        assert not alarm.done()
    await alarm
    assert clock.now() == 1.0


async def test_a_cancelled_sleeper_does_not_move_time() -> None:
    clock = VirtualClock()
    task = asyncio.ensure_future(clock.sleep(100))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await clock.sleep(1)
    assert clock.now() == 1.0


async def test_the_past_is_now_and_a_failing_alarm_does_not_stop_the_clock() -> None:
    clock = VirtualClock(start=10)
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    clock.call_at(5, lambda: 1 // 0)  # type: ignore[arg-type]
    await clock.sleep(1)
    assert clock.now() == 11


async def test_an_alarm_cancelled_by_another_of_the_same_moment_does_not_ring() -> None:
    clock, rung = VirtualClock(), []
    second = None

    def first() -> None:
        rung.append("first")
        assert second is not None
        second.cancel()

    clock.call_at(1, first)
    second = clock.call_at(1, lambda: rung.append("second"))
    await clock.sleep(2)
    assert rung == ["first"]


async def test_real_time_is_the_loops() -> None:
    clock = RealClock()
    before = clock.now()
    await clock.sleep(0.002)
    assert clock.now() > before
    rung = asyncio.Event()
    clock.call_at(clock.now(), rung.set)
    await rung.wait()


async def test_two_clocks_on_one_loop_do_not_stop_each_other() -> None:
    first, second = VirtualClock(), VirtualClock()
    await asyncio.gather(first.sleep(5), second.sleep(7))
    assert (first.now(), second.now()) == (5, 7)
