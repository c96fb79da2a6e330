"""The schedule of a problem: exact where it is small, list scheduling and local search where it is not."""

from __future__ import annotations

import time

from halo_core.optimize.bound import least, lower_bound_s
from halo_core.optimize.cost import CostModel
from halo_core.optimize.exact import search_exact
from halo_core.optimize.listing import RULES, list_schedule
from halo_core.optimize.problem import Problem
from halo_core.optimize.schedule import How, Schedule, makespan_s
from halo_core.optimize.search import improve
from halo_core.optimize.timeline import replay

EXACT_TASKS = 12
EXACT_WORKERS = 4
"""Largest problems that the exact search is tried on."""
EXACT_SHARE = 0.7
"""Of the budget, at most, for the exact search; what it leaves unproven, local search goes on with."""


def schedule(problem: Problem, *, budget_s: float = 1.0, seed: int = 0) -> Schedule:
    """The best schedule found within about `budget_s` seconds, and a bound on all others.

    One list schedule is made in any case, however long it takes. The outcome depends on the machine's speed where the
    budget ends the search; with an exhausted search it is the same everywhere.
    """
    began_s = time.perf_counter()
    deadline_s = began_s + budget_s
    cost = CostModel(problem)
    costs = least(cost)
    bound_s = lower_bound_s(cost, costs)
    placements, orders = list_schedule(cost, costs, RULES[0])
    best_s = makespan_s(placements)
    how: How = "list"
    pass_s = time.perf_counter() - began_s
    for rule in RULES[1:]:
        if best_s <= bound_s or time.perf_counter() + pass_s > deadline_s:
            break
        others, other_orders = list_schedule(cost, costs, rule)
        if makespan_s(others) < best_s:
            placements, orders, best_s = others, other_orders, makespan_s(others)
    if best_s > bound_s and len(problem.tasks) <= EXACT_TASKS and len(problem.workers) <= EXACT_WORKERS:
        now_s = time.perf_counter()
        loads = sum(placement.prepare_s > 0 for placement in placements)
        found = search_exact(cost, costs, best_s, loads, now_s + EXACT_SHARE * (deadline_s - now_s))
        orders = [list(order) for order in found.orders] if found.orders is not None else orders
        if found.proven:
            how = "exact"
    if how != "exact" and best_s > bound_s and time.perf_counter() < deadline_s:
        orders = improve(cost, costs, orders, bound_s, deadline_s, seed)
        how = "list+search"
    placements = replay(cost, orders) or placements
    best_s = makespan_s(placements)
    return Schedule(
        placements=tuple(placements),
        orders=tuple(tuple(order) for order in orders),
        lower_bound_s=best_s if how == "exact" else min(bound_s, best_s),
        how=how,
        spent_s=time.perf_counter() - began_s,
    )
