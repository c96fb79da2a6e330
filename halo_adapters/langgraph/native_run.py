"""One native invocation: its config, its steps, which tasks come next, and its result.

`NativeRun.next_tasks` mirrors `prepare_next_tasks` of langgraph/pregel/_algo.py for a run without a checkpointer; the
rest mirrors `PregelLoop`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from typing import Any

from langchain_core.callbacks import AsyncCallbackManager, CallbackManager
from langchain_core.runnables import RunnableConfig
from langgraph._internal._config import _DefaultRecursionLimit, ensure_config
from langgraph._internal._constants import (
    CONFIG_KEY_REPLAY_STATE,
    CONFIG_KEY_RESUMING,
    INPUT,
    INTERRUPT,
    PUSH,
    TASKS,
)
from langgraph._internal._scratchpad import PregelScratchpad
from langgraph._internal._typing import MISSING
from langgraph.constants import START, TAG_HIDDEN
from langgraph.errors import (
    EmptyInputError,
    ErrorCode,
    GraphDrained,
    GraphInterrupt,
    GraphRecursionError,
    create_error_message,
)
from langgraph.pregel._algo import LazyAtomicCounter, task_path_str
from langgraph.pregel._io import read_channels
from langgraph.pregel._log import logger
from langgraph.pregel.main import _coerce_context
from langgraph.runtime import RunControl
from langgraph.types import Send
from xxhash import xxh3_128_hexdigest

from halo_adapters.langgraph.native_channels import ChannelState, NativeTask
from halo_adapters.langgraph.native_plan import GraphPlan, NodePlan, frozen_maker
from halo_adapters.langgraph.native_threads import ThreadCalls

UUID_EPOCH_100NS = 0x01B21DD213814000
"""100 ns intervals between the UUID epoch (1582-10-15) and the Unix epoch."""


def _no_resume(consume: bool = False) -> Any:
    return None


def _task_id(checkpoint_id: str, key: bytes) -> str:
    digits = xxh3_128_hexdigest(checkpoint_id.encode() + key)
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


make_scratchpad = frozen_maker(
    PregelScratchpad,
    "step",
    "stop",
    "call_counter",
    "interrupt_counter",
    "resume",
    "get_null_resume",
    "subgraph_counter",
)


class NativeRun:
    """One invocation of a graph. Holds no config of a task, so that a finished run is freed by reference counting."""

    __slots__ = (
        "ahead",
        "call",
        "calls",
        "checkpoint_id",
        "conf",
        "context",
        "control",
        "dirty",
        "id_parts",
        "inherited",
        "interrupts",
        "latest",
        "limit",
        "loop",
        "manager",
        "max_concurrency",
        "metadata",
        "plain",
        "plan",
        "rest",
        "run_id",
        "state",
        "step",
        "stop",
        "tags",
        "thread_id",
        "threads",
        "updated",
    )

    def __init__(
        self,
        plan: GraphPlan,
        input: Any,
        config: RunnableConfig | None,
        context: Any,
        manager: type[AsyncCallbackManager] | type[CallbackManager],
        call: Callable[..., Any],
        loop: asyncio.AbstractEventLoop | None = None,
        threads: ThreadCalls | None = None,
    ) -> None:
        """Start a run and write its input to the START channel.

        Raises:
            ValueError: the recursion limit is below 1.
            EmptyInputError: there is no input.
        """
        full = ensure_config(plan.app.config, config)
        if full["recursion_limit"] < 1:
            raise ValueError("recursion_limit must be at least 1")
        self.plan = plan
        self.manager = manager
        self.call = call
        self.loop = loop
        self.threads = threads
        self.calls: Any = None
        self.ahead: Any = None
        """What of later supersteps is under way already, an `Ahead` where the plan allows any."""
        self.context = _coerce_context(plan.app.context_schema, context) or None
        self.control = RunControl()
        self._read_config(full)
        self.state = ChannelState(plan)
        self.latest: Any = None
        self.dirty = False
        self.interrupts: list[Any] = []
        timestamp = time.time_ns() // 100 + UUID_EPOCH_100NS
        head = f"{timestamp >> 28:08x}-{timestamp >> 12 & 0xFFFF:04x}-6{timestamp & 0xFFF:03x}-"
        self.id_parts = (head, f"-{random.getrandbits(48):012x}")
        self.step = -1
        self.stop = self.step + full["recursion_limit"] + 1
        if input is None:
            raise EmptyInputError(f"Received no input for {plan.app.input_channels}")
        self.updated: set[str] = self.state.update({START: [input]}, bump=False)
        self.state.seen[INPUT] = {}
        self._next_checkpoint()

    def _read_config(self, config: RunnableConfig) -> None:
        """Split the run's config into what every task's config repeats, as LangGraph's `merge_configs` would."""
        configurable = config["configurable"]
        self.conf: dict[str, Any] = {**configurable, CONFIG_KEY_RESUMING: False, CONFIG_KEY_REPLAY_STATE: None}
        self.thread_id = configurable.get("thread_id")
        run_id = config.get("run_id")
        self.run_id = str(run_id) if run_id else None
        self.tags: list[str] = list(config.get("tags") or ())
        self.metadata: dict[str, Any] = dict(config.get("metadata") or ())
        self.inherited: dict[str, Any] = dict(self.metadata)
        self.inherited.setdefault("ls_integration", "langgraph")
        self.plain = not any(isinstance(value, Mapping) for value in self.metadata.values())
        self.limit = config["recursion_limit"]
        self.rest: dict[str, Any] = {}
        if not isinstance(self.limit, _DefaultRecursionLimit):
            self.rest["recursion_limit"] = self.limit
        self.max_concurrency = config.get("max_concurrency")
        if self.max_concurrency:
            self.rest["max_concurrency"] = self.max_concurrency

    # the loop

    def tick(self) -> list[NativeTask]:
        """The tasks of the next superstep in the order in which they start; none when the run is over.

        Raises:
            GraphRecursionError: the step is past the recursion limit.
            GraphDrained: a node asked for the run to stop.
        """
        tasks = self.next_tasks()
        if self.step > self.stop:
            message = (
                f"Recursion limit of {self.limit} reached without hitting a stop condition. You can increase the "
                "limit by setting the `recursion_limit` config key."
            )
            raise GraphRecursionError(create_error_message(message=message, error_code=ErrorCode.GRAPH_RECURSION_LIMIT))
        if tasks and self.control.drain_requested:
            raise GraphDrained(self.control.drain_reason or "shutdown")
        return tasks

    def after_tick(self, tasks: Sequence[NativeTask]) -> None:
        """End the superstep: apply the writes of its tasks and note whether output changed."""
        self.updated = self.state.apply(tasks)
        self._note_output(tasks)
        self._next_checkpoint()
        if self.step == 1:  # the first superstep is over; LangGraph unsets the flag there
            self.conf.pop(CONFIG_KEY_RESUMING, None)

    def _note_output(self, tasks: Iterable[NativeTask]) -> None:
        output, stable = self.plan.output_set, self.plan.stable_output
        if (stable and self.dirty) or self.updated.isdisjoint(output):
            return
        for task in tasks:
            for channel, _ in task.writes:
                if channel in output:
                    self.dirty = True
                    if not stable:
                        self._read_output()
                    return

    def _read_output(self) -> None:
        self.latest = read_channels(self.state.channels, self.plan.output_keys)
        self.dirty = False

    def result(self) -> Any:
        """What `ainvoke` returns: the values that Pregel would have emitted last."""
        if self.dirty:
            self._read_output()
        if self.interrupts:
            if isinstance(self.latest, dict):
                return {**self.latest, INTERRUPT: self.interrupts}
            return {INTERRUPT: self.interrupts}
        return self.latest

    def note_interrupt(self, task: NativeTask, interrupt: GraphInterrupt) -> None:
        """A task stopped at `interrupt(...)`: remember it, in order of completion."""
        if not interrupt.args[0]:
            return
        tags = [*self.tags, *(task.node.pregel.tags or ())]
        if TAG_HIDDEN in tags:
            return
        found = tuple(interrupt.args[0]) if isinstance(interrupt.args[0], Sequence) else (interrupt.args[0],)
        self.interrupts.extend(found)
        current = read_channels(self.state.channels, self.plan.output_keys)
        self.latest = {**current, INTERRUPT: found} if isinstance(current, dict) else {INTERRUPT: found}
        self.dirty = False

    def after_interrupt(self, tasks: Sequence[NativeTask]) -> None:
        """End an interrupted run: writes of the tasks that did finish count."""
        if any(task.writes for task in tasks):
            self.updated = self.state.apply(tasks)
            self._note_output(tasks)

    def _next_checkpoint(self) -> None:
        """A fresh checkpoint id, a version 6 UUID like LangGraph's own; nothing is stored under it."""
        self.checkpoint_id = self.checkpoint_at(self.step)
        self.step += 1

    def checkpoint_at(self, step: int) -> str:
        """The id of the checkpoint after `step`; tasks of the next step start from it."""
        head, tail = self.id_parts
        return f"{head}{0x8000 | (step & 0x3FFF):04x}{tail}"

    # what runs next

    def next_tasks(self) -> list[NativeTask]:
        """The tasks that the channels call for: first the Sends in order, then triggered nodes by name."""
        tasks: list[NativeTask] = []
        sends = self.state.channels[TASKS]
        if sends.is_available():
            for index, packet in enumerate(sends.get()):
                if (task := self._push_task(index, packet)) is not None:
                    tasks.append(task)
        trigger_to_nodes = self.plan.trigger_to_nodes
        names: Iterable[str]
        if self.updated and trigger_to_nodes:
            triggered: set[str] = set()
            for channel in self.updated:
                if found := trigger_to_nodes.get(channel):
                    triggered.update(found)
            names = sorted(triggered) if len(triggered) > 1 else triggered
        elif not self.state.versions:
            names = ()
        else:
            names = self.plan.nodes
        inputs: dict[Any, Any] = {}
        for name in names:
            node = self.plan.nodes[name]
            if self.state.triggered(node) and (task := self._pull_task(node, inputs)) is not None:
                tasks.append(task)
        return tasks

    def scratchpad(self, step: int) -> PregelScratchpad:
        """What a task of that step counts with."""
        counter = LazyAtomicCounter
        return make_scratchpad(step, self.stop, counter(), counter(), [], _no_resume, counter())

    def pulled(self, node: NodePlan, value: Any, step: int, scratchpad: PregelScratchpad) -> NativeTask:
        """The task of a triggered node in that step, given its input."""
        checkpoint_id = self.checkpoint_id if step == self.step else self.checkpoint_at(step - 1)
        task_id = _task_id(checkpoint_id, b"%b%d%b" % (node.hash_head, step, node.hash_tail))
        return NativeTask(
            node, value, step, checkpoint_id, task_id, node.path, node.sort_key, node.triggers, scratchpad
        )

    def _pull_task(self, node: NodePlan, inputs: dict[Any, Any]) -> NativeTask | None:
        scratchpad = self.scratchpad(self.step)
        try:
            value = self._node_input(node, inputs, scratchpad)
        except Exception as error:
            error.add_note(f"Before task with name '{node.name}' and path '{node.path}'")
            raise
        if value is MISSING:
            return None
        return self.pulled(node, value, self.step, scratchpad)

    def _node_input(self, node: NodePlan, inputs: dict[Any, Any], scratchpad: PregelScratchpad) -> Any:
        key = node.pregel.input_cache_key
        if key in inputs:
            # as LangGraph does: nodes that read the same thing do not see each other's top-level mutations
            return copy(inputs[key])
        value = self.state.read(node, scratchpad)
        if value is MISSING:
            return MISSING
        if node.pregel.mapper is not None:
            value = node.pregel.mapper(value)
        inputs[key] = value
        return value

    def _push_task(self, index: int, packet: Any) -> NativeTask | None:
        if not isinstance(packet, Send):
            logger.warning(f"Ignoring invalid packet type {type(packet)} in pending sends")
            return None
        node = self.plan.nodes.get(packet.node)
        if node is None:
            logger.warning(f"Ignoring unknown node name {packet.node} in pending sends")
            return None
        key = b"%b%d%b%b%d" % (node.hash_head, self.step, node.hash_head, PUSH.encode(), index)
        path = (PUSH, index, False)
        return NativeTask(
            node,
            packet.arg,
            self.step,
            self.checkpoint_id,
            _task_id(self.checkpoint_id, key),
            path,
            task_path_str(path),
            (PUSH,),
            self.scratchpad(self.step),
            packet.timeout,
        )
