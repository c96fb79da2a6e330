"""The benchmarks' workloads: their shape, their rows, and that Halo's answers and side calls are LangGraph's."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_openai import ChatOpenAI

import halo_adapters.langgraph as halo
from benchmarks.workloads import tool_server, tpch, w5, w6
from benchmarks.workloads.shape import Step, build, by_hand
from benchmarks.workloads.toolbox import Toolbox
from halo_core.pool import PoolConfig, SimulatedSpec, configure

WORKLOADS = {"W5": (w5.workload, 7, 9), "W6": (w6.workload, 9, 12)}


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Path, str]]:
    with tool_server.running(tpch, latency_scale=0.002) as address:
        yield tpch.database(), address


@pytest.fixture
def tools(served: tuple[Path, str]) -> Iterator[Toolbox]:
    box = Toolbox(str(served[0]), served[1])
    yield box
    box.close()


def requests_so_far(served: tuple[Path, str]) -> int:
    return int(urllib.request.urlopen(f"{served[1]}/count", timeout=10).read())


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_shape_is_the_papers(name: str, tools: Toolbox) -> None:
    make, calls, tool_calls = WORKLOADS[name]
    workload = make(tools)
    assert (workload.calls, workload.tool_calls) == (calls, tool_calls)
    known: set[str] = set()
    for step in workload.steps:  # `by_hand` relies on it
        assert set(step.needs) <= known
        known.add(step.name)


def test_rows_have_the_papers_share_of_distinct_ones() -> None:
    many = tpch.rows(1024, False, seed=0)
    assert len(many) == 1024 and len({row["input"] for row in many}) == 175
    assert len({row["input"] for row in tpch.rows(32, False, seed=0)}) == 5
    assert len({row["input"] for row in tpch.rows(175, True, seed=3)}) == 175
    assert tpch.rows(9, False, seed=1) == tpch.rows(9, False, seed=1) != tpch.rows(9, False, seed=2)
    with pytest.raises(ValueError, match="there are 175 distinct rows; 176 are asked for"):
        tpch.rows(176, True, seed=0)
    with pytest.raises(ValueError, match="not an input of this workload"):
        tpch.rule("year=1995")


def test_every_query_finds_something(tools: Toolbox) -> None:
    row = tpch.rule(tpch.rows(1, True, seed=0)[0]["input"])
    for name in tpch.QUERIES:
        found = tools.query(name).call(row)
        assert found and all(value is not None for value in found[0].values()), name
        assert tools.sql.classify(tpch.QUERIES[name][0]).why == "reads only"


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("name", WORKLOADS)
def test_answers_are_langgraphs_and_each_look_is_taken_once(
    name: str, sync: bool, tools: Toolbox, served: tuple[Path, str]
) -> None:
    pool = configure(PoolConfig(models={"*": "sim"}, engines=(SimulatedSpec(model="sim"),)))
    halo.install()
    workload = WORKLOADS[name][0](tools)
    rows = workload.rows(12, False, 0) + workload.rows(3, True, 1)

    def models(step: Step) -> ChatOpenAI:
        return ChatOpenAI(model=f"model-{step.model}", api_key="unused", temperature=0, max_tokens=4)

    def run(app: Any) -> list[Any]:
        outs = app.batch(rows) if sync else asyncio.run(app.abatch(rows))
        return list(map(workload.answers, outs))

    before = requests_so_far(served)
    app: Any = build(workload, models, sync=sync).compile(backend="halo")  # type: ignore[call-arg]
    answers = run(app)
    stats = app.last_run.stats
    known = [workload.row(row) for row in rows]
    looks = {
        (tool.name, *sorted(tools.parameters(tool.name, row).items()))
        for row in known
        for step in workload.steps
        for tool in step.tools
    }
    assert stats.tool_total.executed == len(looks)
    assert stats.tool_total.planned == workload.tool_calls * len(rows)
    assert requests_so_far(served) - before == len([look for look in looks if look[0] in ("Q12", "Q14")])
    # Without merging every call is made, one row after the other.
    alone = halo.accelerate(build(workload, models, sync=sync).compile(), merge=False)
    assert run(alone) == answers
    assert asyncio.run(_by_hand(workload, rows, models, alone)) == answers
    halo.uninstall()
    pool.close()


async def _by_hand(workload: Any, rows: Any, models: Any, app: Any) -> Any:
    """B7 with its calls answered by the same engine: each as a call of its own."""
    from halo_core.runtime import SESSION, get_executor

    executor = get_executor()
    batch = executor.open_batch("by hand", merge=False)
    run = executor.begin(batch, "all")
    token = SESSION.set(run)
    try:
        return await by_hand(workload, rows, models)
    finally:
        SESSION.reset(token)
        executor.end(run)
        executor.close_batch(batch)
