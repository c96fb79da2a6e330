"""The runs of a batch: each task on a team of its own, and what became of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, aclosing, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

from autogen_agentchat.base import ChatAgent, TaskResult
from autogen_agentchat.messages import BaseAgentEvent, BaseChatMessage
from autogen_core import CancellationToken
from autogen_core.models import RequestUsage

from halo_adapters.autogen import drive, tools
from halo_adapters.autogen.attribution import speaking
from halo_adapters.autogen.report import explain_analyze
from halo_adapters.autogen.tasks import Task, task_content, task_of
from halo_adapters.autogen.template import App, Template, lifted_fingerprint
from halo_core.runtime import SESSION, Batch, BatchOptions, BatchStats, OperatorStats, Rows, get_executor

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
        return explain_analyze(self.batch, self.app)


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
            template.name,
            journal=options.journal,
            merge=merge,
            on_change=options.on_change,
            app=lifted_fingerprint(template.app),
            within=SESSION.get(),
        )
        self.tasks = tasks
        self.rows = Rows(self.batch, len(tasks), lambda i: task_content(tasks[i]), keys=options.keys, limit=limit)
        self._template = template
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
            cause = error.__cause__
            trouble = run.trouble if run is not None else None
            if cause is None and trouble is not None and type(trouble).__name__ in str(error):
                cause = trouble  # AutoGen's runtime passes on only its text
            if isinstance(error, RuntimeError) and cause is not None:
                cause.add_note(f"AutoGen told it as {type(error).__name__}")
                raise _Failure(result, cause) from error
            raise _Failure(result, error) from error
        return result

    async def _run(self, i: int, task: Task) -> TaskResult:
        app = await self._template.make()
        tools.install()  # of classes that came with it, too
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
            if self._template.copies:
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
    return speaking(app.name) if isinstance(app, ChatAgent) else nullcontext()


def outcome(i: int, task: Any, result: Any) -> RunResult:
    """A row's result or exception as a `RunResult`."""
    if isinstance(result, RunResult):
        return result
    if isinstance(result, _Failure):
        return result.result
    error = result if isinstance(result, BaseException) else RuntimeError("the task was not run")
    return RunResult(i, task, error=error)
