"""The workers' time and state as tasks are placed on them, one behind the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from halo_core.optimize.cost import CostModel
from halo_core.optimize.radix import RadixTree

NEVER = -1.0
"""The end of a task that is not placed."""


class Placement(NamedTuple):
    """One task's place in a schedule; seconds from the plan's beginning."""

    worker: int
    start_s: float
    """When it begins to compute, its model loaded."""
    prepare_s: float
    """Seconds that its worker loads its model before `start_s`; 0 where it is resident."""
    busy_s: float
    """Seconds from `start_s` until the worker takes its next task."""
    end_s: float
    """When its answers are there and its successors' tools may begin."""
    hit_tokens: int
    """Tokens of its prefix that are in the worker's cache."""


class WorkerState:
    """What a worker has behind it: resident model, held prefixes, when it is free."""

    __slots__ = ("ends_s", "free_s", "model", "tree")

    def __init__(self, model: str, tree: RadixTree, free_s: float = 0.0, ends_s: float = 0.0) -> None:
        self.model = model
        self.tree = tree
        self.free_s = free_s
        """When it may begin another task of its model."""
        self.ends_s = ends_s
        """When all its tasks are over, so that it may load another model."""

    def copy(self) -> WorkerState:
        """A state that goes its own way from here."""
        return WorkerState(self.model, self.tree.copy(), self.free_s, self.ends_s)

    def open_s(self, model: str, load_s: float) -> float:
        """When it can begin a task of `model`, the load included, which need not wait for the task to be ready."""
        return self.free_s if self.model == model else max(self.free_s, self.ends_s) + load_s


class Timeline:
    """Tasks placed in an order in which all `after` of a task come before it; every one as early as it can be."""

    def __init__(self, cost: CostModel) -> None:
        self._cost = cost
        self._tasks = cost.problem.tasks
        self.states = [
            WorkerState(worker.resident, RadixTree(cost.prefixes, worker.kv_tokens)) for worker in cost.problem.workers
        ]
        self.end_s: list[float] = [NEVER] * len(self._tasks)
        """Task -> when it is over."""

    def ready_s(self, task: int) -> float:
        """When the tools before a task are over, its predecessors being placed."""
        asked = self._tasks[task]
        ended_s = 0.0
        for before in asked.after:
            ended_s = max(ended_s, self.end_s[before])
        return ended_s + asked.lead_s

    def probe(self, task: int, worker: int, ready_s: float) -> tuple[float, float, float]:
        """Start, busy seconds and end of a task, were it placed on `worker` next."""
        state, model = self.states[worker], self._tasks[task].model
        work = self._cost.work(task, worker)
        start_s = max(state.open_s(model, work.load_s), ready_s)
        saved_s = work.saved_s(state.tree.hit_tokens(self._cost.paths[task])) if state.model == model else 0.0
        return start_s, work.busy_s - saved_s, start_s + work.latency_s - saved_s

    def place(self, task: int, worker: int) -> Placement:
        """Put a task behind all that `worker` has."""
        state, asked, path = self.states[worker], self._tasks[task], self._cost.paths[task]
        work = self._cost.work(task, worker)
        prepare_s = 0.0
        open_s = state.open_s(asked.model, work.load_s)
        if state.model != asked.model:
            prepare_s = work.load_s
            state.model = asked.model
            state.tree.clear()
        hit_tokens = state.tree.hit_tokens(path)
        saved_s = work.saved_s(hit_tokens)
        start_s = max(open_s, self.ready_s(task))
        end_s = start_s + work.latency_s - saved_s
        state.tree.insert(path, work.beside_tokens)
        state.free_s = start_s + work.busy_s - saved_s
        state.ends_s = max(state.ends_s, end_s)
        self.end_s[task] = end_s
        return Placement(worker, start_s, prepare_s, work.busy_s - saved_s, end_s, hit_tokens)


def replay(
    cost: CostModel, orders: Sequence[Sequence[int]], tail_s: Sequence[float] | None = None, within_s: float = math.inf
) -> list[Placement] | None:
    """The times of all tasks when each worker takes its own in the order given; None where they wait in a circle.

    With `tail_s` (task -> least time from its start to the plan's end) also None, and sooner, where the makespan cannot
    be `within_s`.
    """
    timeline = Timeline(cost)
    tasks = cost.problem.tasks
    placed: list[Placement | None] = [None] * len(tasks)
    end_s = timeline.end_s
    waiting: dict[int, list[int]] = {}
    turns = [0] * len(orders)
    going = [worker for worker, order in enumerate(orders) if order]
    while going:
        worker = going.pop()
        order = orders[worker]
        while turns[worker] < len(order):
            task = order[turns[worker]]
            missing = [before for before in tasks[task].after if end_s[before] == NEVER]
            if missing:
                waiting.setdefault(missing[0], []).append(worker)
                break
            placement = placed[task] = timeline.place(task, worker)
            if tail_s is not None and placement.start_s + tail_s[task] > within_s:
                return None
            turns[worker] += 1
            if task in waiting:
                going += waiting.pop(task)
    found = [placement for placement in placed if placement is not None]
    return found if len(found) == len(tasks) else None
