"""Synchronous functions of asynchronous runs: called in threads, with one wake-up of the loop for many results."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any


class ThreadCalls:
    """Calls functions in an executor on behalf of one event loop.

    `loop.run_in_executor` wakes the loop once per call and chains two futures; this costs less than half of it.
    """

    __slots__ = ("_armed", "_done", "_executor", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, executor: Executor) -> None:
        self._loop = weakref.ref(loop)
        self._executor = executor
        self._done: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        self._armed = False

    def call(self, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """A future of `func(*args)`; cancelling it keeps the call from starting, if it has not."""
        loop = self._loop()
        assert loop is not None
        future: asyncio.Future[Any] = loop.create_future()
        self._executor.submit(self._work, future, func, args)
        return future

    def _work(self, future: asyncio.Future[Any], func: Callable[..., Any], args: tuple[Any, ...]) -> None:
        if future.cancelled():
            return
        try:
            self._done.append((future, func(*args), None))
        except BaseException as error:
            self._done.append((future, None, error))
        finally:
            del future  # an exception's traceback holds this frame: no cycle through the future
        # Armed is cleared before the results are taken, so a result is never left lying; waking twice does no harm.
        if not self._armed:
            self._armed = True
            loop = self._loop()
            if loop is not None and not loop.is_closed():
                loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._armed = False
        while self._done:
            future, result, error = self._done.popleft()
            if future.cancelled():
                continue
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
