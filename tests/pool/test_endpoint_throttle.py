"""The throttle: free until the first refusal, then one probe, then a growing window; nothing leaks on cancelling."""

from __future__ import annotations

import asyncio
import math

from halo_core.pool.throttle import Throttle


async def test_it_does_nothing_until_the_first_refusal() -> None:
    throttle = Throttle()
    tickets = [await throttle.enter() for _ in range(1000)]
    assert throttle.in_flight == 1000
    for ticket in tickets:
        throttle.leave(ticket, ok=True)
    assert (throttle.in_flight, throttle.window) == (0, math.inf)


async def test_one_probe_follows_a_refusal_and_success_opens_the_window() -> None:
    throttle = Throttle(0.001)
    tickets = [await throttle.enter() for _ in range(8)]
    for ticket in tickets:
        throttle.refused(ticket)
    waiting = [asyncio.ensure_future(throttle.enter()) for _ in range(8)]
    probe = await waiting.pop(0)
    assert (throttle.in_flight, throttle.waiting) == (1, 7)
    throttle.leave(probe, ok=True)
    await asyncio.sleep(0)
    assert (throttle.in_flight, throttle.waiting) == (2, 5)
    for task in waiting:
        throttle.leave(await task, ok=True)
    assert (throttle.in_flight, throttle.waiting) == (0, 0)
    while throttle.window < math.inf:
        throttle.leave(await throttle.enter(), ok=True)


async def test_late_refusals_of_the_same_flight_count_once() -> None:
    throttle = Throttle(0.001)
    tickets = [await throttle.enter() for _ in range(4)]
    for ticket in tickets:
        throttle.refused(ticket)
    assert throttle._refusals == 1


async def test_a_call_refused_before_goes_first() -> None:
    throttle = Throttle(0.001)
    throttle.refused(await throttle.enter())
    order: list[str] = []

    async def call(name: str, again: bool) -> None:
        ticket = await throttle.enter(again=again)
        order.append(name)
        throttle.leave(ticket, ok=False)

    await asyncio.gather(call("new", False), call("again", True))
    assert order == ["again", "new"]


async def test_a_cancelled_wait_leaves_no_trace() -> None:
    throttle = Throttle(0.001)
    ticket = await throttle.enter()
    throttle.refused(await throttle.enter())
    waiting = [asyncio.ensure_future(throttle.enter()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.gather(waiting[0], return_exceptions=True)
    assert throttle.waiting == 2
    throttle.leave(ticket, ok=True)
    # Cancelled in the very moment in which it is let in: its place goes to the next.
    throttle._resume_at = 0.0
    throttle._resume()
    assert throttle.in_flight == 1
    waiting[1].cancel()
    await asyncio.gather(waiting[1], return_exceptions=True)
    throttle.leave(await waiting[2], ok=True)
    assert (throttle.in_flight, throttle.waiting) == (0, 0)


async def test_the_servers_own_pause_is_kept() -> None:
    throttle = Throttle(0.001)
    loop = asyncio.get_running_loop()
    asked = loop.time()
    throttle.refused(await throttle.enter(), 0.03)
    await throttle.enter()
    assert loop.time() - asked >= 0.03


def test_pauses_grow_with_jitter_up_to_a_bound() -> None:
    throttle = Throttle(1.0, seed=1)
    for attempt, longest in ((1, 1.0), (2, 2.0), (4, 8.0), (20, 60.0)):
        pauses = {throttle.delay_s(attempt) for _ in range(50)}
        assert len(pauses) > 1
        assert all(longest / 2 <= pause <= longest for pause in pauses)
