"""Calibration: the curve of a group of engines, measured once on this machine and remembered."""

from __future__ import annotations

import asyncio
import copy
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from halo_core.errors import ConfigError
from halo_core.pool.config import EndpointSpec, EngineSpec, SimulatedSpec, VLLMSpec
from halo_core.pool.endpoint import EndpointEngine
from halo_core.pool.engine import Engine
from halo_core.pool.kv_speed import copy_bytes_per_s, kv_bytes_per_token
from halo_core.pool.layout import Layout, make_engines, remembered_layout, vllm_settings, vllm_version
from halo_core.pool.lock import locked
from halo_core.pool.machine import machine
from halo_core.pool.probes import BUDGET_S, probe_engines
from halo_core.pool.vllm import VLLMEngine
from halo_core.pool.vllm_command import cache_dir, engine_dtype, find_model
from halo_core.stats.calibration import CalibrationRecord, CurveKey, find, key_file, write
from halo_core.stats.curve import EngineCurve
from halo_core.stats.fit import fit, residuals
from halo_core.stats.remembered import now_utc

logger = logging.getLogger(__name__)

_LONGEST_S = 300.0
"""A start is not held up for longer than this, whatever the engines do."""


def curves_folder() -> Path:
    """Where curves are remembered."""
    return cache_dir() / "curves"


def curve_key(engines: Sequence[Engine]) -> CurveKey:
    """What the engines' curve depends on; they need not run."""
    ours = [engine for engine in engines if isinstance(engine, VLLMEngine)]
    if ours and len(ours) == len(engines):
        settings, placement = ours[0].settings, ours[0].placement
        widths = Counter(len(engine.placement.gpus or engine.placement.cores) for engine in ours)
        told = {
            "max_num_seqs": settings.max_num_seqs,
            "max_num_batched_tokens": settings.max_num_batched_tokens,
            "block_size": settings.block_size,
            "eager": settings.eager,
        }
        return CurveKey(
            model=find_model(settings.path),
            layout="+".join(f"{count}x{width}" for width, count in sorted(widths.items())),
            dtype=engine_dtype(settings, gpu=bool(placement.gpus)),
            machine=machine().describe(),
            engine=vllm_version(ours[0].python),
            settings=" ".join([f"{k}={v}" for k, v in told.items() if v is not None] + list(settings.extra_args)),
        )
    places = sorted(
        f"{engine.model}@{engine.base_url}" if isinstance(engine, EndpointEngine) else engine.name for engine in engines
    )
    slots = "+".join(str(engine.capacity.slots) for engine in engines)
    return CurveKey(model=", ".join(places), layout=f"{len(engines)} as they are", settings=f"slots={slots}")


def remembered(specs: Sequence[EngineSpec]) -> CalibrationRecord | None:
    """The record of the engines that a model's specifications stand for, without starting any."""
    engines: list[Engine] = []
    for spec in specs:
        if isinstance(spec, VLLMSpec):
            settings = vllm_settings(spec)
            layout = remembered_layout(settings) if spec.layout == "auto" else Layout.parse(spec.layout, machine())
            if layout is None:
                return None
            engines += make_engines(spec.model, settings, layout)
        elif isinstance(spec, EndpointSpec):
            name = f"{spec.model}@{spec.url}"
            engines.append(EndpointEngine(name, spec.served_as or spec.model, spec.url, slots=spec.slots))
        else:
            return None  # nobody waits for a simulated engine
    return find(curves_folder(), curve_key(engines)) if engines else None


