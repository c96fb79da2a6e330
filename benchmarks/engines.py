"""The engines that all systems of a benchmark share, and what their own counters say."""

from __future__ import annotations

import urllib.request
from dataclasses import dataclass
from typing import Any

from halo_core.pool import EnginePool, PoolConfig, VLLMSpec, configure

MODEL = "smollm2"
APP_MODEL = "gpt-4o-mini"


def default_model_path() -> str:
    """Where `make model` put SmolLM2-135M-Instruct."""
    import os
    from pathlib import Path

    cache = Path(os.environ.get("HALO_CACHE", Path.home() / ".cache" / "halo"))
    return str(cache / "models" / "SmolLM2-135M-Instruct")


def start(layout: str, dtype: str, path: str | None = None, **spec: Any) -> EnginePool:
    """Start (or reuse) the process's pool with vLLM in the given layout; returns when the engines take calls."""
    config = PoolConfig(
        models={"*": MODEL},
        engines=(VLLMSpec(model=MODEL, path=path or default_model_path(), layout=layout, dtype=dtype, **spec),),
    )
    pool = configure(config)
    pool.thread.run(pool.start(MODEL))
    return pool


def base_urls(pool: EnginePool) -> list[str]:
    """The OpenAI-compatible addresses of the engines, for baselines that know nothing of Halo."""
    return [engine.base_url for engine in pool.group(MODEL).engines]  # type: ignore[attr-defined]


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
    generated: int
    requests: int

    def __sub__(self, other: EngineTotals) -> EngineTotals:
        return EngineTotals(
            self.prompt - other.prompt,
            self.cached - other.cached,
            self.generated - other.generated,
            self.requests - other.requests,
        )


_COUNTERS = {
    "vllm:prompt_tokens_total": "prompt",
    "vllm:prefix_cache_hits_total": "cached",
    "vllm:generation_tokens_total": "generated",
    "vllm:request_success_total": "requests",
}


def totals(pool: EnginePool) -> EngineTotals:
    """Read `/metrics` of every engine."""
    sums = dict.fromkeys(("prompt", "cached", "generated", "requests"), 0.0)
    for url in base_urls(pool):
        text = urllib.request.urlopen(url.removesuffix("/v1") + "/metrics", timeout=10).read().decode()
        for line in text.splitlines():
            name = _COUNTERS.get(line.split("{", 1)[0])
            if name is not None:
                sums[name] += float(line.rsplit(" ", 1)[1])
    return EngineTotals(**{name: int(value) for name, value in sums.items()})
