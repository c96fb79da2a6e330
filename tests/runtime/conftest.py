"""A pool with a scripted engine, and its executor."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from halo_core.pool import EnginePool, PoolConfig
from halo_core.runtime import Executor
from tests.runtime.scripted import ScriptedEngine


@pytest.fixture
def pool() -> Iterator[EnginePool]:
    pool = EnginePool(PoolConfig(models={"*": "m"}))
    yield pool
    pool.close()


@pytest.fixture
def engine(pool: EnginePool) -> ScriptedEngine:
    engine = ScriptedEngine()
    pool.add(engine)
    return engine


@pytest.fixture
def executor(pool: EnginePool, engine: ScriptedEngine) -> Executor:
    return Executor(pool)
