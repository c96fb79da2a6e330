"""Exact schedules of small problems: branch and bound over tasks in the order of their starts, with dominance."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from halo_core.optimize.bound import Least
from halo_core.optimize.cost import CostModel
from halo_core.optimize.timeline import NEVER, Timeline, WorkerState

KEPT = 12
"""Histories that are remembered of one set of placed tasks and worker states, to compare others with."""
EPSILON_S = 1e-9
"""Less is no improvement."""
NODES_PER_LOOK = 256
"""Nodes between two looks at the clock."""

Orders = tuple[tuple[int, ...], ...]
"""Worker -> its tasks in order."""


@dataclass(slots=True, frozen=True)
class Found:
    """What a search came to."""

    orders: Orders | None
    """The best orders; None where none is better than what was known before."""
    proven: bool
    """Whether the search was exhausted: nothing is better than this, or than what was known before."""


def search_exact(cost: CostModel, costs: Least, known_s: float, known_loads: int, deadline_s: float) -> Found:
    """The best orders found by `time.perf_counter() == deadline_s`: of least makespan, and of those of fewest loads.

    They are better than a known schedule of makespan `known_s` with `known_loads` loads.

    A schedule is a sequence of (task, worker) in which starts never go back: every schedule has such a sequence, its
    tasks sorted by start, so that no other needs to be looked at.
    """
    search = _Search(cost, costs, known_s, known_loads, deadline_s)
    search.branch(0.0, 0)
    return Found(search.best, not search.cut)


class _Search:
    def __init__(self, cost: CostModel, costs: Least, known_s: float, known_loads: int, deadline_s: float) -> None:
        self._cost = cost
        self._tasks = cost.problem.tasks
        self._costs = costs
        self._timeline = Timeline(cost)
        self._best_s = known_s
        self._best_loads = known_loads
        self._deadline_s = deadline_s
        self._orders: list[list[int]] = [[] for _ in cost.problem.workers]
        self._seen: dict[object, list[tuple[float, ...]]] = {}
        self._nodes = 0
        self._bounded = any(worker.kv_tokens for worker in cost.problem.workers)
        self._successors: list[list[int]] = [[] for _ in self._tasks]
        for i, task in enumerate(self._tasks):
            for before in task.after:
                self._successors[before].append(i)
        self.best: Orders | None = None
        self.cut = False

    def branch(self, now_s: float, loads: int) -> None:
        """Go through all continuations of what is placed with so many loads; none may start before `now_s`."""
        self._nodes += 1
        if self._nodes % NODES_PER_LOOK == 0 and time.perf_counter() > self._deadline_s:
            self.cut = True
        end_s = self._timeline.end_s
        left = [task for task in range(len(self._tasks)) if end_s[task] == NEVER]
        if not left:
            if self._promising(max(end_s, default=0.0), loads):
                self._best_s, self._best_loads = max(end_s, default=0.0), loads
                self.best = tuple(tuple(order) for order in self._orders)
            return
        needed = {self._tasks[task].model for task in left} - {state.model for state in self._timeline.states}
        if not self._promising(self._bound_s(left, now_s, needed), loads + len(needed)):
            return
        if self._dominated(left, now_s, loads):
            return
        for start_s, task, worker in self._children(left, now_s):
            if self.cut:
                return
            states = self._timeline.states
            before = states[worker]
            states[worker] = before.copy()
            self._timeline.place(task, worker)
            self._orders[worker].append(task)
            self.branch(start_s, loads + (before.model != self._tasks[task].model))
            self._orders[worker].pop()
            end_s[task] = NEVER
            states[worker] = before

    def _children(self, left: Sequence[int], now_s: float) -> list[tuple[float, int, int]]:
        """(start, task, worker) of what may come next, what promises the earliest end of the plan first."""
        timeline, costs, end_s = self._timeline, self._costs, self._timeline.end_s
        found = []
        for task in left:
            if any(end_s[before] == NEVER for before in self._tasks[task].after):
                continue
            ready_s = timeline.ready_s(task)
            twins: set[object] = set()
            for worker in self._cost.serving[self._tasks[task].model]:
                # Of workers that are alike and have nothing behind them, one is enough.
                state = timeline.states[worker]
                twin = (worker,) if self._orders[worker] else (self._cost.kinds[worker], state.model)
                if twin in twins:
                    continue
                twins.add(twin)
                start_s, busy_s, done_s = timeline.probe(task, worker, ready_s)
                if start_s < now_s - EPSILON_S:
                    continue
                if done_s - costs.latency_s[task] + costs.tail_s[task] <= self._best_s + EPSILON_S:
                    wasted_s = busy_s - costs.busy_s[task] + start_s - state.free_s
                    found.append((start_s + wasted_s, -costs.tail_s[task], start_s, task, worker))
        found.sort()
        return [(start_s, task, worker) for _, _, start_s, task, worker in found]

    def _promising(self, makespan_s: float, loads: int) -> bool:
        """Whether a schedule that is no better than this would still be better than the best one."""
        if makespan_s < self._best_s - EPSILON_S:
            return True
        return makespan_s <= self._best_s + EPSILON_S and loads < self._best_loads

    def _bound_s(self, left: Sequence[int], now_s: float, needed: set[str]) -> float:
        """A lower bound on the makespan of all continuations: chains from here, and the average load from here."""
        cost, costs, states, end_s = self._cost, self._costs, self._timeline.states, self._timeline.end_s
        bound_s = max(end_s)
        # The earliest moment at which each model can be served, wherever it is.
        open_s = {
            model: min(states[w].open_s(model, cost.problem.workers[w].curves[model].load_s) for w in serving)
            for model, serving in cost.serving.items()
        }
        ends_s = list(end_s)
        busy_s = 0.0
        after_s = float("inf")
        for task in left:
            asked = self._tasks[task]
            ready_s = max((ends_s[before] for before in asked.after), default=0.0) + asked.lead_s
            start_s = max(ready_s, open_s[asked.model], now_s)
            ends_s[task] = start_s + costs.latency_s[task]
            bound_s = max(bound_s, start_s + costs.tail_s[task])
            busy_s += costs.busy_s[task]
            after_s = min(after_s, costs.after_s[task])
        for node, (once_s, users) in costs.segments.items():
            open_here = any(end_s[task] == NEVER for task in users)
            if open_here and not any(node in state.tree for state in states):
                busy_s += once_s
        loads_s = sum(
            min(cost.problem.workers[w].curves[model].load_s for w in cost.serving[model]) for model in needed
        )
        # A load may begin before now: it fills the time that a task could no longer use.
        used_s = max(sum(max(state.free_s, now_s) for state in states), sum(s.free_s for s in states) + loads_s)
        return max(bound_s, (used_s + busy_s) / len(states) + after_s)

    def _dominated(self, left: Sequence[int], now_s: float, loads: int) -> bool:
        """Whether the same tasks were placed before with the same states, nothing later and no more loads."""
        end_s, states = self._timeline.end_s, self._timeline.states
        models = {self._tasks[task].model for task in left}
        by_worker = sorted(
            ((self._cost.kinds[i], *self._state_key(state, models)), state.free_s, state.ends_s)
            for i, state in enumerate(states)
        )
        key = (tuple(left), tuple(entry[0] for entry in by_worker))
        open_ends = [
            end_s[task]
            for task in range(len(self._tasks))
            if end_s[task] != NEVER and any(end_s[after] == NEVER for after in self._successors[task])
        ]
        times_s = (
            now_s,
            loads,
            max(end_s),
            *(time_s for _, free_s, ends_s in by_worker for time_s in (free_s, ends_s)),
            *open_ends,
        )
        seen = self._seen.setdefault(key, [])
        for other in seen:
            if all(a <= b + EPSILON_S for a, b in zip(other, times_s, strict=True)):
                return True
        seen[:] = [other for other in seen if not all(a <= b for a, b in zip(times_s, other, strict=True))]
        if len(seen) < KEPT:
            seen.append(times_s)
        return False

    def _state_key(self, state: WorkerState, models: set[str]) -> tuple[str, tuple[int, ...]]:
        if state.model not in models:
            return "", ()  # whatever comes next, it loads a model and forgets what it held
        held = state.tree.state
        return state.model, held if self._bounded else tuple(sorted(held))
