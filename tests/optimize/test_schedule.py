"""Schedules of every scheduler keep the problem's rules; the check tells those that do not."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import given, settings

from halo_core.errors import ScheduleError
from halo_core.optimize.bound import least, lower_bound_s
from halo_core.optimize.cost import CostModel
from halo_core.optimize.exact import search_exact
from halo_core.optimize.listing import RULES, list_schedule
from halo_core.optimize.problem import Problem, Task, Worker
from halo_core.optimize.schedule import How, Schedule, check, makespan_s
from halo_core.optimize.scheduler import schedule
from halo_core.optimize.search import improve
from halo_core.optimize.timeline import Placement, replay
from tests.optimize.instances import curve, layered
from tests.optimize.strategies import problems


def checked(problem: Problem, placements: list[Placement], orders: list[list[int]], bound_s: float, how: How) -> None:
    check(problem, Schedule(tuple(placements), tuple(map(tuple, orders)), bound_s, how, 0.0))


@settings(max_examples=150, deadline=None)
@given(problem=problems(tasks=14, workers=4))
def test_every_scheduler_keeps_the_rules_of_any_problem(problem: Problem) -> None:
    cost = CostModel(problem)
    costs = least(cost)
    bound_s = lower_bound_s(cost, costs)
    for rule in RULES:
        placements, orders = list_schedule(cost, costs, rule)
        checked(problem, placements, orders, bound_s, "list")
    known_s = makespan_s(placements)
    better = improve(cost, costs, orders, bound_s, time.perf_counter() + 0.01, seed=1)
    improved = replay(cost, better)
    assert improved is not None and makespan_s(improved) <= known_s
    checked(problem, improved, better, bound_s, "list+search")
    exact = search_exact(cost, costs, known_s, 0, time.perf_counter() + 0.05).orders
    if exact is not None:
        found = replay(cost, exact)
        assert found is not None and makespan_s(found) < known_s
        checked(problem, found, [list(order) for order in exact], bound_s, "exact")


@pytest.mark.parametrize(("tasks", "models", "kv_tokens"), [(60, 1, 0), (60, 3, 4000), (200, 2, 9000)])
def test_layered_plans(tasks: int, models: int, kv_tokens: int) -> None:
    problem = layered(tasks, tasks, 4, models=models, width=8, kv_tokens=kv_tokens)
    found = schedule(problem, budget_s=0.5)
    check(problem, found)
    assert found.how == "list+search"
    assert found.gap < (0.05 if models == 1 else 0.5)


def test_no_tasks() -> None:
    found = schedule(Problem([], [Worker("w", {"m": curve()})]))
    assert (found.makespan_s, found.lower_bound_s, found.gap, found.orders) == (0.0, 0.0, 0.0, ((),))


def test_a_budget_of_nothing_still_gives_a_schedule() -> None:
    problem = layered(1, 40, 3, models=2)
    found = schedule(problem, budget_s=0)
    check(problem, found)
    assert found.how == "list"


def test_work_that_fits_no_second_worker_is_bounded_by_its_own() -> None:
    models = {"a": curve(), "b": curve()}
    tasks = [Task(f"t{i}", "ab"[i % 4 == 0], own_tokens=200, answer_tokens=40, calls=20) for i in range(40)]
    problem = Problem(tasks, [Worker("w0", models, "a"), Worker("w1", models, "b")], switching=False)
    found = schedule(problem, budget_s=0.2)
    check(problem, found)
    assert not found.switches
    assert found.gap < 0.01


def test_rows_of_one_document_follow_each_other_where_few_documents_fit() -> None:
    tasks = [
        Task(f"t{i}", "m", prefix=(("system", 160), (f"document{i % 20}", 4000)), own_tokens=20, answer_tokens=5)
        for i in range(200)
    ]
    problem = Problem(tasks, [Worker(f"w{i}", {"m": curve()}, "m", kv_tokens=9000) for i in range(2)])
    placements = list_schedule(CostModel(problem), least(CostModel(problem)), RULES[0])[0]
    assert sum(placement.hit_tokens < 4000 for placement in placements) <= 24  # of 20 documents, some on both workers


def broken() -> list[tuple[str, Problem, Schedule]]:
    problem = layered(3, 6, 2)
    good = schedule(problem)
    first = good.placements[0]
    late = first._replace(start_s=first.start_s + 1)
    elsewhere = first._replace(worker=1 - first.worker)
    fixed = Problem(
        problem.tasks, [replace(worker, curves={}) for worker in problem.workers[:1]] + [problem.workers[1]]
    )
    return [
        ("exactly once", problem, replace(good, orders=(good.orders[0], (*good.orders[1], 0)))),
        ("2 workers", problem, replace(good, orders=(*good.orders, ()))),
        ("may not serve", fixed, good),
        ("in a circle", problem, replace(good, orders=tuple(order[::-1] for order in good.orders))),
        ("its order makes it", problem, replace(good, placements=(late, *good.placements[1:]))),
        ("its order makes it", problem, replace(good, placements=(elsewhere, *good.placements[1:]))),
        ("above makespan", problem, replace(good, lower_bound_s=good.makespan_s + 1)),
    ]


@pytest.mark.parametrize(("message", "problem", "wrong"), broken())
def test_the_check_finds(message: str, problem: Problem, wrong: Schedule) -> None:
    with pytest.raises(ScheduleError, match=message):
        check(problem, wrong)
