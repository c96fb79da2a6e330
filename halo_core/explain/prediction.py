"""What a batch is expected to take before it runs: the catalog's rows, simulated on engines as fast as calibrated."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any

from halo_core.errors import HaloError
from halo_core.explain.tables import Cells
from halo_core.optimize.planning import PlannedBatch, plan_batch
from halo_core.optimize.problem import Worker
from halo_core.pool import EnginePool, get_pool
from halo_core.runtime import catalogs
from halo_core.runtime.databases import repriced
from halo_core.simulate import Fleet, RowSet, Simulation, StepForecast, fleet_of, simulate
from halo_core.stats import Catalog

PLAN_BUDGET_S = 0.5
MAX_CALLS = 2000
"""Calls that are simulated; a larger batch is told from a part of its rows."""

BUSY = 0.5
"""Share of a run that its engines must have worked for it to tell how fast they are."""
FURTHEST = 2.0
"""A run that took more than so many times as long as it should have (or as little) was disturbed."""

HEADERS = ("tokens in", "out", "cached", "at most", "on", "from s", "to s", "cost")


@dataclass(slots=True, frozen=True)
class Prediction:
    """A batch's expected course."""

    catalog: Catalog
    fleet: Fleet
    rows: int
    simulation: Simulation
    """Of all rows, or of the first of them."""
    makespan_s: float
    """Of all rows."""
    bound_s: float
    """No order and placement of these calls takes less, as far as the cost model knows."""
    schedule_s: float
    """What the planner's own schedule takes in the cost model."""
    pace: float = 1.0
    """How many times as long as calibrated the engines are taken to need, from the app's last run."""

    @property
    def factor(self) -> float:
        """How many times as many rows there are as were simulated."""
        return self.rows / max(self.simulation.rows, 1)

    @property
    def gpu_hours(self) -> float:
        """See `Fleet.gpu_hours`."""
        return self.fleet.gpu_hours(self.makespan_s)

    def of(self, operator: str) -> list[StepForecast]:
        """The operator's steps that are expected to be called."""
        return [step for step in self.simulation.steps if step.operator == operator and step.calls]

    def cost_shares(self) -> dict[str, float]:
        """Operator -> share of the engines' work that its calls are expected to be."""
        curve = self.fleet.groups[0].curve
        steps = sum(engine.steps for engine in self.simulation.engines)
        generated = sum(step.generated_tokens for step in self.simulation.steps)
        batch = max(generated / steps, 1.0) if steps else 1.0
        work: dict[str, float] = {}
        for step in self.simulation.steps:
            computed = step.prompt_tokens - step.cached_tokens
            seconds = computed * curve.prefill_token_s + step.generated_tokens * curve.decode_step_s(batch) / batch
            work[step.operator] = work.get(step.operator, 0.0) + seconds
        total = sum(work.values())
        return {name: seconds / total for name, seconds in work.items()} if total else {}


