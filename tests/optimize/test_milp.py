"""The exact search finds what HiGHS finds on the mixed integer program, and the list schedules are not far from it."""

from __future__ import annotations

import pytest

from halo_core.optimize.bound import least
from halo_core.optimize.cost import CostModel
from halo_core.optimize.listing import RULES, list_schedule
from halo_core.optimize.schedule import check, makespan_s
from halo_core.optimize.scheduler import schedule
from tests.optimize.instances import layered
from tests.optimize.milp import solve


@pytest.mark.parametrize(("seed", "models", "uneven"), [(1, 1, False), (2, 2, False), (3, 3, False), (4, 2, True)])
def test_five_tasks_on_two_workers(seed: int, models: int, uneven: bool) -> None:
    problem = layered(seed, 5, 2, models=models, width=2, load_s=1.0, uneven=uneven)
    found = schedule(problem, budget_s=20)
    check(problem, found)
    answer = solve(problem, limit_s=20, at_most_s=1.5 * found.makespan_s)
    assert answer.proven
    assert found.makespan_s == pytest.approx(answer.makespan_s, rel=1e-5)


@pytest.mark.parametrize(("seed", "models"), [(5, 1), (6, 2), (7, 3)])
def test_seven_tasks_on_three_workers(seed: int, models: int) -> None:
    problem = layered(seed, 7, 3, models=models, width=3)
    cost = CostModel(problem)
    listed_s = min(makespan_s(list_schedule(cost, least(cost), rule)[0]) for rule in RULES)
    answer = solve(problem, limit_s=10, at_most_s=1.01 * listed_s)
    found = schedule(problem, budget_s=5)
    assert answer.bound_s <= found.makespan_s * (1 + 1e-5)
    assert found.makespan_s <= answer.makespan_s * (1 + 1e-5)
    assert listed_s <= 1.35 * answer.makespan_s
