"""The real engine, started once per run: two vLLM programs, one core each, float32, so that tokens can be compared."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

MODEL = "smollm2"
MODEL_PATH = Path(os.environ.get("HALO_CACHE", Path.home() / ".cache" / "halo")) / "models" / "SmolLM2-135M-Instruct"


@pytest.fixture(scope="session")
def real_engines() -> Iterator[list[Any]]:
    """Running `VLLMEngine`s in a pool of their own; other pools may use their addresses."""
    from halo_core.pool import EnginePool, PoolConfig, VLLMSpec

    if not (MODEL_PATH / "config.json").is_file():
        pytest.fail(f"the model is not at {MODEL_PATH}: run `make model` (make test does)")
    layout = "2x1" if (os.cpu_count() or 1) > 1 else "1x1"
    spec = VLLMSpec(model=MODEL, path=str(MODEL_PATH), layout=layout, dtype="float32", max_num_seqs=32)
    pool = EnginePool(PoolConfig(engines=(spec,)))
    pool.thread.run(pool.start(MODEL))
    yield list(pool.group(MODEL).engines)
    pool.close()


@pytest.fixture(scope="session")
def real_urls(real_engines: list[Any]) -> list[str]:
    """The OpenAI-compatible addresses of the running engines."""
    return [engine.base_url for engine in real_engines]
