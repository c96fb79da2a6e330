"""Batches of rows: order, isolation, limits, contexts, and runs that the app starts by itself."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypedDict

import pytest
from langchain_openai import ChatOpenAI
from langgraph.errors import InvalidUpdateError
from langgraph.graph import END, START, StateGraph
from pydantic import BaseModel, ValidationError

import halo_adapters.langgraph as halo
from halo_core.errors import ConfigError
from halo_core.pool import EnginePool, SimulatedSpec
from halo_core.runtime import MISSING, get_executor


@pytest.fixture(autouse=True)
def pool() -> Iterator[EnginePool]:
    halo.install()
    pool = halo.configure(halo.PoolConfig(models={"*": "sim"}, engines=(SimulatedSpec(model="sim"),)))
    yield pool
    pool.close()
    halo.uninstall()


def model(**settings: Any) -> ChatOpenAI:
    return ChatOpenAI(**({"model": "gpt-4o-mini", "temperature": 0, "api_key": "unused"} | settings))


class State(TypedDict, total=False):
    n: int
    text: str


def graph(*nodes: Any) -> Any:
    builder: Any = StateGraph(State)
    for i, node in enumerate(nodes):
        builder.add_node(f"n{i}", node)
        builder.add_edge(f"n{i - 1}" if i else START, f"n{i}")
    builder.add_edge(f"n{len(nodes) - 1}", END)
    return builder.compile(backend="halo")


def asking(llm: Any) -> Any:
    async def ask(state: State) -> State:
        return {"text": str((await llm.ainvoke(f"number {state['n']}")).content)}

    return ask


def asking_synchronously(llm: Any) -> Any:
    def ask(state: State) -> State:
        return {"text": str(llm.invoke(f"number {state['n']}").content)}

    return ask


@pytest.mark.parametrize("native", [True, False])
def test_results_are_in_input_order_and_equal_rows_share(native: bool) -> None:
    app = halo.accelerate(graph(asking(model())), native=native)
    rows: list[Any] = [{"n": n % 4} for n in range(40)]
    outs = asyncio.run(app.abatch(rows))
    assert [out["n"] for out in outs] == [row["n"] for row in rows]
    assert len({out["text"] for out in outs}) == 4
    total = app.last_run.stats.total  # type: ignore[attr-defined]
    assert (total.planned, total.executed, total.shared) == (40, 4, 36)


def test_synchronous_nodes_and_synchronous_batch() -> None:
    app = graph(asking_synchronously(model()))
    rows: list[Any] = [{"n": n} for n in range(50)]
    outs = app.batch(rows)
    assert [out["n"] for out in outs] == list(range(50))
    assert outs == asyncio.run(app.abatch(rows))


@pytest.mark.parametrize("native", [True, False])
def test_synchronous_nodes_under_abatch_are_not_capped_at_32(native: bool) -> None:
    """All 60 rows must be inside the node at once, or the barrier breaks."""
    together = threading.Barrier(60, timeout=30)

    def meet(state: State) -> State:
        together.wait()
        return {"text": "met"}

    builder: Any = StateGraph(State)
    builder.add_node("meet", meet)
    builder.add_edge(START, "meet")
    app = halo.accelerate(builder.compile(), native=native)
    assert len(asyncio.run(app.abatch([{"n": n} for n in range(60)]))) == 60


def test_one_failing_row_leaves_the_others_alone() -> None:
    ask = asking(model())

    async def fussy(state: State) -> State:
        if state["n"] == 3:
            raise ValueError("no threes")
        out: State = await ask(state)
        return out

    app = graph(fussy)
    rows = [{"n": n} for n in range(8)]
    with pytest.raises(ValueError, match="no threes") as caught:
        asyncio.run(app.abatch(rows))
    assert "row 3; 1 of 8 rows failed" in caught.value.__notes__[-1]
    report = app.last_run
    assert [type(result) for result in report.results].count(dict) == 7
    assert list(report.errors) == [3]
    assert (report.stats.rows_done, report.stats.rows_failed) == (7, 1)
    outs = asyncio.run(app.abatch(rows, return_exceptions=True))
    assert isinstance(outs[3], ValueError) and outs[4]["n"] == 4


def test_a_row_that_is_not_valid_for_the_state() -> None:
    class Strict(BaseModel):
        n: int
        text: str = ""

    async def ask(state: Strict) -> dict[str, str]:
        return {"text": str((await model().ainvoke(f"number {state.n}")).content)}

    builder: Any = StateGraph(Strict)
    builder.add_node("ask", ask)
    builder.add_edge(START, "ask")
    app = builder.compile(backend="halo")
    outs = asyncio.run(app.abatch([{"n": 1}, {"n": "no number"}, {"n": 2}], return_exceptions=True))
    assert isinstance(outs[1], ValidationError) and outs[0]["text"] and outs[2]["text"]
    bad = asyncio.run(graph(asking(model())).abatch([{"n": 1}, 7], return_exceptions=True))
    assert isinstance(bad[1], InvalidUpdateError) and bad[0]["text"]


def test_a_model_that_nobody_serves_is_left_alone_and_counted() -> None:
    pool = halo.configure(halo.PoolConfig(models={"known": "sim"}, engines=(SimulatedSpec(model="sim"),), adopt=False))
    app = graph(asking(model(model="unknown", base_url="http://127.0.0.1:9/v1", max_retries=0)))
    outs = asyncio.run(app.abatch([{"n": 1}], return_exceptions=True))
    assert "Connection error" in str(outs[0])  # ChatOpenAI's own, as without Halo
    stats = app.last_run.stats
    assert stats.outside == 1
    assert list(stats.outside_reasons) == ["no engine serves model 'unknown' (pool: sim)"]
    pool.close()


def test_a_name_map_that_leads_nowhere_says_so() -> None:
    pool = halo.configure(halo.PoolConfig(models={"*": "typo"}, engines=(SimulatedSpec(model="sim"),)))
    app = graph(asking(model(base_url="http://127.0.0.1:9/v1", max_retries=0)))
    asyncio.run(app.abatch([{"n": 1}], return_exceptions=True))
    assert "'typo', which no engine serves; served: sim" in next(iter(app.last_run.stats.outside_reasons))
    pool.close()


def test_a_prompt_longer_than_the_context_fails_its_row_only() -> None:
    from openai import BadRequestError

    from halo_core.pool.simulated import SimulatedEngine

    pool = halo.configure(halo.PoolConfig(models={"*": "short"}))
    pool.add(SimulatedEngine("short#0", "short", max_model_len=200, clock="zero"))
    llm = model(max_tokens=8)

    async def ask(state: State) -> State:
        return {"text": str((await llm.ainvoke("word " * (2000 if state["n"] == 1 else 5) + str(state["n"]))).content)}

    outs = asyncio.run(graph(ask).abatch([{"n": n} for n in range(4)], return_exceptions=True))
    assert isinstance(outs[1], BadRequestError) and "context" in str(outs[1])
    assert type(outs[1]).__name__ == "OpenAIContextOverflowError"  # what LangChain's own middleware catches
    assert [outs[n]["n"] for n in (0, 2, 3)] == [0, 2, 3]
    pool.close()


def test_a_graph_with_no_model_call_runs() -> None:
    def double(state: State) -> State:
        return {"n": state["n"] * 2}

    app = graph(double)
    assert app.batch([{"n": n} for n in range(5)]) == [{"n": n * 2} for n in range(5)]
    assert app.last_run.stats.total.planned == 0


def test_an_unknown_backend_names_the_known_ones() -> None:
    builder: Any = StateGraph(State)
    builder.add_node("n", asking(model()))
    builder.add_edge(START, "n")
    with pytest.raises(ConfigError, match="unknown backend 'hallo'; known: halo, langgraph"):
        builder.compile(backend="hallo")
    assert builder.compile(backend="langgraph").__class__ is builder.compile().__class__


def test_importing_patches_nothing() -> None:
    halo.uninstall()
    builder: Any = StateGraph(State)
    builder.add_node("n", asking(model()))
    builder.add_edge(START, "n")
    with pytest.raises(TypeError, match="backend"):
        builder.compile(backend="halo")


def test_accelerate_says_what_it_takes() -> None:
    with pytest.raises(TypeError, match="must be compiled first"):
        halo.accelerate(StateGraph(State))  # type: ignore[type-var]


def test_as_completed_yields_every_row_once() -> None:
    app = graph(asking(model()))

    async def collect() -> dict[int, Any]:
        return {i: out async for i, out in app.abatch_as_completed([{"n": n} for n in range(30)])}

    assert sorted(asyncio.run(collect())) == list(range(30))
    sync = graph(asking_synchronously(model()))
    seen = dict(sync.batch_as_completed([{"n": n} for n in range(30)]))
    assert {i: out["n"] for i, out in seen.items()} == {n: n for n in range(30)}


def test_leaving_an_iteration_early_stops_the_rest() -> None:
    started: list[int] = []

    async def slow(state: State) -> State:
        started.append(state["n"])
        if state["n"] > 0:
            await asyncio.Event().wait()
        return {"text": "done"}

    app = graph(slow)

    async def first() -> int:
        async for i, _ in app.abatch_as_completed([{"n": n} for n in range(10)]):
            return i
        return -1

    assert asyncio.run(asyncio.wait_for(first(), 20)) == 0
    assert MISSING in app.last_run.results


def test_max_concurrency_bounds_the_rows_under_way() -> None:
    under_way, peak = 0, 0

    async def node(state: State) -> State:
        nonlocal under_way, peak
        under_way += 1
        peak = max(peak, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        return {"text": "x"}

    asyncio.run(graph(node).abatch([{"n": n} for n in range(20)], {"max_concurrency": 3}))
    assert peak <= 3


def test_runs_that_the_app_starts_share_as_one_ambient_batch() -> None:
    app = graph(asking(model()))
    executor = get_executor()
    meeting = asyncio.Event()
    inside = 0
    ask = asking(model())

    async def meet(state: State) -> State:
        nonlocal inside
        inside += 1
        if inside == 6:
            meeting.set()
        await meeting.wait()
        out: State = await ask(state)
        return out

    app = graph(meet)

    async def main() -> list[Any]:
        return await asyncio.gather(*(app.ainvoke({"n": 1}) for _ in range(6)))

    outs = asyncio.run(main())
    assert len({out["text"] for out in outs}) == 1
    assert executor.last_batch is not None and executor.last_batch.name == "ambient"
    assert executor.last_batch.stats.total.executed == 1 and executor.last_batch.stats.total.shared == 5


def test_threads_over_invoke_share_too() -> None:
    ready = threading.Barrier(8, timeout=30)
    ask = asking_synchronously(model())

    def meet(state: State) -> State:
        ready.wait()
        out: State = ask(state)
        return out

    app = graph(meet)
    with ThreadPoolExecutor(8) as threads:
        outs = list(threads.map(app.invoke, [{"n": 5}] * 8))
    assert len({out["text"] for out in outs}) == 1
    executor = get_executor()
    assert executor.last_batch is not None and executor.last_batch.stats.total.executed == 1


def test_sampled_calls_are_never_merged() -> None:
    app = graph(asking(model(temperature=0.7)))
    asyncio.run(app.abatch([{"n": 1}] * 5))
    assert app.last_run.stats.total.executed == 5


def test_a_copied_graph_stays_under_halo() -> None:
    app = graph(asking(model())).with_config({"tags": ["x"]})
    asyncio.run(app.abatch([{"n": 1}] * 3))
    assert app.last_run.stats.total.shared == 2


def test_a_batch_inside_a_node_belongs_to_the_row() -> None:
    inner = graph(asking(model()))

    async def outer(state: State) -> State:
        outs = await inner.abatch([{"n": state["n"]}, {"n": 100}])
        return {"text": outs[0]["text"] + outs[1]["text"]}

    app = graph(outer)
    outs = asyncio.run(app.abatch([{"n": n} for n in range(30)]))
    assert len({out["text"] for out in outs}) == 30


def test_the_loop_may_change_between_batches() -> None:
    app = graph(asking(model()))
    for _ in range(3):
        assert len(asyncio.run(app.abatch([{"n": 1}, {"n": 2}]))) == 2


def test_calls_inside_lcel_chains_are_attributed_to_their_node() -> None:
    from langchain_core.output_parsers import StrOutputParser
    from langchain_core.prompts import ChatPromptTemplate

    chain = ChatPromptTemplate.from_messages([("user", "number {n}")]) | model() | StrOutputParser()
    builder: Any = StateGraph(State)
    builder.add_node("chain", chain | (lambda text: {"text": text}))
    builder.add_edge(START, "chain")
    for native in (True, False):
        app = halo.accelerate(builder.compile(), native=native)
        asyncio.run(app.abatch([{"n": 1}, {"n": 1}]))
        assert list(app.last_run.stats.operators) == ["chain"]  # type: ignore[attr-defined]


def test_a_copy_with_a_checkpointer_uses_it() -> None:
    from langgraph.checkpoint.memory import InMemorySaver

    app = graph(asking(model()))
    asyncio.run(app.ainvoke({"n": 1}))  # the graph itself runs natively
    assert app.halo.why_not_native(app) is None
    kept = app.copy(update={"checkpointer": InMemorySaver()})
    config = {"configurable": {"thread_id": "1"}}
    asyncio.run(kept.ainvoke({"n": 1}, config))
    assert kept.get_state(config).values["n"] == 1


def test_a_synchronous_node_that_raises_stop_iteration_does_not_hang() -> None:
    def stop(state: State) -> State:
        raise StopIteration

    app = halo.accelerate(graph(stop), native=False)
    outs = asyncio.run(asyncio.wait_for(app.abatch([{"n": 1}], return_exceptions=True), 20))
    assert isinstance(outs[0], RuntimeError)
