"""Sharing, order and limits of tool calls, from tasks and from threads."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest

from halo_core import tool
from halo_core.errors import InDoubtError
from halo_core.pool import EnginePool, PoolConfig
from halo_core.runtime import SESSION, BatchStats, Executor, Journal, Run, ToolCall, ToolDesk
from halo_core.runtime.batch import Batch
from halo_core.runtime.gates import Gate
from halo_core.runtime.rows import Rows
from halo_core.runtime.tool_desk import OBSERVERS
from halo_core.tools import Effect, ToolDeclarationError, identity_of, signature_of, spec_of


@pytest.fixture
def batch() -> Batch:
    return Batch("b")


def inside(batch: Batch, key: str = "row") -> None:
    SESSION.set(Run(batch, key, 0))


class Calls:
    """A tool's body that counts, and waits until it may go on."""

    def __init__(self, *, held: bool = False) -> None:
        self.seen: list[Any] = []
        self.now = self.peak = 0
        self.gate = asyncio.Event()
        if not held:
            self.gate.set()

    async def __call__(self, value: Any) -> list[Any]:
        self.seen.append(value)
        self.now += 1
        self.peak = max(self.peak, self.now)
        try:
            await self.gate.wait()
            await asyncio.sleep(0)
            return [value]
        finally:
            self.now -= 1


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_equal_reads_are_one_call_and_everybody_has_a_copy(batch: Batch) -> None:
    body = Calls(held=True)

    @tool(effect="read")
    async def look(value: int, *, again: bool = False) -> list[Any]:
        return await body(value)

    inside(batch)
    asked = [asyncio.create_task(look(1)) for _ in range(5)] + [asyncio.create_task(look(2))]
    await until(lambda: len(body.seen) == 2)
    body.gate.set()
    answers = await asyncio.gather(*asked, look(1), look(value=1, again=False))
    assert answers == [[1]] * 5 + [[2], [1], [1]] and sorted(body.seen) == [1, 2]
    answers[0].append("mine")
    assert await look(1) == [1]
    assert batch.stats.tools["look"].executed == 2 and batch.stats.tools["look"].shared == 7


async def test_tools_of_one_name_are_not_one_tool(batch: Batch) -> None:
    def make_search(tenant: str) -> Any:
        @tool(effect="read")
        def search(query: str) -> str:
            return f"{query} of {tenant}"

        return search

    class Shop:
        def __init__(self, tenant: str) -> None:
            self.tenant = tenant

        def search(self, query: str) -> str:
            return f"{query} of {self.tenant}"

    inside(batch)
    blue, green = make_search("blue"), make_search("green")
    assert [blue("a"), green("a"), blue("a")] == ["a of blue", "a of green", "a of blue"]
    assert batch.stats.tools["search"].shared == 1
    one, other = identity_of(Shop("blue").search), identity_of(Shop("green").search)
    assert one == identity_of(Shop("blue").search) and hash(one) == hash(identity_of(Shop("blue").search))
    assert one != other and identity_of(print) == identity_of(print)


