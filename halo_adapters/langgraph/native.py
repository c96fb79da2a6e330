"""Native execution of a compiled LangGraph graph: the results of `app.ainvoke`, without Pregel's cost per node.

Pregel spends 0.6-1.2 ms of CPU per node on checkpoints, streams, retries and callbacks. A graph without those runs here
on the same channels, writers and functions, superstep by superstep. What is not certain to give the same result is
declared ineligible, with the reason, and stays on Pregel.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextvars import copy_context
from importlib.metadata import version
from typing import Any
from weakref import WeakKeyDictionary

from langchain_core.callbacks import AsyncCallbackManager, CallbackManager
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import var_child_runnable_config
from langgraph.errors import GraphBubbleUp, GraphInterrupt
from langgraph.graph.state import CompiledStateGraph
from langgraph.pregel import Pregel
from langgraph.types import Command

from halo_core.errors import LiftError
from halo_core.plan import Start

try:
    from halo_adapters.langgraph.native_ahead import Ahead, candidates
    from halo_adapters.langgraph.native_calls import acall, call
    from halo_adapters.langgraph.native_channels import NativeTask
    from halo_adapters.langgraph.native_plan import NotNative, graph_plan
    from halo_adapters.langgraph.native_run import NativeRun
    from halo_adapters.langgraph.native_task import arun_task, run_task
    from halo_adapters.langgraph.native_threads import ThreadCalls

    MISSING_PRIVATE: str | None = None
except ImportError as error:  # another LangGraph than the ones whose internals are mirrored
    MISSING_PRIVATE = f"LangGraph {version('langgraph')} lacks what native execution stands on: {error}"

INSTALLED = version("langgraph")

MIRRORED = ("1.2.",)
"""Versions of LangGraph whose Pregel this module mirrors."""

RESERVED_CONFIGURABLE = frozenset(
    {"checkpoint_ns", "checkpoint_id", "checkpoint_map", "assistant_id", "graph_id", "langgraph_auth_user"}
)

NEUTRAL_OPTIONS: Mapping[str, tuple[Any, ...]] = {
    "context": (None,),
    "stream_mode": ("values",),
    "print_mode": ((), [], None),
    "output_keys": (None,),
    "interrupt_before": (None, (), []),
    "interrupt_after": (None, (), []),
    "durability": (None,),
    "control": (None,),
    "version": ("v1",),
    "subgraphs": (False,),
    "debug": (None, False),
    "checkpoint_during": (None,),
}
"""Options of `ainvoke` and the values with which they change nothing."""


def ineligible(app: CompiledStateGraph[Any, Any, Any, Any]) -> str | None:
    """Why `app` must run on Pregel, naming the node and the fact; None if it can run natively.

    Reads the whole graph: ask once per graph.
    """
    if MISSING_PRIVATE is not None:
        return MISSING_PRIVATE
    if not INSTALLED.startswith(MIRRORED):
        return f"native execution mirrors LangGraph {' and '.join(MIRRORED)}x, not {INSTALLED}"
    if not isinstance(app, CompiledStateGraph):
        return f"a {type(app).__name__} is not a compiled StateGraph"
    for attribute, what in (
        ("checkpointer", "a checkpointer"),
        ("store", "a store"),
        ("cache", "a cache"),
        ("interrupt_before_nodes", "interrupts before nodes"),
        ("interrupt_after_nodes", "interrupts after nodes"),
        ("debug", "debug output on"),
        ("step_timeout", "a step timeout"),
        ("retry_policy", "a retry policy"),
        ("cache_policy", "a cache policy"),
        ("stream_eager", "eager streaming on"),
    ):
        value = getattr(app, attribute)
        if value is not None and value is not False and value != ():
            # a store or a saver may be falsy while it is empty
            if isinstance(value, Sequence | Mapping) and not value:
                continue
            return f"the graph has {what}"
    if reason := _ineligible_config(app.config):
        return reason
    try:
        graph_plan(app, _NoExecutor())
    except NotNative as reason_:
        return str(reason_)
    return None


def _ineligible_config(config: RunnableConfig | None) -> str | None:
    if not config:
        return None
    if config.get("callbacks"):
        return "the config has callbacks"
    for names in (config, config.get("configurable") or {}):
        for name in names:
            if name in RESERVED_CONFIGURABLE or name.startswith("__pregel_"):
                return f"the config sets {name!r}"
    return None


def ineligible_call(config: RunnableConfig | None, **kwargs: Any) -> str | None:
    """Why an invocation with this config and these options of `ainvoke` must run on Pregel; None if it need not.

    Also looks at the calling context and environment (tracing, callbacks that are on for everything, a surrounding
    run), so ask in the context in which the graph will run. Costs about 20 us.
    """
    for name, value in kwargs.items():
        if not any(value == neutral for neutral in NEUTRAL_OPTIONS.get(name, ())):
            return f"the option {name}={value!r} is set"
    if reason := _ineligible_config(config):
        return reason
    if var_child_runnable_config.get():
        return "the graph is invoked inside another run"
    from langsmith.run_helpers import get_tracing_context

    tracing = get_tracing_context()
    if any(tracing.get(name) for name in ("parent", "tags", "metadata", "enabled")):
        return "a LangSmith tracing context is open"
    try:
        manager = CallbackManager.configure()
    except RuntimeError as error:
        return f"callbacks cannot be configured: {error}"
    if manager.handlers or manager.inheritable_handlers:
        return f"a callback handler listens to every run: {type(manager.handlers[0]).__name__}"
    return None


class _NoExecutor(Executor):
    """Stands in where a graph is only read."""


class NativeGraph:
    """A compiled graph, run natively. Build once per graph; invocations share nothing but the graph itself.

    The functions of the graph are read when this is built: a node replaced afterwards is not seen.
    """

    def __init__(
        self,
        app: CompiledStateGraph[Any, Any, Any, Any],
        executor: Executor,
        starts: Mapping[str, Start] | None = None,
    ) -> None:
        """
        Args:
            app: an eligible graph.
            executor: runs synchronous nodes of `ainvoke`, and parallel tasks of `invoke`. Context variables are
                copied into it. Invocations never wait in it for one another.
            starts: which nodes need not wait for their superstep; none may start early without.

        Raises:
            LiftError: the graph is not eligible; the message has the reason.
        """
        if reason := ineligible(app):
            raise LiftError(f"graph {app.get_name()!r} cannot run natively: {reason}; run it with app.ainvoke")
        self.app = app
        self._plan = graph_plan(app, executor)
        self.candidates = candidates(self._plan, starts or {})
        self._threads: WeakKeyDictionary[asyncio.AbstractEventLoop, ThreadCalls] = WeakKeyDictionary()

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, *, context: Any = None) -> Any:
        """What `app.ainvoke(input, config, context=context)` returns or raises.

        The caller has asked `ineligible_call` about `config`.
        """
        if isinstance(input, Command | Runnable):
            return await Pregel.ainvoke(self.app, input, config, context=context)
        loop = asyncio.get_running_loop()
        threads = self._threads.get(loop)
        if threads is None:
            threads = self._threads[loop] = ThreadCalls(loop, self._plan.executor)
        run = NativeRun(self._plan, input, config, context, AsyncCallbackManager, acall, loop, threads)
        ahead = self._ahead(run)
        try:
            while tasks := _tick(run):
                try:
                    await _asuperstep(run, tasks)
                except GraphInterrupt:
                    run.after_interrupt(tasks)
                    break
                _commit(run, tasks)
        except (StopIteration, StopAsyncIteration) as error:
            # Pregel is an async generator, through which these two cannot pass
            raise RuntimeError(f"async generator raised {type(error).__name__}") from error
        finally:
            if ahead is not None:
                run.ahead = None  # they hold each other
                await ahead.aclose()
        return run.result()

    def invoke(self, input: Any, config: RunnableConfig | None = None, *, context: Any = None) -> Any:
        """What `app.invoke(input, config, context=context)` returns or raises; runs on the calling thread.

        Parallel tasks of a superstep are shared with the executor, but the calling thread works on them too, so that
        it may itself belong to that executor.
        """
        if isinstance(input, Command | Runnable):
            return Pregel.invoke(self.app, input, config, context=context)
        run = NativeRun(self._plan, input, config, context, CallbackManager, call)
        ahead = self._ahead(run)
        try:
            while tasks := _tick(run):
                try:
                    _superstep(run, tasks)
                except GraphInterrupt:
                    run.after_interrupt(tasks)
                    break
                _commit(run, tasks)
        except StopIteration as error:
            raise RuntimeError("generator raised StopIteration") from error  # Pregel is a generator
        finally:
            if ahead is not None:
                run.ahead = None
                ahead.close()
        return run.result()

    def _ahead(self, run: NativeRun) -> Ahead | None:
        run.ahead = Ahead(run, self.candidates) if self.candidates.nodes else None
        return run.ahead  # type: ignore[no-any-return]


def _tick(run: NativeRun) -> Sequence[NativeTask]:
    """The tasks of the superstep that begins; those under way already in their places."""
    tasks = run.tick()
    return tasks if run.ahead is None else run.ahead.taken_over(tasks)


def _commit(run: NativeRun, tasks: Sequence[NativeTask]) -> None:
    """The superstep is over: apply its writes."""
    if run.ahead is None:
        run.after_tick(tasks)
    else:
        run.ahead.commit(tasks)


async def _asuperstep(run: NativeRun, tasks: Sequence[NativeTask]) -> None:
    """Run all tasks of a superstep; the first failure cancels the others and waits for them to end.

    Raises:
        GraphInterrupt: tasks were interrupted and none failed.
        BaseException: what a task raised.
    """
    try:
        if len(tasks) == 1:
            try:
                await _atask(run, tasks[0])
            except Exception:
                if run.calls is not None:
                    await run.calls.drain()
                raise
        else:
            await _agather(run, tasks)
        if run.calls is not None:
            await run.calls.drain()
    finally:
        if run.calls is not None:
            await run.calls.cancel()
            run.calls = None


def _atask(run: NativeRun, task: NativeTask) -> Awaitable[None]:
    """The task's end, wherever it began."""
    if run.ahead is None:
        return arun_task(run, task)
    handle = run.ahead.handle(task)
    return _told(run, task) if handle is None else handle


