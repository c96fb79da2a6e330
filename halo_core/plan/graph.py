"""Graph algorithms over a plan's operators and edges, on networkx."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import networkx as nx

from halo_core.errors import PlanError
from halo_core.plan.edges import END, START, Edge
from halo_core.plan.operators import Loop, Operator

if TYPE_CHECKING:
    from halo_core.plan.plan import Plan

Graph: TypeAlias = "nx.DiGraph[str]"


def build_graph(operators: Iterable[Operator], edges: Iterable[Edge]) -> Graph:
    """Operators (without loops) as nodes in their order; each arc's `edges` attribute lists the plan's edges in it."""
    graph: Graph = nx.DiGraph()
    for operator in operators:
        if not isinstance(operator, Loop):
            graph.add_node(operator.name, operator=operator)
    for edge in edges:
        if graph.has_edge(edge.source, edge.target):
            graph.edges[edge.source, edge.target]["edges"].append(edge)
        else:
            graph.add_edge(edge.source, edge.target, edges=[edge])
    return graph


def framed_graph(plan: Plan) -> Graph:
    """The plan's graph with START and END as nodes; the arcs into END carry the plan's exits."""
    graph: Graph = nx.DiGraph()
    graph.add_node(START)
    graph.update(plan.graph())
    for name in plan.entry:
        graph.add_edge(START, name, edges=[Edge(source=START, target=name)])
    for leave in plan.exits:
        edge = Edge(source=leave.source, target=END, guard=leave.guard, may=leave.may)
        if graph.has_edge(leave.source, END):
            graph.edges[leave.source, END]["edges"].append(edge)
        else:
            graph.add_edge(leave.source, END, edges=[edge])
    return graph


def cyclic_regions(graph: Graph) -> list[tuple[str, ...]]:
    """The graph's strongly connected components that hold a cycle, members and regions in node order."""
    place = {name: i for i, name in enumerate(graph)}
    regions = [
        tuple(sorted(component, key=place.__getitem__))
        for component in nx.strongly_connected_components(graph)
        if len(component) > 1 or graph.has_edge(*(2 * tuple(component)))
    ]
    return sorted(regions, key=lambda region: place[region[0]])


def close_loops(operators: Sequence[Operator], edges: Iterable[Edge]) -> tuple[Operator, ...]:
    """The operators, followed by one `Loop` for each cyclic region that no given loop covers yet."""
    covered = [set(o.body) for o in operators if isinstance(o, Loop)]
    taken = {o.name for o in operators}
    loops: list[Operator] = []
    for region in cyclic_regions(build_graph(operators, edges)):
        if any(body.issuperset(region) for body in covered):
            continue
        name = f"loop:{region[0]}"
        while name in taken:
            name += "'"
        taken.add(name)
        loops.append(Loop(name=name, body=region))
    return (*operators, *loops)


def condense(graph: Graph) -> tuple[Graph, list[tuple[str, ...]]]:
    """The graph with each cyclic region drawn together to its first member, and those regions."""
    regions = cyclic_regions(graph)
    head = {name: region[0] for region in regions for name in region}
    condensed: Graph = nx.DiGraph()
    condensed.add_nodes_from(name for name in graph if head.get(name, name) == name)
    for source, target in graph.edges:
        a, b = head.get(source, source), head.get(target, target)
        if a != b:
            condensed.add_edge(a, b)
    return condensed, regions


def ordered(graph: Graph) -> list[str]:
    """All nodes, sources before targets but for loops' back edges; ties in node order."""
    condensed, regions = condense(graph)
    members = {region[0]: region for region in regions}
    place = {name: i for i, name in enumerate(graph)}
    order: list[str] = []
    for name in nx.lexicographical_topological_sort(condensed, key=place.__getitem__):
        order += _unrolled(graph, members[name]) if name in members else [name]
    return order


def _unrolled(graph: Graph, region: Sequence[str]) -> list[str]:
    """A loop's members in the order of a depth-first walk from where the loop is entered."""
    inside = set(region)
    place = {name: i for i, name in enumerate(graph)}
    entered = [name for name in region if any(p not in inside for p in graph.predecessors(name))] or list(region[:1])
    done: list[str] = []
    seen: set[str] = set()
    for start in [*entered, *region]:
        if start in seen:
            continue
        seen.add(start)
        finished: list[str] = []
        stack = [(start, iter(sorted(graph.successors(start), key=place.__getitem__, reverse=True)))]
        while stack:
            name, successors = stack[-1]
            step = next((s for s in successors if s in inside and s not in seen), None)
            if step is None:
                finished.append(name)
                stack.pop()
            else:
                seen.add(step)
                stack.append((step, iter(sorted(graph.successors(step), key=place.__getitem__, reverse=True))))
        done += reversed(finished)
    return done


def generations(plan: Plan) -> tuple[tuple[str, ...], ...]:
    """Operators by topological generation; the members of a loop stand in one generation together."""
    graph = plan.graph()
    condensed, regions = condense(graph)
    members = {region[0]: region for region in regions}
    return tuple(
        tuple(name for head in layer for name in members.get(head, (head,)))
        for layer in nx.topological_generations(condensed)
    )


def critical_path(plan: Plan, weights: Mapping[str, float] | None = None) -> tuple[str, ...]:
    """The heaviest path of operators from entry to end; a loop counts as the sum of its members, once.

    `weights` gives each operator's cost in any unit; without it every operator costs 1. Raises PlanError for an
    operator that `weights` lacks.
    """
    graph = plan.graph()
    if weights is not None and (missing := [name for name in graph if name not in weights]):
        raise PlanError(f"critical path of plan {plan.name!r}: no weight for operator {missing[0]!r}; give one to each")
    condensed, regions = condense(graph)
    members = {region[0]: region for region in regions}
    best: dict[str, tuple[float, str | None]] = {}
    for head in nx.topological_sort(condensed):
        own = sum(1.0 if weights is None else weights[name] for name in members.get(head, (head,)))
        before = [(best[p][0], p) for p in condensed.predecessors(head)]
        weight, previous = max(before, key=lambda pair: pair[0], default=(0.0, None))
        best[head] = (own + weight, previous)
    path: list[str] = []
    at: str | None = max(best, key=lambda name: best[name][0])
    while at is not None:
        path += reversed(_unrolled(graph, members[at]) if at in members else [at])
        at = best[at][1]
    return tuple(reversed(path))
