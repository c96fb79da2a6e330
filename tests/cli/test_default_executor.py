"""The loop's default executor under `halo exec`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from halo_core.cli.default_executor import uncap


@pytest.fixture(autouse=True)
def uncapped() -> Iterator[None]:
    original = asyncio.BaseEventLoop.run_in_executor
    uncap()
    uncap()
    yield
    asyncio.BaseEventLoop.run_in_executor = original  # type: ignore[method-assign]


def test_more_calls_at_once_than_asyncio_has_threads() -> None:
    async def meet(calls: int) -> None:
        barrier = threading.Barrier(calls)
        loop = asyncio.get_running_loop()
        half = [loop.run_in_executor(None, barrier.wait, 60) for _ in range(calls // 2)]
        await asyncio.gather(*half, *(asyncio.to_thread(barrier.wait, 60) for _ in range(calls // 2)))

    asyncio.run(meet(100))


def test_an_executor_of_ones_own_is_kept() -> None:
    async def name() -> str:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1, thread_name_prefix="mine"))
        return await asyncio.to_thread(lambda: threading.current_thread().name)

    assert asyncio.run(name()).startswith("mine")


def test_explicit_executors_and_closed_loops_are_left_alone() -> None:
    with ThreadPoolExecutor(1, thread_name_prefix="given") as given:

        async def name() -> str:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(given, lambda: threading.current_thread().name)

        assert asyncio.run(name()).startswith("given")
    loop = asyncio.new_event_loop()
    loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        loop.run_in_executor(None, print)
