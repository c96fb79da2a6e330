"""Dataflow: for each operator of a plan, all that can influence what it sees, and whether equal inputs let it merge.

The state is shared by all operators of a row, so a write may reach an operator that no edge leads to: the superstep
spans say which can. All answers err on the side of more influence, hence fewer merges.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from math import inf
from typing import TYPE_CHECKING

import networkx as nx

from halo_core.plan.edges import END, START
from halo_core.plan.graph import Graph, cyclic_regions, framed_graph, ordered
from halo_core.plan.operators import Effect, Join, LLMOperator, Loop, OpaqueStep, Operator, Route, ToolOperator

if TYPE_CHECKING:
    from halo_core.plan.plan import Plan

ALL = "*"
"""Stands for everything an operator wrote, and for what it decided."""


@dataclass(slots=True, frozen=True)
class Inputs:
    """All that can influence what an operator sees."""

    row: bool
    """The whole row, for an operator that may read anything."""
    given: tuple[str, ...]
    """State keys whose first value, from the row, may reach it."""
    written: tuple[tuple[str, str], ...]
    """Pairs (operator, state key or ALL) whose values may reach it, or decide which of those do."""


@dataclass(slots=True, frozen=True)
class Span:
    """The supersteps in which an operator may run: odd numbers are routes and joins, between two steps."""

    first: float
    last: float


class Dataflow:
    """What reaches each operator of `plan`; with `assume_pure`, as if opaque steps and routes were pure functions."""

    def __init__(self, plan: Plan, assume_pure: bool = False) -> None:
        self.plan = plan
        self.assume_pure = assume_pure
        self.graph: Graph = framed_graph(plan)
        self.order = [name for name in ordered(self.graph) if name not in (START, END)]
        """Operators that run, sources first."""
        self.spans = spans(plan, self.graph)
        self._bit = {name: 1 << i for i, name in enumerate(self.order)}
        self._above = self._leading()
        self._sure = self._surely_run()
        self._deciders = {e.source for e in plan.edges if not e.certain}
        self._overwrites = {k.name for k in plan.state if k.reducer is None}
        self._givable = [k.name for k in plan.state if k.input]
        own = {name: self._inputs(plan[name]) for name in self.order}
        self.unmerged: dict[str, str] = {}
        """Operator -> why its instances are never merged; operators that may merge are absent."""
        for name in self.order:
            if reason := self._reason(plan[name]):
                self.unmerged[name] = reason
        self.inputs = self._close(own)
        """Operator -> its inputs; those of a group that feeds itself are the group's inputs from outside."""

    def _before(self, writer: str, reader: str) -> bool:
        """Whether the writer can run before the reader does."""
        return writer != reader and self.spans[writer].first < self.spans[reader].last

    def _surely_before(self, name: str) -> int:
        """Bit set of the operators that have run whenever `name` starts."""
        first = self.spans[name].first
        sure, dominating = self._sure[name]
        return dominating | sum(
            bit for other, bit in self._bit.items() if sure & bit and self.spans[other].last < first
        )

    def _inputs(self, operator: Operator) -> Inputs:
        name = operator.name
        written: dict[tuple[str, str], None] = {}
        for source in self.graph.predecessors(name):
            sends = any(edge.fan_out for edge in self.graph.edges[source, name]["edges"])
            if source != START and (isinstance(operator, Join) or sends):
                written[source, ALL] = None
        keys = operator.inputs
        sure = self._surely_before(name)
        given: list[str] = []
        unsure: set[str] = set()
        for key in [k.name for k in self.plan.state] if keys is None else keys:
            writers = [w for w in self.order if self._before(w, name) and self._writes(w, key)]
            last = self._last_writers(key, writers, sure)
            live = [w for w in writers if not any(self._overwritten(w, by) for by in last)]
            written.update(((w, key), None) for w in live)
            unsure.update(w for w in live if not sure & self._bit[w] or self.spans[w].first != self.spans[w].last)
            if not last and key in self._givable:
                given.append(key)
        if unsure:
            above = reduce(lambda a, b: a | b, (self._above[w] for w in (*unsure, name)))
            written.update(((d, ALL), None) for d in self.order if d in self._deciders and above & self._bit[d])
        return Inputs(keys is None, () if keys is None else tuple(given), tuple(written))

    def _writes(self, name: str, key: str) -> bool:
        writes = self.plan[name].writes
        return writes is None or key in writes

    def _last_writers(self, key: str, writers: Iterable[str], sure: int) -> list[str]:
        """The writers that surely replace what the key held before them."""
        if key not in self._overwrites:
            return []
        return [w for w in writers if sure & self._bit[w] and key in self.plan[w].certain_writes]

    def _overwritten(self, writer: str, by: str) -> bool:
        return self.spans[writer].last < self.spans[by].first

    def _surely_run(self) -> dict[str, tuple[int, int]]:
        """Operator -> bit sets of what surely runs in a row in which it runs, and of what every way to it passes."""
        everything = sum(self._bit.values())
        passed = dict.fromkeys(self.order, everything)
        changed = True
        while changed:
            changed = False
            for name in self.order:
                ways = [0 if p == START else passed[p] | self._bit[p] for p in self.graph.predecessors(name)]
                join = isinstance(self.plan[name], Join)
                now = reduce(lambda a, b: a | b, ways) if join else reduce(lambda a, b: a & b, ways)
                changed |= now != passed[name]
                passed[name] = now
        entries = sum(self._bit[name] for name in set(self.plan.entry))
        return {name: (self._triggered(passed[name] | entries), passed[name]) for name in self.order}

    def _leading(self) -> dict[str, int]:
        """Operator -> bit set of what can lead to it; in a loop that is also itself."""
        above = {name: sum(self._bit.get(a, 0) for a in nx.ancestors(self.graph, name)) for name in self.order}
        for region in cyclic_regions(self.graph):
            for name in region:
                above[name] |= self._bit[name]
        return above

    def _triggered(self, ran: int) -> int:
        """`ran` and all that its members surely start."""
        for name in self.order:
            edges = [
                (source, all(edge.certain for edge in self.graph.edges[source, name]["edges"]))
                for source in self.graph.predecessors(name)
                if source != START
            ]
            starts = [certain and bool(ran & self._bit[source]) for source, certain in edges]
            if starts and (all(starts) if isinstance(self.plan[name], Join) else any(starts)):
                ran |= self._bit[name]
        return ran

    def _reason(self, operator: Operator) -> str:
        """Why instances of the operator with equal inputs are still not one; empty where they are."""
        if isinstance(operator, LLMOperator) and not operator.sampling.deterministic:
            return "sampled"
        if isinstance(operator, OpaqueStep) and any(not c.sampling.deterministic for c in operator.advised_calls):
            return "may sample"
        if isinstance(operator, Route) and not operator.deterministic and not self.assume_pure:
            return "unknown route"
        effect = self._effect(operator)
        if effect is Effect.WRITE:
            return "writes" if isinstance(operator, ToolOperator) else "may write"
        if effect is Effect.READ:
            last = self.spans[operator.name].last
            for other in self.order:
                # In the same superstep too: the two run at once there, in either order.
                if self._effect(self.plan[other]) is Effect.WRITE and self.spans[other].first <= last:
                    when = "beside" if self.spans[other].first == last else "after"
                    return f"reads {when} {other}, which may write"
        return ""

    def _effect(self, operator: Operator) -> Effect:
        if isinstance(operator, ToolOperator):
            return operator.effect
        if isinstance(operator, OpaqueStep):
            return Effect.PURE if self.assume_pure else operator.effect
        return Effect.PURE

    def _close(self, own: dict[str, Inputs]) -> dict[str, Inputs]:
        """Draw groups of operators that feed each other (loops) together: they merge all or none."""
        feeds: Graph = nx.DiGraph()
        feeds.add_nodes_from(self.order)
        feeds.add_edges_from((writer, name) for name in self.order for writer, _ in own[name].written)
        for group in cyclic_regions(feeds):
            inside = set(group)
            shared = Inputs(
                any(own[name].row for name in group),
                tuple(dict.fromkeys(key for name in group for key in own[name].given)),
                tuple(dict.fromkeys(w for name in group for w in own[name].written if w[0] not in inside)),
            )
            own.update((name, shared) for name in group)
            if blocked := next((name for name in group if name in self.unmerged), None):
                for name in group:
                    self.unmerged.setdefault(name, f"feeds on {blocked}, which is not merged")
        condensed = nx.condensation(feeds)
        rank = {name: i for i, c in enumerate(nx.topological_sort(condensed)) for name in condensed.nodes[c]["members"]}
        self.order.sort(key=rank.__getitem__)
        return own


