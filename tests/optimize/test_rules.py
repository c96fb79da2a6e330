"""Rules as text: plans before and after, and the trace, in `rules/<rule>/`. `UPDATE_EXPECTED=1` rewrites."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from halo_core.optimize.optimizer import RULES, optimize
from halo_core.optimize.rules import Rule, drop_dead
from halo_core.optimize.rules.rule import rule_name
from halo_core.plan import Plan, consolidate
from tests.optimize.rules import cases

ALL = [
    pytest.param(folder, rule, make, id=f"{folder}-{make.__name__}")
    for folder, (rule, plans) in cases.CASES.items()
    for make in plans
]
PLANS = list(dict.fromkeys(make for _, plans in cases.CASES.values() for make in plans))


@pytest.mark.parametrize(("folder", "rule", "make"), ALL)
def test_before_after_and_trace(folder: str, rule: Rule, make: Callable[[], Plan]) -> None:
    plan = make()
    made = optimize(plan, (rule,))
    trace = "".join(f"{step}\n" for step in made.trace)
    after = "the same" if made.plan == plan else str(made.plan)
    text = f"-- before\n{plan}\n-- after\n{after}\n-- trace\n{trace}"
    path = Path(__file__).parent / "rules" / folder / f"{make.__name__}.txt"
    if os.environ.get("UPDATE_EXPECTED"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("make", PLANS)
def test_the_pipeline_settles_and_keeps_all_that_runs(make: Callable[[], Plan]) -> None:
    plan = make()
    made = optimize(plan)
    assert made.settled
    assert made.plan.model_copy(update={"facts": ()}) == plan
    assert optimize(made.plan).trace == ()
    assert Plan.from_json(made.plan.to_json()) == made.plan
    assert Plan.model_validate(made.plan.model_dump()) == made.plan  # the facts name operators that there are
    assert str(made.plan).startswith(str(plan))


@pytest.mark.parametrize(("folder", "rule", "make"), ALL)
def test_a_rule_applied_to_its_own_result_changes_nothing(folder: str, rule: Rule, make: Callable[[], Plan]) -> None:
    made = rule(make())
    assert rule(made) is made


def test_a_constant_is_one_class_of_the_consolidation() -> None:
    plan = cases.constants()
    constant = [fact.operators[0] for fact in optimize(plan).plan.facts]
    assert constant == ["rates", "today"]
    counts = consolidate(plan, [{"q": n} for n in range(5)])
    assert [counts.count(name).classes for name in constant] == [1, 1]
    assert counts.count("find").classes == 5


def test_the_name_of_a_rule() -> None:
    assert [rule_name(rule) for rule in RULES] == [
        "merge_equal",
        "fold_constant_tools",
        "drop_dead",
        "factor_prefixes",
    ]
    assert rule_name(cases.CASES["drop_dead_remove"][0]) == "drop_dead"


def test_a_rule_that_never_settles_is_stopped() -> None:
    def restless(plan: Plan) -> Plan:
        return plan.model_copy(update={"name": plan.name + "'"})

    made = optimize(cases.models(), (restless, drop_dead))
    assert not made.settled
    assert made.plan.name == "p''''''''"