async def test_a_row_in_doubt_fails_whatever_its_code_makes_of_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Agents hear of a failed tool and try again: not of one that may have been done already."""
    made: list[int] = []

    @tool(effect="write")
    def book(n: int) -> str:
        made.append(n)
        return "booked"

    journal = Journal(tmp_path / "j.db", app="x", resume=False)
    pool = EnginePool(PoolConfig())
    monkeypatch.setattr("halo_core.runtime.rows.get_executor", lambda: executor)
    executor = Executor(pool)
    batch = executor.open_batch("b", journal=journal)

    def agent(i: int) -> str:
        for _ in range(3):
            try:
                return book(7)
            except Exception:
                continue
        return "gave up"

    await asyncio.wrap_future(journal.put_write(("row:0", "book", signature_of({"n": 7}) or "", 0), None))
    rows = Rows(batch, 1, lambda i: "row")
    found = await asyncio.to_thread(lambda: list(rows.in_threads(agent)))
    assert isinstance(found[0][1], InDoubtError) and made == [] and batch.stats.rows_failed == 1
    journal.close()
    await asyncio.to_thread(pool.close)


def test_a_method_that_writes_is_known_by_its_arguments() -> None:
    class Shop:
        @tool(effect="write")
        def book(self, n: int) -> int:
            seen.append(heard[-1].signature)
            return n

    seen: list[str | None] = []
    heard: list[ToolCall] = []
    OBSERVERS.append(heard.append)
    inside(Batch("b"))
    try:
        Shop().book(1)
        Shop().book(n=1)
        Shop().book(2)
    finally:
        OBSERVERS.remove(heard.append)
        SESSION.set(None)
    assert seen[0] is not None and seen[0] == seen[1] != seen[2]


async def test_outside_a_run_nothing_is_shared() -> None:
    body = Calls()
    look = tool(effect="pure")(body.__call__)
    assert [await look(1), await look(1)] == [[1], [1]] and body.seen == [1, 1]


async def test_undeclared_and_writing_tools_are_never_shared(batch: Batch) -> None:
    body, plain = Calls(), Calls()

    @tool(effect="write", source="db")
    async def book(value: int) -> Any:
        return await body(value)

    @tool
    async def anything(value: int) -> Any:
        return await plain(value)

    inside(batch)
    await asyncio.gather(*(book(1) for _ in range(4)), *(anything(1) for _ in range(4)))
    assert body.seen == [1] * 4 and plain.seen == [1] * 4
    assert body.peak == 1  # writes of one source come one after the other
    assert plain.peak == 4  # nobody knows what it writes, and the app has had it run in parallel before


async def test_writes_are_in_the_order_in_which_they_were_asked_for(batch: Batch) -> None:
    body = Calls(held=True)

    @tool(effect="write", source="db")
    async def book(value: int) -> Any:
        return await body(value)

    inside(batch)
    asked = []
    for value in range(6):
        asked.append(asyncio.create_task(book(value)))
        await asyncio.sleep(0)
    body.gate.set()
    await asyncio.gather(*asked)
    assert body.seen == list(range(6))


async def test_a_write_ends_the_sharing_of_reads_of_its_source_only(batch: Batch) -> None:
    reads: list[str] = []

    def reader(name: str, **options: Any) -> Any:
        @tool(name=name, **options)
        async def read() -> str:
            reads.append(name)
            return name

        return read

    one, other = reader("one", effect="read", source="a"), reader("other", effect="read", source="b")
    pure = reader("pure", effect="pure")

    @tool(effect="write", source="a")
    async def write() -> None: ...

    @tool
    async def unknown() -> None: ...

    inside(batch)
    for change, expected in ((None, ["one", "other", "pure"]), (write, ["one"]), (unknown, ["one", "other"])):
        reads.clear()
        if change is not None:
            await change()
        for _ in range(2):
            await asyncio.gather(one(), other(), pure())
        assert sorted(reads) == expected


async def test_a_read_that_began_before_a_write_is_not_handed_to_those_who_ask_later(batch: Batch) -> None:
    body = Calls(held=True)

    @tool(effect="read", source="a")
    async def look() -> Any:
        return await body(len(body.seen))

    @tool(effect="write", source="a")
    async def write() -> None: ...

    inside(batch)
    before = asyncio.create_task(look())
    await until(lambda: body.seen)
    await write()
    after = asyncio.create_task(look())
    await until(lambda: len(body.seen) == 2)
    body.gate.set()
    assert await before != await after


async def test_a_failure_is_nobodys_but_its_own(batch: Batch) -> None:
    """Those who waited make the call themselves, as they would without Halo."""
    attempts: list[int] = []

    @tool(effect="read")
    async def look() -> int:
        attempts.append(1)
        n = len(attempts)
        await asyncio.sleep(0.01)
        if n == 1:
            raise ConnectionError("once")
        return n

    inside(batch)
    answers = await asyncio.gather(*(look() for _ in range(3)), return_exceptions=True)
    assert isinstance(answers[0], ConnectionError) and not any(isinstance(a, BaseException) for a in answers[1:])
    stats = batch.stats.tools["look"]
    assert (stats.failed, stats.executed) == (1, 2)


async def test_failures_are_retried_only_where_that_is_declared(batch: Batch) -> None:
    def flaky(**options: Any) -> Any:
        seen: list[int] = []

        @tool(**options)
        async def look() -> int:
            seen.append(1)
            if len(seen) < 2:
                raise ConnectionError("once")
            return len(seen)

        return look

    inside(batch)
    assert await flaky(effect="read", retries=1)() == 2
    assert await flaky(effect="write", retries=1)() == 2
    for options in ({"effect": "read"}, {"effect": "write"}, {}):
        with pytest.raises(ConnectionError):
            await flaky(**options)()
    assert batch.stats.tools["look"].retried == 2


async def test_when_the_first_is_cancelled_another_makes_the_call(batch: Batch) -> None:
    body = Calls(held=True)

    @tool(effect="read")
    async def look() -> Any:
        return await body(1)

    inside(batch)
    first = asyncio.create_task(look())
    await until(lambda: body.seen)
    others = [asyncio.create_task(look()) for _ in range(3)]
    await asyncio.sleep(0.01)
    first.cancel()
    await until(lambda: len(body.seen) == 2)
    body.gate.set()
    assert await asyncio.gather(*others) == [[1]] * 3 and len(body.seen) == 2
    assert first.cancelled()


async def test_a_waiter_that_is_cancelled_does_not_stop_the_others(batch: Batch) -> None:
    body = Calls(held=True)

    @tool(effect="read")
    async def look() -> Any:
        return await body(1)

    inside(batch)
    asked = [asyncio.create_task(look()) for _ in range(3)]
    await until(lambda: body.seen)
    await asyncio.sleep(0.01)
    asked[1].cancel()
    body.gate.set()
    assert await asked[0] == await asked[2] == [1] and len(body.seen) == 1


async def test_no_more_calls_of_a_backend_than_it_bears(batch: Batch) -> None:
    body = Calls()

    @tool(effect="read", backend="the pool", max_inflight=3)
    async def look(value: int) -> Any:
        return await body(value)

    @tool(effect="write", backend="the pool", max_inflight=3)
    async def book(value: int) -> Any:
        return await body(value)

    inside(batch)
    await asyncio.gather(*(look(n) for n in range(10)), *(book(n) for n in range(10)))
    assert body.peak == 3 and len(body.seen) == 20


async def test_a_tool_that_calls_another_of_its_backend_does_not_wait_for_itself(batch: Batch) -> None:
    @tool(effect="read", backend="one", max_inflight=1)
    async def inner(value: int) -> int:
        return value

    @tool(effect="read", backend="one", max_inflight=1)
    async def outer(value: int) -> int:
        return await inner(value) + 1

    inside(batch)
    async with asyncio.timeout(10):
        assert await asyncio.gather(outer(1), outer(2)) == [2, 3]


def test_threads_share_and_are_limited_too(batch: Batch) -> None:
    now, peak, seen = 0, 0, []
    lock = threading.Lock()

    @tool(effect="read", max_inflight=2)
    def look(value: int) -> list[int]:
        nonlocal now, peak
        with lock:
            now += 1
            peak = max(peak, now)
            seen.append(value)
        time.sleep(0.02)
        with lock:
            now -= 1
        return [value]

    def row(value: int) -> list[int]:
        inside(batch)
        return look(value)

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda n: copy_context().run(row, n % 5), range(40)))
    assert answers == [[n % 5] for n in range(40)]
    assert sorted(seen) == [0, 1, 2, 3, 4] and peak == 2


async def test_a_synchronous_tool_on_an_event_loop_never_waits_for_another(batch: Batch) -> None:
    """The other call may need this very loop."""
    body = Calls(held=True)

    call = ToolCall("look", Effect.READ, "the same", backend="few", max_inflight=1)

    async def look() -> Any:
        return await batch.desk.acall(call, lambda: body(1))

    def look_now() -> Any:
        return batch.desk.call(call, lambda: ["now"])

    inside(batch)
    waiting = asyncio.create_task(look())
    await until(lambda: body.seen)
    assert look_now() == ["now"]
    body.gate.set()
    assert await waiting == [1]
    assert look_now() == [1]  # it is known now


async def test_a_result_that_cannot_be_copied_is_not_shared(batch: Batch) -> None:
    seen: list[int] = []

    @tool(effect="read")
    async def look() -> Any:
        seen.append(1)
        await asyncio.sleep(0.01)
        return threading.Lock()

    inside(batch)
    answers = await asyncio.gather(look(), look())
    assert len(seen) == 2 and answers[0] is not answers[1]


async def test_a_batch_that_does_not_merge_shares_no_tools_either() -> None:
    body = Calls()

    @tool(effect="pure")
    async def look(value: int) -> Any:
        return await body(value)

    inside(Batch("b", merge=False))
    assert await asyncio.gather(look(1), look(1)) == [[1], [1]] and body.seen == [1, 1]


async def test_without_keeping_reads_only_those_under_way_are_shared() -> None:
    """An app that serves for days must not answer from yesterday's look."""
    desk = ToolDesk(BatchStats().tool, keep_reads=False)
    seen: list[int] = []

    async def look() -> int:
        seen.append(1)
        await asyncio.sleep(0.01)
        return len(seen)

    read = ToolCall("look", Effect.READ, "the same")
    assert await asyncio.gather(desk.acall(read, look), desk.acall(read, look)) == [1, 1]
    assert await desk.acall(read, look) == 2
    pure = ToolCall("sum", Effect.PURE, "the same")
    assert [await desk.acall(pure, look), await desk.acall(pure, look)] == [3, 3]


