"""LangChain tools inside a batch: equal reads once, results and events as LangGraph's own, writes as often as asked."""

from __future__ import annotations

import asyncio
import operator
import time
from collections.abc import Iterator
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, AnyMessage, ToolCall, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, InjectedToolCallId, StructuredTool, tool
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.prebuilt import InjectedState, ToolNode, ToolRuntime
from langgraph.types import Command
from pydantic import BaseModel

import halo_adapters.langgraph as halo
import halo_core
from halo_adapters.langgraph import tools as hooks
from halo_adapters.langgraph.lift import lift
from halo_core.pool import PoolConfig, configure
from halo_core.runtime import tool_call, tool_desk
from halo_core.tools import ToolDeclarationError


class State(TypedDict, total=False):
    question: int
    messages: Annotated[list[AnyMessage], add_messages]
    found: Annotated[list[Any], operator.add]


@pytest.fixture(autouse=True)
def pool() -> Iterator[None]:
    made = configure(PoolConfig())
    halo.install()
    yield
    halo.uninstall()
    made.close()


def calling(*names: str) -> Any:
    """A node that asks for the tools, as a model would."""

    def ask(state: State) -> Any:
        calls = [
            ToolCall(name=name, args={"q": state["question"] % 3}, id=f"{name}-{state['question']}") for name in names
        ]
        return {"messages": [AIMessage("", tool_calls=calls)]}

    return ask


def graph(tools: list[Any], *, plain: bool = False) -> Any:
    builder = StateGraph(State)
    builder.add_node("ask", calling(*(t.name for t in tools)))
    builder.add_node("tools", ToolNode(tools))
    builder.add_edge(START, "ask")
    builder.add_edge("ask", "tools")
    builder.add_edge("tools", END)
    return builder.compile() if plain else builder.compile(backend="halo")  # type: ignore[call-arg]


def contents(outs: list[Any]) -> list[list[tuple[Any, str, str]]]:
    return [
        [(m.content, m.name, m.tool_call_id) for m in out["messages"] if isinstance(m, ToolMessage)] for out in outs
    ]


ROWS = [{"question": n} for n in range(12)]


def looking(seen: list[int], metadata: dict[str, Any] | None = None, *, sync: bool) -> BaseTool:
    """A tool with a body of each kind."""

    def look(q: int, factor: int = 10) -> str:
        """Look it up."""
        seen.append(q)
        time.sleep(0.01)
        return f"found {q * factor}"

    async def alook(q: int, factor: int = 10) -> str:
        """Look it up."""
        seen.append(q)
        await asyncio.sleep(0.01)
        return f"found {q * factor}"

    bodies: dict[str, Any] = {"func": look} if sync else {"coroutine": alook}
    return StructuredTool.from_function(**bodies, name="look", metadata=metadata)


@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize("batched", ["batch", "abatch"])
def test_equal_calls_of_a_declared_tool_are_one(sync: bool, batched: str) -> None:
    if batched == "batch" and not sync:
        pytest.skip("LangChain cannot invoke a tool without a synchronous body")
    seen: list[int] = []
    app = graph([looking(seen, {"halo": {"effect": "read", "source": "web"}}, sync=sync)])
    outs = app.batch(ROWS) if batched == "batch" else asyncio.run(app.abatch(ROWS))
    assert contents(outs) == [[(f"found {n % 3 * 10}", "look", f"look-{n}")] for n in range(12)]
    assert sorted(seen) == [0, 1, 2]
    stats = app.last_run.stats.tools["look"]
    assert (stats.executed, stats.shared, stats.failed) == (3, 9, 0)


def test_a_tool_over_a_declared_function_is_one_too() -> None:
    seen: list[int] = []

    @tool
    @halo_core.tool(effect="read")
    def look(q: int) -> str:
        """Look it up."""
        seen.append(q)
        time.sleep(0.01)
        return f"found {q}"

    app = graph([look])
    assert [row[0][0] for row in contents(app.batch(ROWS))] == [f"found {n % 3}" for n in range(12)]
    assert sorted(seen) == [0, 1, 2] and app.last_run.stats.tools["look"].shared == 9


