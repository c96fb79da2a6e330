"""List scheduling: the worker that is free first takes the ready task that is worth most to it now.

Graham's list schedule (1969) with ranks as in HEFT (Topcuoglu et al. 2002), and two things that a task costs beside its
work: prefix tokens that the worker does not hold, and a model that it has not loaded.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from halo_core.optimize.bound import Least
from halo_core.optimize.cost import CostModel
from halo_core.optimize.timeline import Placement, Timeline

HEADS = 3
"""Queues of a model that are looked at, those whose first task comes first."""
RECENT = 3
"""Queues that a worker has served last, and that it looks at for the sake of the prefixes it holds."""

Queue = tuple[str, int]
"""Model and deepest prefix node that other tasks share; -1 for none. Tasks of a queue cost a worker the same misses."""


@dataclass(slots=True, frozen=True)
class Rule:
    """How a worker weighs what is ready."""

    urgency: float
    """Rank counts as far as it exceeds this many times the time that the remaining work takes all workers."""
    thrift: float
    """What a wasted second (a miss, a load, waiting) counts against a second of rank."""
    patience: float
    """A worker loads a model that others have when their queue takes longer than this many times the load."""
    by_position: bool
    """Whether tasks queue by their positions, rows by rows, so that all operators get work early; else by rank."""
    steady: bool
    """Whether it also takes that more work of that model is left for each of its workers than of its own."""


RULES = (
    Rule(urgency=0.9, thrift=20.0, patience=1.0, steady=True, by_position=True),
    Rule(urgency=0.0, thrift=1.0, patience=2.0, steady=True, by_position=False),
    Rule(urgency=0.9, thrift=2.0, patience=4.0, steady=False, by_position=True),
    Rule(urgency=0.0, thrift=1.0, patience=1.0, steady=False, by_position=False),
    Rule(urgency=0.5, thrift=2.0, patience=2.0, steady=True, by_position=True),
    Rule(urgency=0.5, thrift=2.0, patience=1.0, steady=True, by_position=False),
    Rule(urgency=0.0, thrift=4.0, patience=2.0, steady=False, by_position=False),
    Rule(urgency=0.0, thrift=0.25, patience=0.5, steady=False, by_position=False),
)
"""Tried in this order as long as there is time; the first does for any size."""


def list_schedule(cost: CostModel, costs: Least, rule: Rule) -> tuple[list[Placement], list[list[int]]]:
    """Placements of all tasks and the workers' orders. Near-linear: each turn looks at a bounded number of tasks."""
    return _Listing(cost, costs, rule).run()


