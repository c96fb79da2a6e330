"""Threads for synchronous nodes: LangGraph runs them in the loop's default executor, capped at min(32, cores + 4)."""

from __future__ import annotations

import asyncio
import functools
import threading
from concurrent.futures import Executor as ThreadExecutor
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

MAX_THREADS = 256

_pool: ThreadPoolExecutor | None = None
_lock = threading.Lock()


def pool() -> ThreadExecutor:
    """The process's threads for user code, started as they are needed."""
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="halo-node")
        return _pool


def lift_thread_cap(app: Any, executor: ThreadExecutor) -> None:
    """Have the synchronous nodes of `app` run on `executor` under `ainvoke` and friends.

    Changes the nodes of this compiled graph only, never the builder, which other graphs may be compiled from.
    """
    for node in getattr(app, "nodes", {}).values():
        bound: Any = getattr(node, "bound", None)
        # By name: the class is private to LangGraph, and importing private modules breaks on their next move.
        if type(bound).__name__ != "RunnableCallable" or getattr(bound, "func", None) is None:
            continue
        afunc = bound.afunc
        if not (isinstance(afunc, functools.partial) and getattr(afunc.func, "__name__", "") == "run_in_executor"):
            continue
        clone: Any = object.__new__(type(bound))
        clone.__dict__.update(bound.__dict__)
        clone.afunc = _on(executor, bound.func)
        node.bound = clone
        node.__dict__.pop("node", None)  # a cached composition of the old `bound`


def _on(executor: ThreadExecutor, func: Any) -> Any:
    @functools.wraps(func)
    async def run(*args: Any, **kwargs: Any) -> Any:
        context = copy_context()  # an explicit executor gets no context of its own accord
        call = functools.partial(context.run, func, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(executor, _without_stop_iteration, call)

    run.__halo_in_thread__ = True  # type: ignore[attr-defined]  # the native executor has a shorter way to a thread
    return run


def _without_stop_iteration(call: Any) -> Any:
    try:
        return call()
    except StopIteration as error:  # cannot be set on a future: its waiter would wait for ever
        raise RuntimeError("a node raised StopIteration") from error
