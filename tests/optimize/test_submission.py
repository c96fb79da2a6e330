"""Several apps in one submission: which of their operators are one call per row."""

from __future__ import annotations

import pytest

from halo_core.errors import PlanError
from halo_core.optimize.submission import combine
from halo_core.plan import Effect, Plan, Sampling
from tests.optimize.rules.cases import llm, plan, tool


def brief() -> Plan:
    return plan("analyst write", llm("analyst", "Analyse.|{q}"), llm("write", "Write.|{analyst}"), name="brief")


def review() -> Plan:
    return plan(
        "analyst look, look write",
        llm("analyst", "Analyse.|{q}"),
        tool("look"),
        llm("write", "Write.|{analyst}"),
        name="review",
    )


def test_equal_calls_on_what_the_row_brings_are_one() -> None:
    made = combine([brief(), review()])
    assert str(made).splitlines() == [
        "submission of brief, review, where they run in one batch:",
        "  analyst in brief and review is one call per row",
    ]  # not `write`: code that the plan does not know may stand between the analyst's answer and the key


def test_names_may_differ() -> None:
    other = plan("", llm("reader", "Analyse.|{q}"), name="other")
    (common,) = combine([brief(), other]).common
    assert str(common) == "analyst in brief and reader in other is one call per row"


def test_the_nth_repetition_of_one_plan_is_the_nth_of_the_other() -> None:
    votes = plan("a b", llm("a", "Analyse.|{q}"), llm("b", "Analyse.|{q}"), name="votes")
    assert [c.operators for c in combine([brief(), votes]).common] == [(("brief", "analyst"), ("votes", "a"))]
    twice = combine([votes, votes.model_copy(update={"name": "more"})])
    assert [c.operators for c in twice.common] == [(("votes", "a"), ("more", "a")), (("votes", "b"), ("more", "b"))]


def test_reads_are_one_only_where_nobody_writes() -> None:
    look = plan("", tool("look"), name="look")
    assert [str(c) for c in combine([review(), look]).common] == ["look in review and look is one call per row"]
    assert combine([review(), look, plan("", tool("save", Effect.WRITE), name="save")]).common == ()


def test_sampled_calls_are_never_one() -> None:
    hot = {"sampling": Sampling(temperature=1)}
    plans = [plan("", llm("analyst", "Analyse.|{q}", **hot), name=name) for name in ("one", "two")]
    assert combine(plans).common == ()


def test_two_plans_of_one_name() -> None:
    with pytest.raises(PlanError, match="two plans of the submission are named 'brief'"):
        combine([brief(), brief()])
