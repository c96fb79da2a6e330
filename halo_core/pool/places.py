"""Places: where engines can be loaded when the pool serves more models than the machine holds at once."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from halo_core.errors import ConfigError, EngineStartError, HaloError
from halo_core.pool.config import EndpointSpec, PoolConfig, SimulatedSpec, VLLMSpec
from halo_core.pool.engine import Engine
from halo_core.pool.loop import now_s

if TYPE_CHECKING:
    from halo_core.pool.pool import EngineGroup

logger = logging.getLogger(__name__)

Loadable = VLLMSpec | SimulatedSpec


@dataclass(slots=True, eq=False)
class Place:
    """One share of the machine, and the engine that has it."""

    index: int
    engine: Engine | None = None
    """None while nothing is loaded."""
    loading: str = ""
    """The model that it is being given; empty when it stands."""
    loads: list[str] = field(default_factory=list)
    """Models in the order in which they came up here."""
    switches: int = 0
    """How often a model had to make room for another."""
    since_s: float = 0.0
    """When its model came up, by the loop's time."""
    switch_s: float = 0.0
    """Seconds of all loading, from the end of the last call of the model before."""
    drained: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the last call under way has left the engine."""

    @property
    def model(self) -> str:
        """The model that it has loaded; empty for none, or where the engine is gone."""
        return self.engine.model if self.engine is not None and self.engine.health.state == "ready" else ""


class Places:
    """The places of one pool. Used on the pool's loop only, but for its construction."""

    def __init__(
        self,
        config: PoolConfig,
        groups: Mapping[str, EngineGroup],
        changed: Callable[[EngineGroup, HaloError | None], None],
    ) -> None:
        """`changed` is told when engines of a group came up, or why they did not. Raises `ConfigError`."""
        count = config.places or 0
        self.specs: dict[str, Loadable] = {
            spec.model: spec for spec in config.engines if not isinstance(spec, EndpointSpec)
        }
        self.build: Callable[[Loadable, int], Awaitable[Engine]] = self._build
        """Makes the engine of a model on a place, not started; simulations and tests put their own here."""
        self.wanted: Counter[str] = Counter()
        """Models that somebody waits for without a call (`EnginePool.start`)."""
        self.on_change: Callable[[], None] | None = None
        """Set by whoever decides what is loaded: something is wanted, or a place stands again. Without it, what is
        wanted is loaded at once."""
        self.all = [Place(index) for index in range(count)]
        self.load_s: dict[str, float] = {}
        """Model -> seconds of its last switch."""
        self._groups = groups
        self._changed = changed
        self._retries = config.restarts
        self._failures: dict[str, tuple[int, HaloError]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        if any(isinstance(spec, VLLMSpec) for spec in self.specs.values()):
            check_room(count)

    # -- what is where -------------------------------------------------------------------------------------------

    def serves(self, model: str) -> bool:
        """Whether `model` is loaded on places; a server that somebody else runs is not."""
        return model in self.specs

    def coming(self, model: str) -> bool:
        """Whether `model` is loaded somewhere, being loaded, or being started again."""
        return any(place.loading == model or self.standing(place) == model for place in self.all)

    def standing(self, place: Place) -> str:
        """The model that a place has or will have again by itself; empty for none."""
        if place.loading or place.engine is None:
            return ""
        restarting = self._group(place.engine).restarts.get(place.engine.name, 0) < 0
        return place.engine.model if restarting else place.model

    def idle(self, place: Place) -> bool:
        """Whether the place is not being changed and no call is under way on it."""
        if place.loading:
            return False
        if place.engine is None:
            return True
        group = self._group(place.engine)
        return group.restarts.get(place.engine.name, 0) >= 0 and not group.under_way[place.engine.name]

    def failure(self, model: str) -> HaloError | None:
        """Why `model` is not tried again; None where it may be loaded."""
        times, error = self._failures.get(model, (0, None))
        return error if times > self._retries else None

    @property
    def switches(self) -> int:
        """How often a model had to make room for another."""
        return sum(place.switches for place in self.all)

    # -- changing it ---------------------------------------------------------------------------------------------

    async def bring(self, model: str) -> None:
        """Return when `model` is loaded. Raises `EngineError` where it does not come up."""
        group = self._groups[model]
        self.wanted[model] += 1
        try:
            while not group.ready:
                if self.on_change is not None:
                    self.on_change()
                    await self._news(group)
                elif self.coming(model):
                    await self._news(group)
                elif free := [place for place in self.all if not place.loading]:
                    place = min(free, key=lambda p: (not self.idle(p), p.engine is not None, p.since_s))
                    await asyncio.shield(self.switch(place, model))
                else:
                    await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.wanted[model] -= 1

    async def _news(self, group: EngineGroup) -> None:
        """Return when engines of `group` came up. Raises why they did not."""
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def tell(failure: HaloError | None) -> None:
            if told.done():
                return
            if failure is None:
                told.set_result(None)
            else:
                told.set_exception(failure)

        group.on_change.append(tell)
        try:
            await told
        finally:
            group.on_change.remove(tell)

    def switch(self, place: Place, model: str) -> asyncio.Task[None]:
        """Load `model` on `place` instead of what is there, as soon as no call is under way there.

        Calls that wait for the old model are not sent to the place any more. Where the new one does not come up, its
        waiting calls fail and the old one is loaded again; the task raises what the engine's start raised.
        """
        if place.loading:
            raise EngineStartError(f"place {place.index} is being given to {place.loading!r} already")
        before = place.model
        place.loading = model
        if place.engine is not None:
            self._group(place.engine).leaving.add(place.engine.name)
        task = asyncio.ensure_future(self._switch(place, model, before))
        self._tasks.add(task)
        task.add_done_callback(self._switched)
        return task

    def _switched(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, HaloError):
            logger.error("the switch of a place failed", exc_info=error)

    async def _switch(self, place: Place, model: str, before: str) -> None:
        old = place.engine
        try:
            if old is not None:
                await self._drained(place, old)
            began_s = now_s()
            try:
                if old is not None:
                    logger.info("place %d: %s makes room for %s", place.index, old.model, model)
                    place.engine = None
                    await old.close()
                await self._load(place, model)
                self.load_s[model] = now_s() - began_s
                place.switches += bool(before)
            except HaloError as error:
                self._fail(model, error)
                if before and not self._closed:
                    place.loading = before
                    await self._reload(place, before)
                raise
            finally:
                place.switch_s += now_s() - began_s
        finally:
            place.loading = ""
            if self.on_change is not None:
                self.on_change()
        self._changed(self._groups[model], None)

    async def _drained(self, place: Place, engine: Engine) -> None:
        """Wait until no call is under way on `engine`."""
        while self._group(engine).under_way[engine.name]:
            place.drained.clear()
            await place.drained.wait()

    async def _load(self, place: Place, model: str) -> None:
        if self._closed:
            raise EngineStartError(f"the pool was closed before {model!r} was loaded")
        group = self._groups[model]
        try:
            engine = await self.build(self.specs[model], place.index)
        except HaloError:
            raise
        except Exception as error:
            raise EngineStartError(f"an engine of {model!r} could not be made: {error!r}") from error
        known = next((other for other in group.engines if other.name == engine.name), None)
        if known is not None:  # the same model on the same place, earlier
            engine.counters = known.counters
            group.engines[group.engines.index(known)] = engine
        else:
            group.engines.append(engine)
        group.restarts.pop(engine.name, None)
        place.engine = engine
        try:
            await engine.start()
        except Exception as error:
            place.engine = None
            await engine.close()
            if isinstance(error, HaloError):
                raise
            raise EngineStartError(f"{engine.name} did not start: {error!r}") from error
        group.leaving.discard(engine.name)
        place.loads.append(model)
        place.since_s = now_s()
        self._failures.pop(model, None)

    def _fail(self, model: str, error: HaloError) -> None:
        """`model` did not come up: its calls fail, unless another place has it."""
        logger.error("model %s did not come up: %s", model, error)
        times, _ = self._failures.get(model, (0, error))
        self._failures[model] = times + 1, error
        if not self._groups[model].ready and sum(place.loading == model for place in self.all) <= 1:
            self._changed(self._groups[model], error)

    def refuse(self, model: str, error: HaloError) -> None:
        """Fail the calls that wait for a model that does not come up."""
        self._changed(self._groups[model], error)

    async def _reload(self, place: Place, model: str) -> None:
        try:
            await self._load(place, model)
        except HaloError as error:
            self._fail(model, error)
        else:
            place.loading = ""
            self._changed(self._groups[model], None)

    def ended(self, engine: Engine) -> None:
        """The last call that was under way on `engine` has left it."""
        for place in self.all:
            if place.engine is engine:
                place.drained.set()
        if self.on_change is not None:
            self.on_change()

    def close(self) -> None:
        """Nothing is loaded from now on; the pool closes the engines, also those that are coming up."""
        self._closed = True
        for task in self._tasks:
            task.cancel()

    def _group(self, engine: Engine) -> EngineGroup:
        return self._groups[engine.model]

    async def _build(self, spec: Loadable, index: int) -> Engine:
        if isinstance(spec, SimulatedSpec):
            from halo_core.pool.pool import build_engines

            (engine,) = await build_engines(spec)
            engine.name = f"{spec.model}#{index}"
            return engine
        from halo_core.pool.layout import build_placed_engine

        return build_placed_engine(spec, index, len(self.all))


def check_room(count: int) -> None:
    """Raises `ConfigError` where this machine cannot give each of so many places a GPU, or a core, of its own."""
    from halo_core.pool.machine import machine

    hardware = machine()
    units, noun = (len(hardware.gpus), "GPUs") if hardware.gpus else (hardware.core_count, "CPU cores")
    if count > units:
        raise ConfigError(
            f"places = {count}, but this process may use {units} {noun}: every place needs one of its own"
        )
