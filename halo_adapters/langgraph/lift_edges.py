"""The wiring of a graph as edges, routes and joins of the plan.

A conditional edge becomes a route with a guarded edge per label. `Send`, `Command(goto=)` and edges whose labels nobody
can tell become `may` edges: LangGraph runs whatever a node names at run time, so those lead wherever they could.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from types import MethodType
from typing import Any, Protocol

import networkx as nx
from langchain_core.messages import BaseMessage
from langgraph.constants import END, START
from langgraph.prebuilt import ToolNode
from langgraph.types import Command, Send

from halo_adapters.langgraph.inventory import NodeInventory
from halo_adapters.langgraph.lift_code import constants, functions_of, mentions, only_computes
from halo_adapters.langgraph.lift_nodes import code_of, composed
from halo_adapters.langgraph.lift_returns import returns, returns_of
from halo_core.plan import Edge, Exit, Guard, Join, Operator, Route, Source


class _Branch(Protocol):
    path: Any
    ends: dict[Hashable, str] | None
    input_schema: Any


class Wiring:
    """Reads one builder; the results are plain lists in a deterministic order."""

    def __init__(self, builder: Any, found: Mapping[str, NodeInventory], keys: list[str]) -> None:
        self.builder = builder
        self.found = found
        self.keys = keys
        self.nodes = list(builder.nodes)
        self.targets = [name for name in self.nodes if not builder.nodes[name].is_error_handler]
        """Nodes that a branch or a command can name."""
        self.operators: list[Operator] = []
        """Routes and joins."""
        self.edges: list[Edge] = []
        self.entry: list[str] = []
        self.exits: list[Exit] = []
        place = {name: i for i, name in enumerate([START, *self.nodes, END])}
        self._plain(sorted(builder.edges, key=lambda edge: (place[edge[0]], place[edge[1]])))
        self._joins(sorted(builder.waiting_edges, key=lambda edge: (place[edge[1]], [place[s] for s in edge[0]])))
        for source in (START, *self.nodes):
            for name, branch in builder.branches.get(source, {}).items():
                self._branch(source, name, branch)
        for name in self.nodes:
            self._commands(name)
            self._error_handler(name)
        self._unreached()
        leaving = {edge.source for edge in self.edges} | {leave.source for leave in self.exits}
        self.exits += [Exit(source=name) for name in self.nodes if name not in leaving]
        self.edges = list(dict.fromkeys(self.edges))
        self.entry = list(dict.fromkeys(self.entry))
        self.exits = list(dict.fromkeys(self.exits))

    def _connect(
        self, source: str, target: str, label: str | None = None, *, may: bool = False, sends: bool = False
    ) -> None:
        guard = Guard(branch=source, label=label) if label is not None else None
        if target == END:
            self.exits.append(Exit(source=source, guard=guard, may=may))
        elif source == START:
            self.entry.append(target)
        else:
            self.edges.append(Edge(source=source, target=target, guard=guard, may=may, fan_out=sends))

    def _name(self, wanted: str) -> str:
        taken = {*self.nodes, *(operator.name for operator in self.operators)}
        while wanted in taken:
            wanted += "'"
        return wanted

    def _plain(self, edges: list[tuple[str, str]]) -> None:
        for source, target in edges:
            if (source, target) != (START, END):
                self._connect(source, target)

    def _joins(self, edges: list[tuple[tuple[str, ...], str]]) -> None:
        for sources, target in edges:
            if target == END:  # LangGraph waits for nothing there
                for source in sources:
                    self._connect(source, END)
                continue
            join = Join(name=self._name(f"join:{'+'.join(sources)}"))
            self.operators.append(join)
            for source in sources:
                self._connect(source, join.name)
            self._connect(join.name, target)

    # -- conditional edges ---------------------------------------------------------------------------------------

    def _branch(self, source: str, name: str, branch: _Branch) -> None:
        told = returns_of(branch.path)
        ends: dict[Hashable, str] | None = branch.ends
        if ends is None and not (told.unknown or told.unknown_send):
            ends = {label: str(label) for label in told.labels if label in self.targets or label == END}
        labels: dict[str, str] = {}
        sends = dict.fromkeys(node for node in told.sends if node in self.targets)
        anywhere: dict[str, None] = {}
        # A function that may send is believed about its labels only where all that it returns is known.
        if told.unknown_send or (told.unknown and mentions(branch.path, Send)):
            targets = self.targets if ends is None else [end for end in ends.values() if end != END]
            anywhere.update(dict.fromkeys(targets))
        else:
            for label, target in (ends or {}).items():
                if not sends or label in told.labels:
                    labels[_text(label, labels)] = target
            anywhere.update(dict.fromkeys(self.targets if ends is None else ()))
        can_end = bool(sends or anywhere) and END not in labels.values()
        route = Route(
            name=self._name(f"{source if source != START else 'START'}.{name}"),
            reads=self._reads(source, branch),
            labels=tuple(labels) if labels and not anywhere and not sends else None,
            deterministic=_deterministic(branch.path),
            source=Source(framework="langgraph", code=code_of(branch.path)),
        )
        self.operators.append(route)
        self._connect(source, route.name)
        for label, target in labels.items():
            self._connect(route.name, target, label)
        for target in sends:
            self._connect(route.name, target, may=True, sends=True)
        for target in anywhere:
            self._connect(route.name, target, may=True, sends=told.unknown_send or mentions(branch.path, Send))
        if can_end or not labels:
            self._connect(route.name, END, may=True)

    def _reads(self, source: str, branch: _Branch) -> tuple[str, ...]:
        schema = branch.input_schema
        if schema is None:
            schema = self.builder.nodes[source].input_schema if source != START else self.builder.state_schema
        return tuple(key for key in self.builder.schemas.get(schema, self.keys) if key in self.keys)

    # -- what nodes decide themselves ----------------------------------------------------------------------------

    def _commands(self, name: str) -> None:
        """`Command(goto=...)`: declared destinations, else those that the code shows, else anywhere."""
        spec = self.builder.nodes[name]
        told = returns_of(spec.runnable)
        sends = dict.fromkeys(node for node in told.sends if node in self.targets)
        for target in sends:
            self._connect(name, target, may=True, sends=True)
        for target in spec.ends or ():
            if target not in sends:
                self._connect(name, target, may=True)
        if spec.ends:
            return
        for target in told.gotos:
            if target in self.targets or target == END:
                self._connect(name, target, may=True)
        if told.unknown_goto or told.unknown_send or self._may_go(name):
            for target in (*self.targets, END):
                self._connect(name, target, may=True, sends=told.unknown_send and target != END)

    def _may_go(self, name: str) -> bool:
        """Whether code of the user's that the node runs makes commands that go somewhere, out of the scan's sight."""
        runnable = self.builder.nodes[name].runnable
        targets = list(self.found[name].tools.values()) if isinstance(runnable, ToolNode) else [runnable]
        return any(
            returns(function).unknown and mentions(function, Command) and _says_goto(function)
            for target in targets
            for function in functions_of(target)
        )

    def _error_handler(self, name: str) -> None:
        handler = self.builder.nodes[name].error_handler_node
        if handler:
            self._connect(name, handler, may=True)

    def _unreached(self) -> None:
        """A node that nothing leads to may be where a command goes that is made out of sight: from any step."""
        graph: nx.DiGraph[str] = nx.DiGraph((edge.source, edge.target) for edge in self.edges)
        graph.add_edges_from((START, name) for name in self.entry)
        graph.add_node(START)
        reached = {START, *nx.descendants(graph, START)}
        lost = [name for name in self.nodes if name not in reached]
        free = [name for name in self.nodes if name in reached and not composed(self.builder.nodes[name].runnable)]
        for target in lost:
            for source in free or self.entry:
                self._connect(source, target, may=True)


def _text(label: Hashable, taken: Mapping[str, Any]) -> str:
    text = str(label)
    return text if text not in taken else repr(label)


def _says_goto(function: Any) -> bool:
    plain = function.__func__ if isinstance(function, MethodType) else function
    return "goto" in constants(plain.__code__)


def _deterministic(path: Any) -> bool:
    """Whether a conditional edge only looks at the state."""
    modules = {function.__module__ for function in functions_of(path)}
    if modules and modules <= {"langchain.agents.factory", "langgraph.prebuilt.tool_node"}:
        return True
    return only_computes(path, (BaseMessage, Send, Command))
