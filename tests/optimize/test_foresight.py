"""What the catalog lets the planner know: ranks, and bundles of rows as tasks."""

from __future__ import annotations

import pytest

from halo_core.optimize.planning import plan_batch
from halo_core.optimize.problem import Worker
from halo_core.optimize.rank import operator_ranks, upward_ranks
from halo_core.optimize.schedule import check
from halo_core.stats import Catalog, DecodePoint, Distribution, EngineCurve, StepProfile

CURVE = EngineCurve(
    prefill_step_s=0.0, prefill_token_s=0.01, attention_pair_s=0.0, decode=(DecodePoint(batch=1, step_s=1.0),), load_s=5
)


def step(name: str, *after: str, prompt: float = 100, answer: float = 10, **facts: object) -> StepProfile:
    """A step of fixed lengths."""
    given = {"operator": name, "model": "m", "frequency": 1.0, "after": after, **facts}
    lengths = {"prompt_tokens": Distribution.of([prompt]), "answer_tokens": Distribution.of([answer])}
    return StepProfile(**{**lengths, **given})  # type: ignore[arg-type]


def test_a_rank_is_the_longest_way_to_the_end() -> None:
    tools = Distribution.of([7.0])
    catalog = Catalog(app="x", steps=(step("a"), step("b", "a"), step("c", "a", lead_s=tools), step("d", "b", "c")))
    ranks = upward_ranks(catalog, CURVE)
    own = 100 * 0.01 + 10 * 1.0
    assert ranks == pytest.approx({"d": own, "b": 2 * own, "c": 2 * own, "a": 3 * own + 7.0})
    assert upward_ranks(catalog)["a"] == 330  # in tokens, without tools


def test_an_operators_rank_is_that_of_its_first_call() -> None:
    catalog = Catalog(app="x", steps=(step("a"), step("a", "a", turn=1)))
    assert operator_ranks(catalog) == {"a": 220}


def test_bundles_of_rows_become_tasks_and_a_checked_schedule() -> None:
    catalog = Catalog(app="x", steps=(step("a"), step("b", "a", distinct=0.5)))
    workers = [Worker(f"w{i}", {"m": CURVE}, "m", slots=8) for i in range(2)]
    planned = plan_batch(catalog, 40, 20, workers, budget_s=0.2)
    assert [(task.name, task.calls) for task in planned.problem.tasks][:2] == [("a@0", 8), ("b@0", 4)]
    assert sum(task.calls for task in planned.problem.tasks) == 20 + 10
    assert sum(planned.calls) == 2 * 40
    check(planned.problem, planned.schedule)


def test_a_schedule_of_several_models_is_a_plan_of_switches() -> None:
    catalog = Catalog(app="x", steps=(step("a", model="A"), step("b", "a", model="B"), step("c", "b", model="A")))
    curves = {"A": CURVE, "B": CURVE}
    planned = plan_batch(catalog, 6, 6, [Worker("one", curves)], budget_s=0.5)
    plan = planned.switch_plan()
    assert [[(phase.model, sorted(phase.operators), phase.calls) for phase in phases] for phases in plan.places] == [
        [("A", ["a"], 6), ("B", ["b"], 6), ("A", ["c"], 6)]
    ]
    assert plan.load_s == {"A": 5.0, "B": 5.0}
