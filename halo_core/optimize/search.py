"""Local search on a schedule: tasks of the critical path change places, worse schedules are taken ever more rarely.

Simulated annealing (Kirkpatrick et al. 1983) whose moves touch the critical path, as nothing else shortens a schedule
(Nowicki and Smutnicki 1996 for job shops).
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Sequence
from random import Random

from halo_core.optimize.bound import Least
from halo_core.optimize.cost import CostModel
from halo_core.optimize.schedule import makespan_s
from halo_core.optimize.timeline import Placement, replay

EPSILON_S = 1e-9
"""Two times that differ by less are one."""
HEAT = 0.001
"""Temperature in the beginning, relative to the makespan; it falls linearly to zero by the deadline."""
BUSY_WEIGHT = 0.02
"""What a busy second of an average worker counts against a second of makespan: a slope where the makespan has none."""

Orders = list[list[int]]


def improve(
    cost: CostModel, costs: Least, orders: Sequence[Sequence[int]], bound_s: float, deadline_s: float, seed: int
) -> Orders:
    """The best orders found before `time.perf_counter() == deadline_s`; ends at once where the bound is met."""
    return _Annealing(cost, costs, orders, seed).run(bound_s, deadline_s)


class _Annealing:
    def __init__(self, cost: CostModel, costs: Least, orders: Sequence[Sequence[int]], seed: int) -> None:
        self._cost = cost
        self._tail_s = costs.tail_s
        self._tasks = cost.problem.tasks
        self._random = Random(seed)
        self._orders: Orders = [list(order) for order in orders]
        self._placements = replay(cost, self._orders) or []
        self._value_s = self._value(self._placements)

    def run(self, bound_s: float, deadline_s: float) -> Orders:
        began_s = time.perf_counter()
        best, best_s = [list(order) for order in self._orders], makespan_s(self._placements)
        heat_s = HEAT * best_s
        critical = self._critical()
        while best_s > bound_s + EPSILON_S and (now_s := time.perf_counter()) < deadline_s and critical:
            cold = (now_s - began_s) / (deadline_s - began_s)
            undo = self._move(self._random.choice(critical))
            most_s = self._value_s - heat_s * (1 - cold) * math.log(1 - self._random.random())
            placements = replay(self._cost, self._orders, self._tail_s, most_s) if undo else None
            value_s = self._value(placements) if placements else math.inf
            if placements is None or value_s > most_s:
                for worker, order in undo.items():
                    self._orders[worker] = order
                continue
            self._placements, self._value_s = placements, value_s
            critical = self._critical()
            if makespan_s(placements) < best_s - EPSILON_S:
                best, best_s = [list(order) for order in self._orders], makespan_s(placements)
        return best

    def _value(self, placements: Sequence[Placement]) -> float:
        busy_s = sum(placement.busy_s + placement.prepare_s for placement in placements)
        return makespan_s(list(placements)) + BUSY_WEIGHT * busy_s / len(self._orders)

    def _critical(self) -> list[int]:
        """Tasks of one chain without slack, from the last end back to the beginning of the plan."""
        placements = self._placements
        before_on_worker = {after: order[i] for order in self._orders for i, after in enumerate(order[1:])}
        task = max(range(len(placements)), key=lambda i: placements[i].end_s, default=-1)
        chain: list[int] = []
        while task >= 0:
            chain.append(task)
            asked, placement = self._tasks[task], placements[task]
            last = max(asked.after, key=lambda before: placements[before].end_s, default=-1)
            if last >= 0 and placements[last].end_s + asked.lead_s >= placement.start_s - EPSILON_S:
                task = last
            else:
                task = before_on_worker.get(task, -1)
        return chain

    def _move(self, task: int) -> dict[int, list[int]]:
        """Change the orders around a critical task; the workers' orders before. Empty where nothing was changed."""
        worker = self._placements[task].worker
        serving = self._cost.serving[self._tasks[task].model]
        target = self._random.choice(serving)
        order = self._orders[worker]
        at = order.index(task)
        if target == worker:
            return self._shift(worker, at)
        undo = {worker: list(order), target: list(self._orders[target])}
        if self._random.random() < 0.5:
            self._swap(task, worker, at, target)
        else:
            # A run of tasks that share its model moves as one, so that a load moves with its work.
            run = [task]
            if self._random.random() < 0.3:
                model = self._tasks[task].model
                while at + len(run) < len(order) and self._tasks[order[at + len(run)]].model == model:
                    run.append(order[at + len(run)])
            if any(target not in self._cost.serving[self._tasks[moved].model] for moved in run):
                return {}
            del order[at : at + len(run)]
            place = self._place_by_time(target, self._placements[task].start_s)
            self._orders[target][place:place] = run
        return undo

    def _shift(self, worker: int, at: int) -> dict[int, list[int]]:
        order = self._orders[worker]
        if len(order) < 2:
            return {}
        undo = {worker: list(order)}
        to = at - 1 if self._random.random() < 0.5 else self._random.randrange(max(0, at - 8), min(len(order), at + 8))
        order.insert(max(to, 0), order.pop(at))
        return undo if order != undo[worker] else {}

    def _swap(self, task: int, worker: int, at: int, target: int) -> None:
        """Exchange with a task that the target begins at about that time, if it has one that can come over."""
        others = self._orders[target]
        place = self._place_by_time(target, self._placements[task].start_s)
        if not others:
            others.append(self._orders[worker].pop(at))
            return
        place = min(place, len(others) - 1)
        other = others[place]
        if worker in self._cost.serving[self._tasks[other].model]:
            self._orders[worker][at], others[place] = other, task
        else:
            others.insert(place, self._orders[worker].pop(at))

    def _place_by_time(self, worker: int, start_s: float) -> int:
        """About where in the worker's order a task with that start belongs."""
        order = self._orders[worker]
        place = bisect_left(order, start_s, key=lambda task: self._placements[task].start_s)
        return min(max(place + self._random.randint(-2, 1), 0), len(order))
