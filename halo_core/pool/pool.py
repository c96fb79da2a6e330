"""The pool: the engines of this process by model name, started lazily, restarted when they die, closed at exit."""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from halo_core.errors import EngineDiedError, EngineStartError, HaloError, UnknownModelError
from halo_core.kv import BlockStore
from halo_core.pool.config import EndpointSpec, EngineSpec, PoolConfig, SimulatedSpec, VLLMSpec
from halo_core.pool.engine import Engine
from halo_core.pool.loop import LoopThread
from halo_core.pool.places import Places
from halo_core.stats import EngineCurve

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class EngineGroup:
    """All engines that serve one model, interchangeable for every call."""

    model: str
    specs: list[EngineSpec] = field(default_factory=list)
    engines: list[Engine] = field(default_factory=list)
    """Filled when the group is started; order is placement order."""
    restarts: dict[str, int] = field(default_factory=dict)
    on_change: list[Callable[[HaloError | None], None]] = field(default_factory=list)
    """Called on the pool's loop when engines came up (with None), or when the last one was given up (with why)."""
    curve: EngineCurve | None = None
    """How fast each of the engines is while all of them work; None where nobody has measured it."""
    measuring: bool = False
    """The engines are up, but take no calls but the calibration's."""
    leaving: set[str] = field(default_factory=set)
    """Engines that make room for another model: they are given no more calls."""
    under_way: Counter[str] = field(default_factory=Counter)
    """Engine -> calls that it works on."""
    on_idle: Callable[[Engine], None] | None = None
    """Called when the last call under way has left an engine."""
    _starting: asyncio.Task[None] | None = None

    @property
    def ready(self) -> list[Engine]:
        """Engines that take calls now."""
        if self.measuring:
            return []
        return [e for e in self.engines if e.health.state == "ready" and e.name not in self.leaving]

    def begin(self, engine: Engine) -> None:
        """`engine` is sent a call."""
        self.under_way[engine.name] += 1

    def end(self, engine: Engine) -> None:
        """A call has left `engine`."""
        self.under_way[engine.name] -= 1
        if not self.under_way[engine.name] and self.on_idle is not None:
            self.on_idle(engine)


