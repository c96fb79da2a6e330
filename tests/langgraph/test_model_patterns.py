"""The matrix of ways to hold a model: which calls reach the pool, and that answers are those of plain LangGraph."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from halo_adapters import langgraph as halo
from halo_core.pool import PoolConfig, get_pool
from halo_core.runtime import get_executor
from tests.langgraph.patterns import PATTERNS, Pattern, Place
from tests.langgraph.patterns.comparable import comparable
from tests.stub_server import StubServer

ROWS = 2
LOOP = asyncio.Runner()
"""One loop for the whole module: plain ChatOpenAI keeps its client, with the connections of the first loop it saw."""


def invoke(app: Any, pattern: Pattern, arguments: dict[str, Any]) -> list[Any]:
    """Row after row."""
    return [app.invoke(pattern.row(number), pattern.config, **arguments) for number in range(ROWS)]


def batch(app: Any, pattern: Pattern, arguments: dict[str, Any]) -> list[Any]:
    """All rows, from threads."""
    rows = [pattern.row(number) for number in range(ROWS)]
    return list(app.batch(rows, pattern.config, **arguments))


def ainvoke(app: Any, pattern: Pattern, arguments: dict[str, Any]) -> list[Any]:
    """Rows that the application itself runs side by side."""

    async def run() -> list[Any]:
        rows = [app.ainvoke(pattern.row(number), pattern.config, **arguments) for number in range(ROWS)]
        return await asyncio.gather(*rows)

    return LOOP.run(run())


def abatch(app: Any, pattern: Pattern, arguments: dict[str, Any]) -> list[Any]:
    """All rows, on a loop; synchronous nodes then run in threads."""
    rows = [pattern.row(number) for number in range(ROWS)]
    return list(LOOP.run(app.abatch(rows, pattern.config, **arguments)))


def astream_events(app: Any, pattern: Pattern, arguments: dict[str, Any]) -> list[Any]:
    """Through events, which makes LangChain call every model as a stream."""

    async def last_output(number: int) -> Any:
        row, output = pattern.row(number), None
        async for event in app.astream_events(row, pattern.config, version="v2", **arguments):
            if event["event"] == "on_chain_end" and not event["parent_ids"]:
                output = event["data"]["output"]
        return output

    async def run() -> list[Any]:
        return [await last_output(number) for number in range(ROWS)]

    return LOOP.run(run())


Drive = Callable[[Any, Pattern, dict[str, Any]], list[Any]]
DRIVES: tuple[Drive, ...] = (invoke, batch, ainvoke, abatch, astream_events)
BLOCKING: tuple[Drive, ...] = (invoke, batch)


def matrix(*routed: str) -> list[Any]:
    """Every pattern with one of these claims, driven in every way that it allows."""
    return [
        pytest.param(pattern, drive, id=f"{pattern.name}-{drive.__name__}")
        for pattern in PATTERNS
        for drive in DRIVES
        if pattern.routed in routed and not (pattern.asynchronous and drive in BLOCKING)
    ]


@pytest.fixture(scope="module")
def stub() -> Iterator[StubServer]:
    with StubServer().threaded() as server:
        yield server
        LOOP.close()


@pytest.fixture
def place(stub: StubServer) -> Iterator[Place]:
    """A clean start: an empty pool that adopts the stub, no patch in place, nothing cached in the stub."""
    halo.uninstall()
    halo.configure(PoolConfig())
    stub.forget()
    yield Place(f"{stub.url}/v1")
    halo.uninstall()
    halo.configure(PoolConfig())


class Sent:
    """The requests that reached the stub within a block, told apart by who sent them."""

    def __init__(self, stub: StubServer) -> None:
        self._stub = stub
        self._first = len(stub.headers)

    @property
    def all(self) -> int:
        """Requests of anybody."""
        return len(self._stub.headers) - self._first

    @property
    def by_sdk(self) -> int:
        """Requests of the OpenAI SDK, which is what the application's own clients are."""
        headers = self._stub.headers[self._first :]
        return sum("openai" in fields.get("user-agent", "").lower() for fields in headers)

    @property
    def by_pool(self) -> int:
        """Requests that Halo's engines count as theirs."""
        return sum(engine.counters.calls for engine in get_pool().engines())


def plain(place: Place, pattern: Pattern, drive: Drive) -> list[Any]:
    """What LangGraph alone answers."""
    return drive(pattern.build(place), pattern, pattern.arguments(place))


def under_halo(place: Place, pattern: Pattern, drive: Drive) -> list[Any]:
    """What the same application answers under Halo."""
    with halo.backend("halo"):
        app = halo.accelerate(pattern.build(place))
    return drive(app, pattern, pattern.arguments(place))


def test_the_matrix_claims_26_of_30_by_default_and_29_with_the_hook() -> None:
    claims = Counter(pattern.routed for pattern in PATTERNS)
    assert claims == {"default": 26, "sdk_hook": 3, "never": 1}
    assert len({pattern.name for pattern in PATTERNS}) == 30


@pytest.mark.parametrize(("pattern", "drive"), matrix("default", "sdk_hook", "never"))
def test_calls_take_the_claimed_way_and_answers_are_the_same(
    pattern: Pattern, drive: Drive, place: Place, stub: StubServer
) -> None:
    expected = plain(place, pattern, drive)
    stub.forget()
    sent = Sent(stub)
    halo.install()
    got = under_halo(place, pattern, drive)
    assert comparable(got) == comparable(expected)
    calls = pattern.calls * ROWS
    routed = calls if pattern.routed == "default" else 0
    assert (sent.all, sent.by_pool, sent.by_sdk) == (calls, routed, calls - routed)


@pytest.mark.parametrize(("pattern", "drive"), matrix("sdk_hook", "never"))
def test_the_sdk_hook_routes_the_raw_sdk(pattern: Pattern, drive: Drive, place: Place, stub: StubServer) -> None:
    expected = plain(place, pattern, drive)
    stub.forget()
    sent = Sent(stub)
    halo.install(openai_sdk=True)
    got = under_halo(place, pattern, drive)
    assert comparable(got) == comparable(expected)
    calls = pattern.calls * ROWS
    routed = calls if pattern.routed == "sdk_hook" else 0
    assert (sent.all, sent.by_pool, sent.by_sdk) == (calls, routed, calls - routed)


def test_a_call_of_an_own_thread_is_left_alone_and_counted(place: Place) -> None:
    pattern = next(pattern for pattern in PATTERNS if pattern.routed == "never")
    halo.install()
    under_halo(place, pattern, batch)
    last = get_executor().last_batch
    assert last is not None
    assert last.stats.outside == ROWS
    assert all("thread" in reason for reason in last.stats.outside_reasons)


def test_nothing_is_routed_outside_a_run(place: Place, stub: StubServer) -> None:
    halo.install(openai_sdk=True)
    sent = Sent(stub)
    place.model().invoke("a call of the script itself")
    assert (sent.all, sent.by_pool, sent.by_sdk) == (1, 0, 1)
