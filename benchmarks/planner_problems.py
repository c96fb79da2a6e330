"""The problems that the planner's benchmark plans: the workloads' shapes in rows by the ten thousand, engines made up.

Nothing here was measured: engines' speeds and token counts are of a plausible order, so that planning has to weigh
model loads, prefixes and tools against each other.
"""

from __future__ import annotations

from itertools import takewhile
from typing import Any

from benchmarks.workloads.catalog import TOOLED
from benchmarks.workloads.shape import Row, Tool, Workload
from halo_core.optimize.problem import Problem, Task, Worker
from halo_core.stats import DecodePoint, EngineCurve

SLOTS = 32
"""Calls that an engine decodes at once, and rows of a bundle."""
KV_TOKENS = 200_000
CHARS_PER_TOKEN = 4
ROW_TOKENS = 60
FOUND_TOKENS = 120
"""What a tool's result adds to a prompt."""
ANSWER_TOKENS = 100
TOOLS_S = 0.3
LOAD_S = 30.0
FACTORS = {"A": 1.0, "B": 0.6, "C": 1.5}
"""How long the workloads' three models take, relative to the first."""


class _NoTools:
    """Stands for a workload's toolbox where nobody calls its tools."""

    def query(self, name: str) -> Tool:
        """A tool that cannot be called."""

        async def acall(row: Row) -> Any:
            raise NotImplementedError(name)

        def call(row: Row) -> Any:
            raise NotImplementedError(name)

        return Tool(name, call, acall)

    request = query


def workload(name: str) -> Workload:
    """The steps of W1 to W6, with tools that cannot be called."""
    make: Any = TOOLED[name][0]
    made: Workload = make(_NoTools())
    return made


def curve(factor: float) -> EngineCurve:
    """About a model of 8 billion parameters on one data-centre GPU, `factor` times slower."""
    made = EngineCurve(
        prefill_step_s=0.004,
        prefill_token_s=4e-5,
        attention_pair_s=2e-9,
        decode=tuple(DecodePoint(batch=batch, step_s=0.008 + 0.00012 * batch) for batch in (1, 8, 32)),
        decode_context_token_s=4e-8,
        request_s=0.001,
        load_s=LOAD_S,
    )
    return made.scaled(factor)


def rows_problem(name: str, rows: int, engines: int) -> Problem:
    """One task per step and bundle of rows; engines that begin with the three models in turn."""
    steps = workload(name).steps
    house = [*takewhile(lambda chars: len({*chars}) == 1, zip(*(step.role for step in steps), strict=False))]
    tasks: list[Task] = []
    for first in range(0, rows, SLOTS):
        position = {step.name: len(tasks) + i for i, step in enumerate(steps)}
        for step in steps:
            tasks.append(
                Task(
                    name=f"{step.name}/{first}",
                    model=step.model,
                    after=tuple(position[need] for need in step.needs),
                    lead_s=TOOLS_S if step.tools else 0.0,
                    prefix=(
                        ("house", len(house) // CHARS_PER_TOKEN),
                        (step.name, (len(step.role) - len(house)) // CHARS_PER_TOKEN),
                    ),
                    own_tokens=ROW_TOKENS + FOUND_TOKENS * len(step.tools) + ANSWER_TOKENS * len(step.needs),
                    answer_tokens=ANSWER_TOKENS,
                    calls=min(SLOTS, rows - first),
                )
            )
    curves = {model: curve(factor) for model, factor in FACTORS.items()}
    residents = [*FACTORS]
    workers = [Worker(f"engine{i}", curves, residents[i % len(residents)], SLOTS, KV_TOKENS) for i in range(engines)]
    return Problem(tasks, workers)