async def _told(run: NativeRun, task: NativeTask) -> None:
    await arun_task(run, task)
    run.ahead.ended(task)


async def _gated(gate: asyncio.Semaphore, run: NativeRun, task: NativeTask) -> None:
    async with gate:
        await _atask(run, task)


async def _agather(run: NativeRun, tasks: Sequence[NativeTask]) -> None:
    loop = asyncio.get_running_loop()
    gate = asyncio.Semaphore(run.max_concurrency) if run.max_concurrency else None
    futures: list[asyncio.Task[None]] = []
    for task in tasks:
        work: Any = _gated(gate, run, task) if gate else _atask(run, task)
        futures.append(work if isinstance(work, asyncio.Task) else loop.create_task(work, name=task.node.name))
    pending: set[asyncio.Task[None]] = set(futures)
    failure: BaseException | None = None
    try:
        while pending and failure is None:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_EXCEPTION)
            failure = _failure([future for future in futures if future in done], fatal=True)
    finally:
        if pending:
            for future in pending:
                future.cancel()
            await asyncio.wait(pending)
        for future in futures:
            if not future.cancelled():
                future.exception()  # seen: asyncio complains of exceptions that nobody looks at
    if failure is None:
        failure = _failure(futures, fatal=False)
    if failure is not None:
        raise failure
    interrupts = [error for future in futures if isinstance(error := future.exception(), GraphInterrupt)]
    if interrupts:
        raise GraphInterrupt(tuple(item for interrupt in interrupts for item in interrupt.args[0]))


