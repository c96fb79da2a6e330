"""Pytest plugin that puts Halo under a LangGraph suite: `-p integrations.conformance.plugin`.

Every `StateGraph.compile` and every `@entrypoint` runs under Halo, and every model call inside a run goes through
Halo's pool, to an engine that calls the suite's own fake model.
"""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any

import pytest
from langgraph.func import entrypoint

from halo_adapters import langgraph as halo
from halo_adapters.langgraph import intercept
from halo_core.pool import PoolConfig, configure
from halo_core.runtime import Batch, Run
from halo_core.runtime.executor import Executor
from integrations.conformance import routing
from integrations.conformance.langgraph_route import LoopbackRoute
from integrations.conformance.loopback import LoopbackEngine

_engine = LoopbackEngine()
_batches: set[Batch] = set()
_runs = 0


def pytest_configure(config: pytest.Config) -> None:
    """Install Halo before the suite's own modules are imported."""
    configure(PoolConfig(adopt=False)).add(_engine)
    halo.install(default="halo")
    intercept.ROUTES.insert(0, LoopbackRoute(_engine))
    _accelerate_entrypoints()
    _count_runs()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Leave the counts for the harness."""
    left_alone: Counter[str] = Counter()
    for batch in _batches:
        left_alone.update(batch.stats.outside_reasons)
    counts = {"graph runs": _runs, "model calls through the pool": _engine.counters.calls}
    counts |= {f"left alone: {reason}": count for reason, count in left_alone.items()}
    routing.tell(counts)


def _accelerate_entrypoints() -> None:
    make: Any = entrypoint.__call__

    @functools.wraps(make)
    def call(self: Any, function: Any) -> Any:
        return halo.accelerate(make(self, function))

    entrypoint.__call__ = call  # type: ignore[assignment, method-assign]


def _count_runs() -> None:
    begin = Executor.begin

    @functools.wraps(begin)
    def counted(self: Executor, batch: Batch, *args: Any, **kwargs: Any) -> Run:
        global _runs
        _runs += 1
        _batches.add(batch)
        return begin(self, batch, *args, **kwargs)

    Executor.begin = counted  # type: ignore[method-assign]
