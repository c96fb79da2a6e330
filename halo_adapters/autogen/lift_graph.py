"""`GraphFlow` as operators and edges. It runs in supersteps: all that is ready runs, everyone hears everything, again.

A node starts when one of its activation groups is satisfied: an "all" group of several edges becomes a join.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx

from halo_adapters.autogen.lift_agents import KEYS
from halo_adapters.autogen.lift_code import described
from halo_adapters.autogen.lift_wiring import Wiring
from halo_core.errors import LiftError
from halo_core.plan import Edge, Exit, Guard, Join, Route, Source


@dataclass(slots=True)
class _Group:
    """The edges of which one (`any`) or all start `target`."""

    target: str
    name: str
    any: bool
    edges: list[tuple[str, str | None, bool]]
    """(source, label of its condition, whether the condition is a function of the user's)."""
    into: str = ""
    """Where the edges lead: the target, or the join before it."""

    def fires(self, run: Mapping[str, bool]) -> bool:
        """Whether it can be satisfied when `run` may run."""
        return (any if self.any else all)(run.get(source, False) for source, _, _ in self.edges)

    def surely(self, run: Mapping[str, bool]) -> bool:
        """Whether it is satisfied in every run where `run` surely run."""
        return (any if self.any else all)(run.get(s, False) and label is None for s, label, _ in self.edges)


def graph_flow(team: Any) -> Wiring:
    """The agents as the graph connects them; conditions are guards, never called."""
    w = Wiring(team)
    w.ends = w.ends.or_when("when nothing is left to run")
    starts, groups = _read(w)
    live = _closure(starts, groups, _Group.fires)
    groups = [group for group in groups if group.fires(live)]
    cut = w.ends.early or _cut_short(w, list(live), groups)
    w.entry = [name for name in w.names if name in starts]
    w.add([name for name in w.names if name in live])
    _join(w, groups)
    unsure = _unsure(starts, groups)
    for name in (name for name in w.names if name in live):
        ways = [(group, label, asks) for group in groups for s, label, asks in group.edges if s == name]
        conditional = any(label is not None for _, label, _ in ways)
        if not ways:
            w.finish(name)
            continue
        source = _decision(w, name, [(label, asks) for _, label, asks in ways if label]) if conditional else None
        for group, label, asks in ways:
            guard = Guard(branch=source, label=label) if source is not None and label is not None else None
            leaving = source if guard is not None and source is not None else w.after(name)
            w.edges.append(Edge(source=leaving, target=group.into, guard=guard, may=cut or asks))
        goes_on = any(label is None and group.into == group.target for group, label, _ in ways)
        if cut or ((conditional or name in unsure) and not goes_on):
            w.exits.append(Exit(source=source or w.after(name), may=True))
    w.edges = list(dict.fromkeys(w.edges))
    w.close(w.ends.turns)
    return w


def _read(w: Wiring) -> tuple[list[str], list[_Group]]:
    graph = w.own["_graph"]
    groups: dict[tuple[str, str], _Group] = {}
    for name, node in graph.nodes.items():
        if name not in w.agents:
            raise LiftError(
                f"graph node {name!r} of team {w.own['_name']!r} is no participant; add it or drop the node"
            )
        labels: dict[str, Any] = {}
        for edge in node.edges:
            if edge.target not in graph.nodes:
                raise LiftError(f"edge {name!r} -> {edge.target!r} of team {w.own['_name']!r} leads to no node; add it")
            key = (edge.target, edge.activation_group)
            group = groups.setdefault(key, _Group(*key, edge.activation_condition == "any", []))
            group.edges.append((name, _label(edge, labels), edge.condition_function is not None))
    targets = {group.target for group in groups.values()}
    starts = [graph.default_start_node] if graph.default_start_node else [n for n in graph.nodes if n not in targets]
    if not starts or starts[0] not in graph.nodes:
        raise LiftError(f"the graph of team {w.own['_name']!r} has no node to start with; name one as its start")
    place = {name: i for i, name in enumerate(w.names)}
    return starts, sorted(groups.values(), key=lambda group: place[group.target])


def _label(edge: Any, taken: dict[str, Any]) -> str | None:
    """The edge's condition in words; different conditions of one node get different labels."""
    condition = edge.condition_function if edge.condition_function is not None else edge.condition
    if condition is None:
        return None
    if isinstance(condition, str):
        condition = label = condition or "''"
    else:
        label = described(condition)
    while taken.setdefault(label, condition) is not condition and not (type(taken[label]) is type(condition) is str):
        label += "'"
    return label


def _closure(starts: Sequence[str], groups: Sequence[_Group], when: Any) -> dict[str, bool]:
    """The nodes that the start nodes lead to, as far as `when` lets a group start its target."""
    reached = dict.fromkeys(starts, True)
    changed = True
    while changed:
        more = [group.target for group in groups if group.target not in reached and when(group, reached)]
        reached.update(dict.fromkeys(more, True))
        changed = bool(more)
    return reached


def _cut_short(w: Wiring, live: Sequence[str], groups: Sequence[_Group]) -> bool:
    """Whether the bound on turns can end a run before the graph does."""
    if w.ends.turns is None:
        return False
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(live)
    graph.add_edges_from((source, group.target) for group in groups for source, _, _ in group.edges)
    return not nx.is_directed_acyclic_graph(graph) or nx.dag_longest_path_length(graph) + 1 > w.ends.turns


def _join(w: Wiring, groups: Sequence[_Group]) -> None:
    """Joins before the targets of "all" groups; "any" groups are told beside their targets."""
    for group in groups:
        group.into = group.target
        sources = ", ".join(dict.fromkeys(source for source, _, _ in group.edges))
        if len(group.edges) < 2:
            continue
        if group.any:
            at = next(i for i, operator in enumerate(w.operators) if operator.name == group.target)
            source = w.operators[at].source
            hints = {**source.hints, "starts after any of": sources}
            update = {"source": source.model_copy(update={"hints": hints})}
            w.operators[at] = w.operators[at].model_copy(update=update)
            continue
        suffix = "" if group.name == group.target else f":{group.name}"
        join = Join(name=w.unique(f"join:{group.target}{suffix}"))
        w.operators.append(join)
        w.edges.append(Edge(source=join.name, target=group.target))
        group.into = join.name


def _unsure(starts: Sequence[str], groups: Sequence[_Group]) -> set[str]:
    """Nodes after which nothing may be left to run, for a join that they lead to may wait in vain."""
    sure = _closure(starts, groups, _Group.surely)
    waiting = [group for group in groups if group.into != group.target and not group.surely(sure)]
    return {source for group in waiting for source, _, _ in group.edges}


def _decision(w: Wiring, name: str, conditions: Sequence[tuple[str, bool]]) -> str:
    """A route that asks the conditions of the node's edges; several of them can hold, or none."""
    own = any(asks for _, asks in conditions)
    told = w.ends.told
    route = Route(
        name=w.unique(f"after:{name}"),
        reads=KEYS,
        labels=tuple(dict.fromkeys(label for label, _ in conditions)) if told else None,
        deterministic=told and not own,
        source=Source(framework="autogen"),
    )
    w.operators.append(route)
    w.edges.append(Edge(source=name, target=route.name))
    return route.name
