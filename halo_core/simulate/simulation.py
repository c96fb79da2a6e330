"""Running a simulation, and what it tells."""

from __future__ import annotations

import asyncio
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from halo_core.errors import PlanError
from halo_core.runtime import Executor
from halo_core.simulate.fleet import Fleet
from halo_core.simulate.workflow import Asked, RowSet, SeenBlocks, SimulatedRow
from halo_core.stats import Catalog

ROWS_AT_A_TIME = 256
"""At least; as many as the engines decode calls at once, where that is more."""


@dataclass(slots=True, frozen=True)
class StepForecast:
    """What one step's calls are expected to take."""

    name: str
    operator: str
    model: str
    calls: int
    executed: int
    """Calls that engines compute; the others are answered by equal ones."""
    first_s: float
    """When the first row asks, seconds from the begin."""
    last_s: float
    """When the last row is answered."""
    mean_s: float
    """From asking to the answer, mean."""
    prompt_tokens: int
    """Of executed calls, as are the following."""
    cached_tokens: int
    moved_tokens: int
    """Of the cached ones: taken from the store that the engines share."""
    ceiling_tokens: int
    """Of the prompt tokens: what one engine with an endless cache would have had."""
    generated_tokens: int
    engines: tuple[str, ...]
    """Those that answered, the busiest first."""


@dataclass(slots=True, frozen=True)
class EngineForecast:
    """What one engine is expected to do."""

    name: str
    busy_s: float
    """In steps."""
    steps: int
    calls: int
    preemptions: int


@dataclass(slots=True, frozen=True)
class Simulation:
    """A batch that was run in virtual time."""

    rows: int
    makespan_s: float
    """From the first row's begin to the last row's end."""
    steps: tuple[StepForecast, ...]
    engines: tuple[EngineForecast, ...]
    warmups: int = 0

    @property
    def calls(self) -> int:
        """Calls that the rows make."""
        return sum(step.calls for step in self.steps)

    @property
    def executed(self) -> int:
        """Calls that engines compute."""
        return sum(step.executed for step in self.steps)

    @property
    def busy_share(self) -> float:
        """Share of the makespan that engines work, mean."""
        if not self.engines or not self.makespan_s:
            return 0.0
        return statistics.fmean(engine.busy_s for engine in self.engines) / self.makespan_s


def simulate(catalog: Catalog, rows: RowSet, fleet: Fleet, *, on_row: Callable[[], None] | None = None) -> Simulation:
    """Run `rows` of the app that `catalog` describes on `fleet`, in virtual time.

    The scheduler is the runtime's own; only the engines, the app's code and the tools are simulated. `on_row` is called
    (on another thread) when a row has ended. Raises `PlanError` where a step's model has no engine.
    """
    if missing := {step.model for step in catalog.steps} - {group.model for group in fleet.groups}:
        raise PlanError(
            f"the simulated engines serve no model {', '.join(sorted(missing))}, which the app calls; they serve: "
            f"{', '.join(sorted(group.model for group in fleet.groups))}"
        )
    pool = fleet.pool()
    try:
        executor = Executor(pool)
        return pool.thread.run(_drive(executor, catalog, rows, on_row or (lambda: None)))
    finally:
        pool.close()


async def _drive(executor: Executor, catalog: Catalog, rows: RowSet, on_row: Callable[[], None]) -> Simulation:
    loop = asyncio.get_running_loop()
    for group in {step.model for step in catalog.steps}:
        await executor.pool.start(group)
    batch = executor.open_batch("simulation", known=catalog)
    executor.foresee(batch, len(rows), lambda: len(set(rows.contents)))
    begun_s = loop.time()
    ended: list[float] = []
    asked: list[Asked] = []
    blocks = min((engine.capacity.block_size for engine in executor.pool.engines()), default=16)
    waiting = _rows(catalog, rows, SeenBlocks(blocks))

    async def work() -> None:
        for row in waiting:
            run = executor.begin(batch, rows.contents[row.index])
            await executor.admitted(run)
            await row.run(executor, run)
            executor.end(run)
            ended.append(loop.time() - begun_s)
            asked.extend(row.asked)
            on_row()

    at_a_time = max(ROWS_AT_A_TIME, sum(engine.capacity.slots for engine in executor.pool.engines()))
    await asyncio.gather(*(work() for _ in range(min(len(rows), at_a_time))))
    executor.close_batch(batch)
    return Simulation(
        len(rows),
        max(ended, default=0.0),
        _steps(catalog, asked, begun_s),
        _engines(executor),
        executor.warmups()[0],
    )


def _rows(catalog: Catalog, rows: RowSet, seen: SeenBlocks) -> Iterator[SimulatedRow]:
    for index, number in enumerate(rows.numbers()):
        yield SimulatedRow(catalog, index, number, rows.fields[index] if index < len(rows.fields) else {}, seen)


def _steps(catalog: Catalog, asked: list[Asked], begun_s: float) -> tuple[StepForecast, ...]:
    by_step: dict[str, list[Asked]] = defaultdict(list)
    for one in asked:
        by_step[one.step.name].append(one)
    found = []
    for step in catalog.steps:
        calls = by_step.get(step.name, [])
        # A call that another answered has the very completion of that one.
        latest_first = sorted(calls, key=lambda one: -one.asked_s)
        computed = list({id(one.completion): one for one in latest_first}.values())
        places = Counter(one.completion.engine for one in computed)
        found.append(
            StepForecast(
                step.name,
                step.operator,
                step.model,
                len(calls),
                len(computed),
                min((one.asked_s for one in calls), default=begun_s) - begun_s,
                max((one.answered_s for one in calls), default=begun_s) - begun_s,
                statistics.fmean(one.answered_s - one.asked_s for one in calls) if calls else 0.0,
                sum(one.completion.usage.prompt_tokens for one in computed),
                sum(one.completion.usage.cached_tokens for one in computed),
                sum(one.completion.usage.moved_tokens for one in computed),
                sum(one.repeated_tokens for one in computed),
                sum(one.completion.usage.generated_tokens for one in computed),
                tuple(name for name, _ in places.most_common()),
            )
        )
    return tuple(found)


def _engines(executor: Executor) -> tuple[EngineForecast, ...]:
    return tuple(
        EngineForecast(
            engine.name,
            engine.counters.extra.get("busy_s", 0.0),
            int(engine.counters.extra.get("steps", 0)),
            engine.counters.calls,
            int(engine.counters.extra.get("preemptions", 0)),
        )
        for engine in executor.pool.engines()
    )
