"""Overlap: which operators of a plan with supersteps may start before their step, so that nobody can tell.

Supersteps make an operator wait for all of the step before, also for what it has nothing to do with. It need not where
the plan proves that it runs for certain, that all it reads is written, and that starting it cannot be seen: it changes
nothing outside, and what it looks at outside is changed by nothing before it. Its writes still count with its own step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from halo_core.plan.dataflow import spans
from halo_core.plan.edges import START
from halo_core.plan.graph import Graph, framed_graph, ordered
from halo_core.plan.operators import Effect, Join, Loop, OpaqueStep, Operator, Route, effect_of

if TYPE_CHECKING:
    from halo_core.plan.plan import Plan

REPEATABLE = frozenset({"operator.add", "operator.or_", "operator.and_", "operator.mul", "max", "min"})
"""Reducers that may be asked once more without a trace: they neither change their arguments nor draw anything new."""


@dataclass(slots=True, frozen=True)
class Start:
    """When an operator that surely runs once, in a known superstep, may start."""

    step: int
    """Its superstep; the first is 1."""
    control: frozenset[str] = frozenset()
    """Operators whose end makes it run."""
    world: frozenset[str] = frozenset()
    """Operators that may change what it looks at outside."""
    keys: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """State keys that it reads, each with those that write it before; without keys known only when its step begins."""
    without: tuple[str, ...] = ()
    """Operators of earlier steps that it need not wait for."""
    why_not: str = ""
    """Why it waits for the whole step before; empty where it need not."""
    looks: bool = False
    """Whether its code may also be run ahead of time to begin its lookups: it changes nothing outside."""

    @property
    def after(self) -> frozenset[str]:
        """Operators that have to be done before it may start."""
        return self.control.union(self.world, *self.keys.values())


def starts(plan: Plan) -> dict[str, Start]:
    """Operator -> when it may start, for those that surely run once and in a known superstep, in the plan's order."""
    reading = _Reading(plan)
    return {o.name: reading.start(o) for o in reading.steps if o.name in reading.certain}


class _Reading:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.graph: Graph = framed_graph(plan)
        self.spans = spans(plan, self.graph)
        self.steps = [o for o in plan.operators if not isinstance(o, Route | Join | Loop)]
        self.certain = self._certain()
        self.reducers = {key.name: key.reducer for key in plan.state}

    def _certain(self) -> set[str]:
        """Operators that run once, in one known superstep, whatever the row."""
        certain = {START}
        for name in ordered(self.graph):
            if name not in self.spans or self.spans[name].first != self.spans[name].last:
                continue
            ways = [(source, self.graph.edges[source, name]["edges"]) for source in self.graph.predecessors(name)]
            if all(source in certain and all(edge.certain for edge in edges) for source, edges in ways):
                certain.add(name)
        return certain

    def _earlier(self, name: str) -> list[Operator]:
        """Operators that may run in a step before that of `name`."""
        first = self.spans[name].first
        return [o for o in self.steps if o.name != name and self.spans[o.name].first < first]

    def _leading(self, name: str) -> frozenset[str]:
        """The steps whose end starts `name`, through joins."""
        found: set[str] = set()
        for source in self.graph.predecessors(name):
            if isinstance(self.graph.nodes[source].get("operator"), Join):
                found |= self._leading(source)
            elif source != START:
                found.add(source)
        return frozenset(found)

    def start(self, operator: Operator) -> Start:
        name = operator.name
        step = int(self.spans[name].first) // 2
        earlier = self._earlier(name)
        effect = effect_of(operator)
        changing = [o.name for o in earlier if effect_of(o) is Effect.WRITE] if effect is Effect.READ else []
        unsure = next((other for other in changing if other not in self.certain), None)
        keys: dict[str, frozenset[str]] = {}
        why_not = ""
        if effect is Effect.WRITE:
            doubt = operator.doubt if isinstance(operator, OpaqueStep) else ""
            why_not = "it may change the world outside" + (f": {doubt}" if doubt else "")
        elif unsure is not None:
            why_not = f"{unsure}, which may run before it, may change what it looks at"
        for key in self.reducers if operator.reads is None else operator.reads:
            reason = self._await(key, earlier, keys)
            why_not = why_not or reason
        made = Start(step, self._leading(name), frozenset(changing), keys, why_not=why_not)
        waited = self._closure(made.after)
        return replace(
            made,
            without=() if why_not else tuple(o.name for o in earlier if o.name not in waited),
            looks=isinstance(operator, OpaqueStep) and effect is Effect.READ and unsure is None,
        )

    def _await(self, key: str, earlier: list[Operator], keys: dict[str, frozenset[str]]) -> str:
        """Put those who write `key` before into `keys`, or return why it is known only when the step begins."""
        writers = [o.name for o in earlier if o.writes is None or key in o.writes]
        if unsure := next((name for name in writers if name not in self.certain), None):
            return f"{unsure}, which may run before it, may write {key!r}"
        reducer = self.reducers.get(key)
        if reducer is not None and reducer not in REPEATABLE:
            return f"{key!r} is reduced by {reducer} when a step ends"
        keys[key] = frozenset(writers)
        return ""

    def _closure(self, names: frozenset[str]) -> set[str]:
        """Those and all that are surely over when they are."""
        over: set[str] = set()
        pending = [*names]
        while pending:
            name = pending.pop()
            if name not in over:
                over.add(name)
                pending += self._leading(name)
        return over
