"""The real engine, started once per run: two vLLM programs, one core each, float32, so that tokens can be compared."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from halo_core.pool import EnginePool, PoolConfig, VLLMSpec

os.environ.setdefault("HALO_CATALOG", "off")  # tests neither learn from each other nor write into the user's cache

MODEL = "smollm2"
MODEL_PATH = Path(os.environ.get("HALO_CACHE", Path.home() / ".cache" / "halo")) / "models" / "SmolLM2-135M-Instruct"


settings.register_profile("halo", deadline=None)  # how long an example takes says nothing on a shared machine
settings.load_profile("halo")


@pytest.fixture(scope="session")
def real_pool() -> Iterator[EnginePool]:
    """A pool of its own with running vLLM engines; other pools may use their addresses."""
    if not (MODEL_PATH / "config.json").is_file():
        pytest.fail(f"the model is not at {MODEL_PATH}: run `make model` (make test does)")
    layout = "2x1" if (os.cpu_count() or 1) > 1 else "1x1"
    spec = VLLMSpec(model=MODEL, path=str(MODEL_PATH), layout=layout, dtype="float32", max_num_seqs=32)
    pool = EnginePool(PoolConfig(engines=(spec,), calibrate=False))
    pool.thread.run(pool.start(MODEL))
    yield pool
    pool.close()


@pytest.fixture
def real_urls(real_pool: EnginePool) -> list[str]:
    """The OpenAI-compatible addresses of the running engines (an engine that was restarted may have a new one)."""
    engines: list[Any] = list(real_pool.group(MODEL).engines)
    return [engine.base_url for engine in engines]


@pytest.fixture
def real_engines(real_pool: EnginePool) -> list[Any]:
    """The running `VLLMEngine`s."""
    return list(real_pool.group(MODEL).engines)
