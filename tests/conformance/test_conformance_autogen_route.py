"""What the AutoGen suites cannot tell of their own: a routed client behaves as it does alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

import pytest

pytest.importorskip("autogen_core")

from autogen_core import CancellationToken

from halo_core.pool import PoolConfig, configure
from integrations.conformance.autogen_route import route
from integrations.conformance.loopback import LoopbackEngine


def clients() -> tuple[type[Any], type[Any]]:
    """A client that answers with the very object that it was given, and one that asks the first. Made for each test."""

    class Client:
        def __init__(self) -> None:
            self.log: list[str] = []

        async def create(self, messages: list[Any], *, cancellation_token: CancellationToken | None = None) -> Any:
            if not messages:
                raise ValueError("nothing to say")
            if messages == ["wait"]:
                self.log.append("waiting")
                waiting = asyncio.ensure_future(asyncio.sleep(60))
                if cancellation_token is not None:
                    cancellation_token.link_future(waiting)
                try:
                    await waiting
                except asyncio.CancelledError:
                    self.log.append("cancelled")
                    raise
            return messages

        async def create_stream(self, messages: list[Any]) -> AsyncGenerator[Any, None]:
            for message in messages:
                if message == "wait":
                    try:
                        await asyncio.sleep(60)
                    finally:
                        self.log.append("cancelled")
                if message == "fail":
                    raise ValueError("in mid-stream")
                yield message

    class Delegate(Client):
        async def create(self, messages: list[Any], **others: Any) -> Any:
            return await super().create(messages, **others)

        def create_stream(self, messages: list[Any]) -> AsyncGenerator[Any, None]:
            return super().create_stream(messages)

    return Client, Delegate


@pytest.fixture
def engine() -> Iterator[LoopbackEngine]:
    engine = LoopbackEngine()
    pool = configure(PoolConfig(adopt=False))
    pool.add(engine)
    yield engine
    pool.close()


@pytest.fixture(params=[0, 1], ids=["client", "delegate"])
def client(request: pytest.FixtureRequest, engine: LoopbackEngine) -> Any:
    classes = clients()
    for cls in classes:
        route(cls, engine)
    return classes[request.param]()


async def logged(client: Any, what: str) -> None:
    async with asyncio.timeout(10):
        while what not in client.log:
            await asyncio.sleep(0)


async def test_the_caller_gets_the_very_object_by_one_call(client: Any, engine: LoopbackEngine) -> None:
    messages = ["hello"]
    assert await client.create(messages) is messages
    assert engine.counters.calls == 1


async def test_the_clients_own_error_comes_back(client: Any) -> None:
    with pytest.raises(ValueError, match="nothing to say"):
        await client.create([])
    with pytest.raises(TypeError):
        await client.create()


async def test_a_stream_ends_with_its_error_after_what_it_gave(client: Any, engine: LoopbackEngine) -> None:
    one, given = object(), []
    with pytest.raises(ValueError, match="mid-stream"):
        async for item in client.create_stream([one, 2, "fail"]):
            given.append(item)
    assert given == [one, 2]
    assert engine.counters.calls == 1


async def test_the_callers_token_cancels_the_call(client: Any) -> None:
    token = CancellationToken()
    waiting = asyncio.create_task(client.create(["wait"], cancellation_token=token))
    await logged(client, "waiting")
    token.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert client.log == ["waiting", "cancelled"]


async def test_cancelling_the_caller_cancels_the_client(client: Any) -> None:
    waiting = asyncio.create_task(client.create(["wait"]))
    await logged(client, "waiting")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await logged(client, "cancelled")


async def test_leaving_a_stream_cancels_the_client(client: Any) -> None:
    async with aclosing(client.create_stream([1, "wait"])) as items:
        assert await anext(items) == 1
    await logged(client, "cancelled")


async def test_nothing_is_kept_of_a_call_that_is_over(client: Any, engine: LoopbackEngine) -> None:
    await client.create(["hello"])
    with pytest.raises(ValueError, match="nothing"):
        await client.create([])
    assert engine._deposits == {}
