"""Which calls become one: the merge rules of the design, seen from the engine."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halo_core.errors import EngineError
from halo_core.pool import EnginePool, LLMCall, PoolConfig
from halo_core.runtime import Executor
from halo_core.runtime.batch import Run
from tests.runtime.scripted import ScriptedEngine, ask, text_of


async def until(condition: object, *args: object) -> None:
    """Give other tasks and the pool's loop turns until `condition()` holds (bounded)."""
    for _ in range(5000):
        if condition(*args):  # type: ignore[operator]
            return
        await asyncio.sleep(0.001)
    raise AssertionError("the condition did not come true")


async def test_equal_calls_of_two_rows_are_one(executor: Executor, engine: ScriptedEngine) -> None:
    batch = executor.open_batch("b")
    rows = [executor.begin(batch, "r"), executor.begin(batch, "r")]
    first, second = await asyncio.gather(*(executor.call(run, ask("hello")) for run in rows))
    assert text_of(first) == text_of(second) == "HELLO"
    assert len(engine.seen) == 1
    total = batch.stats.total
    assert (total.planned, total.executed, total.shared) == (2, 1, 1)
    assert total.prompt_tokens == 10 and total.avoided_prompt_tokens == 10


async def test_a_finished_call_answers_a_later_row(executor: Executor, engine: ScriptedEngine) -> None:
    batch = executor.open_batch("b")
    await executor.call(executor.begin(batch, "1"), ask("hello"))
    await executor.call(executor.begin(batch, "2"), ask("hello"))
    assert len(engine.seen) == 1 and batch.stats.total.shared == 1


async def test_answers_are_fresh_objects(executor: Executor) -> None:
    batch = executor.open_batch("b")
    first = (await executor.call(executor.begin(batch, "1"), ask("x"))).parse()
    second = (await executor.call(executor.begin(batch, "2"), ask("x"))).parse()
    first["choices"][0]["message"]["content"] = "spoiled"
    assert second["choices"][0]["message"]["content"] == "X"


async def test_a_repetition_within_a_run_is_a_new_call(executor: Executor, engine: ScriptedEngine) -> None:
    batch = executor.open_batch("b")
    run = executor.begin(batch, "1")
    await executor.call(run, ask("vote"))
    await executor.call(run, ask("vote"))
    assert len(engine.seen) == 2
    other = executor.begin(batch, "2")
    await asyncio.gather(*(executor.call(other, ask("vote")) for _ in range(3)))
    assert len(engine.seen) == 3  # the first two of the other run equal those of the first, the third is new


@pytest.mark.parametrize("body", [{"temperature": 0.7}, {"temperature": None}, {"temperature": 0, "top_k": 4}])
async def test_sampled_calls_stay_separate(
    executor: Executor, engine: ScriptedEngine, body: dict[str, float | None]
) -> None:
    batch = executor.open_batch("b")
    for row in "12":
        await executor.call(executor.begin(batch, row), ask("x", **body))
    assert len(engine.seen) == (1 if body["temperature"] == 0 else 2)


async def test_a_seed_makes_a_sampled_call_mergeable(executor: Executor, engine: ScriptedEngine) -> None:
    batch = executor.open_batch("b")
    for row in "12":
        await executor.call(executor.begin(batch, row), ask("x", temperature=0.7, seed=1))
    assert len(engine.seen) == 1


async def test_a_framework_retry_bypasses_the_memo(executor: Executor, engine: ScriptedEngine) -> None:
    batch = executor.open_batch("b")
    run, other = executor.begin(batch, "1"), executor.begin(batch, "2")
    await executor.call(run, ask("x"))
    retry = replace(ask("x"), origin=other.origin("node", attempt=2))
    await executor.call(other, retry)
    assert len(engine.seen) == 2


async def test_batches_do_not_share(executor: Executor, engine: ScriptedEngine) -> None:
    for name in "ab":
        await executor.call(executor.begin(executor.open_batch(name), "1"), ask("x"))
    assert len(engine.seen) == 2


async def test_merging_can_be_switched_off(executor: Executor, engine: ScriptedEngine) -> None:
    batch = executor.open_batch("b", merge=False)
    for row in "12":
        await executor.call(executor.begin(batch, row), ask("x"))
    assert len(engine.seen) == 2


async def test_one_waiter_leaving_does_not_cancel_the_others(executor: Executor, engine: ScriptedEngine) -> None:
    engine.held = True
    batch = executor.open_batch("b")
    first = asyncio.create_task(executor.call(executor.begin(batch, "1"), ask("x")))
    await until(lambda: engine.seen)
    second = asyncio.create_task(executor.call(executor.begin(batch, "2"), ask("x")))
    await until(lambda: len(next(iter(batch.flights.values())).waiters) == 2)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    executor.pool.thread.loop.call_soon_threadsafe(engine.release)
    assert text_of(await second) == "X"
    assert engine.cancelled == 0 and len(engine.seen) == 1
    total = batch.stats.total
    assert (total.cancelled, total.executed, total.shared) == (1, 1, 0)