def predict(app: str, rows: RowSet, *, catalog: Catalog | None = None, pool: EnginePool | None = None) -> Prediction:
    """The expected course of `rows` through the app with fingerprint `app`, on the pool's engines. Starts nothing.

    `catalog` stands for what is remembered of the app. Raises `HaloError` that says what is not known.
    """
    measured = catalog or catalogs.measured(app)
    if measured is None:
        raise HaloError("nothing is known of this app's calls before its first run, whose first rows are its profile")
    catalog = catalog or repriced(measured)
    calibrated = fleet_of(pool or get_pool(), [step.model for step in catalog.steps])
    pace = _pace(calibrated, measured)
    fleet = calibrated.scaled(pace)
    per_row = sum(step.frequency for step in catalog.steps)
    part = max(int(MAX_CALLS / max(per_row, 1.0)), 2)
    planned = _planned(catalog, rows, fleet)
    bounds = planned.schedule.lower_bound_s, planned.schedule.makespan_s
    if part >= len(rows):
        whole = simulate(catalog, rows, fleet)
        return Prediction(catalog, fleet, len(rows), whole, whole.makespan_s, *bounds, pace)
    simulation, half = (simulate(catalog, _first(rows, count), fleet) for count in (part, part // 2))
    rate = (simulation.makespan_s - half.makespan_s) / (part - part // 2)
    makespan_s = simulation.makespan_s + (len(rows) - part) * rate
    return Prediction(catalog, fleet, len(rows), simulation, makespan_s, *bounds, pace)


def _planned(catalog: Catalog, rows: RowSet, fleet: Fleet) -> PlannedBatch:
    """The scheduler's answer for the batch."""
    workers = [
        Worker(f"{group.model}#{i}", {group.model: group.curve}, group.model, group.slots, group.kv_tokens)
        for group in fleet.groups
        for i in range(group.engines)
    ]
    values: dict[str, set[str]] = {}
    for fields in rows.fields:
        for path, value in fields.items():
            values.setdefault(path, set()).add(value)
    different = {path: len(found) for path, found in values.items()}
    distinct = len(set(rows.contents))
    return plan_batch(catalog, len(rows), distinct, workers, budget_s=PLAN_BUDGET_S, values=different)


def _pace(fleet: Fleet, catalog: Catalog) -> float:
    """How much slower than calibrated engines are: half-way (geometrically) to what the app's last run tells.

    Machines drift, and an app's own code takes part of them; but one run tells no more than one calibration. 1 where
    that run did not keep the engines busy, or was too far from what was calibrated to trust.
    """
    last = catalog.last
    if last is None:
        return 1.0
    again = simulate(catalog, RowSet(last.contents, last.fields), fleet)
    pace = last.wall_s / again.makespan_s if again.makespan_s else 1.0
    if again.busy_share < BUSY or not 1 / FURTHEST <= pace <= FURTHEST:
        return 1.0
    return sqrt(pace)


def _first(rows: RowSet, count: int) -> RowSet:
    """So many rows that stand for all: every n-th, so that repetitions are as frequent as in the whole."""
    step = len(rows) / count
    chosen = [int(i * step) for i in range(count)]
    return RowSet([rows.contents[i] for i in chosen], [rows.fields[i] for i in chosen if i < len(rows.fields)])


# -- as text -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True, frozen=True)
class OperatorPrediction:
    """What one operator's calls are expected to be."""

    calls: int = 0
    executed: int = 0
    """Calls that engines compute, as are all tokens here."""
    prompt_tokens: int = 0
    computed_tokens: int = 0
    """Of the prompt tokens, those that no prefix cache has."""
    generated_tokens: int = 0
    cached_share: float = 0.0
    """Of the prompt tokens, found in prefix caches."""
    ceiling_share: float = 0.0
    """Of the prompt tokens: what one engine with an endless cache would have had."""
    engines: tuple[str, ...] = ()
    start_s: float = 0.0
    end_s: float = 0.0
    mean_s: float = 0.0
    """From asking to the answer."""
    cost_share: float = 0.0
    """Of the engines' work."""


def operators(prediction: Prediction) -> dict[str, OperatorPrediction]:
    """Operator -> its prediction, for those that call models."""
    shares = prediction.cost_shares()
    stretch = prediction.makespan_s / (prediction.simulation.makespan_s or 1.0)
    found: dict[str, OperatorPrediction] = {}
    for name in dict.fromkeys(step.operator for step in prediction.catalog.steps):
        steps = prediction.of(name)
        if not steps:
            continue
        calls = sum(step.calls for step in steps)
        prompt, cached = sum(step.prompt_tokens for step in steps), sum(step.cached_tokens for step in steps)
        found[name] = OperatorPrediction(
            calls=round(calls * prediction.factor),
            executed=round(sum(step.executed for step in steps) * prediction.factor),
            prompt_tokens=round(prompt * prediction.factor),
            computed_tokens=round((prompt - cached) * prediction.factor),
            generated_tokens=round(sum(step.generated_tokens for step in steps) * prediction.factor),
            cached_share=cached / prompt if prompt else 0.0,
            ceiling_share=sum(step.ceiling_tokens for step in steps) / prompt if prompt else 0.0,
            engines=tuple(sorted({engine for step in steps for engine in step.engines})),
            start_s=min(step.first_s for step in steps),
            end_s=max(step.last_s for step in steps) * stretch,
            mean_s=sum(step.mean_s * step.calls for step in steps) / calls,
            cost_share=shares.get(name, 0.0),
        )
    return found


def cells(predicted: OperatorPrediction) -> Cells:
    """The operator's cells under `HEADERS`."""
    numbers = [f"#{name.rpartition('#')[2]}" for name in predicted.engines]
    return (
        predicted.prompt_tokens,
        predicted.generated_tokens,
        f"{100 * predicted.cached_share:.0f} %",
        f"{100 * predicted.ceiling_share:.0f} %",
        ",".join(numbers) if len(numbers) <= 3 else f"{len(numbers)} engines",
        f"{predicted.start_s:.1f}",
        f"{predicted.end_s:.1f}",
        f"{100 * predicted.cost_share:.0f} %",
    )


def summary(prediction: Prediction, cost_per_gpu_hour: float | None = None) -> list[str]:
    """The prediction in words."""
    simulation = prediction.simulation
    lines = [
        f"predicted: {prediction.makespan_s:.1f} s on {_count(prediction.fleet.engines, 'engine')}, which are busy "
        f"{100 * simulation.busy_share:.0f} % of it; {round(simulation.calls * prediction.factor):,} calls, "
        f"{round(simulation.executed * prediction.factor):,} to make",
        f"  from {_count(prediction.catalog.rows, 'row')} of earlier runs, the last of {prediction.catalog.learnt_at}, "
        "and the engines' calibration" + _set_right(prediction) + _part(prediction),
    ]
    lines.append(
        f"  in the cost model the planner's schedule takes {prediction.schedule_s:.1f} s, and none takes less than "
        f"{prediction.bound_s:.1f} s (gap {_gap(prediction)})"
    )
    lines += [*_moves(prediction), *_queries(prediction)]
    if cost_per_gpu_hour is not None:
        money = prediction.gpu_hours * cost_per_gpu_hour
        lines.append(
            f"  costs {money:,.4f} at {cost_per_gpu_hour:g} per GPU hour: {prediction.gpu_hours:.4f} GPU hours, "
            f"{money / max(prediction.rows, 1):,.6f} a row"
        )
    return lines


def _set_right(prediction: Prediction) -> str:
    factor = f"{prediction.pace:.2f}"
    return f", whose times the last run stretches by {factor}" if factor != "1.00" else ""


def _moves(prediction: Prediction) -> list[str]:
    """What is expected to come out of the block store, and what that saves."""
    lines = []
    for group in prediction.fleet.groups:
        steps = [step for step in prediction.simulation.steps if step.model == group.model]
        moved = sum(step.moved_tokens for step in steps) * prediction.factor
        copy_s = group.curve.kv_copy_s(moved)
        if not moved:
            continue
        copied = f"{copy_s:.2f} s of copying in place of" if copy_s is not None else "in place of"
        compute_s = moved * group.curve.prefill_token_s
        lines.append(f"  {moved:,.0f} prompt tokens come out of the KV store: {copied} {compute_s:.1f} s of computing")
    return lines


def _queries(prediction: Prediction) -> list[str]:
    """What queries of databases take, by the databases' own EXPLAIN where they were asked again."""
    return [
        f"  queries of {name}: {1000 * tool.mean_s:.3g} ms each, {_grown(tool.price.now)}"
        for name, tool in prediction.catalog.tools.items()
        if tool.price is not None
    ]


def _grown(times: float | None) -> str:
    if times is None:
        return "as they took; the database was not asked again"
    return ("as they took" if times == 1.0 else f"{times:.2g} times what they took") + ", by its EXPLAIN"


def _gap(prediction: Prediction) -> str:
    return f"{100 * (prediction.schedule_s / prediction.bound_s - 1):.1f} %" if prediction.bound_s else "unknown"


def _part(prediction: Prediction) -> str:
    simulated = prediction.simulation.rows
    return f"; {simulated:,} rows were simulated, the others are in proportion" if simulated < prediction.rows else ""


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def document(prediction: Prediction, cost_per_gpu_hour: float | None = None) -> dict[str, Any]:
    """The prediction as plain data, without the operators."""
    hours = prediction.gpu_hours
    return {
        "makespan_s": prediction.makespan_s,
        "schedule_s": prediction.schedule_s,
        "lower_bound_s": prediction.bound_s,
        "engines": prediction.fleet.engines,
        "busy_share": prediction.simulation.busy_share,
        "rows_learnt_from": prediction.catalog.rows,
        "learnt_at": prediction.catalog.learnt_at,
        "rows_simulated": prediction.simulation.rows,
        "pace": prediction.pace,
        "queries": {
            name: {"mean_s": tool.mean_s, "grown": tool.price.now}
            for name, tool in prediction.catalog.tools.items()
            if tool.price is not None
        },
        "gpu_hours": hours,
        "cost": None if cost_per_gpu_hour is None else hours * cost_per_gpu_hour,
    }
