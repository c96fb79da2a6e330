"""Many rows through one graph: `batch`, `abatch` and their as-completed forms.

Rows are admitted depth-first instead of all at once, run in a session each, and never lose each other's results: one
row's exception is raised after the others have finished, with everything that they returned in the report.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from langchain_core.runnables.config import RunnableConfig, get_config_list

from halo_adapters.langgraph.session import SESSION, row_content
from halo_core.runtime import Batch, Executor, Journal, Run, get_executor

if TYPE_CHECKING:
    from halo_adapters.langgraph.app import App

WORKERS = 256
"""Rows that may be under way or waiting for admission at a time; bounds tasks, threads and memory."""

MISSING: Any = object()


@dataclass(slots=True)
class BatchReport:
    """What became of the rows of one batch, and what it cost."""

    batch: Batch
    app: App
    graph: Any
    """The compiled graph."""
    results: list[Any] = field(default_factory=list)
    """One entry per row, in input order: the result, the exception, or `MISSING` for a row that never ran."""

    @property
    def errors(self) -> dict[int, BaseException]:
        """Position -> exception of the rows that failed."""
        return {i: result for i, result in enumerate(self.results) if isinstance(result, BaseException)}

    @property
    def stats(self) -> Any:
        """Counts of calls and tokens, see `halo_core.runtime.BatchStats`."""
        return self.batch.stats

    def explain_analyze(self) -> str:
        """The plan with what really happened, per operator."""
        from halo_adapters.langgraph.report import explain_analyze

        return explain_analyze(self)


@dataclass(slots=True)
class Options:
    """How a batch is to run, beyond LangChain's own arguments."""

    journal: Journal | None = None
    on_change: Callable[[Batch], None] | None = None
    keys: Sequence[str] | None = None
    """Row keys that stay the same when a part of the rows is run again; made from the rows' content by default."""


@contextlib.contextmanager
def relaxed_gc() -> Iterator[None]:
    """Collect cycles less often: with thousands of live graphs half of LangGraph's CPU goes into collections."""
    before = gc.get_threshold()
    with _gc_lock:
        _gc_users.append(before)
        gc.set_threshold(50_000, 50, 100)
    try:
        yield
    finally:
        with _gc_lock:
            first = _gc_users[0]
            _gc_users.pop()
            if not _gc_users:
                gc.set_threshold(*first)


_gc_users: list[tuple[int, int, int]] = []
_gc_lock = threading.Lock()


def _limit(configs: Sequence[RunnableConfig], app: App) -> int | None:
    """LangChain's `max_concurrency` and the app's window are upper bounds on rows under way."""
    bounds = [config.get("max_concurrency") for config in configs[:1]] + [app.window]
    return min((bound for bound in bounds if bound), default=None)


class _Rows:
    """The rows of one batch, handed out in order to whoever has time, each run in a session of its own."""

    def __init__(self, graph: Any, inputs: Sequence[Any], config: Any, kwargs: dict[str, Any]) -> None:
        options: Options = kwargs.pop("halo_options", None) or Options()
        self.graph = graph
        self.inputs = inputs
        self.kwargs = kwargs
        self.keys = options.keys
        self.configs = get_config_list(config, len(inputs))
        self.limit = _limit(self.configs, graph.halo)
        self.executor: Executor = get_executor()
        self.batch = self.executor.open_batch(
            graph.halo.name, journal=options.journal, merge=graph.halo.merge, on_change=options.on_change
        )
        self.report = BatchReport(self.batch, graph.halo, graph, [MISSING] * len(inputs))
        self._next = iter(range(len(inputs)))
        self._lock = threading.Lock()
        graph.halo.last_report = self.report

    def take(self) -> int | None:
        """The next row that nobody has taken."""
        with self._lock:
            return next(self._next, None)

    def _begin(self, i: int) -> Run:
        key = self.keys[i] if self.keys is not None else None
        return self.executor.begin(self.batch, row_content(self.inputs[i]), key)

    async def arun(self, i: int) -> Any:
        """Run row `i` on the current loop; returns its result or its exception."""
        run = self._begin(i)
        failed = True
        try:
            await self.executor.admitted(run, self.limit)
            token = SESSION.set(run)
            try:
                result = await self.graph.ainvoke(self.inputs[i], self.configs[i], **self.kwargs)
                failed = False
            finally:
                SESSION.reset(token)
        except Exception as error:
            result = error
        finally:
            self.executor.end(run, failed=failed)
        self.report.results[i] = result
        return result

    def run(self, i: int) -> Any:
        """Run row `i` on the current thread; returns its result or its exception."""
        run = self._begin(i)
        failed = True
        try:
            self.executor.wait_admitted(run, self.limit)
            token = SESSION.set(run)
            try:
                result = self.graph.invoke(self.inputs[i], self.configs[i], **self.kwargs)
                failed = False
            finally:
                SESSION.reset(token)
        except Exception as error:
            result = error
        finally:
            self.executor.end(run, failed=failed)
        self.report.results[i] = result
        return result

    def close(self) -> None:
        """All rows have ended."""
        self.executor.close_batch(self.batch)


