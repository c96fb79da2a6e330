"""What native execution knows of one compiled graph before any invocation runs: its nodes, writers and channels.

Everything here is read from the `PregelNode`s and channel specs that `StateGraph.compile` made, once per graph. The
module imports private names of LangGraph at the top on purpose: where they are missing, `native.ineligible` says so.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, TypeVar

from langchain_core.runnables import Runnable
from langchain_core.runnables.config import run_in_executor
from langgraph._internal._constants import PULL, TASKS
from langgraph._internal._runnable import RunnableCallable, RunnableSeq
from langgraph.channels import (
    AnyValue,
    BinaryOperatorAggregate,
    EphemeralValue,
    LastValue,
    NamedBarrierValue,
    Topic,
    UntrackedValue,
)
from langgraph.channels.base import BaseChannel
from langgraph.channels.last_value import LastValueAfterFinish
from langgraph.channels.named_barrier_value import NamedBarrierValueAfterFinish
from langgraph.constants import START
from langgraph.graph._branch import BranchSpec
from langgraph.graph.state import CompiledStateGraph
from langgraph.pregel._algo import task_path_str
from langgraph.pregel._read import DEFAULT_BOUND, ChannelRead, PregelNode
from langgraph.pregel._write import PASSTHROUGH, SKIP_WRITE, ChannelWrite, ChannelWriteEntry, ChannelWriteTupleEntry
from langgraph.pregel.protocol import PregelProtocol

INERT = (LastValue, BinaryOperatorAggregate, LastValueAfterFinish, NamedBarrierValue, NamedBarrierValueAfterFinish)
"""Channel types that ignore the empty update which Pregel sends to every channel at the end of a step."""

KNOWN_CHANNELS = (*INERT, EphemeralValue, Topic, AnyValue, UntrackedValue)
"""Channel types whose life in a run is certain; a `DeltaChannel` or a user's own type runs on Pregel."""

VALUED = frozenset({LastValue, BinaryOperatorAggregate})
"""Channel types that hold what they give out in `value`, or `MISSING`."""

T = TypeVar("T")

RUNTIME_FIELDS = frozenset({"store", "stream_writer", "previous"})


class NotNative(Exception):
    """The graph has a part that only Pregel runs; the message is the reason, naming the node."""


def frozen_maker(cls: type[T], *names: str) -> Callable[..., T]:
    """A constructor of a frozen, slotted dataclass that takes its fields in the order of `names`.

    Sets the slots directly: the generated `__init__` of a frozen class costs three times as much, and three such
    objects are made per task.
    """
    known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    if sorted(known) != sorted(names) or hasattr(cls, "__post_init__"):
        return lambda *values: cls(**dict(zip(names, values, strict=True)))  # another version's class
    lines = [
        f"def make({', '.join(names)}):",
        " made = new(cls)",
        *(f" set_{n}(made, {n})" for n in names),
        " return made",
    ]
    scope: dict[str, Any] = {"new": object.__new__, "cls": cls}
    scope.update({f"set_{name}": getattr(cls, name).__set__ for name in names})
    exec("\n".join(lines), scope)  # as the dataclass itself is made
    made: Callable[..., T] = scope["make"]
    return made


@dataclass(frozen=True, slots=True)
class FunctionPlan:
    """A `RunnableCallable`: which function to call, and what LangGraph injects into it."""

    func: Callable[..., Any] | None
    """The synchronous function, if there is one."""
    afunc: Callable[..., Any] | None
    """The asynchronous function; None where LangGraph's own is only `func` in an executor, or there is none."""
    in_executor: bool
    """Whether `ainvoke` means `func` in an executor."""
    fixed: Mapping[str, Any]
    inject: tuple[tuple[str, str], ...]
    """Pairs of keyword and source: `config`, `runtime`, `error`, or an attribute of the runtime."""
    recurse: bool
    """Whether a returned Runnable is invoked in turn."""


@dataclass(frozen=True, slots=True)
class BranchPlan:
    """A conditional edge: what it reads, which function chooses, and LangGraph's own code that writes the choice."""

    spec: BranchSpec
    publish: Callable[..., Any]
    reads: bool
    select: str | list[str]
    mapper: Callable[[Any], Any] | None
    function: FunctionPlan | None
    """How to call the path directly; None where it is a Runnable that has to be invoked."""


WriteOps = tuple[tuple[Callable[[Any], Any] | None, tuple[str, Any] | None], ...]
"""A `ChannelWrite` flattened: each item either maps the node's result to writes, or is a fixed write."""

Writer = WriteOps | BranchPlan


