"""What supersteps add to a plan's edges. LangGraph's graphs and AutoGen's `GraphFlow` run in them."""

from __future__ import annotations

from halo_core.plan import START, Barrier, Join, Loop, Plan, Route
from halo_core.plan.dataflow import spans
from halo_core.plan.graph import framed_graph


def barriers(plan: Plan) -> tuple[Barrier, ...]:
    """The barriers of a plan that runs in supersteps: a step waits for all of the step before it.

    Told only of operators that run in one certain superstep, and only where the edges do not say the same; in a loop
    it holds turn by turn.
    """
    steps = spans(plan, framed_graph(plan))
    runs = [o.name for o in plan.operators if o.name in steps and not isinstance(o, Route | Join | Loop)]
    sent = {edge.target for edge in plan.edges if edge.fan_out}
    waits = _waits(plan)
    found = []
    for step in sorted({steps[name].first for name in runs}):
        before = [name for name in runs if steps[name].first == step]
        after = [
            name
            for name in runs
            if steps[name].last == step - 2 and (name in sent or not all(name in waits[other] for other in before))
        ]
        if after:
            found.append(Barrier(after=tuple(after), before=tuple(before)))
    return tuple(found)


def _waits(plan: Plan) -> dict[str, set[str]]:
    """Operator -> those that have surely run when it starts, as its edges alone say."""
    graph = framed_graph(plan)
    joins = {operator.name for operator in plan.operators if isinstance(operator, Join)}
    waits = {name: set(graph) for name in graph}
    waits[START] = set()
    changed = True
    while changed:
        changed = False
        for name in graph:
            ways = [waits[source] | {source} for source in graph.predecessors(name)]
            if not ways:
                continue
            now = set.union(*ways) if name in joins else set.intersection(*ways)
            changed |= now != waits[name]
            waits[name] = now
    return waits
