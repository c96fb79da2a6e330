"""Native execution against Pregel: interrupts, commands, task calls, nested graphs and agents."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.errors import GraphInterrupt
from langgraph.func import task
from langgraph.graph import START, StateGraph
from langgraph.runtime import get_runtime
from langgraph.types import Command, Send, interrupt

from tests.langgraph.test_native import Kit, Log, Mode, add, judge

both = pytest.mark.parametrize("mode", ["async", "sync"])


@both
def test_interrupts(mode: Mode) -> None:
    def make(kit: Kit) -> Any:
        graph = StateGraph(Log)
        graph.add_node("a", kit.fn("a", lambda s: interrupt({"ask": 1}) if s["n"] == 1 else {"log": ["a"], "n": 0}))
        graph.add_node("b", kit.fn("b", lambda s: interrupt("b?") if s["n"] in (1, 2) else add("b")(s)))
        graph.add_node("c", kit.fn("c", add("c")))
        graph.add_node("d", kit.fn("d", lambda s: GraphInterrupt() if s["n"] == 4 else add("d")(s)))
        graph.add_node("e", kit.fn("e", lambda s: ValueError("e") if s["n"] == 5 else interrupt("e?")))
        for name in "abcd":
            graph.add_edge(START, name)
        return graph.add_edge("c", "e").compile()

    inputs = [{"n": n, "log": ["in"]} for n in (1, 2, 3, 4, 5)]
    # the order in which threads reach their interrupt is theirs
    judge(make, inputs if mode == "async" else inputs[1:], mode)


@both
def test_drain(mode: Mode) -> None:
    def make(kit: Kit) -> Any:
        graph = StateGraph(Log)
        graph.add_node("a", kit.fn("a", lambda s: get_runtime().control.request_drain("enough")))
        graph.add_node("b", kit.fn("b", add("b")))
        return graph.add_edge(START, "a").add_edge("a", "b").compile()

    judge(make, [{"n": 1}], mode)


@both
def test_command_as_input(mode: Mode) -> None:
    from tests.langgraph.test_native import linear

    judge(
        linear,
        [Command(update={"n": 4}), Command(goto="b"), Command(), Command(resume=1)],
        mode,
        same_events=False,
    )


@both
def test_send_with_timeout(mode: Mode) -> None:
    def make(kit: Kit) -> Any:
        graph = StateGraph(Log)
        graph.add_node("a", kit.fn("a", lambda s: {"log": ["a"]}))
        graph.add_conditional_edges(START, kit.fn("fan", lambda s: [Send("a", {"n": 1}, timeout=60), Send("a", {})]))
        return graph.compile()

    judge(make, [{"n": 1}], mode, same_events=mode == "async")


def functional(kit: Kit) -> Any:
    """Nodes that call `@task` functions: awaited, several at once, failing, left behind, nested."""
    if kit.mode == "async":

        @task
        async def double(n: int) -> int:
            kit.saw("double", n)
            await asyncio.sleep(0)
            if n == 13:
                raise ValueError("unlucky")
            return 2 * n

        @task
        async def twice(n: int) -> int:
            return await double(await double(n))

        async def a(state: Any) -> Any:
            n = state["n"]
            first = await double(n)
            rest = await asyncio.gather(*(double(i) for i in range(3)))
            if n == 5:
                double(13)
            if n == 6:
                double(1)
                raise KeyError("node fails")
            return {"log": [f"{first} {rest} {await twice(1)}"]}

    else:

        @task
        def double(n: int) -> int:  # type: ignore[no-redef]
            kit.saw("double", n)
            if n == 13:
                raise ValueError("unlucky")
            return 2 * n

        @task
        def twice(n: int) -> int:  # type: ignore[no-redef]
            return double(double(n).result()).result()

        def a(state: Any) -> Any:  # type: ignore[misc]
            n = state["n"]
            first = double(n).result()
            rest = [future.result() for future in [double(i) for i in range(3)]]
            if n == 5:
                double(13)
            if n == 6:
                double(1)
                raise KeyError("node fails")
            return {"log": [f"{first} {rest} {twice(1).result()}"]}

    graph = StateGraph(Log)
    graph.add_node("a", a)
    graph.add_node("b", kit.fn("b", add("b")))
    graph.add_edge(START, "a")
    return graph.add_edge("a", "b").compile()


@both
def test_task_calls(mode: Mode) -> None:
    judge(functional, [{"n": n} for n in (1, 13, 5, 6)], mode, {"tags": ["t"]}, same_events=mode == "async")


@both
def test_hidden_subgraph(mode: Mode) -> None:
    """A graph that a node finds at run time is a nested run: its interrupts, commands and namespaces are its own."""

    def make(kit: Kit) -> Any:
        inner = StateGraph(Log)
        inner.add_node("x", kit.fn("x", lambda s: interrupt("x?") if s["n"] == 1 else {"log": ["x"]}))
        inner.add_node("y", kit.fn("y", lambda s: Command(goto="b", graph=Command.PARENT) if s["n"] == 2 else None))
        inner.add_node("z", kit.fn("z", lambda s: ValueError("z") if s["n"] == 3 else None))
        inner.add_edge(START, "x").add_edge("x", "y").add_edge("y", "z")
        registry = {"inner": inner.compile()}

        async def acall(state: Any) -> Any:
            await registry["inner"].ainvoke({"n": 9})
            return await registry["inner"].ainvoke({"n": state["n"]})

        def call(state: Any) -> Any:
            registry["inner"].invoke({"n": 9})
            return registry["inner"].invoke({"n": state["n"]})

        graph = StateGraph(Log)
        graph.add_node("a", acall if kit.mode == "async" else call)
        graph.add_node("b", kit.fn("b", add("b")))
        graph.add_node("c", kit.fn("c", add("c")))
        return graph.add_edge(START, "a").add_edge("a", "c").compile()

    judge(make, [{"n": n} for n in (1, 2, 3, 4)], mode, {"tags": ["t"]})


@both
def test_agent(mode: Mode) -> None:
    from langchain.agents import create_agent

    class Model(GenericFakeChatModel):
        def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
            return self

    def make(kit: Kit) -> Any:
        def look(word: str) -> str:
            """Look a word up."""
            kit.saw("look", word)
            return word * 2

        calls = [{"name": "look", "args": {"word": w}, "id": w, "type": "tool_call"} for w in ("a", "b", "c")]
        script = [AIMessage("", tool_calls=calls[:2]), AIMessage("", tool_calls=calls[2:]), AIMessage("done")]
        return create_agent(Model(messages=iter(script * 10)), [look], system_prompt="be brief")

    judge(make, [{"messages": [HumanMessage("go")]}], mode, same_events=False)
