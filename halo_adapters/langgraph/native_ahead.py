"""Overlap inside one native run: tasks of later supersteps that start before their step, and lookups begun early.

The supersteps stay the authority: their writes are applied step by step, in LangGraph's order. When a step begins, a
task of it that is under way already is taken over; when a step fails, what had started early is cancelled, and as it
changes nothing outside, nobody can tell that it ever ran. Which tasks may start early is proven on the plan, see
`halo_core.plan.overlap`.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Any, NoReturn

from langgraph.errors import GraphInterrupt

from halo_adapters.langgraph.native_channels import NativeTask
from halo_adapters.langgraph.native_plan import VALUED, BranchPlan, FunctionPlan, GraphPlan, NodePlan
from halo_adapters.langgraph.native_run import NativeRun
from halo_adapters.langgraph.native_scope import Scope, arguments, context_with
from halo_adapters.langgraph.native_task import arun_task, call_function, run_task
from halo_core.plan import Start
from halo_core.runtime import LOOKING, SESSION, Look, NotYet

IDLE_LOOKS = 3
"""Looks ahead of a node that begin no tool call before its code is not tried again."""

Handle = asyncio.Task[None] | Future[None]


@dataclass(slots=True)
class Candidate:
    """A node that may start early, or whose lookups may."""

    node: NodePlan
    start: Start
    begins: bool
    """Whether the node itself may start before its step."""
    looks: bool
    """Whether its code may be run ahead to begin its lookups."""


@dataclass(slots=True)
class Candidates:
    """Those of one graph, and what was learnt of looking ahead."""

    nodes: list[Candidate] = field(default_factory=list)
    why_not: dict[str, str] = field(default_factory=dict)
    """Node -> why it waits for the whole step before it."""
    idle: Counter[str] = field(default_factory=Counter)
    """Node -> looks ahead in a row that began nothing."""


def candidates(plan: GraphPlan, starts: Mapping[str, Start]) -> Candidates:
    """Which nodes of `plan` need not wait for their step, in the order of the steps."""
    found = Candidates()
    for name, start in sorted(starts.items(), key=lambda item: item[1].step):
        node = plan.nodes.get(name)
        if node is None:
            continue
        odd = _odd(plan, node)
        if reason := start.why_not or odd:
            found.why_not[name] = reason
        begins = bool(start.without) and name not in found.why_not
        # In the first step, everything begins with the row.
        looks = start.looks and start.step > 1 and node.function is not None and not odd
        if begins or looks:
            found.nodes.append(Candidate(node, start, begins, looks))
    return found


def _odd(plan: GraphPlan, node: NodePlan) -> str:
    """Why the node's input or writes are not known before its step; empty if it takes plain values from the state."""
    if any(isinstance(writer, BranchPlan) for writer in node.writers):
        return "it decides what runs next"
    channels = node.pregel.channels
    if node.pregel.mapper is not None or not isinstance(channels, list):
        return "its input is not a plain dict"
    passing = [name for name in channels if type(plan.channels.get(name)) not in VALUED]
    return f"{passing[0]!r} is not a plain state key" if passing else ""


