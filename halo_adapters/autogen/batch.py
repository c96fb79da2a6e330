"""Many tasks through one team: `run_batch`, `arun_batch` and `arun_batch.stream`.

Every task is a run of its own on a copy of the team, made when the run is admitted. A task's exception is its own
result; the others finish.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from autogen_agentchat.messages import BaseChatMessage

from halo_adapters.autogen import intercept
from halo_adapters.autogen.runs import BatchResult, OnEvent, RunResult, TeamRows, outcome
from halo_adapters.autogen.tasks import Task, result_from_json, result_to_json, task_content
from halo_adapters.autogen.template import AppOrFactory, DriverChoice, Template
from halo_core.errors import ConfigError, HaloError
from halo_core.runtime import MISSING, Batch, BatchOptions, Journal, RowResult, row_keys
from halo_core.runtime.loops import iterate_async


class _ARunBatch:
    """`arun_batch(...)`, and `arun_batch.stream(...)` for results as they come."""

    async def __call__(
        self,
        app: AppOrFactory,
        tasks: Sequence[Task],
        *,
        concurrency: int | Literal["auto"] = "auto",
        driver: DriverChoice = "auto",
        dedup: Literal["exact", "off"] = "exact",
        on_error: Literal["collect", "raise"] = "collect",
        timeout: float | None = None,
        journal: str | Path | Journal | None = None,
        resume: bool = False,
        on_event: OnEvent | None = None,
        on_change: Callable[[Batch], None] | None = None,
    ) -> BatchResult:
        """Run every task on a copy of the team (or on what the function makes); results in the order of the tasks.

        `concurrency` bounds the runs at a time, by default what the engines can take. `driver`: "auto" runs teams
        without AutoGen's runtime where that is exact, "native" insists on it, "autogen" never does. `dedup="off"`
        executes equal calls each. `on_error="raise"` raises the first failed run's exception once all have ended.
        `timeout` is in seconds per run. `journal` names a file that keeps finished calls and runs; with `resume` those
        that it has are not run again. `on_event(i, message)` sees the messages of run i as they are said, `on_change`
        the batch whenever something is counted.

        Raises `ConfigError`, `CloneError` and `JournalError` before anything is run.
        """
        batch = _Tasks(app, tasks, concurrency, driver, dedup, timeout, journal, resume, on_event, on_change)
        runs: list[RunResult] = [MISSING] * len(tasks)
        async with aclosing(batch.stream()) as stream:
            async for i, run in stream:
                runs[i] = run
        result = BatchResult(runs, batch.batch, batch.template.app)
        if on_error == "raise" and result.errors:
            position, error = next(iter(result.errors.items()))
            error.add_note(
                f"Halo: raised by task {position}; {len(result.errors)} of {len(runs)} tasks failed, the others "
                "finished (on_error='collect' returns them)"
            )
            raise error
        return result

    async def stream(
        self,
        app: AppOrFactory,
        tasks: Sequence[Task],
        *,
        concurrency: int | Literal["auto"] = "auto",
        driver: DriverChoice = "auto",
        dedup: Literal["exact", "off"] = "exact",
        timeout: float | None = None,
        journal: str | Path | Journal | None = None,
        resume: bool = False,
        on_event: OnEvent | None = None,
        on_change: Callable[[Batch], None] | None = None,
    ) -> AsyncGenerator[tuple[int, RunResult], None]:
        """(position, result) of each task as it ends; arguments as of `arun_batch`.

        Leaving the iteration early cancels what is under way.
        """
        batch = _Tasks(app, tasks, concurrency, driver, dedup, timeout, journal, resume, on_event, on_change)
        async with aclosing(batch.stream()) as stream:
            async for item in stream:
                yield item


arun_batch = _ARunBatch()


class _Tasks:
    """One batch of tasks with its journal."""

    def __init__(
        self,
        app: AppOrFactory,
        tasks: Sequence[Task],
        concurrency: int | Literal["auto"],
        driver: DriverChoice,
        dedup: Literal["exact", "off"],
        timeout: float | None,
        journal: str | Path | Journal | None,
        resume: bool,
        on_event: OnEvent | None,
        on_change: Callable[[Batch], None] | None,
    ) -> None:
        if isinstance(tasks, str | BaseChatMessage):
            raise ConfigError(f"tasks is a list of tasks, not one: pass [{tasks!r}]")
        if concurrency != "auto" and (not isinstance(concurrency, int) or concurrency < 1):
            raise ConfigError(f"concurrency={concurrency!r}: give a number of runs from 1, or 'auto'")
        if dedup not in ("exact", "off"):
            raise ConfigError(f"dedup={dedup!r}: choose 'exact' or 'off'")
        if resume and journal is None:
            raise ConfigError("resume=True needs the journal to resume from: journal=FILE")
        self._tasks = list(tasks)
        self.template = Template(app, driver)
        self._limit = None if concurrency == "auto" else concurrency
        self._merge = dedup == "exact"
        self._timeout = timeout
        self._journal = journal
        self._resume = resume
        self._on_event = on_event
        self._on_change = on_change
        self.batch: Batch

    async def stream(self) -> AsyncGenerator[tuple[int, RunResult], None]:
        intercept.install()
        await self.template.prepare()
        with self._opened() as journal:
            keys = row_keys(map(task_content, self._tasks))
            known = self._known(journal, keys) if journal is not None and self._resume else {}
            left = [i for i in range(len(self._tasks)) if i not in known]
            on_event = self._on_event
            rows = TeamRows(
                self.template,
                [self._tasks[i] for i in left],
                limit=self._limit,
                merge=self._merge,
                timeout=self._timeout,
                on_event=None if on_event is None else lambda i, event: on_event(left[i], event),
                options=BatchOptions(journal, self._on_change, [keys[i] for i in left]),
            )
            self.batch = rows.batch
            self.batch.stats.rows_replayed = len(known)
            for i, run in known.items():
                yield i, run
            async with aclosing(rows.rows.as_completed(rows.work)) as ended:
                async for j, result in ended:
                    i = left[j]
                    run = outcome(i, self._tasks[i], result)
                    run.index = i
                    if journal is not None:
                        await _keep(journal, keys[i], run)
                    yield i, run

    @contextmanager
    def _opened(self) -> Iterator[Journal | None]:
        if self._journal is None or isinstance(self._journal, Journal):
            yield self._journal
            return
        journal = Journal(self._journal, app=self.template.fingerprint(), resume=self._resume)
        try:
            yield journal
        finally:
            journal.close()

    def _known(self, journal: Journal, keys: Sequence[str]) -> dict[int, RunResult]:
        """The runs that an earlier batch finished."""
        finished = {row.key: row.output for row in journal.rows() if row.output is not None}
        factory = self.template.messages
        return {
            i: RunResult(i, self._tasks[i], result_from_json(json.loads(finished[key]), factory), replayed=True)
            for i, key in enumerate(keys)
            if key in finished
        }


async def _keep(journal: Journal, key: str, run: RunResult) -> None:
    """Write a finished run; a journal that cannot be written any more is told of in the batch's errors."""
    output = json.dumps(result_to_json(run.result)) if run.result is not None else None
    row = RowResult(key, run.index, output, None if run.error is None else repr(run.error))
    with suppress(HaloError):
        await asyncio.wrap_future(journal.put_row(row))


def run_batch(app: AppOrFactory, tasks: Sequence[Task], **options: Any) -> BatchResult:
    """`arun_batch` for code without an event loop, or inside a running one (notebooks): it has a loop of its own.

    Ctrl-C cancels the runs under way.
    """

    async def once() -> AsyncGenerator[BatchResult, None]:
        yield await arun_batch(app, tasks, **options)

    for result in iterate_async(once):
        return result
    raise RuntimeError("a batch ended without its result")
