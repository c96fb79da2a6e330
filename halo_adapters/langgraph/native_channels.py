"""The channels of one native run: what triggers a node, what tasks read, and what their writes do.

`ChannelState.apply` mirrors `apply_writes` of langgraph/pregel/_algo.py for a run without a checkpointer. The channels
are LangGraph's own objects.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import Any

from langgraph._internal._constants import (
    ERROR,
    ERROR_SOURCE_NODE,
    INTERRUPT,
    NO_WRITES,
    PUSH,
    RESUME,
    RETURN,
)
from langgraph._internal._scratchpad import PregelScratchpad
from langgraph._internal._typing import EMPTY_SEQ, MISSING
from langgraph.channels.base import BaseChannel
from langgraph.errors import EmptyChannelError
from langgraph.pregel._algo import PregelTaskWrites, local_read
from langgraph.pregel._io import read_channel
from langgraph.pregel._log import logger
from langgraph.types import TimeoutPolicy

from halo_adapters.langgraph.native_plan import VALUED, BranchPlan, GraphPlan, NodePlan

IGNORED_WRITES = frozenset({NO_WRITES, PUSH, RESUME, INTERRUPT, RETURN, ERROR, ERROR_SOURCE_NODE})


class NativeTask:
    """One execution of one node in one superstep."""

    __slots__ = (
        "checkpoint_id",
        "id",
        "input",
        "node",
        "ns",
        "path",
        "scratchpad",
        "sort_key",
        "step",
        "timeout",
        "triggers",
        "writes",
    )

    def __init__(
        self,
        node: NodePlan,
        input: Any,
        step: int,
        checkpoint_id: str,
        id: str,
        path: tuple[Any, ...],
        sort_key: str,
        triggers: tuple[str, ...],
        scratchpad: PregelScratchpad,
        timeout: TimeoutPolicy | None = None,
    ) -> None:
        self.node = node
        self.step = step
        self.checkpoint_id = checkpoint_id
        self.input = input
        self.id = id
        self.ns = f"{node.name}:{id}"
        self.path = path
        self.sort_key = sort_key
        self.triggers = triggers
        self.scratchpad = scratchpad
        self.timeout = timeout
        self.writes: deque[tuple[str, Any]] = deque()


class ChannelState:
    """Channels with their versions, and which versions each node has seen."""

    __slots__ = ("channels", "live", "plan", "seen", "top", "versions")

    def __init__(self, plan: GraphPlan) -> None:
        self.plan = plan
        self.channels: dict[str, BaseChannel[Any, Any, Any]] = {
            name: spec.from_checkpoint(MISSING) for name, spec in plan.channels.items()
        }
        self.versions: dict[str, int] = {}
        self.top: int | None = None
        """The highest version given out."""
        self.seen: dict[str, dict[str, int]] = {}
        self.live: set[str] = set()
        """Channels with a value that an empty update may change."""

    def triggered(self, node: NodePlan) -> bool:
        """Whether a channel that triggers `node` has a value which the node has not seen."""
        if not self.versions:
            return False
        seen = self.seen.get(node.name)
        for channel in node.pregel.triggers:
            if self.channels[channel].is_available() and (
                seen is None or self.versions.get(channel, 0) > seen.get(channel, 0)
            ):
                return True
        return False

    def read(self, node: NodePlan, scratchpad: PregelScratchpad) -> Any:
        """What `node` is given, before its mapper; `MISSING` if there is nothing."""
        selected = node.pregel.channels
        if isinstance(selected, str):
            only = self.channels.get(selected)
            return only.get() if only is not None and only.is_available() else MISSING
        value: dict[str, Any] = {}
        for name in selected:
            channel: Any = self.channels.get(name)
            if type(channel) in VALUED:
                if channel.value is not MISSING:
                    value[name] = channel.value
            elif channel is None:
                value[name] = self.plan.managed[name].get(scratchpad)
            elif channel.is_available():
                value[name] = channel.get()
        return value

    def apply(self, tasks: Sequence[NativeTask]) -> set[str]:
        """Apply the writes of a superstep, ordered by task path; returns the channels that changed and can trigger.

        Raises:
            InvalidUpdateError: a channel refuses its updates.
        """
        if len(tasks) > 1:
            tasks = sorted(tasks, key=lambda task: task.sort_key)
        versions = self.versions
        for task in tasks:
            seen = self.seen.setdefault(task.node.name, {})
            for channel in task.triggers:
                if channel in versions:
                    seen[channel] = versions[channel]
        following = self._following()
        for task in tasks:
            if task.triggers is task.node.triggers:
                for channel in task.node.consumable:
                    if self.channels[channel].consume():
                        versions[channel] = self.top = following
        pending: dict[str, list[Any]] = defaultdict(list)
        for task in tasks:
            for channel, value in task.writes:
                if channel in self.channels:
                    pending[channel].append(value)
                elif channel not in IGNORED_WRITES:
                    logger.warning(
                        f"Task {task.node.name} with path {task.path} wrote to unknown channel {channel}, ignoring it."
                    )
        return self.update(pending, bump=True, following=following)

    def _following(self) -> int:
        return 1 if self.top is None else self.top + 1

    def update(self, pending: Mapping[str, Sequence[Any]], *, bump: bool, following: int | None = None) -> set[str]:
        """Update channels; returns those that changed and can trigger. `bump`: a superstep of tasks has ended."""
        if following is None:
            following = self._following()
        updated: set[str] = set()
        channels, versions, restless = self.channels, self.versions, self.plan.restless
        before, self.live = self.live, set()
        for name, values in pending.items():
            channel = channels[name]
            if channel.update(values):
                versions[name] = self.top = following
                if channel.is_available():
                    updated.add(name)
                    if name in restless:
                        self.live.add(name)
            elif name in restless:
                before.add(name)
        if bump:
            for name in before - updated:
                channel = channels[name]
                if channel.is_available():
                    if channel.update(EMPTY_SEQ):
                        versions[name] = self.top = following
                        if channel.is_available():
                            updated.add(name)
                    if channel.is_available():
                        self.live.add(name)
            if self.plan.finishing and updated.isdisjoint(self.plan.trigger_to_nodes):
                for name in self.plan.finishing:
                    channel = channels[name]
                    if channel.finish():
                        versions[name] = self.top = following
                        if channel.is_available():
                            updated.add(name)
        return updated

    def fresh(self, task: NativeTask, branch: BranchPlan) -> Any:
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
                channel = self.channels.get(name)
                if channel is not None and (name in written or name in self.plan.restless):
                    channel = channel.copy()
                    channel.update(written.get(name, EMPTY_SEQ))
                    touched[name] = channel
        except Exception:
            # let LangGraph raise it: with several bad channels it is their order that decides
            return local_read(
                task.scratchpad,
                self.channels,
                self.plan.managed,
                PregelTaskWrites(task.path, task.node.name, task.writes, task.triggers),
                select,
                True,
            )
        if isinstance(select, str):
            return read_channel(touched or self.channels, select)
        values: dict[str, Any] = {}
        for name in select:
            channel = touched.get(name) or self.channels.get(name)
            if channel is not None:
                try:
                    values[name] = channel.get()
                except EmptyChannelError:
                    continue
        for name in select:
            if name in self.plan.managed:
                values[name] = self.plan.managed[name].get(task.scratchpad)
        return values
