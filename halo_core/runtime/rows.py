"""Rows through an app: handed out in order, admitted, each in a run of its own.

Rows never lose each other's results: an exception is the row's own result, and the others finish.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import queue
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

from halo_core.runtime.batch import Batch, Run
from halo_core.runtime.current import SESSION
from halo_core.runtime.executor import Executor, get_executor
from halo_core.runtime.journal import Journal

WORKERS = 256
"""Rows that may be under way or waiting for admission at a time; bounds tasks, threads and memory."""

MISSING: Any = object()
"""In place of a result: the row never ran."""


@dataclass(slots=True)
class BatchOptions:
    """How a batch is to run, beyond what its framework's own arguments say."""

    journal: Journal | None = None
    on_change: Callable[[Batch], None] | None = None
    keys: Sequence[str] | None = None
    """Row keys that stay the same when a part of the rows is run again; made from the rows' content by default."""


@contextlib.contextmanager
def relaxed_gc() -> Iterator[None]:
    """Collect cycles less often: with thousands of live rows half of a framework's CPU goes into collections."""
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


@dataclass(slots=True)
class _Row:
    """One row under way."""

    run: Run
    result: Any = MISSING


class Rows:
    """The rows of one batch, handed out in order to whoever has time.

    `content(i)` is a short text that is equal for equal rows, see `halo_core.runtime.digest`; `limit` bounds the rows
    at a time; `fields(i)` is what `halo_core.stats.row_fields` makes of row i. `work(i)`, given to the methods that run
    rows, makes row i's result.
    """

    def __init__(
        self,
        batch: Batch,
        count: int,
        content: Callable[[int], str],
        *,
        keys: Sequence[str] | None = None,
        limit: int | None = None,
        fields: Callable[[int], Mapping[str, str]] = lambda i: {},
    ) -> None:
        self.executor: Executor = get_executor()
        self.batch = batch
        self.results: list[Any] = [MISSING] * count
        """One entry per row, in input order: the result, the exception, or `MISSING`."""
        self._content = content
        self._keys = keys
        self.executor.foresee(batch, count, lambda: len({content(i) for i in range(count)}))
        self._limit = limit
        self._fields = fields
        self._next = iter(range(count))
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.results)

    def take(self) -> int | None:
        """The next row that nobody has taken."""
        with self._lock:
            return next(self._next, None)

    @contextlib.contextmanager
    def _row(self, i: int) -> Iterator[_Row]:
        run = self.executor.begin(self.batch, self._content(i), self._keys[i] if self._keys is not None else None)
        if run.noted is not None:
            run.noted.fields = self._fields(i)
        row = _Row(run)
        failed = True
        try:
            yield row
            if run.fatal is not None:
                raise run.fatal
            failed = False
        except Exception as error:
            row.result = error
        finally:
            self.executor.end(run, failed=failed)
        self.results[i] = row.result

    async def arun(self, i: int, work: Callable[[int], Awaitable[Any]]) -> Any:
        """Run row `i` on the current loop; returns its result or its exception."""
        with self._row(i) as row:
            await self.executor.admitted(row.run, self._limit)
            token = SESSION.set(row.run)
            try:
                row.result = await work(i)
            finally:
                SESSION.reset(token)
        return row.result

    def run(self, i: int, work: Callable[[int], Any], stop: threading.Event | None = None) -> Any:
        """Run row `i` on the current thread; returns its result or its exception. Not begun once `stop` is set."""
        with self._row(i) as row:
            self.executor.wait_admitted(row.run, self._limit)
            if stop is not None and stop.is_set():
                raise RuntimeError("the batch was left before this row began")
            token = SESSION.set(row.run)
            try:
                row.result = work(i)
            finally:
                SESSION.reset(token)
        return row.result

    def close(self) -> None:
        """All rows have ended."""
        self.executor.close_batch(self.batch)

    # -- all of them ---------------------------------------------------------------------------------------------

    async def gather(self, work: Callable[[int], Awaitable[Any]]) -> None:
        """Run all rows on the current loop and close the batch; `results` has what became of them."""

        async def rows() -> None:
            while (i := self.take()) is not None:
                await self.arun(i, work)

        with relaxed_gc():
            tasks = [asyncio.create_task(rows()) for _ in range(min(len(self), WORKERS))]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                self.close()

    async def as_completed(self, work: Callable[[int], Awaitable[Any]]) -> AsyncGenerator[tuple[int, Any], None]:
        """(position, result or exception) of each row as it ends; leaving early cancels what is under way."""
        done: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()

        async def rows() -> None:
            while (i := self.take()) is not None:
                try:
                    result = await self.arun(i, work)
                except asyncio.CancelledError:
                    raise
                except BaseException as error:  # SystemExit and the like end the batch, they must not hang it
                    done.put_nowait((-1, error))
                    return
                done.put_nowait((i, result))

        with relaxed_gc():
            tasks = [asyncio.create_task(rows()) for _ in range(min(len(self), WORKERS))]
            try:
                for _ in range(len(self)):
                    i, result = await done.get()
                    if i < 0:
                        raise result
                    yield i, result
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                self.close()

    def in_threads(self, work: Callable[[int], Any]) -> Generator[tuple[int, Any], None, None]:
        """(position, result or exception) of each row as it ends, every row in a thread; leaving early starts no more.

        Threads get a copy of the caller's context.
        """
        done: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        stop = threading.Event()

        def rows() -> None:
            try:
                while not stop.is_set() and (i := self.take()) is not None:
                    done.put((i, self.run(i, work, stop)))
            except BaseException as error:  # KeyboardInterrupt and the like end this worker, visibly
                done.put((-1, error))

        with relaxed_gc():
            threads = []
            for n in range(min(len(self), WORKERS)):
                thread = threading.Thread(target=copy_context().run, args=(rows,), name=f"halo-row-{n}", daemon=True)
                thread.start()
                threads.append(thread)
            try:
                for _ in range(len(self)):
                    i, result = done.get()
                    if i < 0:
                        raise result
                    yield i, result
            finally:
                stop.set()
                if not any(result is MISSING for result in self.results):
                    for thread in threads:
                        thread.join()
                self.close()