def _failure(futures: Sequence[asyncio.Task[None] | Future[None]], *, fatal: bool) -> BaseException | None:
    """The first exception among `futures` that ends the superstep: at once if `fatal`, else when all are done."""
    for future in futures:
        if future.cancelled():
            continue
        error = future.exception()
        if error is not None and not isinstance(error, GraphBubbleUp if fatal else GraphInterrupt):
            return error
    return None


def _superstep(run: NativeRun, tasks: Sequence[NativeTask]) -> None:
    try:
        if len(tasks) == 1:
            _task(run, tasks[0])
        else:
            _gather(run, tasks)
    finally:
        if run.calls is not None:
            run.calls.drain()
            run.calls = None


def _task(run: NativeRun, task: NativeTask) -> None:
    """Run the task here, or wait for its end where it has begun already."""
    ahead = run.ahead
    handle = ahead.handle(task) if ahead is not None else None
    if handle is not None and not handle.cancel():
        handle.result()
        return
    if handle is not None:
        ahead.dropped(task)
    run_task(run, task)
    if ahead is not None:
        ahead.ended(task)


class _Share:
    """The tasks of one superstep, taken one by one by whichever thread is free."""

    def __init__(self, tasks: Sequence[NativeTask], at_once: int) -> None:
        """`at_once`: how many tasks Pregel starts before it can learn of a failure; these run in any case."""
        self.tasks = tasks
        self.results: list[BaseException | None] = [None] * len(tasks)
        self._limit = len(tasks)
        self._at_once = at_once
        self._next = 0
        self._lock = threading.Lock()

    def take(self) -> int | None:
        with self._lock:
            if self._next >= self._limit:
                return None
            self._next += 1
            return self._next - 1

    def work(self, run: NativeRun) -> None:
        """Run tasks until none is left or one has failed."""
        while (index := self.take()) is not None:
            try:
                copy_context().run(_task, run, self.tasks[index])
            except BaseException as error:
                self.results[index] = error
                if not isinstance(error, GraphBubbleUp):
                    with self._lock:
                        self._limit = min(self._limit, self._at_once)


def _gather(run: NativeRun, tasks: Sequence[NativeTask]) -> None:
    share = _Share(tasks, at_once=run.max_concurrency or min(32, (os.cpu_count() or 1) + 4))
    workers = min(len(tasks), run.max_concurrency or len(tasks)) - 1
    context = copy_context()
    others = [run.plan.executor.submit(context.copy().run, share.work, run) for _ in range(workers)]
    share.work(run)
    for other in others:
        if not other.cancel():
            other.result()
    errors = [error for error in share.results if error is not None]
    for error in errors:
        if not isinstance(error, GraphBubbleUp):
            raise error
    for error in errors:
        if not isinstance(error, GraphInterrupt):
            raise error
    if errors:
        raise GraphInterrupt(tuple(item for error in errors for item in error.args[0]))
