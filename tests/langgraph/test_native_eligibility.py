"""Which graphs and which invocations native execution leaves to Pregel, and what it says of them."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler, get_usage_metadata_callback
from langchain_core.globals import set_debug
from langchain_core.runnables import RunnableLambda
from langchain_core.tracers.context import collect_runs
from langgraph.cache.memory import InMemoryCache
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.store.memory import InMemoryStore
from langgraph.types import CachePolicy, RetryPolicy
from langsmith.run_helpers import tracing_context

from halo_adapters.langgraph.native import NativeGraph, ineligible, ineligible_call
from halo_adapters.langgraph.native_channels import NativeTask
from halo_adapters.langgraph.native_run import NativeRun
from halo_adapters.langgraph.native_scope import Scope
from halo_core.errors import LiftError
from tests.langgraph.test_native import Log


def graph(**node: Any) -> StateGraph[Any, Any, Any, Any]:
    async def a(state: Any) -> Any:
        return {"log": ["a"]}

    return StateGraph(Log).add_node("a", a, **node).add_edge(START, "a")


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def test_a_plain_graph_is_eligible() -> None:
    assert ineligible(graph(metadata={"halo": {}}).compile()) is None
    assert ineligible(graph().compile(checkpointer=False)) is None


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"checkpointer": InMemorySaver()}, "checkpointer"),
        ({"checkpointer": True}, "checkpointer"),
        ({"store": InMemoryStore()}, "store"),
        ({"cache": InMemoryCache()}, "cache"),
        ({"interrupt_before": ["a"]}, "interrupts before"),
        ({"interrupt_after": "*"}, "interrupts after"),
        ({"debug": True}, "debug"),
    ],
)
def test_compile_options(options: dict[str, Any], reason: str) -> None:
    assert reason in (ineligible(graph().compile(**options)) or "")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"retry_policy": RetryPolicy()}, "a retry policy"),
        ({"cache_policy": CachePolicy()}, "a cache policy"),
        ({"timeout": 5}, "a timeout"),
    ],
)
def test_node_options(options: dict[str, Any], reason: str) -> None:
    assert ineligible(graph(**options).compile()) == f"node 'a' has {reason}"


def test_error_handlers() -> None:
    assert "error handler" in (ineligible(graph(error_handler=lambda state: None).compile()) or "")


def test_subgraphs() -> None:
    inner = graph().compile()

    async def calls(state: Any) -> Any:
        return await inner.ainvoke(state)

    for node in (inner, calls, RunnableLambda(lambda s: s) | inner, graph().compile(checkpointer=False)):
        app = StateGraph(Log).add_node("outer", node).add_edge(START, "outer").compile()
        assert "'outer'" in (ineligible(app) or "")


def test_other_things_are_not_graphs() -> None:
    assert "RunnableLambda" in (ineligible(RunnableLambda(lambda s: s)) or "")  # type: ignore[arg-type]


def test_bound_config() -> None:
    app = graph().compile()
    assert ineligible(app.with_config(recursion_limit=5, tags=["x"])) is None
    assert "callbacks" in (ineligible(app.with_config(callbacks=[BaseCallbackHandler()])) or "")


def test_an_ineligible_graph_is_refused(pool: ThreadPoolExecutor) -> None:
    with pytest.raises(LiftError, match="checkpointer"):
        NativeGraph(graph().compile(checkpointer=InMemorySaver()), pool)


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (None, {}),
        ({}, {"stream_mode": "values", "debug": None, "version": "v1", "interrupt_before": [], "context": None}),
        ({"tags": ["a"], "metadata": {"b": 1}, "configurable": {"thread_id": "1"}, "max_concurrency": 4}, {}),
    ],
)
def test_plain_calls(config: Any, options: dict[str, Any]) -> None:
    assert ineligible_call(config, **options) is None


@pytest.mark.parametrize(
    ("config", "options", "reason"),
    [
        ({"callbacks": [BaseCallbackHandler()]}, {}, "callbacks"),
        ({"configurable": {"checkpoint_ns": "x"}}, {}, "checkpoint_ns"),
        ({"checkpoint_id": "x"}, {}, "checkpoint_id"),
        ({"configurable": {"__pregel_task_id": "x"}}, {}, "__pregel_task_id"),
        (None, {"stream_mode": "updates"}, "stream_mode"),
        (None, {"output_keys": ["log"]}, "output_keys"),
        (None, {"interrupt_before": ["a"]}, "interrupt_before"),
        (None, {"durability": "exit"}, "durability"),
        (None, {"version": "v2"}, "version"),
        (None, {"context": {"user": 1}}, "context"),
        (None, {"print_mode": "values"}, "print_mode"),
        (None, {"invented": 1}, "invented"),
    ],
)
def test_calls_left_to_pregel(config: Any, options: dict[str, Any], reason: str) -> None:
    assert reason in (ineligible_call(config, **options) or "")


def test_listeners_of_every_run() -> None:
    with collect_runs():
        assert "RunCollector" in (ineligible_call(None) or "")
    with get_usage_metadata_callback():
        assert "UsageMetadata" in (ineligible_call(None) or "")
    with tracing_context(enabled=True):
        assert "LangSmith" in (ineligible_call(None) or "")
    set_debug(True)
    try:
        assert "Console" in (ineligible_call(None) or "")
    finally:
        set_debug(False)
    assert ineligible_call(None) is None


def test_tracing_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    from langsmith.utils import get_env_var

    monkeypatch.setenv("LANGSMITH_TRACING", "true")
    monkeypatch.setenv("LANGSMITH_API_KEY", "none")
    get_env_var.cache_clear()
    try:
        assert "Tracer" in (ineligible_call(None) or "")
    finally:
        monkeypatch.undo()
        get_env_var.cache_clear()


def test_inside_another_run() -> None:
    reasons = []
    RunnableLambda(lambda x: reasons.append(ineligible_call(None))).invoke(1)
    assert reasons == ["the graph is invoked inside another run"]


# what only native execution promises


def test_cancelling_a_run_cancels_its_nodes(pool: ThreadPoolExecutor) -> None:
    started: list[str] = []
    ended: list[str] = []

    def sleeper(name: str) -> Any:
        async def node(state: Any) -> Any:
            started.append(name)
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)  # a cleanup that takes a while is waited for
                ended.append(name)

        return node

    async def cancel(names: str) -> None:
        builder = StateGraph(Log)
        for name in names:
            builder.add_node(name, sleeper(name)).add_edge(START, name)
        native = NativeGraph(builder.compile(), pool)
        started.clear()
        ended.clear()
        run = asyncio.create_task(native.ainvoke({"n": 1}))
        while len(started) < len(names):
            await asyncio.sleep(0)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert sorted(ended) == sorted(names)

    asyncio.run(cancel("a"))
    asyncio.run(cancel("abc"))


def test_a_failure_cancels_siblings_and_waits_for_them(pool: ThreadPoolExecutor) -> None:
    ended: list[str] = []

    async def slow(state: Any) -> Any:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            ended.append("slow")
            raise

    async def fails(state: Any) -> Any:
        raise ValueError("sibling")

    builder = StateGraph(Log).add_node("slow", slow).add_node("fails", fails)
    native = NativeGraph(builder.add_edge(START, "slow").add_edge(START, "fails").compile(), pool)
    with pytest.raises(ValueError, match="sibling"):
        asyncio.run(native.ainvoke({"n": 1}))
    assert ended == ["slow"]


def test_synchronous_nodes_use_the_given_threads(pool: ThreadPoolExecutor) -> None:
    names: list[str] = []

    def a(state: Any) -> Any:
        names.append(threading.current_thread().name)

    def route(state: Any) -> Any:
        names.append(threading.current_thread().name)
        return "b"

    with ThreadPoolExecutor(2, thread_name_prefix="given") as given:
        builder = StateGraph(Log).add_node("a", a).add_node("b", a).add_edge(START, "a")
        native = NativeGraph(builder.add_conditional_edges("a", route, ["b"]).compile(), given)
        asyncio.run(native.ainvoke({"n": 1}))
        assert all(name.startswith("given") for name in names)
        names.clear()
        native.invoke({"n": 1})  # one task at a time: no thread is needed
        assert set(names) == {threading.current_thread().name}


def test_invoke_from_within_a_full_executor_does_not_wait_for_it() -> None:
    def work(state: Any) -> Any:
        return {"log": ["x"]}

    builder = StateGraph(Log)
    for name in "abcd":
        builder.add_node(name, work).add_edge(START, name)
    with ThreadPoolExecutor(2) as pool:
        native = NativeGraph(builder.compile(), pool)
        rows = [pool.submit(native.invoke, {"n": i}) for i in range(20)]
        assert all(row.result(timeout=60)["log"] == ["x"] * 4 for row in rows)


def test_runs_are_freed_without_the_garbage_collector(pool: ThreadPoolExecutor) -> None:
    async def node(state: Any) -> Any:
        await asyncio.sleep(0)
        return {"log": ["x"]}

    builder = StateGraph(Log)
    for name in "abcd":
        builder.add_node(name, node).add_edge(START, name)
    builder.add_node("last", node).add_edge(list("abcd"), "last")
    builder.add_node("thread", lambda state: None).add_edge("last", "thread")
    builder.add_conditional_edges("last", node_route, ["a", END])
    native = NativeGraph(builder.compile(), pool)

    def alive() -> list[Any]:
        return [each for each in gc.get_objects() if isinstance(each, NativeRun | NativeTask | Scope)]

    async def left() -> list[Any]:
        gc.disable()
        others = alive()  # of earlier tests, whose threads may still be under way
        known = {id(each) for each in others}
        try:
            for i in range(10):
                await native.ainvoke({"n": i})
            found: list[Any] = [NativeRun]
            for _ in range(200):  # the last node's thread may not have let go of its arguments yet
                if not found:
                    break
                await asyncio.sleep(0.01)
                found = [type(each) for each in alive() if id(each) not in known]
            return found
        finally:
            gc.enable()

    gc.collect()
    assert asyncio.run(left()) == []


async def node_route(state: Any) -> str:
    return END


def test_another_langgraph_is_left_alone() -> None:
    """Where a private name is gone, graphs are ineligible; nothing fails at import."""
    script = """
import sys
import langgraph.graph.state
sys.modules["langgraph.pregel._task_status"] = None
from langgraph.graph import END, START, StateGraph
from halo_adapters.langgraph.native import ineligible
app = StateGraph(dict).add_node("a", lambda s: s).add_edge(START, "a").compile()
print(ineligible(app))
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "lacks what native execution stands on" in told
