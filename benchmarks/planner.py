"""The scheduler's time, memory and distance from the best: `python -m benchmarks.planner --json FILE`."""

from __future__ import annotations

import logging
import multiprocessing
import statistics
import time
from pathlib import Path
from random import Random
from typing import Annotated, Any

import typer

from benchmarks.measure import machine, peak_mb, reset_peak_mb, versions, write
from benchmarks.planner_problems import rows_problem
from benchmarks.workloads.catalog import TOOLED
from halo_core.optimize.schedule import Schedule, check
from halo_core.optimize.scheduler import schedule
from tests.optimize.instances import layered
from tests.optimize.milp import solve

logger = logging.getLogger("benchmarks.planner")

ENGINES = 8
DAG_TASKS = 200
DAG_BUDGET_S = 1.8
DAGS = 12
MILP_WORKERS = 3
MILP_TASKS = (6, 7, 8, 9, 10, 11, 12)
MILP_SEEDS = 4
MILP_LIMIT_S = 5.0
MILP_SLACK = 1.05
"""Times in the program end at this many times our makespan: it may find better schedules than ours, and worse ones."""


def plan_rows(name: str, rows: int) -> dict[str, Any]:
    """Plan one workload's rows; the process's peak memory above what it had before the problem was made."""
    before_mb = reset_peak_mb()
    began_s = time.perf_counter()
    problem = rows_problem(name, rows, ENGINES)
    made_s = time.perf_counter() - began_s
    found = schedule(problem)
    mb = peak_mb() - before_mb
    check(problem, found)
    return {"workload": name, "rows": rows, "problem_s": round(made_s, 3), "mb": round(mb, 1), **_figures(found)}


def plan_dag(seed: int) -> dict[str, Any]:
    """Plan a random layered DAG of one to three models on three to eight workers."""
    random = Random(seed)
    models, workers = 1 + seed % 3, random.randint(3, 8)
    problem = layered(seed, DAG_TASKS, workers, models=models, width=random.randint(4, 20))
    found = schedule(problem, budget_s=DAG_BUDGET_S)
    check(problem, found)
    return {"seed": seed, "models": models, "workers": workers, **_figures(found)}


def against_milp(seed: int, tasks: int) -> dict[str, Any]:
    """Our schedule of a small problem, and HiGHS's."""
    models = 1 + seed % 3
    problem = layered(seed, tasks, MILP_WORKERS, models=models, width=3 + 3 * (seed % 2), load_s=2.0)
    found = schedule(problem)
    check(problem, found)
    answer = solve(problem, MILP_LIMIT_S, MILP_SLACK * found.makespan_s)
    best_s = min(answer.makespan_s, found.makespan_s)
    return {
        "seed": seed,
        "tasks": tasks,
        "models": models,
        **_figures(found),
        "milp_s": round(answer.makespan_s, 6) if answer.makespan_s < float("inf") else None,
        "milp_bound_s": round(answer.bound_s, 6),
        "milp_proven": answer.proven,
        "gap_to_milp": round(found.makespan_s / best_s - 1, 6),
    }


def _figures(found: Schedule) -> dict[str, Any]:
    return {
        "tasks": len(found.placements),
        "plan_s": round(found.spent_s, 3),
        "makespan_s": round(found.makespan_s, 4),
        "bound_s": round(found.lower_bound_s, 4),
        "gap": round(found.gap, 5),
        "loads": len(found.switches),
        "how": found.how,
    }


def main(json_: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None) -> None:
    """Time and memory of planning W1-W6 at 10,000 and 100,000 rows; gaps to the bound and to an integer program."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    rows: dict[int, list[dict[str, Any]]] = {10_000: [], 100_000: []}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for size, runs in rows.items():
            for name in TOOLED:
                runs.append(pool.apply(plan_rows, (name, size)))
                logger.info("%s", runs[-1])
    dags = [_logged(plan_dag(seed)) for seed in range(DAGS)]
    small = [_logged(against_milp(100 + 7 * k + tasks, tasks)) for k in range(MILP_SEEDS) for tasks in MILP_TASKS]
    gaps = [run["gap_to_milp"] for run in small]
    result = {
        "rows_10k_s": max(run["plan_s"] for run in rows[10_000]),
        "rows_10k_sum_s": round(sum(run["plan_s"] for run in rows[10_000]), 3),
        "rows_10k_mb": max(run["mb"] for run in rows[10_000]),
        "rows_100k_s": max(run["plan_s"] for run in rows[100_000]),
        "rows_100k_mb": max(run["mb"] for run in rows[100_000]),
        "dag200_s": max(run["plan_s"] for run in dags),
        "dag200_gap": round(statistics.mean(run["gap"] for run in dags), 5),
        "milp_gap_mean": round(statistics.mean(gaps), 6),
        "milp_gap_max": max(gaps),
        "milp_proven": sum(run["milp_proven"] for run in small),
        "milp_problems": len(small),
        "machine": machine(),
        "versions": versions(),
        "rows": [*rows[10_000], *rows[100_000]],
        "dags": dags,
        "small": small,
    }
    for figure, value in result.items():
        if isinstance(value, int | float):
            logger.info("%s: %s", figure, value)
    write(result, json_)


def _logged(run: dict[str, Any]) -> dict[str, Any]:
    logger.info("%s", run)
    return run


if __name__ == "__main__":
    typer.run(main)
