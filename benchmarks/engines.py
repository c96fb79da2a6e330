"""The engines that all systems of a benchmark share, and what their own counters say."""

from __future__ import annotations

import atexit
import os
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.processes import stub_server
from halo_core.pool import EndpointSpec, EnginePool, PoolConfig, VLLMSpec, configure

MODEL = "smollm2"
MODEL_TOKENS = 8192
"""Tokens of one request that it was made for: vLLM refuses a longer `max_model_len`."""
OUT_OF_THE_BOX = "smollm2-out-of-the-box"
"""The same model on an engine that nobody has laid out."""
APP_MODEL = "gpt-4o-mini"


def default_model_path() -> str:
    """Where `make model` put SmolLM2-135M-Instruct."""
    cache = Path(os.environ.get("HALO_CACHE", Path.home() / ".cache" / "halo"))
    return str(cache / "models" / "SmolLM2-135M-Instruct")


STUBS = "stub"
"""As a layout: two servers that answer at once, with a hash of the prompt. For smokes, never for figures."""


def start(
    layout: str,
    dtype: str,
    path: str | None = None,
    *,
    out_of_the_box: bool = False,
    calibrate: bool = False,
    **spec: Any,
) -> EnginePool:
    """Start (or reuse) the process's pool with vLLM in the given layout; returns when the engines take calls.

    `out_of_the_box`: beside it, an engine of its own for `OUT_OF_THE_BOX`, laid out as vLLM does by itself.
    `calibrate`: measure the engines' curves first where none are remembered.
    """
    if layout == STUBS:
        return _start_stubs()
    made = [VLLMSpec(model=MODEL, path=path or default_model_path(), layout=layout, dtype=dtype, **spec)]
    if out_of_the_box:
        whole = f"1x{len(os.sched_getaffinity(0))}"
        made.append(made[0].model_copy(update={"model": OUT_OF_THE_BOX, "layout": whole}))
    return _started(made, calibrate=calibrate)


def _start_stubs() -> EnginePool:
    """Stub servers in processes of their own, which end with this one."""
    servers = ExitStack()
    atexit.register(servers.close)
    specs = [
        EndpointSpec(model=model, url=servers.enter_context(stub_server(model)), slots=32)
        for model in (MODEL, MODEL, OUT_OF_THE_BOX)
    ]
    return _started(specs)


def _started(specs: Sequence[VLLMSpec | EndpointSpec], *, calibrate: bool = False) -> EnginePool:
    pool = configure(PoolConfig(models={"*": MODEL}, engines=tuple(specs), calibrate=calibrate))
    for model in dict.fromkeys(spec.model for spec in specs):
        pool.thread.run(pool.start(model))
    return pool


def base_urls(pool: EnginePool, model: str = MODEL) -> list[str]:
    """The OpenAI-compatible addresses of the engines, for baselines that know nothing of Halo."""
    return [engine.base_url for engine in pool.group(model).engines]  # type: ignore[attr-defined]


def unlimited_http() -> Any:
    """An HTTP client for a baseline's OpenAI SDK whose connections are not limited."""
    import httpx2

    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx2.AsyncClient(limits=limits, timeout=600)


@dataclass(frozen=True)
class EngineTotals:
    """Counters of all engines, summed, as vLLM itself reports them."""

    prompt: int
    cached: int
    """Of the prompt: found in the engine's own cache or in the host's block store."""
    moved: int
    """Of the cached ones: found in the block store."""
    generated: int
    requests: int
    steps: int
    """Steps of the engines: each reads all weights once, whatever is in it."""
    preemptions: int

    def __sub__(self, other: EngineTotals) -> EngineTotals:
        return EngineTotals(
            self.prompt - other.prompt,
            self.cached - other.cached,
            self.moved - other.moved,
            self.generated - other.generated,
            self.requests - other.requests,
            self.steps - other.steps,
            self.preemptions - other.preemptions,
        )


_COUNTERS = {
    "vllm:prompt_tokens_total": "prompt",
    "vllm:prefix_cache_hits_total": "cached",
    "vllm:external_prefix_cache_hits_total": "moved",
    "vllm:generation_tokens_total": "generated",
    "vllm:request_success_total": "requests",
    "vllm:iteration_tokens_total_count": "steps",
    "vllm:num_preemptions_total": "preemptions",
}


def totals(pool: EnginePool, model: str = MODEL) -> EngineTotals:
    """Read `/metrics` of every engine of the model."""
    sums = dict.fromkeys(_COUNTERS.values(), 0.0)
    for url in base_urls(pool, model):
        text = urllib.request.urlopen(url.removesuffix("/v1") + "/metrics", timeout=10).read().decode()
        for line in text.splitlines():
            name = _COUNTERS.get(line.split("{", 1)[0])
            if name is not None:
                sums[name] += float(line.rsplit(" ", 1)[1])
    sums["cached"] += sums["moved"]
    return EngineTotals(**{name: int(value) for name, value in sums.items()})
