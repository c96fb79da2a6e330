"""The engines of a simulation: groups of equal ones, by model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from halo_core.errors import ConfigError
from halo_core.pool import EnginePool, LLMCall, PoolConfig
from halo_core.pool.calibrate import curve_key, curves_folder, remembered
from halo_core.pool.clock import RealClock
from halo_core.pool.config import VLLMSpec
from halo_core.pool.engine import Sharing
from halo_core.pool.layout import vllm_settings
from halo_core.pool.machine import machine
from halo_core.pool.pool import EngineGroup
from halo_core.pool.prefix_cache import SimulatedStore
from halo_core.pool.simulated import STEP_TOKENS, SimulatedEngine
from halo_core.pool.virtual_loop import VirtualLoop
from halo_core.pool.vllm_command import StoreSettings
from halo_core.stats import CalibrationRecord, EngineCurve
from halo_core.stats.calibration import find

ENDLESS = 1 << 40
"""Tokens of a store whose tokens have no known size."""


@dataclass(slots=True, frozen=True)
class SimulatedGroup:
    """Engines that serve one model."""

    model: str
    engines: int
    curve: EngineCurve
    slots: int = 32
    """Requests that each decodes at once."""
    kv_tokens: int = 0
    """Tokens of KV that each holds; 0 where that is no limit."""
    block_size: int = 16
    step_tokens: int = STEP_TOKENS
    """Tokens that a step takes at most."""
    store_tokens: int = 0
    """Tokens of KV that fit into the store that they share; 0 where they share none."""


@dataclass(slots=True, frozen=True)
class Fleet:
    """All engines."""

    groups: Sequence[SimulatedGroup]

    @property
    def engines(self) -> int:
        """Their number."""
        return sum(group.engines for group in self.groups)

    def gpu_hours(self, seconds: float) -> float:
        """What all of them cost in so many seconds, each taken to hold one GPU."""
        return self.engines * seconds / 3600

    def scaled(self, factor: float) -> Fleet:
        """The same engines, taking `factor` times as long."""
        return Fleet([replace(group, curve=group.curve.scaled(factor)) for group in self.groups])

    def pool(self) -> EnginePool:
        """A pool of these engines on a loop of virtual time; close it."""
        pool = EnginePool(PoolConfig(adopt=False), loop=VirtualLoop())
        for group in self.groups:
            blocks = group.store_tokens // group.block_size
            store = SimulatedStore(blocks, group.block_size) if blocks else None
            for index in range(group.engines):
                pool.add(_engine(group, index, store))
        return pool


def fleet_of(pool: EnginePool, models: Iterable[str], *, engines: int | None = None) -> Fleet:
    """The engines that `pool` has, or would start, for these served models, as fast as they were measured to be.

    `engines` stands for the number of engines of each model. Starts nothing. Raises `ConfigError` where a model's
    engines have never been measured, `UnknownModelError` where there are none.
    """
    groups = [_group(pool, model) for model in dict.fromkeys(models)]
    return Fleet([group if engines is None else replace(group, engines=engines) for group in groups])


def _group(pool: EnginePool, model: str) -> SimulatedGroup:
    group = pool.group(model)
    record = find(curves_folder(), curve_key(group.engines)) if group.engines else remembered(group.specs)
    if record is None:
        raise ConfigError(f"how fast the engines of {model!r} are is not known; `halo calibrate` measures it, once")
    found = group_of(model, record, len(group.engines) or None)
    return replace(found, store_tokens=_store_tokens(group) if pool.kv_moves != "never" else 0)


def _store_tokens(group: EngineGroup) -> int:
    """Tokens that fit into the store that the group's engines share, or would; 0 where they share none."""
    store: Sharing | StoreSettings | None
    if group.engines:
        store = group.engines[0].sharing
    else:
        specs = [spec for spec in group.specs if isinstance(spec, VLLMSpec)]
        store = vllm_settings(specs[0]).store if specs and not machine().gpus else None
    return (store.cap_tokens or ENDLESS) if store is not None else 0


def group_of(model: str, record: CalibrationRecord, engines: int | None = None) -> SimulatedGroup:
    """The engines that a record was made of, or so many like them."""
    count = sum(int(part.split("x")[0]) for part in record.key.layout.split("+") if "x" in part) or 1
    return SimulatedGroup(model, engines or count, record.curve, record.slots, record.kv_tokens, record.block_size)


def _engine(group: SimulatedGroup, index: int, store: SimulatedStore | None) -> SimulatedEngine:
    return SimulatedEngine(
        f"{group.model}#{index}",
        group.model,
        slots=group.slots,
        kv_tokens=group.kv_tokens or None,
        block_size=group.block_size,
        max_batched_tokens=group.step_tokens,
        answer_tokens=_length,
        clock=RealClock(),  # of the loop, whose time is virtual
        curve=group.curve,
        store=store,
    )


def _length(call: LLMCall) -> int:
    """The catalog says how long answers are, and the simulated rows ask for exactly that."""
    return int(call.body["max_tokens"])