class Ahead:
    """What of one run is under way before its time."""

    def __init__(self, run: NativeRun, known: Candidates) -> None:
        self._run = run
        self._known = known
        self._left = list(known.nodes)
        self._over: dict[str, NativeTask] = {}
        """Finished tasks whose step is not over."""
        self._committed: set[str] = set()
        self._in_step = 0
        """Tasks of the present step that are not over."""
        self._early: dict[str, tuple[NativeTask, Handle]] = {}
        self._looks: dict[str, tuple[frozenset[str], Handle]] = {}
        self._lock = threading.RLock()  # the tasks of a synchronous run end in several threads
        self._context: Context = copy_context()
        session = SESSION.get()
        self._looking = session is not None and session.batch.desk.looks_ahead

    # -- what the supersteps tell --------------------------------------------------------------------------------

    def taken_over(self, tasks: Sequence[NativeTask]) -> list[NativeTask]:
        """The tasks of a step that begins, with those that are under way already in their places."""
        with self._lock:
            self._in_step = sum(task.node.name not in self._over for task in tasks)
            mine = [self._early[t.node.name][0] if self.handle(t) is not None else t for t in tasks]
        for task in mine:
            handle = self.handle(task)
            if handle is not None and handle.done() and not handle.cancelled():
                error = handle.exception()
                if isinstance(error, GraphInterrupt):
                    self._run.note_interrupt(task, error)
        return mine

    def handle(self, task: NativeTask) -> Handle | None:
        """What runs the task, if it has started early."""
        early = self._early.get(task.node.name)
        if early is None or early[0].step != task.step or task.triggers is not task.node.triggers:
            return None
        return early[1]

    def dropped(self, task: NativeTask) -> None:
        """The task had been handed to a thread that has not begun it: it runs like any other."""
        with self._lock:
            self._early.pop(task.node.name, None)

    def ended(self, task: NativeTask) -> None:
        """A task has finished: what waited for it may start."""
        with self._lock:
            self._over[task.node.name] = task
            if task.step == self._run.step:
                self._in_step -= 1
            if self._in_step:  # else the next step begins at once
                self.advance()

    def commit(self, tasks: Sequence[NativeTask]) -> None:
        """A step is over: apply its writes. Nobody reads the state meanwhile."""
        with self._lock:
            self._run.after_tick(tasks)
            for task in tasks:
                self._over.pop(task.node.name, None)
                self._early.pop(task.node.name, None)
                self._committed.add(task.node.name)
            self.advance()

    # -- what may start ------------------------------------------------------------------------------------------

    def advance(self) -> None:
        """Start what may start."""
        run = self._run
        if run.control.drain_requested:
            return
        for candidate in [c for c in self._left if run.step < c.start.step <= run.stop]:
            if candidate.begins and self._has_room() and all(map(self._is_over, candidate.start.after)):
                self._begin(candidate)
            elif candidate.looks and self._looking and all(map(self._is_over, candidate.start.world)):
                self._look(candidate)

    def _has_room(self) -> bool:
        """LangGraph's `max_concurrency` bounds the tasks of a run that are under way."""
        limit, step = self._run.max_concurrency, self._run.step
        early = sum(task.step > step and not handle.done() for task, handle in self._early.values())
        return not limit or self._in_step + early < limit

    def _is_over(self, name: str) -> bool:
        return name in self._committed or name in self._over

    def _begin(self, candidate: Candidate) -> None:
        node, step = candidate.node, candidate.start.step
        try:
            values = self._values(candidate, candidate.start.keys)
        except Exception:
            return  # the step itself will raise it
        self._left.remove(candidate)
        task = self._run.pulled(node, values, step, self._run.scratchpad(step))
        self._early[node.name] = task, self._start(self._arun(task), lambda: self._run_task(task), node.name)

    def _values(self, candidate: Candidate, keys: Mapping[str, frozenset[str]]) -> dict[str, Any]:
        """The node's input as its step will find it, of those `keys`."""
        values: dict[str, Any] = {}
        for name in candidate.node.pregel.channels:
            if name not in keys:
                continue  # not known yet, or not what the code asks for
            channel: Any = self._run.state.channels[name]
            by_step: dict[int, list[NativeTask]] = defaultdict(list)
            for writer in keys.get(name, ()):
                if writer in self._over and any(key == name for key, _ in self._over[writer].writes):
                    by_step[self._over[writer].step].append(self._over[writer])
            for step in sorted(by_step):
                channel = channel.copy()
                tasks = sorted(by_step[step], key=lambda task: task.sort_key)
                channel.update([value for task in tasks for key, value in task.writes if key == name])
            if channel.is_available():
                values[name] = channel.get()
        return values

    def _start(self, coroutine: Any, call: Callable[[], None], name: str) -> Handle:
        run, context = self._run, self._context.copy()
        if run.loop is not None:
            return run.loop.create_task(coroutine, name=name, context=context)
        coroutine.close()
        return run.plan.executor.submit(context.run, call)

    async def _arun(self, task: NativeTask) -> None:
        await arun_task(self._run, task)
        self.ended(task)

    def _run_task(self, task: NativeTask) -> None:
        run_task(self._run, task)
        self.ended(task)

    # -- looking ahead -------------------------------------------------------------------------------------------

    def _look(self, candidate: Candidate) -> None:
        node, start = candidate.node, candidate.start
        if self._known.idle[node.name] >= IDLE_LOOKS:
            return
        keys = {key: writers for key, writers in start.keys.items() if all(map(self._is_over, writers))}
        seen, before = self._looks.get(node.name, (frozenset[str](), None))
        if not keys.keys() > seen or (before is not None and not before.done()):
            return
        try:
            values = self._values(candidate, keys)
        except Exception:
            return
        task = self._run.pulled(node, Partly(values, keys), start.step, self._run.scratchpad(start.step))
        handle = self._start(self._alook(task), lambda: self._look_in_thread(task), f"look ahead: {node.name}")
        self._looks[node.name] = frozenset(keys), handle

    async def _alook(self, task: NativeTask) -> None:
        with self._glance(task) as (function, kwargs, context):
            await call_function(self._run, function, task.input, kwargs, context)

    def _look_in_thread(self, task: NativeTask) -> None:
        with self._glance(task) as (function, kwargs, context):
            if function.func is not None:
                context.run(function.func, task.input, **kwargs)

    @contextmanager
    def _glance(self, task: NativeTask) -> Iterator[tuple[FunctionPlan, dict[str, Any], Context]]:
        """The node's function, its injected arguments and a context that looks ahead."""
        look, scope, function = Look(), Scope(self._run, task), task.node.function
        assert function is not None
        context = context_with(scope.config)
        context.run(LOOKING.set, look)
        try:
            yield function, arguments(function, scope.config, scope.runtime), context
        except (Exception, NotYet):
            pass  # the real run meets it again
        finally:
            idle = self._known.idle
            # One that has lookups is never given up on.
            idle[task.node.name] = -(1 << 30) if look.calls else idle[task.node.name] + 1

    # -- the end -------------------------------------------------------------------------------------------------

    def _handles(self) -> list[Handle]:
        with self._lock:
            self._left.clear()
            return [handle for _, handle in (*self._early.values(), *self._looks.values())]

    async def aclose(self) -> None:
        """Cancel what is still under way and wait for its end."""
        pending: set[asyncio.Task[None]] = set()
        for handle in self._handles():
            assert isinstance(handle, asyncio.Task)
            if handle.done():
                if not handle.cancelled():
                    handle.exception()  # seen: asyncio complains of exceptions that nobody looks at
            else:
                handle.cancel()
                pending.add(handle)
        if pending:
            await asyncio.wait(pending)
            for task in pending:
                if not task.cancelled():
                    task.exception()

    def close(self) -> None:
        """Have what has not begun never begin, and wait for the early tasks that have; looks end by themselves."""
        with self._lock:
            early = [handle for _, handle in self._early.values()]
        for handle in self._handles():
            handle.cancel()
        for handle in early:
            if isinstance(handle, Future) and not handle.cancelled():
                handle.exception()


class Partly(dict[str, Any]):
    """A node's input of which some keys are not known yet: asking for those, or for all, ends the look ahead."""

    def __init__(self, values: Mapping[str, Any], known: Mapping[str, Any]) -> None:
        super().__init__(values)
        self._known = known

    def __getitem__(self, key: str) -> Any:
        if key not in self._known:
            raise NotYet
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        if key not in self._known:
            raise NotYet
        return super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        if key not in self._known:
            raise NotYet
        return super().get(key, default)

    def _whole(self, *_: Any, **__: Any) -> NoReturn:
        raise NotYet

    __iter__ = __len__ = __bool__ = __eq__ = __or__ = __ror__ = _whole
    keys = values = items = copy = pop = popitem = setdefault = _whole

    def __reversed__(self) -> Iterator[str]:
        raise NotYet
