"""Event loops and threads: whether this is a loop's thread, and async generators from synchronous code."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TypeVar

T = TypeVar("T")


def on_event_loop() -> bool:
    """Whether the current thread runs an event loop, so that blocking it could dead-lock."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def iterate_async(make: Callable[[], AsyncIterator[T]]) -> Iterator[T]:
    """The items of `make()`; leaving the iteration early cancels the generator and waits until it has cleaned up."""
    items: queue.SimpleQueue[tuple[T] | BaseException | None] = queue.SimpleQueue()
    loop = asyncio.new_event_loop()

    async def drain() -> None:
        try:
            async for item in make():
                items.put((item,))
            items.put(None)
        except BaseException as error:
            items.put(error)
            raise

    task = loop.create_task(drain())

    def run() -> None:
        try:
            loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            loop.close()

    thread = threading.Thread(target=run, name="halo-rows", daemon=True)
    thread.start()
    try:
        while True:
            item = items.get()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item[0]
    finally:
        with contextlib.suppress(RuntimeError):  # the loop has come to its end by itself
            loop.call_soon_threadsafe(task.cancel)
        thread.join()
