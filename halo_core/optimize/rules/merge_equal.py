"""Merge equal calls: operators of one plan that ask the same with the same values are marked as one call."""

from __future__ import annotations

from collections.abc import Hashable, Iterator

from halo_core.optimize.equal import call_of
from halo_core.optimize.rules.rule import add_facts
from halo_core.plan import Effect, EqualCalls, LLMOperator, Operator, Plan, ToolOperator, effect_of
from halo_core.plan.dataflow import Span, spans
from halo_core.plan.graph import framed_graph
from halo_core.plan.overlap import REPEATABLE


def merge_equal(plan: Plan, *, merge_within_row: bool = False) -> Plan:
    """Mark operators that make the same call as `EqualCalls`; none is removed, each still writes its own keys.

    Tool operators are marked where they are pure, or read with no possible write between them, and every key that
    they read holds the same value for all of them. Operators in loops or under a fan-out are never marked: how often
    they run, and with what, only running tells.

    Model calls are marked with `merge_within_row` only, and only deterministic ones: within one row an equal call is
    a new one, because agents retry and vote on purpose, and two operators with one prompt may be such a vote. Equal
    model calls of different rows are the consolidation's, those of different apps `combine`'s.
    """
    return add_facts(plan, _Row(plan).equal(merge_within_row))


class _Row:
    """The operators of one row, and when each of them runs."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.spans = spans(plan, framed_graph(plan))
        self.reducers = {key.name: key.reducer for key in plan.state}
        self.sent = {edge.target for edge in plan.edges if edge.fan_out}

    def equal(self, models: bool) -> Iterator[EqualCalls]:
        calls: dict[Hashable, list[list[Operator]]] = {}
        for operator in self.plan.operators:
            if (call := self._call(operator, models)) is None:
                continue
            groups = calls.setdefault(call, [])
            group = next((group for group in groups if self._alike(group[0], operator)), None)
            if group is None:
                groups.append([operator])
            else:
                group.append(operator)
        for group in (group for groups in calls.values() for group in groups if len(group) > 1):
            names = tuple(operator.name for operator in group)
            if isinstance(group[0], ToolOperator):
                yield EqualCalls(operators=names, of="tool", name=group[0].tool)
            elif isinstance(group[0], LLMOperator):
                yield EqualCalls(operators=names, of="model", name=group[0].model)

    def _call(self, operator: Operator, models: bool) -> Hashable | None:
        """What the operator asks; None where it is not marked."""
        if isinstance(operator, LLMOperator) and not models:
            return None
        span = self.spans.get(operator.name)
        once = span is not None and span.first == span.last and operator.name not in self.sent
        return call_of(operator) if once else None

    def _alike(self, one: Operator, other: Operator) -> bool:
        """Whether both see the same values and, if they look at it, the same world."""
        first, last = sorted((self.spans[one.name].first, self.spans[other.name].first))
        if not all(self._held(key, first, last) for key in one.inputs or ()):
            return False
        # Those beside them count too: one of the two may be asked before, the other after.
        changing = (self.spans[o.name] for o in self._running() if effect_of(o) is Effect.WRITE)
        return effect_of(one) is not Effect.READ or not any(s.first <= last and s.last >= first for s in changing)

    def _held(self, key: str, first: float, last: float) -> bool:
        """Whether the key has one value for readers in the steps `first` and `last`."""
        if first == last:
            return True
        reducer = self.reducers.get(key)
        if reducer is not None and reducer not in REPEATABLE:
            return False  # it may forget, as channels that hold a value for one step do
        writers = [self.spans[o.name] for o in self._running() if o.writes is None or key in o.writes]
        return all(_over(span, first) or span.first >= last for span in writers)

    def _running(self) -> Iterator[Operator]:
        return (operator for operator in self.plan.operators if operator.name in self.spans)


def _over(span: Span, step: float) -> bool:
    return span.last < step
