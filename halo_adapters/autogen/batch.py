"""Many tasks through one team: `run_batch`, `arun_batch` and `arun_batch.stream`.

Every task is a run of its own on a copy of the team, made when the run is admitted. A task's exception is its own
result; the others finish.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from autogen_agentchat.base import ChatAgent, TaskResult, Team
from autogen_agentchat.messages import BaseAgentEvent, BaseChatMessage, MessageFactory
from autogen_agentchat.teams import BaseGroupChat
from autogen_core import CancellationToken
from autogen_core.models import RequestUsage

from halo_adapters.autogen import drive, intercept
from halo_adapters.autogen.attribution import AGENT
from halo_adapters.autogen.clone import clone
from halo_adapters.autogen.tasks import Task, result_from_json, result_to_json, task_content, task_of
from halo_core.errors import ConfigError, HaloError
from halo_core.runtime import (
    SESSION,
    Batch,
    BatchOptions,
    BatchStats,
    Journal,
    OperatorStats,
    RowResult,
    Rows,
    get_executor,
)
from halo_core.runtime.loops import iterate_async
from halo_core.runtime.rows import MISSING

App = Team | ChatAgent
AppOrFactory = App | Callable[[], Any]
DriverChoice = Literal["auto", "native", "autogen"]
OnEvent = Callable[[int, BaseAgentEvent | BaseChatMessage], object]


@dataclass(slots=True)
class RunResult:
    """What became of one task."""

    index: int
    """Position among the tasks."""
    task: Any
    result: TaskResult | None = None
    """None where the run failed."""
    error: BaseException | None = None
    stats: OperatorStats = field(default_factory=OperatorStats)
    """Calls and tokens of this run: executed for it, shared with others, replayed from a journal."""
    replayed: bool = False
    """The journal of an earlier batch had the result."""

    @property
    def usage(self) -> RequestUsage:
        """Tokens of all calls of the run, shared ones too: what it would have used by itself."""
        s = self.stats
        executed = s.prompt_tokens + s.generated_tokens
        shared = s.avoided_prompt_tokens + s.avoided_generated_tokens
        if not executed + shared:
            return RequestUsage(0, 0)
        return RequestUsage(s.prompt_tokens + s.avoided_prompt_tokens, s.generated_tokens + s.avoided_generated_tokens)

    def unwrap(self) -> TaskResult:
        """The result, or the run's exception raised."""
        if self.error is not None:
            raise self.error
        return cast(TaskResult, self.result)


class BatchResult(Sequence[RunResult]):
    """The results in the order of the tasks, and what they cost together."""

    def __init__(self, runs: list[RunResult], batch: Batch, app: App) -> None:
        self._runs = runs
        self.batch = batch
        self.app = app

    def __getitem__(self, index: Any) -> Any:
        return self._runs[index]

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[RunResult]:
        return iter(self._runs)

    def __repr__(self) -> str:
        return f"BatchResult({len(self)} runs, {len(self.errors)} failed)"

    @property
    def errors(self) -> dict[int, BaseException]:
        """Position -> exception of the runs that failed."""
        return {run.index: run.error for run in self._runs if run.error is not None}

    @property
    def stats(self) -> BatchStats:
        """Counts of calls and tokens of the whole batch."""
        return self.batch.stats

    def explain_analyze(self) -> str:
        """The team's plan with what really happened, per agent."""
        from halo_adapters.autogen.report import explain_analyze

        return explain_analyze(self.batch, self.app)


class Template:
    """What the teams of the runs are made from: a team that is copied, or a function that makes one."""

    def __init__(self, source: AppOrFactory, driver: DriverChoice = "auto") -> None:
        """Raises `ConfigError` for anything else, and for a driver that cannot drive this team."""
        if driver not in ("auto", "native", "autogen"):
            raise ConfigError(f"driver={driver!r}: choose 'auto', 'native' or 'autogen'")
        self._driver = driver
        self._factory: Callable[[], Any] | None = None
        self._state: Mapping[str, Any] | None = None
        if isinstance(source, Team | ChatAgent):
            self.app: Any = source
            self._used = isinstance(source, BaseGroupChat) and source._initialized
            clone(source)  # a team that cannot be copied is told of before anything runs
        elif callable(source):
            self._factory = source
            self.app = None
            self._used = False
        else:
            raise ConfigError(f"run_batch takes a team, an agent, or a function that makes one, not {source!r}")

    async def prepare(self) -> None:
        """Make the first team of a factory, and take what a used team's runtime keeps."""
        if self._factory is not None:
            self.app = await self._made()
        if self._used:
            self._state = await self.app.save_state()
        if self._driver == "native" and isinstance(self.app, Team):
            why = drive.why_not_native(clone(self.app))
            if why is not None:
                raise ConfigError(f"driver='native' cannot run team {self.app.name!r}: {why}; use driver='auto'")

    async def make(self) -> Any:
        """The team of one run."""
        app = await self._made() if self._factory is not None else clone(self.app)
        if self._driver != "autogen":
            drive.attach(app)
        if self._state is not None:
            await app.load_state(self._state)
        return app

    async def _made(self) -> Any:
        made = self._factory() if self._factory is not None else None
        if inspect.isawaitable(made):
            made = await made
        if not isinstance(made, Team | ChatAgent):
            raise ConfigError(f"the function must make a team or an agent; it made {made!r}")
        return made

    @property
    def copies(self) -> bool:
        """Whether the runs' teams are Halo's own copies; those of a function may be kept by it."""
        return self._factory is None

    @property
    def name(self) -> str:
        """The team's name."""
        return str(self.app.name)

    @property
    def messages(self) -> MessageFactory:
        """Knows the message types of the team."""
        return getattr(self.app, "_message_factory", None) or MessageFactory()

    def fingerprint(self) -> str:
        """Changes when the team changes; ties a journal to it."""
        return fingerprint(self.app)