class _Listing:
    def __init__(self, cost: CostModel, costs: Least, rule: Rule) -> None:
        self._cost = cost
        self._costs = costs
        pace_s = sum(costs.busy_s) / max(1, len(costs.busy_s) * len(cost.problem.workers))
        self._turn_s = [i * pace_s for i in range(len(cost.paths))] if rule.by_position else [-s for s in costs.tail_s]
        """Task -> what it queues by, the least first: when its turn would come by position, or its rank."""
        self._rule = rule
        self._tasks = cost.problem.tasks
        self._timeline = Timeline(cost)
        self._queue_of = [self._queue(task) for task in range(len(self._tasks))]
        self._queues: dict[Queue, list[tuple[float, int]]] = {}
        self._heads: dict[str, list[tuple[float, Queue]]] = {model: [] for model in cost.serving}
        """Model -> its queues by their first task; entries of served queues are out of date."""
        self._ready_tasks: dict[str, int] = dict.fromkeys(cost.serving, 0)
        self._ready_busy_s: dict[str, float] = dict.fromkeys(cost.serving, 0.0)
        self._coming: dict[str, list[tuple[float, int]]] = {model: [] for model in cost.serving}
        """Model -> tasks whose predecessors are placed but not over, by the moment they get ready."""
        self._recent: list[OrderedDict[Queue, None]] = [OrderedDict() for _ in cost.problem.workers]
        self._left_busy_s = sum(costs.busy_s) + sum(once_s for once_s, _ in costs.segments.values())
        self._left = Counter(task.model for task in self._tasks)
        """Model -> tasks that are not placed."""
        self._left_of_s = dict.fromkeys(cost.serving, 0.0)
        """Model -> their busy seconds."""
        self._missing = [len(task.after) for task in self._tasks]
        self._successors: list[list[int]] = [[] for _ in self._tasks]
        for i, task in enumerate(self._tasks):
            self._left_of_s[task.model] += costs.busy_s[i]
            for before in task.after:
                self._successors[before].append(i)
        self._has = [worker.resident for worker in cost.problem.workers]
        self._ready_s = [0.0] * len(self._tasks)

    def run(self) -> tuple[list[Placement], list[list[int]]]:
        orders: list[list[int]] = [[] for _ in self._has]
        placed: list[tuple[int, Placement]] = []
        for task, missing in enumerate(self._missing):
            if not missing:
                self._announce(task)
        turns = [(0.0, worker) for worker in range(len(orders))]
        while len(placed) < len(self._tasks):
            now_s, worker = heapq.heappop(turns)
            self._admit(now_s)
            task = self._choose(worker, now_s)
            if task < 0:
                later_s = self._next_s(now_s, turns)
                if later_s is not None:
                    heapq.heappush(turns, (later_s, worker))
                    continue
                # Nobody wanted what is left, and nothing will change: whoever ends it first takes it.
                heapq.heappush(turns, (now_s, worker))
                task, worker = self._forced()
                turns = [turn for turn in turns if turn[1] != worker]
                heapq.heapify(turns)
            placed.append((task, self._place(task, worker)))
            orders[worker].append(task)
            heapq.heappush(turns, (max(now_s, self._timeline.states[worker].free_s), worker))
        placed.sort(key=lambda entry: entry[0])
        return [placement for _, placement in placed], orders

    def _queue(self, task: int) -> Queue:
        path, table = self._cost.paths[task], self._cost.prefixes
        shared = self._costs.shared_tokens[task]
        deepest = next((node for node in reversed(path) if node in self._costs.segments), -1) if shared else -1
        return self._tasks[task].model, deepest if deepest < 0 or table.hit_tokens[deepest] else -1

    def _announce(self, task: int) -> None:
        """All predecessors are placed, so that it is known when the task gets ready."""
        ready_s = self._ready_s[task] = self._timeline.ready_s(task)
        heapq.heappush(self._coming[self._tasks[task].model], (ready_s, task))

    def _admit(self, now_s: float) -> None:
        """Queue what is ready by now."""
        for model, coming in self._coming.items():
            while coming and coming[0][0] <= now_s:
                _, task = heapq.heappop(coming)
                entry = (self._turn_s[task], task)
                queue = self._queue_of[task]
                waiting = self._queues.setdefault(queue, [])
                heapq.heappush(waiting, entry)
                if waiting[0] is entry:
                    heapq.heappush(self._heads[model], (entry[0], queue))
                self._ready_tasks[model] += 1
                self._ready_busy_s[model] += self._costs.busy_s[task]

    def _choose(self, worker: int, now_s: float) -> int:
        """The task that is worth most to the worker now; -1 where it had better wait."""
        found: list[tuple[float, float, int]] = []
        has = self._has[worker]
        urgent_s = self._rule.urgency * self._left_busy_s / len(self._has)
        for task in self._candidates(worker):
            rank_s = self._costs.tail_s[task]
            start_s, busy_s, _ = self._timeline.probe(task, worker, self._ready_s[task])
            wasted_s = max(start_s - now_s, 0.0) + busy_s - self._costs.busy_s[task]
            worth_s = max(rank_s - urgent_s, 0.0) - self._rule.thrift * wasted_s
            if self._rule.by_position:
                worth_s -= self._turn_s[task]
            found.append((-worth_s, self._turn_s[task], task))
        found.sort()
        for _, _, task in found:
            model = self._tasks[task].model
            if model == has:
                if not self._sooner_elsewhere(task, worker):
                    return task
            elif self._worth_loading(task, worker, now_s):
                return task
        return -1

    def _candidates(self, worker: int) -> Iterator[int]:
        """Firsts of the queues of prefixes that the worker holds, and of the first queues of every model."""
        has = self._has[worker]
        seen: set[int] = set()
        for queue in reversed(self._recent[worker]):
            waiting = self._queues.get(queue)
            if waiting and queue[0] == has:
                seen.add(waiting[0][1])
        state = self._timeline.states[worker]
        for model, heads in self._heads.items():
            if worker not in self._cost.serving[model]:
                continue
            if self._ready_tasks[model]:
                seen.update(self._first(heads, HEADS if model == has else 1))
            elif model != has and self._coming[model]:
                ready_s, task = self._coming[model][0]
                # It is ready by the time that its model is loaded.
                if ready_s <= state.open_s(model, self._cost.work(task, worker).load_s):
                    seen.add(task)
        yield from sorted(seen)

    def _first(self, heads: list[tuple[float, Queue]], count: int) -> list[int]:
        """The first tasks of a model's first queues; drops entries that are out of date."""
        found: list[int] = []
        kept: list[tuple[float, Queue]] = []
        known: set[Queue] = set()
        while heads and len(found) < count:
            entry = heapq.heappop(heads)
            waiting = self._queues.get(entry[1])
            if not waiting or waiting[0][0] != entry[0] or entry[1] in known:
                continue
            known.add(entry[1])
            kept.append(entry)
            found.append(waiting[0][1])
        for entry in kept:
            heapq.heappush(heads, entry)
        return found

    def _sooner_elsewhere(self, task: int, worker: int) -> bool:
        """Whether another worker with the model, of which there is no queue to speak of, ends the task before."""
        model = self._tasks[task].model
        others = [other for other in self._cost.serving[model] if other != worker and self._has[other] == model]
        if self._ready_tasks[model] > len(others):
            return False
        ready_s = self._ready_s[task]
        ends_s = self._timeline.probe(task, worker, ready_s)[2]
        return any(self._timeline.probe(task, other, ready_s)[2] < ends_s for other in others)

    def _worth_loading(self, task: int, worker: int, now_s: float) -> bool:
        """Whether the worker should load the task's model, or leave it to those that have it or wait for its own."""
        model, has = self._tasks[task].model, self._has[worker]
        load_s = self._cost.work(task, worker).load_s
        start_s, _, ends_s = self._timeline.probe(task, worker, self._ready_s[task])
        owners = sum(other == model for other in self._has)
        keepers = self._has.count(has) - 1
        wanted = self._left[has] > 0 and worker in self._cost.serving[has]
        if wanted and not keepers:
            coming = self._coming[has]
            if coming and coming[0][0] <= start_s:
                return False  # its own work is there before the other model is
            load_s += self._cost.problem.workers[worker].curves[has].load_s
        if wanted and owners and self._rule.steady:
            left_s = self._left_of_s[has] / keepers if keepers else math.inf
            if self._left_of_s[model] / owners <= left_s:
                return False
        if not owners:
            others = [w for w in self._cost.serving[model] if w != worker and not self._left[self._has[w]]]
            return not any(self._timeline.probe(task, w, self._ready_s[task])[2] < ends_s for w in others)
        # A worker whose own model is done with has nothing to lose: all that is left of the other one counts.
        queue_s = (self._ready_busy_s if wanted else self._left_of_s)[model] / owners
        return queue_s > self._rule.patience * max(load_s, start_s - now_s)

    def _next_s(self, now_s: float, turns: list[tuple[float, int]]) -> float | None:
        """The next moment at which something is new: a task gets ready or a worker is free."""
        moments = [coming[0][0] for coming in self._coming.values() if coming]
        moments += [turn_s for turn_s, _ in turns if turn_s > now_s]
        return min(moments, default=None)

    def _forced(self) -> tuple[int, int]:
        best = (math.inf, -1, -1)
        for model, heads in self._heads.items():
            for task in self._first(heads, HEADS):
                for worker in self._cost.serving[model]:
                    best = min(best, (self._timeline.probe(task, worker, self._ready_s[task])[2], task, worker))
        return best[1], best[2]

    def _place(self, task: int, worker: int) -> Placement:
        queue, model = self._queue_of[task], self._tasks[task].model
        waiting = self._queues.get(queue)
        if waiting and waiting[0][1] == task:
            heapq.heappop(waiting)
            if waiting:
                heapq.heappush(self._heads[model], (waiting[0][0], queue))
            else:
                del self._queues[queue]
            self._ready_tasks[model] -= 1
            self._ready_busy_s[model] -= self._costs.busy_s[task]
        else:
            heapq.heappop(self._coming[model])  # the first of those that are still to get ready
        self._left_busy_s -= self._costs.busy_s[task]
        self._left[model] -= 1
        self._left_of_s[model] -= self._costs.busy_s[task]
        self._has[worker] = model
        placement = self._timeline.place(task, worker)
        recent = self._recent[worker]
        recent[queue] = None
        recent.move_to_end(queue)
        if len(recent) > RECENT:
            recent.popitem(last=False)
        for after in self._successors[task]:
            self._missing[after] -= 1
            if not self._missing[after]:
                self._announce(after)
        return placement
