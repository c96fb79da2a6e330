"""The scheduling problem as a mixed integer program, solved by HiGHS: an oracle that shares no search with Halo's.

Immediate-predecessor formulation: a binary says that a task comes right behind another one on one worker. What a worker
holds of prefixes is handed along these arcs, so that the first task that has a segment pays for it, and every task
pays again behind another model. KV capacities are not modelled: problems must have `kv_tokens=0`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import highspy

from halo_core.optimize.cost import CostModel
from halo_core.optimize.problem import Problem


@dataclass(frozen=True)
class Answer:
    """What HiGHS came to."""

    makespan_s: float
    """Of its best schedule; inf where it found none."""
    bound_s: float
    proven: bool


def solve(problem: Problem, limit_s: float, at_most_s: float) -> Answer:
    """The least makespan. at_most_s: no less than the best schedule's; bounds all times and thus the big M."""
    assert not any(worker.kv_tokens for worker in problem.workers), "KV capacities are not in the program"
    model = highspy.Highs()
    model.silent()
    model.setOptionValue("time_limit", limit_s)
    model.setOptionValue("threads", 1)
    model.setOptionValue("mip_rel_gap", 1e-6)
    model.minimize(_Program(model, CostModel(problem), at_most_s).makespan)
    info = model.getInfo()
    solved = model.getModelStatus() == highspy.HighsModelStatus.kOptimal
    found = info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
    makespan_s = model.getObjectiveValue() if found else float("inf")
    return Answer(makespan_s, makespan_s if solved else info.mip_dual_bound, solved)


class _Program:
    """Variables and constraints of one problem."""

    def __init__(self, model: highspy.Highs, cost: CostModel, big: float) -> None:
        self.model, self.cost, self.big = model, cost, big
        self.tasks = cost.problem.tasks
        n = range(len(self.tasks))
        self.serving = [cost.serving[task.model] for task in self.tasks]
        self.nodes = {
            task.model: sorted({x for i in n for x in cost.paths[i] if self.tasks[i].model == task.model})
            for task in self.tasks
        }
        self.makespan = model.addVariable(0, big)
        self.start = [model.addVariable(0, big) for _ in n]
        self.end = [model.addVariable(0, big) for _ in n]
        self.over = [model.addVariable(0, big) for _ in n]
        """When a task and all before it on its worker have ended."""
        self.on = {(i, w): model.addBinary() for i in n for w in self.serving[i]}
        self.first = {(i, w): model.addBinary() for i in n for w in self.serving[i]}
        self.behind = {(i, j): model.addBinary() for i in n for j in n if self._may_follow(i, j)}
        """(i, j): j comes right behind i."""
        self.held = {(i, node): model.addVariable(0, 1) for i in n for node in self.nodes[self.tasks[i].model]}
        """Whether its worker holds the node when a task begins."""
        self.saved = [{node: model.addVariable(0, big) for node in cost.paths[i]} for i in n]
        for i in n:
            self._place(i)
            self._time(i)
            self._save(i)
        for w in range(len(cost.problem.workers)):
            self._require(self._sum(first for at, first in self.first.items() if at[1] == w) <= 1)
        for (i, j), arc in self.behind.items():
            self._follow(i, j, arc)

    def _sum(self, terms: Iterable[Any]) -> Any:
        return sum(terms, start=self.model.expr(0.0))

    def _require(self, constraint: Any) -> None:
        self.model.addConstr(constraint)

    def _may_follow(self, i: int, j: int) -> bool:
        return i != j and j not in self.tasks[i].after and bool({*self.serving[i]} & {*self.serving[j]})

    def _place(self, i: int) -> None:
        """On one worker, as its first task or behind one other; one other at most behind it."""
        first = [self.first[i, w] for w in self.serving[i]]
        self._require(self._sum(self.on[i, w] for w in self.serving[i]) == 1)
        self._require(self._sum([*first, *(arc for (_, b), arc in self.behind.items() if b == i)]) == 1)
        self._require(self._sum(arc for (a, _), arc in self.behind.items() if a == i) <= 1)
        for w in self.serving[i]:
            self._require(self.first[i, w] <= self.on[i, w])
            for node in self.nodes[self.tasks[i].model]:
                self._require(self.held[i, node] <= 1 - self.first[i, w])

    def _time(self, i: int) -> None:
        """After its predecessors and their tools, and after the load of its model where it is the first."""
        latency = self._sum(self.on[i, w] * self.cost.work(i, w).latency_s for w in self.serving[i])
        self._require(self.end[i] == self.start[i] + latency - self._sum(self.saved[i].values()))
        self._require(self.over[i] >= self.end[i])
        self._require(self.makespan >= self.end[i])
        self._require(self.start[i] >= self.tasks[i].lead_s)
        for before in self.tasks[i].after:
            self._require(self.start[i] >= self.end[before] + self.tasks[i].lead_s)
        for w in self.serving[i]:
            if self.cost.problem.workers[w].resident != self.tasks[i].model:
                self._require(self.start[i] >= self.first[i, w] * self.cost.work(i, w).load_s)

    def _save(self, i: int) -> None:
        """A held segment of its prefix saves its seconds on the worker that it is on."""
        table = self.cost.prefixes
        for node, saved in self.saved[i].items():
            above = table.parent[node]
            begin = table.hit_tokens[above] if above >= 0 else 0
            works = {w: self.cost.work(i, w) for w in self.serving[i]}
            segment_s = {w: work.saved_s(table.hit_tokens[node]) - work.saved_s(begin) for w, work in works.items()}
            self._require(saved <= max(segment_s.values()) * self.held[i, node])
            self._require(saved <= self._sum(self.on[i, w] * seconds for w, seconds in segment_s.items()))

    def _follow(self, i: int, j: int, arc: Any) -> None:
        """What holds where j comes right behind i: one worker, its time, its model, its prefixes."""
        for w in range(len(self.cost.problem.workers)):
            here = [self.on[i, w]] if (i, w) in self.on else []
            there = [self.on[j, w]] if (j, w) in self.on else []
            self._require(self._sum(there) >= arc + self._sum(here) - 1)
        self._require(self.over[j] >= self.over[i] - self.big * (1 - arc))
        same = self.tasks[i].model == self.tasks[j].model
        if same:
            busy = self._sum(self.on[i, w] * self.cost.work(i, w).busy_s for w in self.serving[i])
            free = self.start[i] + busy - self._sum(self.saved[i].values())
            self._require(self.start[j] >= free - self.big * (1 - arc))
        else:
            load = self._sum(self.on[j, w] * self.cost.work(j, w).load_s for w in self.serving[j])
            most_s = max(self.cost.work(j, w).load_s for w in self.serving[j])
            self._require(self.start[j] >= self.over[i] + load - (self.big + most_s) * (1 - arc))
        for node in self.nodes[self.tasks[j].model]:
            if not same:
                self._require(self.held[j, node] <= 1 - arc)
            elif node not in self.cost.paths[i]:
                self._require(self.held[j, node] <= self.held[i, node] + 1 - arc)