async def test_the_last_waiter_leaving_cancels_the_call(executor: Executor, engine: ScriptedEngine) -> None:
    engine.held = True
    batch = executor.open_batch("b")
    tasks = [asyncio.create_task(executor.call(executor.begin(batch, row), ask("x"))) for row in "12"]
    await until(lambda: batch.flights and len(next(iter(batch.flights.values())).waiters) == 2 and engine.seen)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await until(lambda: engine.cancelled == 1)
    executor.pool.thread.loop.call_soon_threadsafe(engine.release)
    again = await executor.call(executor.begin(batch, "3"), ask("x"))
    assert text_of(again) == "X" and len(engine.seen) == 2


async def test_an_error_reaches_every_waiter_and_is_not_remembered(executor: Executor, engine: ScriptedEngine) -> None:
    engine.fail, engine.held = lambda call: EngineError("no"), True
    batch = executor.open_batch("b")
    tasks = [asyncio.create_task(executor.call(executor.begin(batch, row), ask("x"))) for row in "12"]
    await until(lambda: batch.flights and len(next(iter(batch.flights.values())).waiters) == 2)
    executor.pool.thread.loop.call_soon_threadsafe(engine.release)
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(o) for o in outcomes] == [EngineError, EngineError]
    assert len(engine.seen) == 1 and batch.stats.total.failed == 2
    engine.fail = lambda call: None
    assert text_of(await executor.call(executor.begin(batch, "3"), ask("x"))) == "X"


async def test_late_joiners_of_a_stream_get_all_of_it(executor: Executor, engine: ScriptedEngine) -> None:
    engine.held = True
    batch = executor.open_batch("b")

    async def read(run: Run) -> list[bytes]:
        return [chunk async for chunk in executor.stream(run, replace(ask("abc"), stream=True))]

    first = asyncio.create_task(read(executor.begin(batch, "1")))
    await until(lambda: engine.seen)
    second = asyncio.create_task(read(executor.begin(batch, "2")))
    await until(lambda: len(next(iter(batch.flights.values())).waiters) == 2)
    executor.pool.thread.loop.call_soon_threadsafe(engine.release)
    a, b = await asyncio.gather(first, second)
    late = await read(executor.begin(batch, "3"))
    assert a == b and len(a) == 4 and len(engine.seen) == 1
    assert [bytes(chunk).count(b"content") for chunk in late] == [1, 1, 1, 0]
    assert batch.stats.total.shared == 2


def test_blocking_callers_share_with_each_other(executor: Executor, engine: ScriptedEngine) -> None:
    from concurrent.futures import ThreadPoolExecutor

    batch = executor.open_batch("b")
    with ThreadPoolExecutor(8) as threads:
        answers = list(
            threads.map(lambda n: executor.call_blocking(executor.begin(batch, str(n)), ask(f"q{n % 2}")), range(8))
        )
    assert [text_of(a) for a in answers] == ["Q0", "Q1"] * 4
    assert len(engine.seen) == 2


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=5),
        min_size=1,
        max_size=6,
    )
)
def test_any_interleaving_executes_each_distinct_repetition_once(rows: list[list[tuple[str, bool]]]) -> None:
    """Executed calls = distinct (prompt, n-th repetition in its run) of deterministic ones + all sampled ones."""
    pool = EnginePool(PoolConfig(models={"*": "m"}))
    engine = ScriptedEngine(slots=2)
    pool.add(engine)
    executor = Executor(pool)

    async def main() -> None:
        batch = executor.open_batch("b")

        async def row(calls: list[tuple[str, bool]], key: str) -> None:
            run = executor.begin(batch, key)
            made: list[LLMCall] = [ask(text, temperature=0 if greedy else 1.0) for text, greedy in calls]
            answers = await asyncio.gather(*(executor.call(run, call) for call in made))
            assert [text_of(a) for a in answers] == [text.upper() for text, _ in calls]

        await asyncio.gather(*(row(calls, str(n)) for n, calls in enumerate(rows)))
        expected: set[tuple[str, int]] = set()
        sampled = 0
        for calls in rows:
            for text in "abc":
                expected |= {(text, n) for n in range(sum(1 for t, greedy in calls if t == text and greedy))}
            sampled += sum(1 for _, greedy in calls if not greedy)
        assert len(engine.seen) == len(expected) + sampled
        assert batch.stats.total.planned == sum(map(len, rows))

    try:
        asyncio.run(main())
    finally:
        pool.close()
