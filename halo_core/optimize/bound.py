"""Lower bounds on the makespan: the longest chain, and work that no schedule can leave out, between heads and tails."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from halo_core.optimize.cost import CostModel

PRECISION = 1e-6
"""How close to its limit a bisection comes, relatively."""
HEADS = 16
"""How many different heads the work bound is tried with: each costs a pass over all work."""


@dataclass(slots=True, frozen=True)
class Least:
    """What every task costs at least, wherever and behind whatever it runs. Lists by the tasks' positions."""

    busy_s: list[float]
    """All segments that another task shares being cached."""
    latency_s: list[float]
    tail_s: list[float]
    """From a task's start to the end of the plan: HEFT's upward rank (Topcuoglu et al. 2002), of least costs."""
    after_s: list[float]
    """From the moment when the task's worker is free again to the end of the plan."""
    head_s: list[float]
    """The earliest start."""
    shared_tokens: list[int]
    """Prefix tokens that another task has, too: what it can find cached, at most."""
    segments: dict[int, tuple[float, list[int]]]
    """Node of the prefix table that several tasks share -> seconds to compute it once, its tasks."""


def least(cost: CostModel) -> Least:
    """The least costs of all tasks. Linear in tasks, edges and segments."""
    tasks, paths, table = cost.problem.tasks, cost.paths, cost.prefixes
    users: dict[int, list[int]] = {}
    for i, path in enumerate(paths):
        for node in path:
            users.setdefault(node, []).append(i)
    count = len(tasks)
    busy_s, latency_s, lag_s, head_s = ([0.0] * count for _ in range(4))
    shared_tokens = [0] * count
    segments: dict[int, tuple[float, list[int]]] = {}
    first_load_s = _first_load_s(cost)
    for i, task in enumerate(tasks):
        works = cost.choices(i)
        shared = next((node for node in reversed(paths[i]) if len(users[node]) > 1), -1)
        hit = shared_tokens[i] = table.hit_tokens[shared] if shared >= 0 else 0
        busy_s[i] = min(work.busy_s - work.saved_s(hit) for work in works)
        latency_s[i] = min(work.latency_s - work.saved_s(hit) for work in works)
        lag_s[i] = min(work.latency_s - work.busy_s for work in works)
        ready_s = max((head_s[before] + latency_s[before] for before in task.after), default=0.0) + task.lead_s
        head_s[i] = max(ready_s, first_load_s[task.model])
        for node in paths[i]:
            if len(users[node]) > 1 and node not in segments:
                above = table.parent[node]
                begin = table.hit_tokens[above] if above >= 0 else 0
                once_s = min(work.head_s(table.hit_tokens[node]) - work.head_s(begin) for work in works)
                segments[node] = (once_s, users[node])
    behind_s = [0.0] * count
    tail_s = [0.0] * count
    for i in range(count - 1, -1, -1):
        tail_s[i] = latency_s[i] + behind_s[i]
        for before in tasks[i].after:
            behind_s[before] = max(behind_s[before], tasks[i].lead_s + tail_s[i])
    after_s = [lag + behind for lag, behind in zip(lag_s, behind_s, strict=True)]
    return Least(busy_s, latency_s, tail_s, after_s, head_s, shared_tokens, segments)


def lower_bound_s(cost: CostModel, costs: Least) -> float:
    """The best bound on the makespan that is cheap for any number of tasks.

    The longest chain from head to tail; for sets J of work that only m workers can do, least head of J + work of J / m
    + least tail of J (the preemptive bound of Carlier and Pinson 1998 with uniform ends; with heads and tails zero it
    is Graham's average load, 1969); and the average load with the model loads that the work of each model calls for.
    Work is what every task costs with all shared segments cached, and every shared segment once.
    """
    bound_s = max((head + tail for head, tail in zip(costs.head_s, costs.tail_s, strict=True)), default=0.0)
    everybody = tuple(range(len(cost.problem.workers)))
    for workers in {everybody, *cost.serving.values()}:
        bound_s = max(bound_s, _work_bound_s(_pieces(cost, costs, frozenset(workers)), len(workers)))
    return _load_bound_s(cost, costs, bound_s)