@dataclass(slots=True)
class NodePlan:
    """One node: when it runs, what it is given, what is called, and where its result goes."""

    name: str
    pregel: PregelNode
    triggers: tuple[str, ...]
    path: tuple[str, str]
    sort_key: str
    hash_head: bytes
    hash_tail: bytes
    function: FunctionPlan | None
    steps: tuple[Runnable[Any, Any], ...]
    """The Runnables to invoke one after the other where the node is not a plain function; empty otherwise."""
    writers: tuple[Writer, ...]
    first_writer: int
    """The 1-based position of the first writer in LangGraph's sequence; names the writer's `seq:step:N` tag."""
    plain_metadata: bool
    needs_config: bool
    consumable: tuple[str, ...]
    """The triggers that a run of this node uses up."""


@dataclass(slots=True)
class GraphPlan:
    """One compiled graph, ready to be run many times."""

    app: CompiledStateGraph[Any, Any, Any, Any]
    executor: Executor
    nodes: dict[str, NodePlan]
    channels: dict[str, BaseChannel[Any, Any, Any]]
    managed: dict[str, Any]
    trigger_to_nodes: Mapping[str, Sequence[str]]
    output_keys: str | Sequence[str]
    output_set: frozenset[str]
    restless: frozenset[str] = field(default=frozenset())
    """Channels that an empty update may change."""
    finishing: tuple[str, ...] = field(default=())
    """Channels that want to know when the run is about to end."""
    stable_output: bool = field(default=False)
    """Whether output channels change only when written, so that one read at the end equals the last emitted values."""


def _overrides(channel: BaseChannel[Any, Any, Any], method: str) -> bool:
    return getattr(type(channel), method) is not getattr(BaseChannel, method)


def function_plan(runnable: Runnable[Any, Any]) -> FunctionPlan | None:
    """How to call `runnable` without LangGraph's wrapper, or None if only `invoke` gives the same result."""
    if not isinstance(runnable, RunnableCallable):
        return None
    kind = type(runnable)
    if kind.ainvoke is not RunnableCallable.ainvoke or kind.invoke is not RunnableCallable.invoke:
        return None
    if runnable.explode_args:
        return None
    inject: list[tuple[str, str]] = []
    for keyword, (source, default) in runnable.func_accepts.items():
        if keyword in runnable.kwargs:
            continue
        if keyword in ("config", "runtime"):
            inject.append((keyword, keyword))
        elif keyword == "error" and default is not inspect.Parameter.empty:
            inject.append((keyword, "error"))
        elif source in RUNTIME_FIELDS:
            inject.append((keyword, source))
        else:
            return None
    afunc = runnable.afunc
    in_executor = getattr(afunc, "__halo_in_thread__", False) or (
        isinstance(afunc, partial)
        and afunc.func is run_in_executor
        and len(afunc.args) == 2
        and afunc.args[0] is None
        and afunc.args[1] is runnable.func
        and not afunc.keywords
    )
    if afunc is None:
        return None  # LangGraph calls the function on the event loop's own thread; let it
    return FunctionPlan(
        func=runnable.func,
        afunc=None if in_executor else afunc,
        in_executor=in_executor,
        fixed=dict(runnable.kwargs),
        inject=tuple(inject),
        recurse=runnable.recurse,
    )


def _write_ops(write: ChannelWrite, node: str) -> WriteOps:
    ops: list[tuple[Callable[[Any], Any] | None, tuple[str, Any] | None]] = []
    for entry in write.writes:
        if isinstance(entry, ChannelWriteTupleEntry) and entry.value is PASSTHROUGH:
            ops.append((entry.mapper, None))
        elif (
            isinstance(entry, ChannelWriteEntry)
            and entry.mapper is None
            and entry.value is not PASSTHROUGH
            and entry.value is not SKIP_WRITE
            and not entry.skip_none
            and entry.channel != TASKS
        ):
            ops.append((None, (entry.channel, entry.value)))
        else:
            raise NotNative(f"node {node!r} has a channel write of a kind that StateGraph does not make: {entry!r}")
    return tuple(ops)


def _branch(writer: Runnable[Any, Any], node: str) -> BranchPlan:
    spec = getattr(getattr(writer, "func", None), "__self__", None)
    if (
        type(writer) is not RunnableCallable
        or not isinstance(spec, BranchSpec)
        or set(writer.kwargs)
        != {
            "reader",
            "writer",
        }
    ):
        raise NotNative(f"node {node!r} has a writer of unknown kind: {writer!r}")
    reader = writer.kwargs["reader"]
    if reader is not None and not (
        isinstance(reader, partial)
        and reader.func is ChannelRead.do_read
        and not reader.args
        and set(reader.keywords) == {"select", "fresh", "mapper"}
        and reader.keywords["fresh"] is True
    ):
        raise NotNative(f"node {node!r} has a conditional edge that reads the state in an unknown way")
    if isinstance(spec.path, PregelProtocol):
        raise NotNative(f"node {node!r} has a conditional edge that is itself a graph")
    keywords = reader.keywords if reader is not None else {}
    path = spec.path
    traced = type(path) is RunnableCallable and path.trace and path.tags is None
    return BranchPlan(
        spec=spec,
        publish=writer.kwargs["writer"],
        reads=reader is not None,
        select=keywords.get("select", []),
        mapper=keywords.get("mapper"),
        function=function_plan(path) if traced else None,
    )


