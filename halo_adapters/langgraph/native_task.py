"""Running one task of a native run: the call of its node, its conditional edges, and its writes.

Mirrors `arun_with_retry`/`run_with_retry` of langgraph/pregel/_retry.py around `RunnableSeq.ainvoke`/`invoke`, for a
run in which nobody listens: no callbacks, no tracing, no retries.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import Context
from dataclasses import replace
from typing import Any

from langchain_core.runnables import Runnable, RunnableConfig
from langgraph._internal._config import recast_checkpoint_ns
from langgraph._internal._constants import (
    NO_WRITES,
)
from langgraph.errors import GraphBubbleUp, GraphInterrupt, NodeCancelledError, ParentCommand
from langgraph.pregel._retry import _checkpoint_ns_for_parent_command, arun_with_retry, run_with_retry
from langgraph.pregel._task_status import CONTROL_WRITES
from langgraph.types import Command

from halo_adapters.langgraph.native_channels import NativeTask
from halo_adapters.langgraph.native_plan import BranchPlan, FunctionPlan
from halo_adapters.langgraph.native_run import NativeRun
from halo_adapters.langgraph.native_scope import Scope, arguments, context_with, executable


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


def call_function(
    run: NativeRun, function: FunctionPlan, value: Any, kwargs: dict[str, Any], context: Context
) -> Awaitable[Any]:
    """Start a function in `context`, on the loop or in a thread; what is returned gives its result."""
    if function.afunc is not None:
        return asyncio.get_running_loop().create_task(_await(function.afunc, value, kwargs), context=context)
    assert function.func is not None
    thread = context.copy()  # what the function sets in its thread is not seen by what follows here
    assert run.threads is not None
    return run.threads.call(thread.run, _call_in_thread, function.func, value, kwargs)


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
    result = await call_function(run, node.function, task.input, kwargs, context)
    if type(result) is not dict and node.function.recurse and isinstance(result, Runnable):
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
    if type(result) is not dict and node.function.recurse and isinstance(result, Runnable):
        result = context.run(result.invoke, task.input, scope.config)
    return result


def _branch_input(run: NativeRun, task: NativeTask, branch: BranchPlan, result: Any) -> Any:
    if not branch.reads:
        return result
    value = run.state.fresh(task, branch)
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
        choice = await call_function(run, function, value, kwargs, context_with(ambient))
        if type(choice) is not str and function.recurse and isinstance(choice, Runnable):
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
        if type(choice) is not str and function.recurse and isinstance(choice, Runnable):
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


def _settle(task: NativeTask) -> None:
    for channel, _ in task.writes:
        if channel not in CONTROL_WRITES:
            return
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
        if task.step == run.step:  # else it is noted when its step begins
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
        if task.step == run.step:  # else it is noted when its step begins
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
