"""Functional `@task` calls made inside a native node: LangGraph's own call machinery, started only when first used."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import weakref
from typing import Any, Generic, TypeVar

from langgraph._internal._constants import PUSH
from langgraph.checkpoint.base import Checkpoint
from langgraph.pregel._algo import Call, prepare_single_task
from langgraph.pregel._checkpoint import empty_checkpoint
from langgraph.pregel._executor import AsyncBackgroundExecutor, BackgroundExecutor
from langgraph.pregel._runner import FuturesDict, _acall, _call, _should_stop_others
from langgraph.types import PregelExecutableTask

from halo_adapters.langgraph.native_channels import NativeTask
from halo_adapters.langgraph.native_run import NativeRun
from halo_adapters.langgraph.native_scope import Scope, executable

_starting = threading.Lock()
"""Nodes of one superstep may make their first call from several threads at once."""

ExecutorT = TypeVar("ExecutorT", AsyncBackgroundExecutor, BackgroundExecutor)


class _Calls(Generic[ExecutorT]):
    """The `@task` calls of one superstep. LangGraph's code holds the parents and futures weakly; this holds them."""

    def __init__(self, run: NativeRun) -> None:
        self.run = run
        self.parents: dict[str, PregelExecutableTask] = {}
        self.executor: ExecutorT | None = None
        self.lock = threading.Lock()

    def parent(self, task: NativeTask) -> PregelExecutableTask:
        with self.lock:
            if task.id not in self.parents:
                self.parents[task.id] = executable(self.run, task, Scope(self.run, task))
            return self.parents[task.id]

    def prepare(self, parent: PregelExecutableTask, index: int, call: Call | None) -> PregelExecutableTask | None:
        """The task of one call, made by LangGraph's own code."""
        run = self.run
        checkpoint: Checkpoint = {
            **empty_checkpoint(),
            "id": run.checkpoint_id,
            "channel_versions": dict(run.state.versions),
        }
        prepared = prepare_single_task(
            (PUSH, parent.path, index, parent.id, call),
            None,
            checkpoint=checkpoint,
            checkpoint_id_bytes=bytes.fromhex(run.checkpoint_id.replace("-", "")),
            checkpoint_null_version=0,
            pending_writes=[],
            processes=run.plan.app.nodes,
            channels=run.state.channels,
            managed=run.plan.managed,
            config=parent.config,
            step=run.step,
            stop=run.stop,
            for_execution=True,
        )
        assert prepared is None or isinstance(prepared, PregelExecutableTask)
        return prepared

    def commit(self, task: PregelExecutableTask, error: BaseException | None) -> None:
        """Nothing to keep: what a call wrote is its return value, which its caller has."""


class AsyncCalls(_Calls[AsyncBackgroundExecutor]):
    """The `@task` calls of one superstep of an asynchronous run."""

    def __init__(self, run: NativeRun, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(run)
        self.loop = loop
        self.futures: FuturesDict[asyncio.Future[Any], asyncio.Event] = FuturesDict(
            event=asyncio.Event(),
            callback=weakref.WeakMethod(self.commit),
            should_stop=_should_stop_others,
            future_type=asyncio.Future,
        )

    def submit(self) -> Any:
        """What LangGraph calls on the loop's thread to start a call."""
        if self.executor is None:
            self.executor = AsyncBackgroundExecutor({**self.run.rest})  # type: ignore[typeddict-item]
        return self.executor.submit

    async def schedule(self, parent: PregelExecutableTask, index: int, call: Call | None) -> Any:
        return self.prepare(parent, index, call)

    async def drain(self) -> None:
        """Wait for every call that was started, as Pregel does at the end of a superstep."""
        while self.futures:
            done, _ = await asyncio.wait(set(self.futures))
            for future in done:
                self.futures.pop(future)

    async def cancel(self) -> None:
        """Cancel the calls that are still running and wait for them to end."""
        if self.executor is not None:
            await self.executor.__aexit__(asyncio.CancelledError, None, None)


class SyncCalls(_Calls[BackgroundExecutor]):
    """The `@task` calls of one superstep of a synchronous run."""

    def __init__(self, run: NativeRun) -> None:
        super().__init__(run)
        self.futures: FuturesDict[concurrent.futures.Future[Any], threading.Event] = FuturesDict(
            event=threading.Event(),
            callback=weakref.WeakMethod(self.commit),
            should_stop=_should_stop_others,
            future_type=concurrent.futures.Future,
        )

    def submit(self) -> Any:
        with self.lock:
            if self.executor is None:
                self.executor = BackgroundExecutor({**self.run.rest})  # type: ignore[typeddict-item]
            return self.executor.submit

    def drain(self) -> None:
        """Wait for every call that was started and give their threads back."""
        while self.futures:
            done, _ = concurrent.futures.wait(set(self.futures))
            for future in done:
                self.futures.pop(future)
        if self.executor is not None:
            self.executor.__exit__(BaseException, None, None)


def acall(run: NativeRun, task: NativeTask, func: Any, input: Any, **options: Any) -> Any:
    """What `@task` functions find in the config of an asynchronous run's nodes; returns a future."""
    with _starting:
        if run.calls is None:
            assert run.loop is not None
            run.calls = AsyncCalls(run, run.loop)
    calls: AsyncCalls = run.calls
    return _acall(
        weakref.ref(calls.parent(task)),
        func,
        input,
        futures=weakref.ref(calls.futures),
        schedule_task=calls.schedule,
        submit=calls.submit,  # type: ignore[arg-type]  # called as a weak reference is
        loop=calls.loop,
        **options,
    )


def call(run: NativeRun, task: NativeTask, func: Any, input: Any, **options: Any) -> Any:
    """What `@task` functions find in the config of a synchronous run's nodes; returns a future."""
    with _starting:
        if run.calls is None:
            run.calls = SyncCalls(run)
    calls: SyncCalls = run.calls
    return _call(
        weakref.ref(calls.parent(task)),
        func,
        input,
        futures=weakref.ref(calls.futures),
        schedule_task=calls.prepare,
        submit=calls.submit,  # type: ignore[arg-type]  # called as a weak reference is
        **options,
    )
