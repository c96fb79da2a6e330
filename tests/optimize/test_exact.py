"""What the exact search proves is what trying everything finds; the bound is never above it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from halo_core.optimize.bound import least, lower_bound_s
from halo_core.optimize.cost import CostModel
from halo_core.optimize.problem import Problem, Task, Worker
from halo_core.optimize.schedule import check
from halo_core.optimize.scheduler import schedule
from tests.optimize import brute
from tests.optimize.instances import curve, layered
from tests.optimize.strategies import problems


@settings(max_examples=120, deadline=None)
@given(problem=problems(tasks=4, workers=2))
def test_any_small_problem_is_solved_to_the_least_makespan(problem: Problem) -> None:
    best_s, _ = brute.best(problem)
    cost = CostModel(problem)
    assert lower_bound_s(cost, least(cost)) <= best_s * (1 + 1e-6) + 1e-9
    found = schedule(problem, budget_s=20)
    check(problem, found)
    assert found.makespan_s == pytest.approx(best_s, abs=1e-6)
    assert found.gap <= 1e-6


@pytest.mark.parametrize("seed", range(12))
def test_five_tasks_on_two_workers(seed: int) -> None:
    problem = layered(seed, 5, 2, models=1 + seed % 3, kv_tokens=(0, 8000)[seed % 2], load_s=0.7, uneven=seed % 4 == 0)
    best_s, _ = brute.best(problem)
    found = schedule(problem, budget_s=20)
    check(problem, found)
    assert found.makespan_s == pytest.approx(best_s, abs=1e-6)


@pytest.mark.parametrize(("pattern", "loads"), [("ABCAB", 1), ("AABCC", 1), ("ACBCA", 1), ("CCBBA", 1), ("CCCAB", 2)])
def test_three_models_on_two_workers_switch_as_rarely_as_the_best(pattern: str, loads: int) -> None:
    models = {model: curve(load_s=20.0) for model in "ABC"}
    # What comes after the same model's task cannot run beside it, so that a second load of the model gains nothing.
    tasks = [
        Task(f"t{i}", model, tuple(j for j in range(i) if pattern[j] == model)[-1:], own_tokens=100, answer_tokens=50)
        for i, model in enumerate(pattern)
    ]
    problem = Problem(tasks, [Worker("w0", models, "A"), Worker("w1", models, "B")])
    best_s, least_loads = brute.best(problem)
    found = schedule(problem, budget_s=20)
    check(problem, found)
    assert found.makespan_s == pytest.approx(best_s, abs=1e-6)
    assert len(found.switches) == least_loads == loads
