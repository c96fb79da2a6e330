"""More models than places, in virtual time: pools whose engines take long to load, rows that are DAGs, least loads."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from halo_core.errors import EngineStartError
from halo_core.optimize.switching import Phase, SwitchPlan
from halo_core.pool import EnginePool, LLMCall, PoolConfig, SimulatedSpec
from halo_core.pool.loop import LoopThread
from halo_core.pool.places import Places
from halo_core.pool.simulated import SimulatedEngine
from halo_core.pool.virtual_loop import VirtualLoop
from halo_core.runtime import Executor
from tests.runtime.scripted import text_of

LOAD_S = 20.0


class Loading(SimulatedEngine):
    """A simulated engine that takes `LOAD_S` to come up."""

    alive = 0
    most_alive = 0
    broken: frozenset[str] = frozenset()

    async def start(self) -> None:
        if self.model in self.broken:
            raise EngineStartError(f"{self.model} has no weights")
        Loading.alive += 1
        Loading.most_alive = max(Loading.most_alive, Loading.alive)
        try:
            await asyncio.sleep(LOAD_S)
            await super().start()
        except BaseException:
            Loading.alive -= 1
            raise

    async def close(self) -> None:
        if self.health.state in ("ready", "dead"):
            Loading.alive -= 1
        await super().close()


def placed_pool(
    models: str, places: int, build: Callable[[str, int], SimulatedEngine] | None = None, restarts: int = 3
) -> tuple[EnginePool, Places]:
    """A pool in virtual time with one model per letter; nothing is loaded."""
    Loading.alive = Loading.most_alive = 0
    Loading.broken = frozenset()
    specs = tuple(SimulatedSpec(model=model) for model in models)
    pool = EnginePool(PoolConfig(engines=specs, places=places, restarts=restarts))
    pool.thread.close()
    pool.thread = LoopThread("halo-virtual", VirtualLoop())
    assert pool.places is not None

    async def make(spec: object, index: int) -> SimulatedEngine:
        assert isinstance(spec, SimulatedSpec)
        return (build or _loading)(spec.model, index)

    pool.places.build = make
    return pool, pool.places


def _loading(model: str, index: int) -> SimulatedEngine:
    return Loading(f"{model}#{index}", model)


@dataclass(frozen=True)
class Step:
    """One call of every row."""

    name: str
    model: str
    after: tuple[str, ...] = ()
    tool_s: float = 0.0
    """Before the call."""


def chain(models: str) -> list[Step]:
    """A step per letter, each after the one before; they are named s0, s1, ..."""
    return [Step(f"s{i}", model, (f"s{i - 1}",) if i else ()) for i, model in enumerate(models)]


@dataclass
class Batched:
    """What became of a batch of equal rows."""

    answers: list[dict[str, str]] = field(default_factory=list)
    seconds: float = 0.0


def run_rows(executor: Executor, steps: Sequence[Step], rows: int, *, limit: int | None = None) -> Batched:
    """Run the rows side by side on the pool's loop, as a framework would."""
    done = Batched()

    async def row(n: int, batch: object) -> dict[str, str]:
        run = executor.begin(batch, str(n))  # type: ignore[arg-type]
        await executor.admitted(run, limit)
        said: dict[str, asyncio.Task[str]] = {}

        async def step(one: Step) -> str:
            before = [await said[name] for name in one.after]
            if one.tool_s:
                await asyncio.sleep(one.tool_s)
            text = f"row {n} {one.name}: {' | '.join(before)}"
            body = {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 8}
            completion = await executor.call(run, LLMCall(one.model, body, origin=run.origin(one.name)))
            return text_of(completion)

        for one in steps:
            said[one.name] = asyncio.ensure_future(step(one))
        outcomes = await asyncio.gather(*said.values(), return_exceptions=True)
        failed = any(isinstance(outcome, BaseException) for outcome in outcomes)
        executor.end(run, failed=failed)
        return {name: o if isinstance(o, str) else repr(o) for name, o in zip(said, outcomes, strict=True)}

    async def main() -> None:
        began_s = asyncio.get_running_loop().time()
        batch = executor.open_batch("rows")
        async with asyncio.timeout(1e6):
            done.answers = await asyncio.gather(*(row(n, batch) for n in range(rows)))
        done.seconds = asyncio.get_running_loop().time() - began_s

    executor.pool.thread.run(main(), timeout_s=120)
    return done


def plain(steps: Sequence[Step], rows: int) -> list[dict[str, str]]:
    """What the rows say where every model has an engine of its own."""
    specs = tuple(SimulatedSpec(model=model) for model in sorted({step.model for step in steps}))
    pool = EnginePool(PoolConfig(engines=specs))
    try:
        return run_rows(Executor(pool), [Step(s.name, s.model, s.after) for s in steps], rows).answers
    finally:
        pool.close()


def fewest_loads(steps: Sequence[Step], places: int, rows: int) -> SwitchPlan:
    """The plan with the fewest loads of all orders, places empty at first: uniform-cost search over (done, loaded)."""
    models = sorted({step.model for step in steps})
    serial = itertools.count()
    start = (frozenset[str](), ("",) * places)
    queue: list[tuple[int, int, int, frozenset[str], tuple[str, ...], tuple[tuple[int, str], ...]]] = []
    heapq.heappush(queue, (0, 0, next(serial), *start, ()))
    seen: set[tuple[frozenset[str], tuple[str, ...]]] = set()
    while True:
        loads, _, _, done, loaded, path = heapq.heappop(queue)
        if len(done) == len(steps):
            return _plan(steps, places, rows, path)
        if (done, loaded) in seen:
            continue
        seen.add((done, loaded))
        for place in range(places):
            for model in models:
                now = (*loaded[:place], model, *loaded[place + 1 :])
                after = _served(steps, done, now)
                way = (*path, (place, model))
                most = max(Counter(at for at, _ in way).values())  # of equal plans one that uses all places
                heapq.heappush(queue, (loads + 1, most, next(serial), after, now, way))


def _served(steps: Sequence[Step], done: frozenset[str], loaded: Sequence[str]) -> frozenset[str]:
    while more := {s.name for s in steps if s.model in loaded and done.issuperset(s.after)} - done:
        done |= more
    return done


def _plan(steps: Sequence[Step], places: int, rows: int, path: Sequence[tuple[int, str]]) -> SwitchPlan:
    phases: list[list[tuple[str, set[str]]]] = [[] for _ in range(places)]
    loaded = [""] * places
    done: frozenset[str] = frozenset()
    by_name: Mapping[str, Step] = {step.name: step for step in steps}
    for place, model in path:
        loaded[place] = model
        phases[place].append((model, set()))
        after = _served(steps, done, loaded)
        for name in after - done:
            where = next(p for p in range(places) if loaded[p] == by_name[name].model)
            phases[where][-1][1].add(name)
        done = after
    return SwitchPlan([[Phase(model, frozenset(names), rows * len(names)) for model, names in one] for one in phases])
