"""Rules on random plans, against a machine that runs them in supersteps: what they say is so in every row."""

from __future__ import annotations

from random import Random
from typing import Any

from hypothesis import event, given, settings
from hypothesis import strategies as st

from halo_core.optimize.rules import drop_dead, fold_constant_tools, merge_equal
from halo_core.plan import Constant, EqualCalls, Plan, StateKey, ToolOperator, Unread, consolidate
from tests.plan.supersteps import RowRun, run
from tests.plan.test_consolidate import KEYS, _endless, any_plans, chance_rows

LOOPLESS = any_plans(loops=False)


def alike(plan: Plan) -> Plan:
    """The plan with one tool for all tool operators, and with a reducer that may be asked again."""
    tools = (o.model_copy(update={"tool": "t"}) if isinstance(o, ToolOperator) else o for o in plan.operators)
    state = tuple(StateKey(name=key, reducer="operator.add" if key == "n" else None) for key in KEYS)
    return Plan(**{**dict(plan), "operators": tuple(tools), "state": state})


@given(st.one_of(LOOPLESS, any_plans()), chance_rows, st.randoms(use_true_random=False))
@settings(max_examples=300, deadline=None)
def test_equal_calls_see_the_same(plan: Plan, rows: list[dict[str, Any]], random: Random) -> None:
    made = merge_equal(alike(plan), merge_within_row=True)
    event(f"{len(made.facts)} facts")
    for row in [] if _endless(plan) else rows:
        seen = run(made, row, lambda: random.randrange(4)).seen
        for fact in made.facts:
            assert isinstance(fact, EqualCalls)
            ran = [seen[name] for name in fact.operators if name in seen]
            assert all(len(once) == 1 and once == ran[0] for once in ran), fact


@given(LOOPLESS, st.lists(st.sampled_from(KEYS), max_size=2, unique=True), chance_rows)
@settings(max_examples=300, deadline=None)
def test_without_unread_operators_the_others_see_and_give_the_same(
    plan: Plan, output: list[str], rows: list[dict[str, Any]]
) -> None:
    plan = Plan(**{**dict(plan), "output": output})
    marked, made = drop_dead(plan), drop_dead(plan, remove=True)
    event(f"{len(plan.operators) - len(made.operators)} of {len(marked.facts)} removed")
    if _coins(plan, made) != _coins(made, made):
        return  # the machine decides by an edge's position
    unread = {fact.operators[0] for fact in marked.facts if isinstance(fact, Unread)}
    for row in rows:
        one, other = run(plan, row, lambda: 0), run(made, row, lambda: 0)
        assert _seen(one, unread) == _seen(other, unread)
        assert [one.state.get(key) for key in output] == [other.state.get(key) for key in output]


def _coins(plan: Plan, only: Plan) -> dict[str, list[tuple[Any, bool]]]:
    return {
        o.name: [(edge.guard, edge.may) for edge in plan.edges if edge.source == o.name]
        for o in only.operators
        if any(edge.source == o.name and not edge.certain for edge in plan.edges)
    }


def _seen(made: RowRun, unread: set[str]) -> dict[str, Any]:
    return {name: seen for name, seen in made.seen.items() if name not in unread}


@given(any_plans(), chance_rows)
@settings(max_examples=100, deadline=None)
def test_what_is_constant_is_one_class(plan: Plan, rows: list[dict[str, Any]]) -> None:
    made = fold_constant_tools(plan)
    counts = consolidate(plan, rows)
    for fact in made.facts:
        assert isinstance(fact, Constant)
        assert counts.count(fact.operator).classes == min(1, len(rows))


def test_the_machine_has_something_to_merge() -> None:
    """Guards the tests above against plans in which the rules find nothing."""
    found = {"equal": 0, "removed": 0}

    @given(LOOPLESS)
    @settings(max_examples=200, deadline=None, database=None)
    def count(plan: Plan) -> None:
        found["equal"] += len(merge_equal(alike(plan), merge_within_row=True).facts)
        without = drop_dead(Plan(**{**dict(plan), "output": ("q",)}), remove=True)
        found["removed"] += len(plan.operators) - len(without.operators)

    count()
    assert all(found.values()), found