async def calibrate(
    engines: Sequence[Engine], *, now: Callable[[], float] = time.monotonic, budget_s: float = BUDGET_S
) -> CalibrationRecord:
    """Measure running, idle engines of one model, all at the same time; their caches and counters are as new after.

    Caches of servers that others run are left alone. Raises what the engines raise, and `ConfigError` where there is
    nothing to measure.
    """
    if not engines:
        raise ConfigError("no engine of this model takes calls, so there is nothing to measure; `halo doctor` says why")
    counters = [copy.deepcopy(engine.counters) for engine in engines]
    began = now()
    ours = [engine for engine in engines if isinstance(engine, VLLMEngine)]
    try:
        step_tokens = ours[0].settings.max_num_batched_tokens if ours else None
        probes = await probe_engines(engines, step_tokens=step_tokens, now=now, budget_s=budget_s)
    finally:
        for engine, before in zip(engines, counters, strict=True):
            engine.counters = before
    await _forget(engines)
    measured = fit(probes)
    key = curve_key(engines)
    extra = {
        "load_s": max((engine.load_s for engine in ours), default=0.0),
        "kv_copy_bytes_per_s": await asyncio.to_thread(copy_bytes_per_s),
        "kv_bytes_per_token": kv_bytes_per_token(key.model, key.dtype, ours[0].settings.extra_args) if ours else 0,
    }
    capacity = engines[0].capacity
    return CalibrationRecord(
        key=key,
        slots=capacity.slots,
        kv_tokens=capacity.kv_tokens,
        block_size=capacity.block_size,
        curve=measured.model_copy(update=extra),
        residuals=residuals(measured, probes),
        probes=tuple(probes),
        measured_at=now_utc(),
        took_s=now() - began,
    )


async def _forget(engines: Sequence[Engine]) -> None:
    """Nobody is to hit the probes' prompts, nor to have room taken by them."""
    ours = [engine for engine in engines if isinstance(engine, VLLMEngine) or not isinstance(engine, EndpointEngine)]
    await asyncio.gather(*(engine.reset_cache() for engine in ours))


async def curve_of(engines: Sequence[Engine], *, measure: bool) -> EngineCurve | None:
    """The remembered curve of a group that has come up, measured now where there is none and `measure` asks for it.

    Servers that others run are never measured here. Never raises: without a curve there only is a warning.
    """
    try:
        measured = [engine for engine in engines if isinstance(engine, EndpointEngine)]
        if not engines or len(measured) < len(engines):
            return None
        folder, key = curves_folder(), curve_key(engines)
        record = await asyncio.to_thread(find, folder, key)
        if record is None and wanted(measure) and all(isinstance(engine, VLLMEngine) for engine in engines):
            logger.info("measuring the speed of %s once (about a minute); it is remembered", key.model)
            async with asyncio.timeout(_LONGEST_S), _alone():
                # Another process may have measured while this one waited.
                record = await asyncio.to_thread(find, folder, key) or await _calibrate_and_keep(engines)
        return record.curve if record is not None else None
    except Exception as error:  # a curve makes plans better, but nothing needs one
        what = "it took too long" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
        logger.warning(
            "the speed of %s was not measured: %s. Calls are not affected; `halo calibrate` tries again, "
            "calibrate = false in halo.toml switches it off",
            engines[0].model if engines else "no engine",
            what,
        )
        return None


async def calibrate_again(engines: Sequence[Engine]) -> CalibrationRecord:
    """Measure, as `calibrate` does, and remember the record in place of an older one."""
    async with _alone():
        return await _calibrate_and_keep(engines)


def _alone() -> AbstractAsyncContextManager[None]:
    """One calibration at a time on this machine, of whatever model."""
    return locked(curves_folder() / "calibration.lock")


async def _calibrate_and_keep(engines: Sequence[Engine]) -> CalibrationRecord:
    record = await calibrate(engines)
    await asyncio.to_thread(write, key_file(curves_folder(), record.key), record)
    return record


def wanted(configured: bool) -> bool:
    """Whether engines may be measured when they come up: `PoolConfig.calibrate`, unless HALO_CALIBRATE=0."""
    return configured and os.environ.get("HALO_CALIBRATE", "1") not in ("0", "false", "no", "off")


def zero_latency(specs: Sequence[EngineSpec]) -> bool:
    """Whether the engines only answer, without taking time."""
    return any(isinstance(spec, SimulatedSpec) and spec.zero_latency for spec in specs)