def _node_plan(name: str, node: PregelNode, channels: Mapping[str, BaseChannel[Any, Any, Any]]) -> NodePlan:
    for attribute, what in (
        ("retry_policy", "a retry policy"),
        ("cache_policy", "a cache policy"),
        ("timeout", "a timeout"),
        ("error_handler_node", "an error handler"),
        ("is_error_handler", "the role of error handler"),
        ("subgraphs", "a subgraph"),
    ):
        if getattr(node, attribute):
            raise NotNative(f"node {name!r} has {what}")
    policy = node.trace_policy
    if policy is not None and (policy.process_inputs is not None or policy.process_outputs is not None):
        raise NotNative(f"node {name!r} has a trace policy")
    steps: tuple[Runnable[Any, Any], ...] = ()
    function: FunctionPlan | None = None
    if node.bound is not DEFAULT_BOUND:
        if isinstance(node.bound, PregelProtocol):
            raise NotNative(f"node {name!r} is a subgraph")
        bound = node.bound
        if isinstance(bound, RunnableCallable) and not bound.trace:
            function = function_plan(bound)
        if function is None:
            sequence = node.node
            if not isinstance(sequence, RunnableSeq):
                raise NotNative(f"node {name!r} writes nothing")
            # LangGraph splices the steps of an LCEL chain into the node's own sequence
            steps = tuple(sequence.steps[: len(sequence.steps) - len(node.flat_writers)])
            if any(isinstance(step, PregelProtocol) for step in steps):
                raise NotNative(f"node {name!r} has a subgraph as a step")
    elif name != START:
        raise NotNative(f"node {name!r} has no function")
    writers = tuple(
        _write_ops(writer, name) if type(writer) is ChannelWrite else _branch(writer, name)
        for writer in node.flat_writers
    )
    if not isinstance(node.channels, str | list):
        raise NotNative(f"node {name!r} reads its input in an unknown way")
    triggers = tuple(sorted(node.triggers))
    metadata = node.metadata or {}
    return NodePlan(
        name=name,
        pregel=node,
        triggers=triggers,
        path=(PULL, name),
        sort_key=task_path_str((PULL, name)),
        hash_head=name.encode(),
        hash_tail=(name + PULL + "".join(triggers)).encode(),
        function=function,
        steps=steps,
        writers=writers,
        first_writer=(len(steps) or (0 if node.bound is DEFAULT_BOUND else 1)) + 1,
        plain_metadata=not any(isinstance(value, Mapping) for value in metadata.values()),
        needs_config=node.bound is not DEFAULT_BOUND or any(isinstance(w, BranchPlan) for w in writers),
        consumable=tuple(t for t in triggers if t in channels and _overrides(channels[t], "consume")),
    )


def graph_plan(app: CompiledStateGraph[Any, Any, Any, Any], executor: Executor) -> GraphPlan:
    """Read `app` once.

    Raises:
        NotNative: a node, writer or channel is of a kind that native execution does not mirror.
    """
    channels: dict[str, BaseChannel[Any, Any, Any]] = {}
    managed: dict[str, Any] = {}
    for name, spec in app.channels.items():
        if not isinstance(spec, BaseChannel):
            managed[name] = spec
        elif type(spec) in KNOWN_CHANNELS:
            channels[name] = spec
        else:
            raise NotNative(f"state key {name!r} is a {type(spec).__name__}")
    if app.input_channels != START or START not in app.nodes:
        raise NotNative("the graph does not take its input from START")
    nodes = {name: _node_plan(name, node, channels) for name, node in app.nodes.items()}
    output_keys = app.output_channels
    output_set = frozenset((output_keys,) if isinstance(output_keys, str) else output_keys)
    return GraphPlan(
        app=app,
        executor=executor,
        nodes=nodes,
        channels=channels,
        managed=managed,
        trigger_to_nodes=app.trigger_to_nodes,
        output_keys=output_keys,
        output_set=output_set,
        restless=frozenset(name for name, channel in channels.items() if type(channel) not in INERT),
        finishing=tuple(name for name, channel in channels.items() if _overrides(channel, "finish")),
        stable_output=all(type(channels.get(key)) in (LastValue, BinaryOperatorAggregate) for key in output_set),
    )
