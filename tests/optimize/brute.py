"""The least makespan by trying everything, with the rules written down a second time and as plainly as possible."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from halo_core.optimize.problem import Problem, Segment, Task, Worker
from halo_core.stats import EngineCurve, attention_pairs

Prefix = tuple[Segment, ...]


@dataclass
class Cache:
    """Prefixes with the moment of their last use; nothing but a list that is searched."""

    kv_tokens: int
    used: dict[Prefix, int] = field(default_factory=dict)
    clock: int = 0

    def hit_tokens(self, prefix: Prefix) -> int:
        held = [prefix[:i] for i in range(1, len(prefix) + 1) if prefix[:i] in self.used]
        return max((sum(tokens for _, tokens in path) for path in held), default=0) // 16 * 16

    def use(self, prefix: Prefix, beside_tokens: float) -> None:
        self.clock += 1
        own = [prefix[:i] for i in range(1, len(prefix) + 1)]
        for path in own:
            self.used[path] = self.clock
        while self.kv_tokens and sum(path[-1][1] for path in self.used) > max(self.kv_tokens - beside_tokens, 0):
            leaves = [p for p in self.used if not any(q != p and q[: len(p)] == p for q in self.used)]
            others = [p for p in leaves if p not in own]
            del self.used[min(others or leaves, key=lambda path: self.used[path])]


@dataclass
class State:
    model: str
    cache: Cache
    free_s: float = 0.0
    ends_s: float = 0.0


def times_s(task: Task, curve: EngineCurve, slots: int, hit: int) -> tuple[float, float]:
    """Busy seconds and latency."""
    first = task.prefix_tokens + task.shared_tokens
    computed = first - hit + task.calls * task.own_tokens
    pairs = attention_pairs(first - hit, hit) + task.calls * attention_pairs(task.own_tokens, first)
    before_s = curve.step_s(computed, pairs, 0, 0) + task.calls * curve.request_s
    context = first + task.own_tokens + task.answer_tokens / 2
    full_s = task.answer_tokens * curve.step_s(0, 0, slots, slots * context)
    batch = min(task.calls, slots)
    alone_s = task.answer_tokens * curve.step_s(0, 0, batch, batch * context)
    busy_s = before_s + task.calls * full_s / slots
    return busy_s, max(busy_s, before_s + alone_s * math.ceil(task.calls / slots))


def orders(problem: Problem) -> Iterator[list[int]]:
    """All sequences in which a task comes behind those that it is after."""

    def extend(done: list[int]) -> Iterator[list[int]]:
        if len(done) == len(problem.tasks):
            yield done
        for i, task in enumerate(problem.tasks):
            if i not in done and all(before in done for before in task.after):
                yield from extend([*done, i])

    yield from extend([])


def run(problem: Problem, order: list[int], workers: list[int]) -> tuple[float, int]:
    """Makespan and number of loads, when the tasks are given to the workers in this order."""
    states = [State(worker.resident, Cache(worker.kv_tokens)) for worker in problem.workers]
    ends: dict[int, float] = {}
    loads = 0
    for i, at in zip(order, workers, strict=True):
        task, worker, state = problem.tasks[i], problem.workers[at], states[at]
        curve = worker.curves[task.model]
        if state.model != task.model:
            state.free_s = max(state.free_s, state.ends_s) + curve.load_s
            state.model, state.cache = task.model, Cache(worker.kv_tokens)
            loads += 1
        hit = state.cache.hit_tokens(task.prefix)
        busy_s, latency_s = times_s(task, curve, worker.slots, hit)
        start_s = max(state.free_s, max((ends[before] for before in task.after), default=0.0) + task.lead_s)
        batch = min(task.calls, worker.slots)
        state.cache.use(task.prefix, task.shared_tokens + batch * (task.own_tokens + task.answer_tokens))
        state.free_s = start_s + busy_s
        ends[i] = start_s + latency_s
        state.ends_s = max(state.ends_s, ends[i])
    return max(ends.values(), default=0.0), loads


def best(problem: Problem) -> tuple[float, int]:
    """The least makespan, and the least loads with which it is reached."""
    found = (math.inf, 0)
    for order in orders(problem):
        for workers in assignments(problem, order):
            made_s, loads = run(problem, order, workers)
            if made_s < found[0] - 1e-9 or (made_s < found[0] + 1e-9 and loads < found[1]):
                found = (made_s, loads)
    return found


def assignments(problem: Problem, order: list[int]) -> Iterator[list[int]]:
    """All ways to give the tasks of a sequence to workers that may serve them."""

    def extend(chosen: list[int]) -> Iterator[list[int]]:
        if len(chosen) == len(order):
            yield chosen
            return
        model = problem.tasks[order[len(chosen)]].model
        for at, worker in enumerate(problem.workers):
            if may_serve(problem, worker, model):
                yield from extend([*chosen, at])

    yield from extend([])


def may_serve(problem: Problem, worker: Worker, model: str) -> bool:
    return model in worker.curves and (problem.switching or worker.resident in ("", model))
