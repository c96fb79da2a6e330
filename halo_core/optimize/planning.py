"""From the catalog to the scheduler's problem: steps times bundles of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import ceil
from types import MappingProxyType

from halo_core.optimize.problem import Problem, Segment, Task, Worker
from halo_core.optimize.schedule import Schedule
from halo_core.optimize.scheduler import schedule
from halo_core.optimize.switching import Phase, SwitchPlan
from halo_core.stats import Catalog, StepProfile

MOST_TASKS = 40_000
"""Beyond it, bundles hold more rows than an engine decodes at once."""


@dataclass(slots=True, frozen=True)
class PlannedBatch:
    """A batch as the scheduler was asked about it, and its answer."""

    problem: Problem
    steps: Sequence[StepProfile]
    """By the tasks' positions."""
    calls: Sequence[int]
    """By the tasks' positions: calls that the rows make, those that others answer included."""
    schedule: Schedule

    def switch_plan(self) -> SwitchPlan:
        """What each worker loads in which order, and how long it keeps it."""
        places = []
        for order in self.schedule.orders:
            phases = groupby(order, key=lambda task: self.problem.tasks[task].model)
            places.append([self._phase(model, list(tasks)) for model, tasks in phases])
        curves = {model: curve for worker in self.problem.workers for model, curve in worker.curves.items()}
        return SwitchPlan(places, {model: curve.load_s for model, curve in curves.items() if curve.load_s})

    def _phase(self, model: str, tasks: list[int]) -> Phase:
        operators = frozenset(self.steps[task].operator for task in tasks)
        return Phase(model, operators, sum(self.calls[task] for task in tasks))


def plan_batch(
    catalog: Catalog,
    rows: int,
    distinct: int,
    workers: Sequence[Worker],
    *,
    budget_s: float,
    values: Mapping[str, int] = MappingProxyType({}),
) -> PlannedBatch:
    """Schedule `rows` rows, `distinct` of them different, of the app that `catalog` describes.

    `values`: path of a row's field -> how many different values the rows have there. Raises PlanError where a step's
    model can run on no worker.
    """
    bundle = _bundle(len(catalog.steps), distinct, workers)
    tasks: list[Task] = []
    steps: list[StepProfile] = []
    calls: list[int] = []
    repeats = rows / max(distinct, 1)
    different = {path: count / max(distinct, 1) for path, count in values.items()}
    for first in range(0, distinct, bundle):
        count = min(bundle, distinct - first)
        place: dict[str, int] = {}
        for step in catalog.steps:
            executed = max(1, round(count * step.frequency * min(step.distinct, repeats if step.distinct > 1 else 1.0)))
            place[step.name] = len(tasks)
            after = tuple(place[name] for name in step.after if name in place)
            tasks.append(_task(step, first, executed, after, different))
            steps.append(step)
            calls.append(round(count * repeats * step.frequency))
    problem = Problem(tasks, workers)
    return PlannedBatch(problem, steps, calls, schedule(problem, budget_s=budget_s))


def _bundle(steps: int, rows: int, workers: Sequence[Worker]) -> int:
    """Rows whose calls of a step are one task: what an engine decodes at once, less where not all would have some."""
    slots = min(worker.slots for worker in workers)
    even = ceil(rows / len(workers))
    least = ceil(rows * steps / MOST_TASKS)
    return max(1, min(slots, even), least)


def _task(
    step: StepProfile, first_row: int, calls: int, after: tuple[int, ...], different: Mapping[str, float]
) -> Task:
    """`different`: path of a row's field -> different values for each different row."""
    prefix: list[Segment] = []
    own = step.prompt_tokens.mean
    for part in step.parts:
        own -= part.tokens
        if part.scope == "app":
            prefix.append((("app", part.key), part.tokens))
        elif part.scope == "row":  # each row of the bundle has its own
            prefix.append((("rows", first_row, part.key), part.tokens * calls))
        else:  # rows that are equal in a field need not lie in one bundle: each is charged its share
            own += part.tokens * different.get(part.scope.removeprefix("field:"), 1.0)
    return Task(
        f"{step.name}@{first_row}",
        step.model,
        after,
        step.lead_s.mean,
        tuple(prefix),
        0,
        max(own, 0.0),
        step.answer_tokens.mean,
        calls,
    )
