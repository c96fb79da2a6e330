"""A schedule: which worker runs each task and when, and the check that it keeps its problem's rules."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from halo_core.errors import ScheduleError
from halo_core.optimize.cost import CostModel
from halo_core.optimize.problem import Problem
from halo_core.optimize.timeline import Placement, replay

How = Literal["exact", "list", "list+search"]

TOLERANCE_S = 1e-6
"""What sums of floats may differ by, relative to the seconds themselves where these are larger than one."""


@dataclass(slots=True, frozen=True)
class Schedule:
    """Placements of all tasks, and how far the makespan can be from the best one."""

    placements: tuple[Placement, ...]
    """By the tasks' positions."""
    orders: tuple[tuple[int, ...], ...]
    """Worker -> the tasks it runs, in order."""
    lower_bound_s: float
    """No schedule is shorter; equal to `makespan_s` where the schedule is proven optimal."""
    how: How
    """What found it: an exhausted exact search, list scheduling, or local search on its result."""
    spent_s: float
    """Wall-clock seconds that the scheduler took."""

    @property
    def makespan_s(self) -> float:
        """When the last task is over."""
        return makespan_s(self.placements)

    @property
    def gap(self) -> float:
        """(makespan - lower bound) / lower bound."""
        excess_s = max(self.makespan_s - self.lower_bound_s, 0.0)
        return excess_s / self.lower_bound_s if self.lower_bound_s > 0 else (math.inf if excess_s > 0 else 0.0)

    @property
    def switches(self) -> tuple[int, ...]:
        """The tasks that their workers load a model for, first loads included, in order of their starts."""
        loads = [(placement.start_s, task) for task, placement in enumerate(self.placements) if placement.prepare_s > 0]
        return tuple(task for _, task in sorted(loads))


def makespan_s(placements: tuple[Placement, ...] | list[Placement]) -> float:
    """When the last of them is over."""
    return max((placement.end_s for placement in placements), default=0.0)


def check(problem: Problem, schedule: Schedule) -> None:
    """Raises ScheduleError where the schedule is not one of the problem: its tasks, its rules, its times, its bound."""
    cure = "this is a bug of the scheduler: report it with the problem"
    if sorted(task for order in schedule.orders for task in order) != list(range(len(problem.tasks))):
        raise ScheduleError(f"the workers' orders do not hold every task exactly once; {cure}")
    if len(schedule.orders) != len(problem.workers):
        raise ScheduleError(f"{len(schedule.orders)} orders for {len(problem.workers)} workers; {cure}")
    for worker, order in zip(problem.workers, schedule.orders, strict=True):
        for task in order:
            if not problem.may_serve(worker, problem.tasks[task].model):
                raise ScheduleError(f"worker {worker.name!r} may not serve task {problem.tasks[task].name!r}; {cure}")
    again = replay(CostModel(problem), schedule.orders)
    if again is None:
        raise ScheduleError(f"tasks wait for each other in a circle; {cure}")
    for task, (said, found) in enumerate(zip(schedule.placements, again, strict=True)):
        name = problem.tasks[task].name
        if (said.worker, said.hit_tokens) != (found.worker, found.hit_tokens):
            raise ScheduleError(f"task {name!r} is said to be {said}, its order makes it {found}; {cure}")
        for field in ("start_s", "prepare_s", "busy_s", "end_s"):
            if not _equal_s(getattr(said, field), getattr(found, field)):
                raise ScheduleError(f"{field} of task {name!r}: {said} is said, its order makes it {found}; {cure}")
    if schedule.lower_bound_s > schedule.makespan_s and not _equal_s(schedule.lower_bound_s, schedule.makespan_s):
        raise ScheduleError(f"bound {schedule.lower_bound_s} s is above makespan {schedule.makespan_s} s; {cure}")


def _equal_s(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=TOLERANCE_S, abs_tol=TOLERANCE_S)