def test_undeclared_and_writing_tools_are_called_as_often_as_asked() -> None:
    seen: dict[str, list[int]] = {"book": [], "anything": []}

    @tool
    def anything(q: int) -> str:
        """Nobody knows what it does."""
        seen["anything"].append(q)
        return "done"

    def book(q: int) -> str:
        """Book it."""
        seen["book"].append(q)
        return "booked"

    writing = StructuredTool.from_function(book, metadata={"halo": {"effect": "write", "source": "orders"}})
    app = graph([anything, writing])
    outs = app.batch(ROWS)
    assert contents(outs) == contents(graph([anything, writing], plain=True).batch(ROWS))
    assert all(sorted(calls[:12]) == sorted(n % 3 for n in range(12)) for calls in seen.values())
    stats = app.last_run.stats.tools
    assert stats["book"].executed == stats["anything"].executed == 12 and app.last_run.stats.tool_total.shared == 0


def test_what_is_injected_tells_callers_apart_but_not_questions() -> None:
    """The id of a tool call goes into the message that LangChain makes of the result; the state is what may be read."""
    by_id: list[str] = []
    by_state: list[int] = []

    def with_id(q: int, tool_call_id: Annotated[str, InjectedToolCallId]) -> str:
        """Look it up."""
        by_id.append(tool_call_id)
        return f"found {q}"

    def with_state(q: int, state: Annotated[dict[str, Any], InjectedState]) -> str:
        """Look at the state."""
        by_state.append(state["question"])
        return f"question {state['question']}"

    hints = {"halo": {"effect": "read"}}
    tools = [StructuredTool.from_function(f, metadata=hints) for f in (with_id, with_state)]
    outs = graph(tools).batch(ROWS)
    assert contents(outs) == [
        [(f"found {n % 3}", "with_id", f"with_id-{n}"), (f"question {n}", "with_state", f"with_state-{n}")]
        for n in range(12)
    ]
    assert len(by_id) == 3 and sorted(by_state) == list(range(12))


