"""Running one task of a native run: the config its code sees, the call of its node, and its writers.

Mirrors `arun_with_retry`/`run_with_retry` of langgraph/pregel/_retry.py around `RunnableSeq.ainvoke`/`invoke`, for a
run in which nobody listens: no callbacks, no tracing, no retries.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextvars import Context, copy_context
from dataclasses import replace
from functools import partial
from typing import Any, cast
from uuid import UUID

from langchain_core.callbacks import BaseCallbackManager
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.utils.uuid import uuid7
from langgraph._internal._config import _merge_metadata, recast_checkpoint_ns
from langgraph._internal._constants import (
    CONF,
    CONFIG_KEY_CALL,
    CONFIG_KEY_CHECKPOINT_ID,
    CONFIG_KEY_CHECKPOINT_MAP,
    CONFIG_KEY_CHECKPOINT_NS,
    CONFIG_KEY_CHECKPOINTER,
    CONFIG_KEY_READ,
    CONFIG_KEY_RUNTIME,
    CONFIG_KEY_SCRATCHPAD,
    CONFIG_KEY_SEND,
    CONFIG_KEY_TASK_ID,
    NO_WRITES,
)
from langgraph._internal._typing import EMPTY_SEQ
from langgraph.errors import EmptyChannelError, GraphBubbleUp, GraphInterrupt, NodeCancelledError, ParentCommand
from langgraph.pregel._algo import PregelTaskWrites, local_read
from langgraph.pregel._io import read_channel
from langgraph.pregel._retry import _checkpoint_ns_for_parent_command, arun_with_retry, run_with_retry
from langgraph.pregel._task_status import CONTROL_WRITES
from langgraph.runtime import DEFAULT_RUNTIME, ExecutionInfo, Runtime
from langgraph.types import Command, PregelExecutableTask

from halo_adapters.langgraph.native_plan import BranchPlan, FunctionPlan, frozen_maker
from halo_adapters.langgraph.native_run import NativeRun, NativeTask

HEARTBEAT = DEFAULT_RUNTIME.heartbeat

make_info = frozen_maker(
    ExecutionInfo,
    "checkpoint_id",
    "checkpoint_ns",
    "task_id",
    "thread_id",
    "run_id",
    "node_attempt",
    "node_first_attempt_time",
)
make_runtime: Callable[..., Runtime[Any]] = frozen_maker(
    Runtime,
    "context",
    "store",
    "stream_writer",
    "heartbeat",
    "previous",
    "execution_info",
    "server_info",
    "control",
)


def discard(chunk: Any) -> None:
    """The stream writer of a run that streams nothing."""


class Scope:
    """The configs that one task's code sees: the node's own, and one more per conditional edge."""

    __slots__ = ("config", "inherited", "manager", "run_id", "runtime", "tags")

    def __init__(self, run: NativeRun, task: NativeTask) -> None:
        node = task.node
        own: dict[str, Any] = {
            "langgraph_step": run.step,
            "langgraph_node": node.name,
            "langgraph_triggers": task.triggers,
            "langgraph_path": task.path,
            "langgraph_checkpoint_ns": task.ns,
        }
        if node.pregel.metadata:
            own.update(node.pregel.metadata)
        if run.plain and node.plain_metadata:
            metadata = {**run.metadata, **own}
            self.inherited = {**run.inherited, **own}
        else:
            metadata = _merge_metadata(run.metadata, own)
            self.inherited = _merge_metadata(run.inherited, metadata)
        self.manager = run.manager
        self.tags = [*run.tags, *node.pregel.tags] if node.pregel.tags else run.tags
        self.run_id = uuid7()
        info = make_info(run.checkpoint_id, task.ns, task.id, run.thread_id, run.run_id, 1, time.time())
        self.runtime = make_runtime(run.context, None, discard, HEARTBEAT, None, info, None, run.control)
        config: dict[str, Any] = {
            **run.rest,
            "metadata": metadata,
            "callbacks": self.callbacks(self.run_id, [*self.tags, "seq:step:1"]),
            CONF: {
                **run.conf,
                CONFIG_KEY_RUNTIME: self.runtime,
                CONFIG_KEY_TASK_ID: task.id,
                CONFIG_KEY_SEND: task.writes.extend,
                CONFIG_KEY_READ: partial(
                    local_read,
                    task.scratchpad,
                    run.channels,
                    run.plan.managed,
                    PregelTaskWrites(task.path, node.name, task.writes, task.triggers),
                ),
                CONFIG_KEY_CHECKPOINTER: None,
                CONFIG_KEY_CHECKPOINT_MAP: {"": run.checkpoint_id},
                CONFIG_KEY_CHECKPOINT_ID: None,
                CONFIG_KEY_CHECKPOINT_NS: task.ns,
                CONFIG_KEY_SCRATCHPAD: task.scratchpad,
                CONFIG_KEY_CALL: partial(run.call, run, task),
            },
        }
        if self.tags:
            config["tags"] = list(self.tags)
        self.config = cast(RunnableConfig, config)

    def callbacks(self, parent: UUID, tags: list[str]) -> BaseCallbackManager:
        """A callback manager with nobody listening, as LangGraph hands to a step; `tags` are all of its tags."""
        return self.manager(
            [],
            [],
            parent,
            tags=tags,
            inheritable_tags=list(self.tags),
            metadata=dict(self.inherited),
            inheritable_metadata=dict(self.inherited),
        )

    def step_config(self, position: int) -> RunnableConfig:
        """The config of the task's `position`-th step (from 1)."""
        return {**self.config, "callbacks": self.callbacks(self.run_id, [*self.tags, f"seq:step:{position}"])}

    def branch_configs(self, position: int) -> tuple[RunnableConfig, RunnableConfig]:
        """What a conditional edge's function gets as `config`, and what it sees as ambient config."""
        given: RunnableConfig = {
            **self.config,
            "callbacks": self.callbacks(self.run_id, [f"seq:step:{position}", *self.tags]),
        }
        return given, {**given, "callbacks": self.callbacks(uuid7(), list(self.tags))}


