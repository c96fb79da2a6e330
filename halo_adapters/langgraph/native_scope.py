"""What the code of one task can see of its run: configs, callback managers without listeners, and the runtime."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import Context, copy_context
from functools import partial
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackManager
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.utils.uuid import uuid7
from langgraph._internal._config import _merge_metadata
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
)
from langgraph.pregel._algo import PregelTaskWrites, local_read
from langgraph.runtime import DEFAULT_RUNTIME, ExecutionInfo, Runtime
from langgraph.types import PregelExecutableTask

from halo_adapters.langgraph.native_channels import NativeTask
from halo_adapters.langgraph.native_plan import FunctionPlan, frozen_maker
from halo_adapters.langgraph.native_run import NativeRun

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
            "langgraph_step": task.step,
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
        info = make_info(task.checkpoint_id, task.ns, task.id, run.thread_id, run.run_id, 1, time.time())
        self.runtime = make_runtime(run.context, None, discard, HEARTBEAT, None, info, None, run.control)
        config: RunnableConfig = {
            **run.rest,  # type: ignore[typeddict-item]
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
                    run.state.channels,
                    run.plan.managed,
                    PregelTaskWrites(task.path, node.name, task.writes, task.triggers),
                ),
                CONFIG_KEY_CHECKPOINTER: None,
                CONFIG_KEY_CHECKPOINT_MAP: {"": task.checkpoint_id},
                CONFIG_KEY_CHECKPOINT_ID: None,
                CONFIG_KEY_CHECKPOINT_NS: task.ns,
                CONFIG_KEY_SCRATCHPAD: task.scratchpad,
                CONFIG_KEY_CALL: partial(run.call, run, task),
            },
        }
        if self.tags:
            config["tags"] = list(self.tags)
        self.config = config

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


def executable(run: NativeRun, task: NativeTask, scope: Scope) -> PregelExecutableTask:
    """The task as LangGraph's own runner knows it, for the rare paths that are left to LangGraph's code."""
    callbacks = scope.callbacks(uuid7(), [*scope.tags, f"graph:step:{task.step}"])
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
