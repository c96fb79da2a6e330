"""What supersteps add to the edges of a plan, told only where it is certain."""

from __future__ import annotations

from halo_core.lift import barriers
from halo_core.plan import Edge, Exit, Join, OpaqueStep, Operator, Plan, close_loops


def plan(operators: str, *edges: Edge | str, joins: str = "") -> Plan:
    """Operators named by one letter each, with edges such as `a b`; what nothing leads to starts."""
    arcs = tuple(Edge(source=e[0], target=e[-1]) if isinstance(e, str) else e for e in edges)
    steps: list[Operator] = [Join(name=name) if name in joins else OpaqueStep(name=name) for name in operators]
    entry = tuple(name for name in operators if name not in {edge.target for edge in arcs})
    exits = tuple(Exit(source=name) for name in operators if name not in {edge.source for edge in arcs})
    return Plan(name="p", operators=close_loops(steps, arcs), edges=arcs, entry=entry, exits=exits)


def told(made: Plan) -> list[tuple[str, str]]:
    return [("".join(barrier.after), "".join(barrier.before)) for barrier in barriers(made)]


def test_a_step_waits_for_what_no_edge_leads_from() -> None:
    assert told(plan("abcd", "a c", "b d")) == [("ab", "cd")]


def test_operators_stand_in_the_plans_order() -> None:
    assert told(plan("dbca", "a c", "b d")) == [("ba", "dc")]


def test_what_the_edges_say_is_not_said_again() -> None:
    assert told(plan("abc", "a b", "b c")) == []
    assert told(plan("abjc", "a j", "b j", "j c", joins="j")) == []
    # Without a join one of the two is enough for the edges, not for the superstep.
    assert told(plan("abc", "a c", "b c")) == [("ab", "c")]


def test_items_are_waited_for_whatever_the_edges_say() -> None:
    sends = Edge(source="a", target="b", may=True, fan_out=True)
    assert told(plan("abc", sends, "b c")) == [("b", "c")]


def test_nobody_waits_for_a_loop() -> None:
    """`a` and `b` may run in any later step; `b` for the first time beside `d`."""
    assert told(plan("sabcd", "s a", "a b", "b a", "s c", "c d")) == [("c", "bd")]