async def abatch(graph: Any, inputs: list[Any], config: Any, return_exceptions: bool, kwargs: Any) -> list[Any]:
    """See `Runnable.abatch`."""
    if not inputs:
        return []
    rows = _Rows(graph, inputs, config, kwargs)

    async def work() -> None:
        while (i := rows.take()) is not None:
            await rows.arun(i)

    with relaxed_gc():
        tasks = [asyncio.create_task(work()) for _ in range(min(len(inputs), WORKERS))]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            rows.close()
    return _raise_or_return(rows.report, return_exceptions)


async def abatch_as_completed(
    graph: Any, inputs: Sequence[Any], config: Any, return_exceptions: bool, kwargs: Any
) -> AsyncIterator[tuple[int, Any]]:
    """See `Runnable.abatch_as_completed`."""
    if not inputs:
        return
    rows = _Rows(graph, inputs, config, kwargs)
    done: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()

    async def work() -> None:
        while (i := rows.take()) is not None:
            try:
                result = await rows.arun(i)
            except asyncio.CancelledError:
                raise
            except BaseException as error:  # SystemExit and the like end the batch, they must not hang it
                done.put_nowait((-1, error))
                return
            done.put_nowait((i, result))

    with relaxed_gc():
        tasks = [asyncio.create_task(work()) for _ in range(min(len(inputs), WORKERS))]
        try:
            for _ in inputs:
                i, result = await done.get()
                if i < 0 or (isinstance(result, BaseException) and not return_exceptions):
                    raise result
                yield i, result
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            rows.close()


def _start_threads(rows: _Rows, done: Callable[[int, Any], None], stop: threading.Event) -> list[threading.Thread]:
    def work() -> None:
        try:
            while not stop.is_set() and (i := rows.take()) is not None:
                done(i, rows.run(i))
        except BaseException as error:  # KeyboardInterrupt and the like end this worker, visibly
            done(-1, error)

    threads = []
    for n in range(min(len(rows.inputs), WORKERS)):
        context = copy_context()
        thread = threading.Thread(target=context.run, args=(work,), name=f"halo-row-{n}", daemon=True)
        thread.start()
        threads.append(thread)
    return threads


def batch_as_completed(
    graph: Any, inputs: Sequence[Any], config: Any, return_exceptions: bool, kwargs: Any
) -> Iterator[tuple[int, Any]]:
    """See `Runnable.batch_as_completed`."""
    if not inputs:
        return
    rows = _Rows(graph, inputs, config, kwargs)
    done: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
    stop = threading.Event()
    with relaxed_gc():
        threads = _start_threads(rows, lambda i, result: done.put((i, result)), stop)
        try:
            for _ in inputs:
                i, result = done.get()
                if i < 0 or (isinstance(result, BaseException) and not return_exceptions):
                    raise result
                yield i, result
        finally:
            stop.set()
            if not any(result is MISSING for result in rows.report.results):
                for thread in threads:
                    thread.join()
            rows.close()


def batch(graph: Any, inputs: list[Any], config: Any, return_exceptions: bool, kwargs: Any) -> list[Any]:
    """See `Runnable.batch`."""
    if not inputs:
        return []
    if len(inputs) == 1 and SESSION.get() is not None:
        return [graph.invoke(inputs[0], get_config_list(config, 1)[0], **kwargs)]
    report: BatchReport | None = None
    for _ in batch_as_completed(graph, inputs, config, True, kwargs):
        report = graph.halo.last_report
    if report is None:
        raise RuntimeError("a batch ended without its report")
    return _raise_or_return(report, return_exceptions)


def _raise_or_return(report: BatchReport, return_exceptions: bool) -> list[Any]:
    """The results in input order, or the first failed row's exception."""
    errors = report.errors
    if errors and not return_exceptions:
        position, error = next(iter(errors.items()))
        error.add_note(
            f"Halo: raised by row {position}; {len(errors)} of {len(report.results)} rows failed. The other rows "
            "finished: their results are in app.last_run.results (or use return_exceptions=True)"
        )
        raise error
    return report.results
