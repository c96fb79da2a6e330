"""What a task costs a worker in its state: model loads, prefill of what is not cached, decode."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass

from halo_core.optimize.problem import Problem, Task, Worker
from halo_core.optimize.radix import Path, PrefixTable
from halo_core.stats import EngineCurve, attention_pairs


@dataclass(slots=True, frozen=True)
class Work:
    """A task on a worker that has loaded its model and holds nothing of its prefix."""

    load_s: float
    """To load its model, where another one is resident."""
    busy_s: float
    """Prefill, requests and decode: what the worker cannot do anything else in."""
    latency_s: float
    """From its beginning until its successors may begin; at least `busy_s`."""
    beside_tokens: float
    """KV that its calls take beside the prefix, at most."""
    all_tokens: float
    """Prompt tokens that it computes."""
    prefill_step_s: float
    prefill_token_s: float
    attention_pair_s: float

    def head_s(self, tokens: int) -> float:
        """Seconds of the prompt's first tokens, which attend to t (t + 1) / 2 pairs whatever follows them."""
        return tokens * self.prefill_token_s + tokens * (tokens + 1) / 2 * self.attention_pair_s

    def saved_s(self, hit_tokens: int) -> float:
        """Seconds that `hit_tokens` cached tokens of the prefix save, of `busy_s` and of `latency_s` alike."""
        if not hit_tokens:
            return 0.0
        saved_s = self.head_s(hit_tokens)
        return saved_s + self.prefill_step_s if hit_tokens >= self.all_tokens else saved_s


class CostModel:
    """The cost of every task of a problem on every worker; tasks and workers by their positions.

    Busy seconds charge decode as it is amortised over a full batch (calls of several tasks share steps), latency as the
    task alone takes: the worker goes on to the next task while the last one's answers are still being decoded.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.prefixes = PrefixTable()
        self.paths: list[Path] = [self.prefixes.path(task.model, task.prefix) for task in problem.tasks]
        self.works: list[list[Work | None]] = []
        """Worker -> task -> its work; None where it can never run. Workers of one speed share their list."""
        self.serving: dict[str, tuple[int, ...]] = {}
        """Model -> the workers that may serve it."""
        by_speed: dict[Hashable, list[Work | None]] = {}
        for worker in problem.workers:
            may = tuple(
                (model, curve) for model, curve in sorted(worker.curves.items()) if problem.may_serve(worker, model)
            )
            speed = (may, worker.slots)
            if speed not in by_speed:
                by_speed[speed] = _works(problem, worker)
            self.works.append(by_speed[speed])
        for model in {task.model for task in problem.tasks}:
            self.serving[model] = tuple(
                i for i, worker in enumerate(problem.workers) if problem.may_serve(worker, model)
            )
        kinds: dict[Hashable, int] = {}
        self.kinds = tuple(
            kinds.setdefault((id(works), worker.kv_tokens), len(kinds))
            for works, worker in zip(self.works, problem.workers, strict=True)
        )
        """Worker -> a number that it shares with those that do the same in the same state."""

    def work(self, task: int, worker: int) -> Work:
        """The work of a task on a worker that may serve it."""
        work = self.works[worker][task]
        assert work is not None, "asked only for workers that may serve the task"
        return work

    def choices(self, task: int) -> list[Work]:
        """The different works of a task, over all workers that may serve it."""
        found: list[Work] = []
        for worker in self.serving[self.problem.tasks[task].model]:
            work = self.work(task, worker)
            if not any(work is known for known in found):
                found.append(work)
        return found


def _works(problem: Problem, worker: Worker) -> list[Work | None]:
    by_shape: dict[Hashable, Work] = {}
    works: list[Work | None] = []
    for task in problem.tasks:
        if not problem.may_serve(worker, task.model):
            works.append(None)
            continue
        tokens = task.prefix_tokens
        shape = (task.model, tokens, task.shared_tokens, task.own_tokens, task.answer_tokens, task.calls)
        if shape not in by_shape:
            by_shape[shape] = _work(task, tokens, worker.curves[task.model], worker.slots)
        works.append(by_shape[shape])
    return works


def _work(task: Task, prefix_tokens: int, curve: EngineCurve, slots: int) -> Work:
    once = prefix_tokens + task.shared_tokens
    tokens = once + task.calls * task.own_tokens
    pairs = attention_pairs(once) + task.calls * attention_pairs(task.own_tokens, once)
    before_decode_s = curve.step_s(tokens, pairs, 0, 0) + task.calls * curve.request_s
    context = once + task.own_tokens + task.answer_tokens / 2
    batch = min(task.calls, slots)
    busy_s = before_decode_s + task.calls * curve.decode_s(task.answer_tokens, slots, context) / slots
    waves = math.ceil(task.calls / slots)
    latency_s = before_decode_s + waves * curve.decode_s(task.answer_tokens, batch, context)
    return Work(
        load_s=curve.load_s,
        busy_s=busy_s,
        latency_s=max(latency_s, busy_s),
        beside_tokens=task.shared_tokens + batch * (task.own_tokens + task.answer_tokens),
        all_tokens=tokens,
        prefill_step_s=curve.prefill_step_s,
        prefill_token_s=curve.prefill_token_s,
        attention_pair_s=curve.attention_pair_s,
    )
