"""What must not hang or repeat anything: nested batches, lost loops, broken listeners, dying engines, closed pools."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from halo_core import tool
from halo_core.errors import EngineDiedError, EngineError
from halo_core.pool import EnginePool, PoolConfig
from halo_core.pool.loop import LoopThread
from halo_core.runtime import SESSION, Batch, Executor, Journal
from halo_core.runtime.rows import Rows
from tests.runtime.scripted import ScriptedEngine, ask, text_of
from tests.runtime.test_merging import until


async def test_a_limited_batch_does_not_block_the_batches_inside_its_rows(
    executor: Executor, engine: ScriptedEngine
) -> None:
    outer, inner = executor.open_batch("outer"), executor.open_batch("inner")

    async def row(batch: Batch, name: str, *, parts: int, limit: int | None) -> None:
        run = executor.begin(batch, name)
        await executor.admitted(run, limit)
        await asyncio.gather(*(row(inner, f"{name}.{n}", parts=0, limit=None) for n in range(parts)))
        await executor.call(run, ask(name))
        executor.end(run)

    rows = (row(outer, str(n), parts=2, limit=2) for n in range(8))
    await asyncio.wait_for(asyncio.gather(*rows), 30)
    assert outer.stats.rows_done == 8 and inner.stats.rows_done == 16


async def test_a_caller_whose_loop_is_gone_does_not_strand_the_others(
    executor: Executor, engine: ScriptedEngine
) -> None:
    engine.held = True
    batch = executor.open_batch("b")
    gone = asyncio.new_event_loop()
    lost = gone.create_task(executor.call(executor.begin(batch, "lost"), ask("same")))
    await asyncio.to_thread(gone.run_until_complete, asyncio.sleep(0.05))
    others = [asyncio.create_task(executor.call(executor.begin(batch, str(n)), ask("same"))) for n in range(2)]
    await until(lambda: batch.flights and sum(len(f.waiters) for f in batch.flights.values()) == 3)
    gone.close()
    executor.pool.thread.loop.call_soon_threadsafe(engine.release)
    answers = await asyncio.wait_for(asyncio.gather(*others), 10)
    assert [text_of(a) for a in answers] == ["SAME", "SAME"] and not lost.done()
    lost._log_destroy_pending = False  # type: ignore[attr-defined]


async def test_a_listener_that_breaks_is_told_no_more(executor: Executor, engine: ScriptedEngine) -> None:
    told: list[Batch] = []

    def listen(batch: Batch) -> None:
        told.append(batch)
        raise BrokenPipeError("the display is gone")

    batch = executor.open_batch("b", on_change=listen)
    answers = [await asyncio.wait_for(executor.call(executor.begin(batch, q), ask(q)), 10) for q in ("a", "b")]
    assert [text_of(a) for a in answers] == ["A", "B"] and told == [batch]


# -- journals ----------------------------------------------------------------------------------------------------


async def test_whoever_is_cancelled_while_a_journal_writes_does_not_end_its_writing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.db", app="x", resume=False)
    with journal._read_lock:  # the writer waits
        waiting = asyncio.ensure_future(asyncio.wrap_future(journal.put_write(("r", "t", "s", 0), None)))
        await asyncio.sleep(0.05)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    await asyncio.wait_for(asyncio.wrap_future(journal.put_write(("r", "t", "s", 1), b"x")), 10)
    assert journal.write(("r", "t", "s", 0)) == (None,) and journal.write(("r", "t", "s", 1)) == (b"x",)
    journal.close()


async def test_a_journal_that_cannot_be_read_costs_a_call_not_the_batch(
    executor: Executor, engine: ScriptedEngine, tmp_path: Path
) -> None:
    journal = Journal(tmp_path / "j.db", app="x", resume=False)
    batch = executor.open_batch("b", journal=journal)

    class Broken:
        def execute(self, *_: Any) -> Any:
            raise sqlite3.OperationalError("disk I/O error")

    database, journal._db = journal._db, Broken()  # type: ignore[assignment]
    answer = executor.call(executor.begin(batch, "1"), ask("x"))
    assert text_of(await asyncio.wait_for(answer, 10)) == "X"
    journal._db = database
    journal.close()


async def test_a_write_that_failed_and_was_retried_is_not_made_again(
    executor: Executor, engine: ScriptedEngine, tmp_path: Path
) -> None:
    made: list[int] = []
    trouble: list[Exception] = [ConnectionError("503")]

    @tool(effect="write")
    async def book(n: int) -> str:
        if trouble:
            raise trouble.pop()
        made.append(n)
        return f"booked {n}"

    async def row(journal: Journal, tries: int) -> list[str]:
        batch = executor.open_batch("b", journal=journal)
        run = executor.begin(batch, "row")
        token = SESSION.set(run)
        said = []
        for _ in range(tries):
            try:
                said.append(await book(7))
            except ConnectionError:
                said.append("failed")
        SESSION.reset(token)
        executor.end(run, failed=True)
        executor.close_batch(batch)
        return said

    first = Journal(tmp_path / "j.db", app="x", resume=False)
    assert await row(first, 3) == ["failed", "booked 7", "booked 7"]
    first.close()
    again = Journal(tmp_path / "j.db", app="x", resume=True)
    assert await row(again, 2) == ["booked 7", "booked 7"]
    again.close()
    assert made == [7, 7]


# -- engines -----------------------------------------------------------------------------------------------------


def kill(executor: Executor, engine: ScriptedEngine) -> None:
    def die() -> None:
        engine.held = False
        engine.die()

    executor.pool.thread.loop.call_soon_threadsafe(die)


async def test_deaths_long_ago_do_not_count(executor: Executor, engine: ScriptedEngine) -> None:
    """Five deaths, of which each is followed by answers, where three in a row would be the end."""
    batch = executor.open_batch("b")
    for n in range(5):
        engine.held = True
        asked = asyncio.create_task(executor.call(executor.begin(batch, str(n)), ask(f"q{n}")))
        await until(lambda: engine._running)
        kill(executor, engine)
        assert text_of(await asyncio.wait_for(asked, 20)) == f"Q{n}"
    assert engine.counters.restarts == 5 and batch.stats.total.failed == 0


async def test_an_engine_that_died_without_a_call_is_started_again(executor: Executor, engine: ScriptedEngine) -> None:
    other = ScriptedEngine(name="e1")
    executor.pool.add(other)
    batch = executor.open_batch("b")
    await asyncio.gather(*(executor.call(executor.begin(batch, f"a{n}"), ask(f"a{n}")) for n in range(8)))
    assert other.seen
    other.state = "dead"
    await executor.call(executor.begin(batch, "b"), ask("b"))
    await until(lambda: other.health.state == "ready")
    assert other.starts == 2 and engine.starts == 1


async def test_any_failure_of_a_restart_is_the_end_of_it() -> None:
    class Full(ScriptedEngine):
        async def start(self) -> None:
            if self.starts:
                raise OSError(28, "No space left on device")
            await super().start()

    pool = EnginePool(PoolConfig(restarts=1))
    engine = Full(held=True)
    pool.add(engine)
    executor = Executor(pool)
    try:
        task = asyncio.create_task(executor.call(executor.begin(executor.open_batch("b"), "1"), ask("x")))
        await until(lambda: engine.seen)
        kill(executor, engine)
        with pytest.raises(EngineDiedError, match="did not come back"):
            await asyncio.wait_for(task, 20)
    finally:
        pool.close()


async def test_another_key_is_another_engine() -> None:
    pool = EnginePool(PoolConfig())
    try:
        url = "http://127.0.0.1:9/v1"
        names = [pool.adopt("m", url, key, head) for key, head in (("a", {}), ("b", {}), ("a", {}), ("a", {"x": "1"}))]
        assert names == [f"m@{url}", f"m@{url}#2", f"m@{url}", f"m@{url}#3"]
        keys = [engine._headers["Authorization"] for name in names if name for engine in pool.group(name).engines]  # type: ignore[attr-defined]
        assert keys == ["Bearer a", "Bearer b", "Bearer a", "Bearer a"]
    finally:
        pool.close()


# -- ends --------------------------------------------------------------------------------------------------------


async def test_closing_the_pool_fails_what_waits(pool: EnginePool, executor: Executor, engine: ScriptedEngine) -> None:
    engine.held, engine.slots = True, 1
    batch = executor.open_batch("b")
    first = executor.begin(batch, "1")
    await executor.admitted(first, 1)
    calls = [asyncio.create_task(executor.call(first, ask(f"q{n}"))) for n in range(6)]
    await until(lambda: sum(d.backlog for d in executor._dispatchers.values()))
    with ThreadPoolExecutor() as threads:
        row = threads.submit(_whole_row, executor, batch)
        await until(lambda: executor.admission.waiting == 1)
        await asyncio.to_thread(pool.close)
        outcomes = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 10)
        assert all(isinstance(outcome, EngineError) for outcome in outcomes), outcomes
        assert isinstance(await asyncio.to_thread(row.exception, 10), EngineError | RuntimeError)
    with pytest.raises(RuntimeError):
        await executor.call(first, ask("later"))
    with pytest.raises(RuntimeError):  # also the second one
        await executor.call(first, ask("later still"))


def _whole_row(executor: Executor, batch: Batch) -> None:
    run = executor.begin(batch, "2")
    executor.wait_admitted(run, 1)
    executor.call_blocking(run, ask("x"))


def test_what_is_posted_while_a_loop_ends_is_heard() -> None:
    thread, heard = LoopThread("ending"), []
    held = threading.Event()
    thread.mailbox.post(held.wait)
    thread.loop.call_soon_threadsafe(thread.loop.stop)
    thread.mailbox.post(heard.append, 1)
    held.set()
    thread.close()
    assert heard == [1]


def test_leaving_a_batch_of_threads_begins_no_more_rows(
    executor: Executor, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("halo_core.runtime.rows.get_executor", lambda: executor)
    begun: list[int] = []
    going = threading.Event()

    def work(i: int) -> int:
        begun.append(i)
        if i:
            going.wait(10)
        return i

    rows = Rows(executor.open_batch("b"), 40, str, limit=2)
    ends = rows.in_threads(work)
    assert next(ends) == (0, 0)
    leaving = threading.Thread(target=lambda: (going.wait(0.3), going.set()))
    leaving.start()
    ends.close()
    leaving.join()
    wait_until(lambda: executor.admission.active == executor.admission.waiting == 0)
    assert len(begun) <= 4, "the row that ended, those under way, and one that was let in meanwhile"


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("the condition did not come true")


def test_an_interrupt_while_a_run_waits_gives_its_place_back(
    executor: Executor, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ambient = executor.ambient()
    first = executor.begin(ambient, "1")
    executor.wait_admitted(first, 1)
    second = executor.begin(ambient, "2")

    class Interrupted(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("halo_core.runtime.executor.threading.Event", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            executor.wait_admitted(second, 1)
    executor.end(second, failed=True)
    executor.end(first)
    wait_until(lambda: executor.admission.active == executor.admission.waiting == 0)
    assert executor.ambient() is not ambient