def context_with(config: RunnableConfig) -> Context:
    """A copy of the current context in which `config` is the ambient config."""
    context = copy_context()
    context.run(var_child_runnable_config.set, config)
    return context


def arguments(function: FunctionPlan, config: RunnableConfig, runtime: Runtime[Any]) -> dict[str, Any]:
    """The keyword arguments that LangGraph injects into `function`."""
    kwargs = dict(function.fixed)
    for keyword, source in function.inject:
        if source == "config":
            kwargs[keyword] = config
        elif source == "runtime":
            kwargs[keyword] = runtime
        elif source == "error":
            kwargs[keyword] = None
        else:
            kwargs[keyword] = getattr(runtime, source)
    return kwargs


def _call_in_thread(func: Callable[..., Any], value: Any, kwargs: dict[str, Any]) -> Any:
    try:
        return func(value, **kwargs)
    except StopIteration as error:
        # a future cannot carry a StopIteration; the same conversion as langchain-core's run_in_executor
        raise RuntimeError from error


async def _await(afunc: Callable[..., Any], value: Any, kwargs: dict[str, Any]) -> Any:
    return await afunc(value, **kwargs)


async def _arecurse(result: Runnable[Any, Any], value: Any, config: RunnableConfig) -> Any:
    return await result.ainvoke(value, config)


def _acall_function(
    run: NativeRun, function: FunctionPlan, value: Any, kwargs: dict[str, Any], context: Context
) -> Awaitable[Any]:
    loop = asyncio.get_running_loop()
    if function.afunc is not None:
        return loop.create_task(_await(function.afunc, value, kwargs), context=context)
    assert function.func is not None
    thread = context.copy()  # what the function sets in its thread is not seen by what follows here
    return loop.run_in_executor(run.plan.executor, thread.run, _call_in_thread, function.func, value, kwargs)


async def _anode(run: NativeRun, task: NativeTask, scope: Scope) -> Any:
    """Call the node; returns its result."""
    node = task.node
    context = context_with(scope.config)
    if node.function is None:
        loop = asyncio.get_running_loop()
        step, *others = node.steps
        first = step.ainvoke(task.input, scope.config)
        result = await loop.create_task(first, context=context)
        for position, step in enumerate(others, 2):
            result = await step.ainvoke(result, scope.step_config(position))
        return result
    kwargs = arguments(node.function, scope.config, scope.runtime)
    result = await _acall_function(run, node.function, task.input, kwargs, context)
    if node.function.recurse and isinstance(result, Runnable):
        result = await asyncio.get_running_loop().create_task(
            _arecurse(result, task.input, scope.config), context=context
        )
    return result