def test_what_a_tool_reads_of_runtime_and_config_tells_questions_apart() -> None:
    seen: dict[str, list[Any]] = {"runtime": [], "config": [], "neither": []}

    def with_runtime(q: int, runtime: ToolRuntime) -> str:
        """Look at the state."""
        seen["runtime"].append(runtime.state["question"])
        return f"question {runtime.state['question']}"

    def with_config(q: int, config: RunnableConfig) -> str:
        """Look at who asks."""
        seen["config"].append((q, config["configurable"]["user"]))
        return f"{q} for {config['configurable']['user']}"

    def neither(q: int) -> str:
        """Look it up."""
        seen["neither"].append(q)
        return f"found {q}"

    hints = {"halo": {"effect": "read"}}
    tools = [StructuredTool.from_function(f, metadata=hints) for f in (with_runtime, with_config, neither)]
    configs = [{"configurable": {"user": "ab"[n // 3 % 2]}} for n in range(12)]
    outs = graph(tools).batch(ROWS, configs)
    assert sorted(seen["runtime"]) == list(range(12))
    assert sorted(seen["config"]) == [(q, user) for q in range(3) for user in "ab"]
    assert sorted(seen["neither"]) == [0, 1, 2]
    assert contents(outs) == contents(graph(tools, plain=True).batch(ROWS, configs))


def test_a_write_is_known_again_when_its_row_is_resumed() -> None:
    """The journal knows a write by what it is asked: the ids of the row's messages are others in every run."""
    ids: list[str] = []

    def book(
        q: int, state: Annotated[dict[str, Any], InjectedState], runtime: ToolRuntime, config: RunnableConfig
    ) -> str:
        """Book it."""
        ids.append(state["messages"][0].id)
        return "booked"

    class Booking(BaseModel):
        q: int
        messages: Annotated[list[Any], InjectedState("messages")]

    def note(q: int, messages: list[Any]) -> str:
        """Note it."""
        return f"{len(messages)} messages"

    hints = {"halo": {"effect": "write"}}
    tools = [
        StructuredTool.from_function(book, metadata=hints),
        StructuredTool.from_function(note, args_schema=Booking, metadata=hints),
    ]
    runs: list[list[tuple[str, str | None]]] = []
    for _ in range(2):
        calls: list[tuple[str, str | None]] = []

        def watch(call: tool_call.ToolCall, calls: list[tuple[str, str | None]] = calls) -> None:
            calls.append((call.tool, call.signature))

        tool_desk.OBSERVERS.append(watch)
        try:
            outs = graph(tools).batch(ROWS[:2])
        finally:
            tool_desk.OBSERVERS.remove(watch)
        assert [found[0] for found in contents(outs)[0]] == ["booked", "1 messages"]
        runs.append(sorted(calls))
    assert len(set(ids)) == 4
    assert runs[0] == runs[1] and len(set(runs[0])) == 4


def test_a_shared_result_is_each_rows_own() -> None:
    """Rows may change what a tool gave them."""

    @halo_core.tool(effect="read")
    def look(q: int) -> list[int]:
        return [q]

    def node(state: State) -> Any:
        found = look(state["question"] % 3)
        found.append(state["question"])
        return {"found": found}

    builder = StateGraph(State)
    builder.add_node("node", node)
    builder.add_edge(START, "node")
    outs = builder.compile(backend="halo").batch(ROWS)  # type: ignore[call-arg]
    assert [out["found"] for out in outs] == [[n % 3, n] for n in range(12)]


def test_events_come_for_every_call() -> None:
    class Ends(BaseCallbackHandler):
        def __init__(self) -> None:
            self.outputs: list[Any] = []

        def on_tool_end(self, output: Any, **kwargs: Any) -> None:
            self.outputs.append(output.content)

    seen: list[int] = []
    ends = Ends()
    graph([looking(seen, {"halo": {"effect": "read"}}, sync=True)]).batch(ROWS, {"callbacks": [ends]})
    assert sorted(ends.outputs) == sorted(f"found {n % 3 * 10}" for n in range(12)) and len(seen) == 3


def test_commands_and_artifacts_are_shared_whole() -> None:
    def move(q: int, tool_call_id: Annotated[str, InjectedToolCallId]) -> Any:
        """Move on: an update names the call that it answers, so such a tool must not be declared to share."""
        return Command(update={"found": [q], "messages": [ToolMessage(f"moved {q}", tool_call_id=tool_call_id)]})

    def look(q: int) -> tuple[str, dict[str, int]]:
        """Look it up."""
        return f"found {q}", {"q": q}

    looks = StructuredTool.from_function(
        look, response_format="content_and_artifact", metadata={"halo": {"effect": "pure"}}
    )
    moves = StructuredTool.from_function(move)
    outs = graph([looks, moves]).batch(ROWS)
    artifacts = [m.artifact for out in outs for m in out["messages"] if isinstance(m, ToolMessage) and m.artifact]
    assert artifacts == [{"q": n % 3} for n in range(12)]
    assert [out["found"] for out in outs] == [[n % 3] for n in range(12)]


def test_a_bad_declaration_is_an_error_that_names_the_tool() -> None:
    bad = looking([], {"halo": {"effect": "maybe"}}, sync=True)
    with pytest.raises(ToolDeclarationError, match="tool 'look': effect is 'maybe'"):
        graph([bad]).batch([ROWS[0]])


def test_outside_halo_tools_are_langchains_own() -> None:
    seen: list[int] = []
    look = looking(seen, {"halo": {"effect": "read"}}, sync=True)
    assert [look.invoke({"q": 1}), look.invoke({"q": 1})] == ["found 10"] * 2 and seen == [1, 1]
    graph([look], plain=True).batch(ROWS)
    assert len(seen) == 14
    halo.uninstall()
    assert not hasattr(StructuredTool._run, "__halo__") and not hooks.HOOKS.installed


def test_the_plan_knows_the_tools_effects() -> None:
    read = graph([looking([], {"halo": {"effect": "read"}}, sync=True)])
    assert lift(read)["tools"].effect == "read"

    @tool
    @halo_core.tool(effect="pure")
    def add(q: int) -> int:
        """Add."""
        return q

    assert lift(graph([add]))["tools"].effect == "pure"

    @halo_core.tool(effect="read")
    def node(state: State) -> Any:
        return {}

    builder = StateGraph(State)
    builder.add_node("node", node)
    builder.add_edge(START, "node")
    assert lift(builder.compile())["node"].effect == "read"


def test_explain_analyze_shows_the_tools() -> None:
    app = graph([looking([], {"halo": {"effect": "read"}}, sync=True)])
    app.batch(ROWS)
    lines = app.last_run.explain_analyze().splitlines()
    [line] = [line for line in lines if line.startswith("look ")]
    assert line.split()[1:5] == ["12", "3", "9", "-"]