class EnginePool:
    """The engines of one process. Its engines live on the pool's own loop; the public methods work from any thread."""

    def __init__(self, config: PoolConfig | None = None, *, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """`loop`: to run on, in a thread of the pool's own; a simulation has one of virtual time."""
        self.config = config or PoolConfig()
        self.kv_moves = self.config.kv_moves
        """As configured, or as somebody who compares has set it since."""
        self._groups: dict[str, EngineGroup] = {}
        self._adopted: dict[str, list[tuple[str | None, tuple[tuple[str, str], ...]]]] = {}
        """Server -> the keys and headers with which apps have named it."""
        self._lock = threading.Lock()
        self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()
        self.on_close: list[Callable[[], None]] = []
        """Called on the pool's loop when all engines are closed: what still waits must be told."""
        for spec in self.config.engines:
            self._groups.setdefault(spec.model, EngineGroup(spec.model)).specs.append(spec)
        self.places: Places | None = None
        """Where engines are loaded when models take turns (`PoolConfig.places`)."""
        if self.config.places is not None:
            self.places = Places(self.config, self._groups, self._changed)
            for model in self.places.specs:
                self._groups[model].on_idle = self.places.ended
        self._store: BlockStore | None = None
        """Held open while models take turns, so that one finds its KV again when it is loaded once more."""
        self.thread = LoopThread(loop=loop)

    # -- names ---------------------------------------------------------------------------------------------------

    @property
    def models(self) -> list[str]:
        """Names of the served models."""
        return sorted(self._groups)

    def resolve(self, name: str) -> str | None:
        """The served model for the name that the app uses, or None where the pool has none."""
        mapped = self.config.models.get(name)
        if mapped is None and name in self._groups:
            return name
        if mapped is None:
            mapped = self.config.models.get("*")
        if mapped is not None and mapped not in self._groups:
            raise UnknownModelError(
                f"the name map sends model {name!r} to {mapped!r}, which no engine serves; served: {self._served()}"
            )
        return mapped

    def adopt(
        self, name: str, base_url: str, api_key: str | None, headers: Mapping[str, str] | None = None
    ) -> str | None:
        """Make the server that the app itself names an engine of the pool; returns its served name.

        Returns None where adopting is off. Adopting the same server twice is free. With another key or other headers
        it is another engine, whose name ends with `#2`, `#3`, ...: nobody's calls are made in another's name.
        """
        if not self.config.adopt or not base_url:
            return None
        server = f"{name}@{base_url.rstrip('/')}"
        who = api_key, tuple(sorted((headers or {}).items()))
        with self._lock:
            known = self._adopted.setdefault(server, [])
            if who not in known:
                known.append(who)
            number = known.index(who) + 1
            served = server if number == 1 else f"{server}#{number}"
            if served not in self._groups:
                from halo_core.pool.endpoint import EndpointEngine

                group = EngineGroup(served)
                group.engines.append(EndpointEngine(served, name, base_url, api_key=api_key, headers=headers))
                self._groups[served] = group
        return served

    def adopted(self, served: str) -> bool:
        """Whether it is a server that the app itself names."""
        return served.partition("#")[0] in self._adopted

    def route(
        self,
        name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[str | None, str | None]:
        """The served model for the app's model name and its own server (with its key and headers), or why not."""
        try:
            served = self.resolve(name)
        except UnknownModelError as error:
            return None, str(error)
        if served is None and base_url:
            served = self.adopt(name, base_url, api_key, headers)
        if served is None:
            return None, f"no engine serves model {name!r} (pool: {', '.join(self.models) or 'empty'})"
        return served, None

    def add(self, engine: Engine) -> None:
        """Add an engine that the caller made, under its own model name."""
        with self._lock:
            self._groups.setdefault(engine.model, EngineGroup(engine.model)).engines.append(engine)

    def group(self, model: str) -> EngineGroup:
        """The engines that serve `model`. Raises `UnknownModelError`."""
        try:
            return self._groups[model]
        except KeyError:
            raise UnknownModelError(
                f"no engine serves model {model!r}; served: {self._served()}. Add it to halo.toml, or map the name "
                f"with models={{{model!r}: ...}}"
            ) from None

    def _served(self) -> str:
        return ", ".join(self.models) or "nothing (the pool is empty)"

    # -- life ----------------------------------------------------------------------------------------------------

    async def start(self, model: str) -> EngineGroup:
        """Bring up the engines of `model` (on the pool's loop); returns when at least one takes calls.

        The first start of vLLM engines on a machine measures them, see `PoolConfig.calibrate`.
        Raises `UnknownModelError`, `EngineStartError`.
        """
        group = self.group(model)
        if group.ready:
            return group
        if (places := self.placed(model)) is not None:
            if self._store is None and (spec := places.specs[model]).kind == "vllm":
                self._store = hold_store(spec)
            await places.bring(model)
            return group
        if group._starting is None or group._starting.done():
            group._starting = asyncio.ensure_future(self._start(group))
        await asyncio.shield(group._starting)
        return group

    def placed(self, model: str) -> Places | None:
        """The places, where `model` takes turns on them with others."""
        return self.places if self.places is not None and self.places.serves(model) else None

    async def _start(self, group: EngineGroup) -> None:
        while group.specs:
            spec = group.specs.pop(0)
            try:
                group.engines.extend(await build_engines(spec))
            except BaseException:
                group.specs.insert(0, spec)
                raise
        outcomes = await asyncio.gather(*(engine.start() for engine in group.engines), return_exceptions=True)
        failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        for failure in failures:
            if not isinstance(failure, HaloError):
                raise failure
            logger.error("an engine of %s did not start: %s", group.model, failure)
        if not group.ready:
            raise failures[0] if failures else EngineStartError(f"model {group.model!r} has no engine")
        if group.curve is None and not failures:
            await self._find_curve(group)
        self._changed(group)

    async def _find_curve(self, group: EngineGroup) -> None:
        """Look up how fast the engines are, or measure it once, before they take the first call."""
        from halo_core.pool.calibrate import curve_of

        engines = group.ready
        group.measuring = True
        try:
            group.curve = await curve_of(engines, measure=self.config.calibrate)
        finally:
            group.measuring = False
        for engine in engines:
            if engine.health.state == "dead":  # of the probes, perhaps: the calls are not to pay for it
                self.report_dead(group, engine)

    async def count_tokens(self, model: str, body: Mapping[str, Any]) -> tuple[int | None, int]:
        """(tokens of a request's prompt, the model's context), both in tokens; None and 0 where no engine can tell.

        Runs on the pool's loop and starts the engines. Raises `UnknownModelError`, `EngineError`.
        """
        engine = (await self.start(model)).ready[0]
        return await engine.count_tokens(body), engine.capacity.max_model_len

    @property
    def closed(self) -> bool:
        """Whether it takes no more calls."""
        return self._closed

    def answered(self, group: EngineGroup, engine: Engine) -> None:
        """`engine` has answered a call, so its earlier deaths count no more."""
        if group.restarts.get(engine.name, 0) > 0:
            group.restarts[engine.name] = 0

    def revive(self, group: EngineGroup) -> None:
        """Start again what has died while it had no calls (on the pool's loop), unless it was given up."""
        for engine in group.engines:
            if (
                engine.health.state == "dead"
                and 0 <= group.restarts.get(engine.name, 0) < self.config.restarts
                and self.placed(group.model) is None
            ):
                self.report_dead(group, engine)

    def report_dead(self, group: EngineGroup, engine: Engine) -> None:
        """Start a dead engine again in the background (on the pool's loop); idempotent per death."""
        if self._closed or engine.name in group.leaving or group.restarts.get(engine.name, 0) < 0:
            return
        group.restarts[engine.name] = -1 - group.restarts.get(engine.name, 0)  # negative: a restart is under way
        task = asyncio.ensure_future(self._restart(group, engine))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _restart(self, group: EngineGroup, engine: Engine) -> None:
        done = -1 - group.restarts[engine.name]
        while done < self.config.restarts and not self._closed:
            done += 1
            logger.warning("engine %s died; starting it again (%d of %d)", engine.name, done, self.config.restarts)
            try:
                await engine.start()
            except Exception as error:  # whatever it is, its calls must not wait for ever
                known = isinstance(error, HaloError)
                logger.error("engine %s did not come back: %s", engine.name, error, exc_info=not known)
                await asyncio.sleep(min(0.2 * 2**done, 5.0))
                continue
            engine.counters.restarts += 1
            break
        group.restarts[engine.name] = done
        if engine.health.state == "ready":
            self._changed(group)
            return
        why = f"engine {engine.name} died and did not come back after {done} restarts: {engine.health.detail}"
        logger.error("%s", why)
        places = self.placed(group.model)
        if self.hopeless(group) if places is None else not places.coming(group.model):
            self._changed(group, EngineDiedError(f"{why}. No engine of model {group.model!r} is left"))

    def hopeless(self, group: EngineGroup) -> bool:
        """Whether no engine of the group is up, coming up, or being started again, nor can be loaded once more."""
        if self.placed(group.model) is not None and not self._closed:
            return False
        return not group.ready and all(
            group.restarts.get(engine.name, 0) >= 0 and engine.health.state in ("dead", "closed")
            for engine in group.engines
        )

    def _changed(self, group: EngineGroup, failure: HaloError | None = None) -> None:
        for callback in group.on_change:
            callback(failure)

    def engines(self) -> list[Engine]:
        """Every engine made so far."""
        return [engine for group in self._groups.values() for engine in group.engines]

    async def reset_caches(self) -> None:
        """Forget all cached prefixes of all running engines."""
        await asyncio.gather(*(engine.reset_cache() for group in self._groups.values() for engine in group.ready))

    def close(self) -> None:
        """Stop all engines; idempotent, safe at interpreter exit."""
        if self._closed:
            return
        self._closed = True
        try:
            self.thread.run(self._close(), timeout_s=30)
        except Exception:
            logger.exception("closing the pool")
        self.thread.close()

    async def _close(self) -> None:
        if self.places is not None:
            self.places.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*(engine.close() for engine in self.engines()), return_exceptions=True)
        for callback in self.on_close:
            callback()
        if self._store is not None:
            self._store.close()


def hold_store(spec: VLLMSpec) -> BlockStore | None:
    """The store that the engines of a specification share, held open; None where they share none."""
    from halo_core.pool.layout import vllm_settings

    store = vllm_settings(spec).store
    try:
        return BlockStore(store.root, "pool", store.cap_bytes) if store is not None else None
    except OSError as error:
        logger.warning("the block store %s cannot be used: %s", store.root if store else "", error)
        return None


async def build_engines(spec: EngineSpec) -> list[Engine]:
    """Make the engines that a specification stands for; vLLM's layout is calibrated here when it must be."""
    if isinstance(spec, EndpointSpec):
        from halo_core.pool.endpoint import EndpointEngine

        api_key = os.environ.get(spec.api_key_env) if spec.api_key_env else None
        return [
            EndpointEngine(
                f"{spec.model}@{spec.url}",
                spec.served_as or spec.model,
                spec.url,
                api_key=api_key,
                slots=spec.slots,
                headers=spec.headers,
            )
        ]
    if isinstance(spec, SimulatedSpec):
        from halo_core.pool.simulated import SimulatedEngine

        clock: Literal["zero", "real"] = "zero" if spec.zero_latency else "real"
        limit = spec.max_model_len or 0
        return [
            SimulatedEngine(f"{spec.model}#{index}", spec.model, slots=spec.slots, clock=clock, max_model_len=limit)
            for index in range(spec.count)
        ]
    from halo_core.pool.layout import build_vllm_engines

    return await build_vllm_engines(spec)


_pool: EnginePool | None = None
_pool_lock = threading.Lock()


def get_pool() -> EnginePool:
    """The process's pool, made on first use from `PoolConfig.discover()`."""
    global _pool
    with _pool_lock:
        if _pool is None or _pool._closed:
            _pool = EnginePool(PoolConfig.discover())
            atexit.register(_pool.close)
        return _pool


def configure(config: PoolConfig) -> EnginePool:
    """Replace the process's pool; the old one is closed."""
    global _pool
    with _pool_lock:
        old, _pool = _pool, EnginePool(config)
        atexit.register(_pool.close)
    if old is not None:
        old.close()
    return _pool