async def test_a_gate_lets_in_in_order_and_a_place_given_up_is_free() -> None:
    gate = Gate(1)
    places = [gate.ask() for _ in range(4)]
    assert [place.done() for place in places] == [True, False, False, False]
    gate.give_up(places[1])
    gate.leave()
    assert [place.done() for place in places] == [True, False, True, False]
    gate.give_up(places[2])  # let in, and leaves at once
    assert places[3].done()
    gate.leave()
    assert gate.ask().done()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"effect": "reads"}, "effect is 'reads'; give one of pure, read, write"),
        ({"max_inflight": 0}, "max_inflight is 0; give a whole number, 1 or more"),
        ({"retries": -1}, "retries is -1"),
        ({"effect": "pure", "source": "db"}, "is pure, so it has no source"),
        ({"key": "name"}, "give a function of the tool's arguments"),
        ({"effekt": "read"}, "unknown declaration effekt; known: backend, effect"),
        ({"source": [1]}, "give names of what it reads or writes"),
    ],
)
def test_bad_declarations(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ToolDeclarationError, match=said):
        tool(**options)(lambda: None)


def test_what_cannot_be_a_tool() -> None:
    declared = tool(effect="pure")(len)
    for bad in (declared, Batch, lambda: (yield)):
        with pytest.raises(ToolDeclarationError):
            tool(bad)


def test_the_function_stays_what_it_was() -> None:
    @tool(effect="read", source=["a", "b"], retries=2)
    def look(value: int = 3) -> int:
        """Looks."""
        return value

    assert (look.__name__, look.__doc__, look()) == ("look", "Looks.", 3)
    spec = spec_of(look)
    assert spec is not None and (spec.name, spec.effect, spec.sources, spec.retries) == ("look", "read", ("a", "b"), 2)
