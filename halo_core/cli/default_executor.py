"""The threads of `loop.run_in_executor(None, ...)` and `asyncio.to_thread`, no longer min(32, cores + 4)."""

from __future__ import annotations

import asyncio
import functools
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

THREADS = 256


def uncap() -> None:
    """Give every asyncio loop that has no default executor one with `THREADS` threads on first use; idempotent.

    Loops that the app gives an executor of its own keep it, and so do loops that are not asyncio's (uvloop).
    """
    original = asyncio.BaseEventLoop.run_in_executor
    if hasattr(original, "__halo__"):
        return

    @functools.wraps(original)
    def run_in_executor(self: Any, executor: Executor | None, func: Any, *args: Any) -> Any:
        if executor is None and getattr(self, "_default_executor", None) is None and not self.is_closed():
            self.set_default_executor(ThreadPoolExecutor(THREADS, thread_name_prefix="asyncio"))
        return original(self, executor, func, *args)

    run_in_executor.__halo__ = True  # type: ignore[attr-defined]
    asyncio.BaseEventLoop.run_in_executor = run_in_executor  # type: ignore[method-assign, assignment]
