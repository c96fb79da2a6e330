"""What a batch is expected to take before it runs: the catalog's rows, simulated on engines as fast as calibrated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from halo_core.errors import HaloError
from halo_core.explain.tables import Cells
from halo_core.pool import EnginePool, get_pool
from halo_core.runtime import catalogs
from halo_core.simulate import Fleet, RowSet, Simulation, StepForecast, fleet_of, simulate
from halo_core.stats import Catalog

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

    @property
    def factor(self) -> float:
        """How many times as many rows there are as were simulated."""
        return self.rows / max(self.simulation.rows, 1)

    @property
    def gpu_hours(self) -> float:
        """Hours of engines, each taken to hold one GPU."""
        return self.fleet.engines * self.makespan_s / 3600

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
    catalog = catalog or catalogs.known(app)
    if catalog is None:
        raise HaloError("nothing is known of this app's calls before its first run, whose first rows are its profile")
    fleet = _set_right(fleet_of(pool or get_pool(), [step.model for step in catalog.steps]), catalog)
    per_row = sum(step.frequency for step in catalog.steps)
    part = max(int(MAX_CALLS / max(per_row, 1.0)), 2)
    if part >= len(rows):
        whole = simulate(catalog, rows, fleet)
        return Prediction(catalog, fleet, len(rows), whole, whole.makespan_s)
    simulation, half = (simulate(catalog, _first(rows, count), fleet) for count in (part, part // 2))
    rate = (simulation.makespan_s - half.makespan_s) / (part - part // 2)
    return Prediction(catalog, fleet, len(rows), simulation, simulation.makespan_s + (len(rows) - part) * rate)


def _set_right(fleet: Fleet, catalog: Catalog) -> Fleet:
    """The engines as fast as they were in the app's last run: machines drift, and its own code takes part of them.

    Nothing is changed where that run did not keep the engines busy, or was too far from what was calibrated to trust.
    """
    last = catalog.last
    if last is None:
        return fleet
    again = simulate(catalog, RowSet(last.contents, last.fields), fleet)
    pace = last.wall_s / again.makespan_s if again.makespan_s else 1.0
    if again.busy_share < BUSY or not 1 / FURTHEST <= pace <= FURTHEST:
        return fleet
    return fleet.scaled(pace)


def _first(rows: RowSet, count: int) -> RowSet:
    """So many rows that stand for all: every n-th, so that repetitions are as frequent as in the whole."""
    step = len(rows) / count
    chosen = [int(i * step) for i in range(count)]
    return RowSet([rows.contents[i] for i in chosen], [rows.fields[i] for i in chosen if i < len(rows.fields)])


# -- as text -----------------------------------------------------------------------------------------------------------


def cells(prediction: Prediction, operators: Sequence[str]) -> Mapping[str, Cells]:
    """Operator -> its cells under `HEADERS`, for those that call models."""
    shares = prediction.cost_shares()
    found: dict[str, Cells] = {}
    for operator in operators:
        steps = prediction.of(operator)
        if not steps:
            continue
        prompt = sum(step.prompt_tokens for step in steps)
        engines = dict.fromkeys(name.rpartition("#")[2] for step in steps for name in step.engines)
        found[operator] = (
            round(prompt * prediction.factor),
            round(sum(step.generated_tokens for step in steps) * prediction.factor),
            _percent(sum(step.cached_tokens for step in steps), prompt),
            _percent(sum(step.ceiling_tokens for step in steps), prompt),
            ",".join(f"#{name}" for name in sorted(engines)) if len(engines) <= 3 else f"{len(engines)} engines",
            f"{min(step.first_s for step in steps):.1f}",
            f"{max(step.last_s for step in steps) * prediction.makespan_s / (_end_s(prediction) or 1.0):.1f}",
            f"{100 * shares.get(operator, 0.0):.0f} %",
        )
    return found


def _end_s(prediction: Prediction) -> float:
    return prediction.simulation.makespan_s


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "-"


def summary(prediction: Prediction, cost_per_gpu_hour: float | None = None) -> list[str]:
    """The prediction in words."""
    simulation = prediction.simulation
    lines = [
        f"predicted: {prediction.makespan_s:.1f} s on {_count(prediction.fleet.engines, 'engine')}, which are busy "
        f"{100 * simulation.busy_share:.0f} % of it; {round(simulation.calls * prediction.factor):,} calls, "
        f"{round(simulation.executed * prediction.factor):,} to make",
        f"  from {_count(prediction.catalog.rows, 'row')} of earlier runs, the last of {prediction.catalog.learnt_at}, "
        "and the engines' calibration" + _part(prediction),
    ]
    if cost_per_gpu_hour is not None:
        money = prediction.gpu_hours * cost_per_gpu_hour
        lines.append(
            f"  costs {money:,.4f} at {cost_per_gpu_hour:g} per GPU hour: {prediction.gpu_hours:.4f} GPU hours, "
            f"{money / max(prediction.rows, 1):,.6f} a row"
        )
    return lines


def _part(prediction: Prediction) -> str:
    simulated = prediction.simulation.rows
    return f"; {simulated:,} rows were simulated, the others are in proportion" if simulated < prediction.rows else ""


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" + ("" if n == 1 else "s")