def _first_load_s(cost: CostModel) -> dict[str, float]:
    """Model -> least seconds to load it first; 0 where a worker has it."""
    found: dict[str, float] = {}
    workers = cost.problem.workers
    for model, serving in cost.serving.items():
        resident = any(workers[worker].resident == model for worker in serving)
        found[model] = 0.0 if resident else min(workers[worker].curves[model].load_s for worker in serving)
    return found


Piece = tuple[float, float, float]
"""Seconds of work with the earliest moment it can begin and the least time from its end to the end of the plan."""


def _pieces(cost: CostModel, costs: Least, workers: frozenset[int]) -> list[Piece]:
    """(tail, head, work) of everything that only `workers` can do."""
    tasks = cost.problem.tasks
    bound_to = {model for model, serving in cost.serving.items() if workers.issuperset(serving)}
    pieces = [
        (costs.after_s[i], costs.head_s[i], costs.busy_s[i]) for i, task in enumerate(tasks) if task.model in bound_to
    ]
    for once_s, users in costs.segments.values():
        if tasks[users[0]].model in bound_to:
            pieces.append((min(costs.after_s[i] for i in users), min(costs.head_s[i] for i in users), once_s))
    return pieces


def _work_bound_s(pieces: Sequence[Piece], workers: int) -> float:
    """The best of the sets {head >= h, tail >= q}, over some h and all q."""
    by_tail = sorted(pieces, reverse=True)
    heads = sorted({head for _, head, _ in pieces})
    bound_s = 0.0
    for at in range(0, len(heads), max(1, len(heads) // HEADS)):
        work_s = 0.0
        for tail, head, piece_s in by_tail:
            if head >= heads[at]:
                work_s += piece_s
                bound_s = max(bound_s, heads[at] + work_s / workers + tail)
    return bound_s


@dataclass(slots=True)
class _Share:
    """What a model's tasks ask of its workers, at least."""

    owners: int
    """Workers that have it when the plan begins."""
    load_s: float
    head_s: float = math.inf
    after_s: float = math.inf
    busy_s: float = 0.0

    def loads(self, makespan_s: float) -> float:
        """How often it is loaded at least, where all its work is to be over in time; inf where that cannot be."""
        window_s = makespan_s - self.head_s - self.after_s
        left_s = self.busy_s - self.owners * window_s
        if left_s <= 0:
            return 0
        window_s = min(window_s, makespan_s - self.load_s - self.after_s)
        return math.ceil(left_s / window_s) if window_s > 0 else math.inf


def _load_bound_s(cost: CostModel, costs: Least, bound_s: float) -> float:
    """The least makespan, `bound_s` or more, in which the workers have time for all work and the loads it calls for.

    Loads get fewer as the makespan grows, so that it is found by bisection; from below, so that it stays a bound.
    """
    workers = cost.problem.workers
    shares = {
        model: _Share(
            sum(workers[i].resident == model for i in serving), min(workers[i].curves[model].load_s for i in serving)
        )
        for model, serving in cost.serving.items()
    }
    for i, task in enumerate(cost.problem.tasks):
        share = shares[task.model]
        share.busy_s += costs.busy_s[i]
        share.head_s = min(share.head_s, costs.head_s[i])
        share.after_s = min(share.after_s, costs.after_s[i])
    for once_s, users in costs.segments.values():
        shares[cost.problem.tasks[users[0]].model].busy_s += once_s
    work_s = sum(share.busy_s for share in shares.values())
    after_s = min((share.after_s for share in shares.values()), default=0.0)

    def fits(makespan_s: float) -> bool:
        loads_s = sum(share.loads(makespan_s) * share.load_s for share in shares.values() if share.load_s > 0)
        return work_s + loads_s <= len(workers) * (makespan_s - after_s)

    if not shares or fits(bound_s):
        return bound_s
    # Enough for one worker that does everything, model by model.
    enough_s = work_s + sum(share.load_s + share.head_s + share.after_s for share in shares.values())
    below_s, above_s = bound_s, bound_s + enough_s
    while above_s - below_s > PRECISION * above_s:
        middle_s = (below_s + above_s) / 2
        below_s, above_s = (below_s, middle_s) if fits(middle_s) else (middle_s, above_s)
    return below_s
