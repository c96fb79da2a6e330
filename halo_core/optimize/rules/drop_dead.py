"""Drop dead operators: those without effects whose result nobody reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import networkx as nx

from halo_core.optimize.rules.rule import add_facts
from halo_core.plan import (
    Barrier,
    Edge,
    Effect,
    Exit,
    Fact,
    Join,
    LLMOperator,
    Loop,
    OpaqueStep,
    Operator,
    Plan,
    Route,
    ToolOperator,
    Unread,
    effect_of,
)
from halo_core.plan.dataflow import Span, spans
from halo_core.plan.graph import framed_graph


def drop_dead(plan: Plan, *, remove: bool = False) -> Plan:
    """Mark operators whose result reaches neither the output nor an operator that is read itself as `Unread`.

    Only operators without effects outside the state count, and what a plan's `output` names is read; without an
    `output` that is every key. With `remove` they are also taken out of the plan where its control flow stays as it is
    (see `without`). No executor leaves them out: a run's stream, its callbacks, its usage and the failure of such an
    operator can all be seen. So a plan with `remove` tells what a change of the app would save, not what will run.
    """
    marked = add_facts(plan, (Unread(operator=name) for name in _unread(plan)))
    if not remove:
        return marked
    for name in [fact.operator for fact in marked.facts if isinstance(fact, Unread)]:
        marked = without(marked, name) or marked
    return marked


def _unread(plan: Plan) -> list[str]:
    candidates = [o for o in plan.operators if _droppable(plan, o)]
    alive: list[Operator] = [o for o in plan.operators if not isinstance(o, Loop)]
    unread: list[str] = []
    while candidates:
        readers: dict[str | None, set[str]] = {}
        for operator in alive:
            for key in (None,) if operator.inputs is None else operator.inputs:
                readers.setdefault(key, set()).add(operator.name)
        found = {o.name for o in candidates if not _is_read(plan, o, readers)}
        if not found:
            break
        unread += [o.name for o in candidates if o.name in found]
        candidates, alive = ([o for o in some if o.name not in found] for some in (candidates, alive))
    return unread


def _droppable(plan: Plan, operator: Operator) -> bool:
    if not isinstance(operator, LLMOperator | ToolOperator | OpaqueStep) or effect_of(operator) is Effect.WRITE:
        return False
    if isinstance(operator, OpaqueStep) and operator.writes == ():
        return False  # it stands there for the control flow
    return not _decides(plan, operator.name)


def _decides(plan: Plan, name: str) -> bool:
    """Whether only running it tells what follows."""
    leaves = (leave for leave in plan.exits if leave.source == name)
    return any(e.source == name and not e.certain for e in plan.edges) or any(x.guard or x.may for x in leaves)


def _is_read(plan: Plan, operator: Operator, readers: Mapping[str | None, set[str]]) -> bool:
    """Whether the caller or another operator sees what it writes; the key None is read by those that read anything."""
    if operator.writes is None or (operator.writes and plan.output is None):
        return True
    by = set[str]().union(*(readers.get(key, ()) for key in (None, *operator.writes))) if operator.writes else set()
    return any(key in (plan.output or ()) for key in operator.writes) or bool(by - {operator.name})


def without(plan: Plan, name: str) -> Plan | None:
    """The plan without the operator, its sources connected to its targets; None where that could be noticed.

    It stays where it decides or is sent to, in a loop, before a route or a join, and where the steps of others would
    run in another order: a superstep less on one branch can change what an operator of another sees, and how often
    one runs that several operators lead to.
    """
    left = tuple(operator for operator in plan.operators if operator.name != name)
    before = [edge for edge in plan.edges if edge.target == name]
    behind = [edge for edge in plan.edges if edge.source == name]
    bound = any(isinstance(o, Loop) and name in o.body for o in left)
    waits = any(isinstance(plan[edge.target], Route | Join) for edge in behind)
    sent = any(edge.fan_out for edge in before)
    if bound or waits or sent or _decides(plan, name) or not any(not isinstance(o, Loop) for o in left):
        return None
    edges: list[Edge] = []
    for edge in plan.edges:
        if edge.source != name:
            edges += [_joined(edge, other) for other in behind] if edge.target == name else [edge]
    exits = [leave for leave in plan.exits if leave.source != name]
    for edge in before:
        if any(leave.source == name for leave in plan.exits) and not _goes_on(edge, edges, exits):
            exits.append(Exit(source=edge.source, guard=edge.guard, may=edge.may))
    entry = [other for other in plan.entry if other != name]
    entry += [edge.target for edge in behind] if name in plan.entry else []
    if not entry or not exits:
        return None
    made = Plan(
        name=plan.name,
        operators=left,
        edges=tuple(dict.fromkeys(edges)),
        entry=tuple(dict.fromkeys(entry)),
        exits=tuple(dict.fromkeys(exits)),
        barriers=tuple(_barriers(plan, name)),
        state=plan.state,
        output=plan.output,
        facts=tuple(_facts(plan, name)),
        fingerprint=plan.fingerprint,
    )
    return made if _same_order(plan, made, name) else None


def _joined(one: Edge, other: Edge) -> Edge:
    kind = "data" if one.kind == other.kind == "data" else "control"
    return one.model_copy(update={"target": other.target, "kind": kind})


def _goes_on(edge: Edge, edges: list[Edge], exits: list[Exit]) -> bool:
    """Whether the row goes on, or ends, behind the edge's source all the same."""
    sides = [(e.source, e.guard, e.may) for e in edges if not e.fan_out] + [(e.source, e.guard, e.may) for e in exits]
    return (edge.source, edge.guard, edge.may) in sides or (edge.source, None, False) in sides


def _barriers(plan: Plan, name: str) -> Iterator[Barrier]:
    for barrier in plan.barriers:
        after = tuple(other for other in barrier.after if other != name)
        before = tuple(other for other in barrier.before if other != name)
        if after and before:
            yield barrier.model_copy(update={"after": after, "before": before})


def _facts(plan: Plan, name: str) -> Iterator[Fact]:
    for fact in plan.facts:
        left = tuple(other for other in fact.operators if other != name)
        if left == fact.operators:
            yield fact


def _same_order(plan: Plan, made: Plan, dropped: str) -> bool:
    """Whether the steps of all operators that are left stand to each other as before, and nothing runs twice behind."""
    old, new = (spans(p, framed_graph(p)) for p in (plan, made))
    if any(old[name].first != old[name].last for name in nx.descendants(plan.graph(), dropped)):
        return False
    steps = {(_bounds(old[name]), _bounds(new[name])) for name in new}
    moved = {before: after for pair in steps for before, after in zip(*pair, strict=True)}
    same = all(moved[before] == after for pair in steps for before, after in zip(*pair, strict=True))
    order = [moved[step] for step in sorted(moved)]
    return same and order == sorted(set(order))


def _bounds(span: Span) -> tuple[float, float]:
    return span.first, span.last