def spans(plan: Plan, graph: Graph) -> dict[str, Span]:
    """Operator -> the supersteps in which it may run; unbounded in and after a loop, and for deferred operators."""
    cyclic = {name for region in cyclic_regions(graph) for name in region}
    between = {o.name for o in plan.operators if isinstance(o, Route | Join)}
    deferred = {o.name for o in plan.operators if not isinstance(o, Loop) and o.source.deferred}
    first: dict[str, float] = {START: 0}
    last: dict[str, float] = {START: 0}

    def next_step(name: str, step: float) -> float:
        if step == inf:
            return inf
        return step + 1 - step % 2 if name in between else step + 2 - step % 2

    order = [name for name in ordered(graph) if name != START]
    changed = True
    while changed:  # one round, and another for each back edge that shortens the way
        changed = False
        for name in order:
            ways = [first.get(p, inf) for p in graph.predecessors(name)]
            # A join waits for all; inside a loop the least bound that holds in every turn is the soonest source.
            joins = isinstance(graph.nodes[name].get("operator"), Join) and name not in cyclic
            step = next_step(name, max(ways) if joins else min(ways))
            changed |= step != first.get(name)
            first[name] = step
    for name in order:
        endless = name in cyclic or name in deferred
        last[name] = inf if endless else next_step(name, max(last[p] for p in graph.predecessors(name)))
    return {name: Span(first[name], last[name]) for name in order if name != END}
