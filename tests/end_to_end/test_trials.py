"""The benchmarks' notes of what engines were asked: exact, nested, and gone afterwards."""

from __future__ import annotations

import asyncio

from benchmarks import engines as shared
from benchmarks.measure import RunRecord
from benchmarks.trials import Trials
from halo_core.pool import EnginePool, LLMCall, PoolConfig, SimulatedSpec


def call(number: int, tokens: int = 4) -> LLMCall:
    body = {"messages": [{"role": "user", "content": f"question {number}"}], "max_tokens": tokens}
    return LLMCall(shared.MODEL, body)


def test_calls_are_recorded_while_the_ceiling_is_noted() -> None:
    pool = EnginePool(PoolConfig(engines=(SimulatedSpec(model=shared.MODEL, count=2),)))
    try:
        pool.thread.run(pool.start(shared.MODEL))
        engines = pool.group(shared.MODEL).engines

        async def ask() -> None:
            await asyncio.gather(*(engines[i % 2].complete(call(i)) for i in range(4)))
            await engines[0].complete(call(9, tokens=1))  # a warm-up

        record = RunRecord("halo", 0)
        trials = Trials(pool)
        with trials.recorded() as calls, trials.ceilinged(record):
            pool.thread.run(ask())
        assert [one.body["messages"][0]["content"] for one in calls] == [f"question {i}" for i in range(4)]
        assert "endless_cache_tokens" not in record.extra  # these engines do not name their blocks
        pool.thread.run(ask())
        assert len(calls) == 4
    finally:
        pool.close()
