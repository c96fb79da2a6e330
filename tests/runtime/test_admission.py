"""Admission: rows begin in order, few at a time, and never wait for ever."""

from __future__ import annotations

import asyncio

from halo_core.runtime import Executor
from tests.runtime.scripted import ScriptedEngine, ask
from tests.runtime.test_merging import until


async def test_rows_finish_early_instead_of_breadth_first(executor: Executor, engine: ScriptedEngine) -> None:
    """With 40 rows of 3 calls and 4 slots, the first row ends long before most rows have begun."""
    await executor.call(executor.begin(executor.open_batch("warm"), "w"), ask("start the engine"))
    batch = executor.open_batch("b")
    begun: list[int] = []
    begun_at_first_end: list[int] = []

    async def row(n: int) -> None:
        run = executor.begin(batch, str(n))
        await executor.admitted(run)
        begun.append(n)
        for step in range(3):
            await executor.call(run, ask(f"row {n} step {step}"))
        if not begun_at_first_end:
            begun_at_first_end.append(len(begun))
        executor.end(run)

    await asyncio.gather(*(row(n) for n in range(40)))
    assert begun == sorted(begun)
    assert begun_at_first_end[0] <= 4 * engine.slots
    assert batch.stats.rows_done == 40
    await until(lambda: executor.admission.active == 0)


async def test_rows_that_only_follow_others_do_not_fill_the_window(executor: Executor, engine: ScriptedEngine) -> None:
    """Equal rows wait for one call; the window must still let in the rows that have work of their own."""
    await executor.call(executor.begin(executor.open_batch("warm"), "w"), ask("start the engine"))
    engine.held = True
    batch = executor.open_batch("b")

    async def row(n: int, text: str) -> None:
        run = executor.begin(batch, str(n))
        await executor.admitted(run)
        await executor.call(run, ask(text))
        executor.end(run)

    same = [asyncio.create_task(row(n, "same")) for n in range(10)]
    own = [asyncio.create_task(row(100 + n, f"own {n}")) for n in range(3)]
    await until(lambda: len(engine.seen) == 1 + 4)  # `same` once, and all three others
    executor.pool.thread.loop.call_soon_threadsafe(engine.release)
    await asyncio.gather(*same, *own)


async def test_max_concurrency_is_an_upper_bound(executor: Executor, engine: ScriptedEngine) -> None:
    batch = executor.open_batch("b")
    active, peak = 0, 0

    async def row(n: int) -> None:
        nonlocal active, peak
        run = executor.begin(batch, str(n))
        await executor.admitted(run, 2)
        active += 1
        peak = max(peak, active)
        await executor.call(run, ask(f"q{n}"))
        active -= 1
        executor.end(run)

    await asyncio.gather(*(row(n) for n in range(12)))
    assert peak == 2


async def test_a_run_that_others_wait_for_is_let_in_in_the_end(executor: Executor, engine: ScriptedEngine) -> None:
    """Outer runs that wait for inner ones (started without their context) must not dead-lock the window."""
    await executor.call(executor.begin(executor.open_batch("warm"), "w"), ask("start the engine"))
    batch = executor.open_batch("b")
    limit = 2

    async def outer(n: int) -> None:
        run = executor.begin(batch, f"outer {n}")
        await executor.admitted(run)
        inner = executor.begin(batch, f"inner {n}")
        await executor.admitted(inner)
        await executor.call(inner, ask(f"q{n}"))
        executor.end(inner)
        executor.end(run)

    await asyncio.wait_for(asyncio.gather(*(outer(n) for n in range(limit * 20))), 60)
    assert batch.stats.rows_done == limit * 40


async def test_giving_up_the_wait_gives_the_place_back(executor: Executor, engine: ScriptedEngine) -> None:
    batch = executor.open_batch("b")
    first = executor.begin(batch, "1")
    await executor.admitted(first, 1)
    second = executor.begin(batch, "2")
    waiting = asyncio.create_task(executor.admitted(second, 1))
    await until(lambda: executor.admission.waiting == 1)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    executor.end(second, failed=True)
    await until(lambda: executor.admission.waiting == 0)
    executor.end(first)
    third = executor.begin(batch, "3")
    await asyncio.wait_for(executor.admitted(third, 1), 5)
    executor.end(third)


async def test_the_ambient_batch_lives_while_runs_are_active(executor: Executor, engine: ScriptedEngine) -> None:
    ambient = executor.ambient()
    runs = [executor.begin(ambient, "r") for _ in range(2)]
    await asyncio.gather(*(executor.call(run, ask("same")) for run in runs))
    assert len(engine.seen) == 1
    for run in runs:
        executor.end(run)
    later = executor.ambient()
    assert later is not ambient
    run = executor.begin(later, "r")
    await executor.call(run, ask("same"))
    assert len(engine.seen) == 2
    executor.end(run)
