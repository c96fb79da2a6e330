"""What a well-formed plan is: each check raises a PlanError that names the operator and the cure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import networkx as nx

from halo_core.errors import PlanError
from halo_core.plan.edges import END, START, Edge, Exit
from halo_core.plan.graph import build_graph, cyclic_regions
from halo_core.plan.operators import LLMOperator, Loop, OpaqueStep, Route

if TYPE_CHECKING:
    from halo_core.plan.plan import Plan


def check(plan: Plan) -> None:
    """Run all checks; raises PlanError at the first that fails."""
    for rule in CHECKS:
        rule(plan)


def _names(plan: Plan) -> None:
    if not plan.operators:
        raise PlanError(f"plan {plan.name!r} has no operators; add at least one")
    seen: set[str] = set()
    for operator in plan.operators:
        if operator.name in seen:
            raise PlanError(f"operator {operator.name!r}: the name is used twice; give each operator its own")
        if operator.name in (START, END):
            raise PlanError(f"operator {operator.name!r}: the name is reserved; use `entry` and `exits` instead")
        seen.add(operator.name)


def _ends(plan: Plan) -> None:
    """Edges, entry, exits and barriers name operators that can run."""
    loops = {o.name for o in plan.operators if isinstance(o, Loop)}
    runnable = {o.name for o in plan.operators} - loops

    def known(name: str, what: str) -> None:
        if name in loops:
            raise PlanError(f"{what} names the loop {name!r}, which has no edges; name a member of its body")
        if name not in runnable:
            raise PlanError(f"{what} names operator {name!r}, which is not in plan {plan.name!r}; add or rename it")

    for edge in plan.edges:
        what = f"edge {edge.source!r} -> {edge.target!r}"
        known(edge.source, what)
        known(edge.target, what)
    if len(set(plan.edges)) < len(plan.edges):
        twice = next(e for i, e in enumerate(plan.edges) if e in plan.edges[:i])
        raise PlanError(f"edge {twice.source!r} -> {twice.target!r} is given twice; give it once")
    if not plan.entry:
        raise PlanError(f"plan {plan.name!r} has no entry; name the operators that start with the row")
    for name in plan.entry:
        known(name, "entry")
    for leave in plan.exits:
        known(leave.source, "exit")
    for barrier in plan.barriers:
        for name in (*barrier.after, *barrier.before):
            known(name, f"barrier ({barrier.reason})")
        if both := set(barrier.after) & set(barrier.before):
            raise PlanError(f"barrier ({barrier.reason}): operator {min(both)!r} cannot wait for itself; drop one side")


def _guards(plan: Plan) -> None:
    sides: Iterable[Edge | Exit] = (*plan.edges, *plan.exits)
    for side in sides:
        if side.guard is None:
            continue
        branch, label = side.guard.branch, side.guard.label
        what = f"guard of {side.source!r} -> {getattr(side, 'target', 'exit')!r}"
        if branch != side.source:
            raise PlanError(f"{what} names branch {branch!r}; only the edge's own source can decide: {side.source!r}")
        operator = plan[branch]
        if not isinstance(operator, Route | OpaqueStep):
            raise PlanError(f"{what}: operator {branch!r} is a {operator.kind} and cannot decide; put a route after it")
        if isinstance(operator, Route) and operator.labels is not None and label not in operator.labels:
            answers = ", ".join(operator.labels)
            raise PlanError(f"{what}: route {branch!r} never answers {label!r}; it answers {answers}")
    for operator in plan.operators:
        if isinstance(operator, Route) and operator.writes != ():
            raise PlanError(f"route {operator.name!r} writes the state; let a step write and the route only decide")


def _reach(plan: Plan) -> None:
    graph = build_graph(plan.operators, plan.edges)
    graph.add_edges_from((START, name) for name in plan.entry)
    reached = nx.descendants(graph, START)
    leaving = {leave.source for leave in plan.exits}
    for name in graph:
        if name != START and name not in reached:
            raise PlanError(f"operator {name!r} cannot be reached from the entry; add an edge into it or drop it")
        if name not in leaving and not any(True for _ in graph.successors(name)):
            raise PlanError(f"operator {name!r} leads nowhere; add an edge out of it or name it in `exits`")


def _loops(plan: Plan) -> None:
    graph = build_graph(plan.operators, plan.edges)
    bodies: dict[str, set[str]] = {}
    for loop in (o for o in plan.operators if isinstance(o, Loop)):
        for name in loop.body:
            if name not in plan:
                raise PlanError(f"loop {loop.name!r}: its body names {name!r}, which is not in the plan; rename it")
            if isinstance(plan[name], Loop):
                raise PlanError(f"loop {loop.name!r}: its body names the loop {name!r}; name that loop's members")
        body = set(loop.body)
        if not cyclic_regions(graph.subgraph(loop.body)):
            raise PlanError(f"loop {loop.name!r}: its body has no cycle; add the edge back or drop the loop")
        for other, members in bodies.items():
            if body & members and not (body < members or members < body):
                raise PlanError(f"loops {other!r} and {loop.name!r} overlap; nest one in the other or join them")
        bodies[loop.name] = body
    for region in cyclic_regions(graph):
        if not any(body.issuperset(region) for body in bodies.values()):
            raise PlanError(
                f"operators {', '.join(map(repr, region))} form a cycle that no loop covers; "
                "add a Loop over them (close_loops does)"
            )


def _state(plan: Plan) -> None:
    declared: set[str] = set()
    for key in plan.state:
        if key.name in declared:
            raise PlanError(f"state key {key.name!r} is declared twice; declare it once")
        declared.add(key.name)
    for operator in plan.operators:
        for verb, keys in (("reads", operator.inputs), ("writes", operator.writes)):
            for name in keys or ():
                if name not in declared:
                    raise PlanError(
                        f"operator {operator.name!r} {verb} {name!r}, which is not a state key; declare it in `state`"
                    )
        if isinstance(operator, LLMOperator) and operator.reads is not None:
            for name in operator.prompt.state_keys():
                if name not in operator.reads:
                    raise PlanError(f"operator {operator.name!r}: slot {{{name}}} is not in its reads; add it there")
    for name in plan.output or ():
        if name not in declared:
            raise PlanError(f"output {name!r} of plan {plan.name!r} is not a state key; declare it in `state`")
    _written(plan, {key.name for key in plan.state if key.input})


def _written(plan: Plan, given: set[str]) -> None:
    if any(o.writes is None for o in plan.operators):
        return
    written = given.union(*(o.writes or () for o in plan.operators))
    for operator in plan.operators:
        slots: tuple[str, ...] = operator.prompt.state_keys() if isinstance(operator, LLMOperator) else ()
        for name in slots:
            if name not in written:
                raise PlanError(
                    f"operator {operator.name!r}: slot {{{name}}} is written by no operator and given by no row; "
                    "let an operator write it or make it an input"
                )


def _facts(plan: Plan) -> None:
    for fact in plan.facts:
        for name in fact.operators:
            if name not in plan:
                raise PlanError(
                    f"fact {fact.kind!r} names operator {name!r}, which is not in plan {plan.name!r}; drop it"
                )


CHECKS = (_names, _ends, _guards, _loops, _reach, _state, _facts)
"""The checks in the order in which they run; each may rely on those before it."""