def _node(task: NativeTask, scope: Scope) -> Any:
    node = task.node
    context = context_with(scope.config)
    if node.function is None:
        step, *others = node.steps
        result = context.run(step.invoke, task.input, scope.config)
        for position, step in enumerate(others, 2):
            result = step.invoke(result, scope.step_config(position))
        return result
    if node.function.func is None:
        return node.pregel.bound.invoke(task.input, scope.config)  # raises LangGraph's own TypeError
    kwargs = arguments(node.function, scope.config, scope.runtime)
    result = context.run(node.function.func, task.input, **kwargs)
    if node.function.recurse and isinstance(result, Runnable):
        result = context.run(result.invoke, task.input, scope.config)
    return result


def _fresh_state(run: NativeRun, task: NativeTask, branch: BranchPlan) -> Any:
    """The state as a conditional edge sees it: channels plus this task's own writes."""
    select = branch.select
    wanted = (select,) if isinstance(select, str) else select
    written: dict[str, list[Any]] = defaultdict(list)
    for name, value in task.writes:
        if name in wanted:
            written[name].append(value)
    touched = {}
    try:
        for name in wanted:
            channel = run.channels.get(name)
            if channel is not None and (name in written or name in run.plan.restless):
                channel = channel.copy()
                channel.update(written.get(name, EMPTY_SEQ))
                touched[name] = channel
    except Exception:
        # let LangGraph raise it: with several bad channels it is their order that decides
        return local_read(
            task.scratchpad,
            run.channels,
            run.plan.managed,
            PregelTaskWrites(task.path, task.node.name, task.writes, task.triggers),
            select,
            True,
        )
    if isinstance(select, str):
        return read_channel(touched or run.channels, select)
    values: dict[str, Any] = {}
    for name in select:
        channel = touched.get(name) or run.channels.get(name)
        if channel is not None:
            try:
                values[name] = channel.get()
            except EmptyChannelError:
                continue
    for name in select:
        if name in run.plan.managed:
            values[name] = run.plan.managed[name].get(task.scratchpad)
    return values


def _branch_input(run: NativeRun, task: NativeTask, branch: BranchPlan, result: Any) -> Any:
    if not branch.reads:
        return result
    value = _fresh_state(run, task, branch)
    if branch.mapper is not None:
        value = branch.mapper(value)
    if isinstance(value, dict) and isinstance(result, dict) and branch.spec.input_schema is None:
        value = {**result, **value}
    return value


async def _abranch(run: NativeRun, task: NativeTask, scope: Scope, branch: BranchPlan, at: int, result: Any) -> None:
    given, ambient = scope.branch_configs(at)
    value = _branch_input(run, task, branch, result)
    function = branch.function
    if function is None:
        choice = await branch.spec.path.ainvoke(value, given)
    else:
        kwargs = arguments(function, given, scope.runtime)
        choice = await _acall_function(run, function, value, kwargs, context_with(ambient))
        if function.recurse and isinstance(choice, Runnable):
            choice = await choice.ainvoke(value, given)
    written = branch.spec._finish(branch.publish, result, choice, given)
    if written is not result and isinstance(written, Runnable):
        await written.ainvoke(result, given)


def _branch(run: NativeRun, task: NativeTask, scope: Scope, branch: BranchPlan, at: int, result: Any) -> None:
    given, ambient = scope.branch_configs(at)
    value = _branch_input(run, task, branch, result)
    function = branch.function
    if function is None or function.func is None:
        choice: Any = branch.spec.path.invoke(value, given)
    else:
        choice = context_with(ambient).run(function.func, value, **arguments(function, given, scope.runtime))
        if function.recurse and isinstance(choice, Runnable):
            choice = choice.invoke(value, given)
    written = branch.spec._finish(branch.publish, result, choice, given)
    if written is not result and isinstance(written, Runnable):
        written.invoke(result, given)


def _parent_command(run: NativeRun, task: NativeTask, scope: Scope, error: ParentCommand) -> bool:
    """Handle a command that names a graph: True if it was for this one, else it is readdressed to be raised again."""
    command: Command[Any] = error.args[0]
    if command.graph in (task.ns, recast_checkpoint_ns(task.ns), task.node.name):
        config = executable(run, task, scope).config
        for writer in task.node.pregel.flat_writers:
            writer.invoke(command, config)
        return True
    if command.graph == Command.PARENT:
        error.args = (replace(command, graph=_checkpoint_ns_for_parent_command(task.ns)),)
    return False