def fingerprint(app: Any) -> str:
    """A text that changes when the team changes in anything that its plan knows of."""
    from halo_adapters.autogen.lift import lift

    try:
        return f"autogen:{app.name}:{lift(app).fingerprint}"
    except HaloError:  # a team that cannot be lifted runs all the same
        return f"autogen:{app.name}:not lifted"


class TeamRows:
    """The tasks of one batch, each run on a team of its own."""

    def __init__(
        self,
        template: Template,
        tasks: Sequence[Any],
        *,
        limit: int | None = None,
        merge: bool = True,
        timeout: float | None = None,
        on_event: OnEvent | None = None,
        options: BatchOptions | None = None,
    ) -> None:
        options = options or BatchOptions()
        self.batch = get_executor().open_batch(
            template.name, journal=options.journal, merge=merge, on_change=options.on_change
        )
        self.tasks = tasks
        self.rows = Rows(self.batch, len(tasks), lambda i: task_content(tasks[i]), keys=options.keys, limit=limit)
        self._template = template
        self._copies = template.copies
        self._timeout = timeout
        self._on_event = on_event

    async def work(self, i: int) -> RunResult:
        """Run task `i`; a failure of the run is part of the result."""
        run = SESSION.get()
        result = RunResult(i, self.tasks[i])
        if run is not None:
            result.stats = run.stats
        try:
            async with asyncio.timeout(self._timeout):
                result.result = await self._run(i, task_of(self.tasks[i]))
        except Exception as error:
            cause = error.__cause__ or (run.trouble if run is not None else None)
            if isinstance(error, RuntimeError) and cause is not None:
                cause.add_note(f"AutoGen told it as {type(error).__name__}")
                raise _Failure(result, cause) from error
            raise _Failure(result, error) from error
        return result

    async def _run(self, i: int, task: Task) -> TaskResult:
        app = await self._template.make()
        token = CancellationToken()
        try:
            with _speaking(app):
                stream = app.run_stream(task=task, **({} if drive.is_driven(app) else {"cancellation_token": token}))
                async with aclosing(stream):
                    async for event in stream:
                        if isinstance(event, TaskResult):
                            return event
                        if self._on_event is not None:
                            self._on_event(i, event)
        except BaseException:
            token.cancel()  # whatever the agents have linked to it ends with the run
            raise
        finally:
            if self._copies:
                drive.release(app)
        raise RuntimeError(f"the team {app.name!r} ended without a result")


class _Failure(Exception):
    """A failed run with what is known of it; only between `work` and whoever called it."""

    def __init__(self, result: RunResult, error: BaseException) -> None:
        super().__init__(str(error))
        result.error = error
        self.result = result


def _speaking(app: App) -> AbstractContextManager[None]:
    """Attribution for an agent that runs by itself, outside any team."""
    return _agent(app.name) if isinstance(app, ChatAgent) else nullcontext()


@contextmanager
def _agent(name: str) -> Iterator[None]:
    token = AGENT.set(name)
    try:
        yield
    finally:
        AGENT.reset(token)


def outcome(i: int, task: Any, result: Any) -> RunResult:
    """A row's result or exception as a `RunResult`."""
    if isinstance(result, RunResult):
        return result
    if isinstance(result, _Failure):
        return result.result
    error = result if isinstance(result, BaseException) else RuntimeError("the task was not run")
    return RunResult(i, task, error=error)


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
        result = BatchResult(runs, batch.batch, batch.app)
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
        self._template = Template(app, driver)
        self._limit = None if concurrency == "auto" else concurrency
        self._merge = dedup == "exact"
        self._timeout = timeout
        self._journal = journal
        self._resume = resume
        self._on_event = on_event
        self._on_change = on_change
        self.batch: Batch
        self.app: Any = None

    async def stream(self) -> AsyncGenerator[tuple[int, RunResult], None]:
        intercept.install()
        await self._template.prepare()
        self.app = self._template.app
        with self._opened() as journal:
            keys = _keys(self._tasks)
            known = self._known(journal, keys) if journal is not None and self._resume else {}
            left = [i for i in range(len(self._tasks)) if i not in known]
            on_event = self._on_event
            rows = TeamRows(
                self._template,
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
        journal = Journal(self._journal, app=self._template.fingerprint(), resume=self._resume)
        try:
            yield journal
        finally:
            journal.close()

    def _known(self, journal: Journal, keys: Sequence[str]) -> dict[int, RunResult]:
        """The runs that an earlier batch finished."""
        finished = {row.key: row.output for row in journal.rows() if row.output is not None}
        factory = self._template.messages
        return {
            i: RunResult(i, self._tasks[i], result_from_json(json.loads(finished[key]), factory), replayed=True)
            for i, key in enumerate(keys)
            if key in finished
        }


def _keys(tasks: Sequence[Any]) -> list[str]:
    """A key per task that is the same in every batch over these tasks: its content and its n-th occurrence."""
    from halo_core.runtime.batch import RowKeys

    numbers = RowKeys()
    return [numbers.key(task_content(task)) for task in tasks]


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