def executable(run: NativeRun, task: NativeTask, scope: Scope) -> PregelExecutableTask:
    """The task as LangGraph's own runner knows it, for the rare paths that are left to LangGraph's code."""
    callbacks = scope.callbacks(uuid7(), [*scope.tags, f"graph:step:{run.step}"])
    config: RunnableConfig = {**scope.config, "callbacks": callbacks, "run_name": task.node.name}
    proc = task.node.pregel.node
    assert proc is not None
    return PregelExecutableTask(
        task.node.name,
        task.input,
        proc,
        task.writes,
        config,
        task.triggers,
        (),
        None,
        task.id,
        task.path,
        writers=task.node.pregel.flat_writers,
        subgraphs=(),
        timeout=task.timeout,
    )


def _settle(task: NativeTask) -> None:
    if all(channel in CONTROL_WRITES for channel, _ in task.writes):
        task.writes.append((NO_WRITES, None))


async def arun_task(run: NativeRun, task: NativeTask) -> None:
    """Run a task on the event loop; its writes are in `task.writes` afterwards.

    Raises:
        Exception: what the node raised, with LangGraph's note; control-flow errors of LangGraph as they are.
    """
    node = task.node
    scope = Scope(run, task) if node.needs_config else None
    try:
        if task.timeout is not None and scope is not None:
            await arun_with_retry(executable(run, task, scope), None)
            return _settle(task)
        try:
            result = task.input if scope is None or not _has_body(task) else await _anode(run, task, scope)
            odd = type(result) is not dict and isinstance(result, Runnable)
            for position, writer in enumerate(node.writers, node.first_writer):
                if odd:
                    assert scope is not None
                    own = node.pregel.flat_writers[position - node.first_writer]
                    result = await own.ainvoke(result, scope.step_config(position))
                elif isinstance(writer, BranchPlan):
                    assert scope is not None
                    await _abranch(run, task, scope, writer, position, result)
                else:
                    _write(task, writer, result)
        except ParentCommand as error:
            if scope is None or not _parent_command(run, task, scope, error):
                raise
        except GraphBubbleUp:
            raise
        except asyncio.CancelledError as error:
            current = asyncio.current_task()
            if current is not None and current.cancelling() == 0:
                raise NodeCancelledError(node.name) from error
            raise
        except Exception as error:
            error.add_note(f"During task with name '{node.name}' and id '{task.id}'")
            raise
    except GraphInterrupt as interrupt:
        run.note_interrupt(task, interrupt)
        raise
    _settle(task)


def run_task(run: NativeRun, task: NativeTask) -> None:
    """Run a task on the calling thread; its writes are in `task.writes` afterwards.

    Raises:
        Exception: what the node raised, with LangGraph's note; control-flow errors of LangGraph as they are.
    """
    node = task.node
    scope = Scope(run, task) if node.needs_config else None
    try:
        if task.timeout is not None and scope is not None:
            run_with_retry(executable(run, task, scope), None)  # raises: synchronous nodes cannot be timed
            return _settle(task)
        try:
            result = task.input if scope is None or not _has_body(task) else _node(task, scope)
            odd = type(result) is not dict and isinstance(result, Runnable)
            for position, writer in enumerate(node.writers, node.first_writer):
                if odd:
                    assert scope is not None
                    own = node.pregel.flat_writers[position - node.first_writer]
                    result = own.invoke(result, scope.step_config(position))
                elif isinstance(writer, BranchPlan):
                    assert scope is not None
                    _branch(run, task, scope, writer, position, result)
                else:
                    _write(task, writer, result)
        except ParentCommand as error:
            if scope is None or not _parent_command(run, task, scope, error):
                raise
        except GraphBubbleUp:
            raise
        except asyncio.CancelledError as error:
            raise NodeCancelledError(node.name) from error
        except Exception as error:
            error.add_note(f"During task with name '{node.name}' and id '{task.id}'")
            raise
    except GraphInterrupt as interrupt:
        run.note_interrupt(task, interrupt)
        raise
    _settle(task)


def _has_body(task: NativeTask) -> bool:
    return task.node.function is not None or bool(task.node.steps)


def _write(task: NativeTask, ops: Any, result: Any) -> None:
    writes: list[tuple[str, Any]] = []
    for mapper, fixed in ops:
        if mapper is None:
            writes.append(fixed)
        elif pairs := mapper(result):
            writes.extend(pairs)
    task.writes.extend(writes)
