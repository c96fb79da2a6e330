"""Native execution against Pregel: kinds of nodes, and what LangGraph hands to them."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, AnyMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableConfig, RunnableLambda, RunnableParallel, RunnablePassthrough
from langgraph.config import get_stream_writer
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.message import add_messages
from langgraph.runtime import Runtime, get_runtime
from langgraph.store.base import BaseStore
from langgraph.types import StreamWriter

from tests.langgraph.test_native import COLOUR, Kit, Log, Mode, add, judge, seen_config

both = pytest.mark.parametrize("mode", ["async", "sync"])


class Callable_:
    def __init__(self, kit: Kit) -> None:
        self.kit = kit

    async def acall(self, state: Any, config: RunnableConfig, *, runtime: Runtime) -> Any:
        self.kit.saw("method", state, config=seen_config(config), runtime=runtime)
        return {"log": ["method"]}

    def __call__(self, state: Any, *, writer: StreamWriter, store: BaseStore | None = None) -> Any:
        writer("ignored")
        self.kit.saw("object", state, store=store)
        return {"log": ["object"]}


def injected(kit: Kit) -> Any:
    """Every way in which LangGraph hands things to a function."""

    async def keyword(state: Any, *, config: RunnableConfig, writer: StreamWriter, previous: Any, runtime: Any) -> Any:
        writer({"x": 1})
        get_stream_writer()("y")
        kit.saw("keyword", state, config=seen_config(config), previous=previous, runtime=runtime, more=get_runtime())
        assert config["configurable"]["__pregel_runtime"] is runtime
        return {"log": ["keyword"]}

    async def optional(state: Any, config: RunnableConfig | None = None, store: BaseStore = None) -> Any:  # type: ignore[assignment]
        kit.saw("optional", state, config=config is None, store=store)
        return {"log": ["optional"]}

    async def extra(prefix: str, state: Any, suffix: str = "s") -> Any:
        kit.saw("extra", state)
        return {"log": [prefix + suffix]}

    async def reads(state: Any, config: RunnableConfig) -> Any:
        read = config["configurable"]["__pregel_read"]
        kit.saw("reads", state, log=read("log", False), fresh=read(["n", "log"], True))
        config["configurable"]["__pregel_send"]([("log", ["sent"])])
        return {"log": ["reads"]}

    async def route(state: Any, config: RunnableConfig, *, runtime: Any, writer: StreamWriter) -> Any:
        kit.saw("route", state, config=seen_config(config), runtime=runtime)
        return "end"

    graph = StateGraph(Log)
    made = Callable_(kit)
    graph.add_node("keyword", keyword)
    graph.add_node("optional", optional)
    graph.add_node("extra", functools.partial(extra, "p", suffix="q"))
    graph.add_node("method", made.acall)
    graph.add_node("object", made)
    graph.add_node("reads", reads)
    graph.add_edge(START, "keyword").add_edge("keyword", "optional").add_edge("optional", "extra")
    graph.add_edge("extra", "method").add_edge("method", "object").add_edge("object", "reads")
    graph.add_conditional_edges("reads", route, {"end": END})
    return graph.compile()


def test_injection() -> None:
    judge(injected, [{"n": 1}], "async", {"tags": ["t"], "configurable": {"thread_id": "x"}})


@dataclass
class Context:
    user: str = "nobody"


@pytest.mark.parametrize("context", [None, {"user": "ann"}, Context("bob"), {}])
@both
def test_context(mode: Mode, context: Any) -> None:
    def make(kit: Kit) -> Any:
        graph = StateGraph(Log, context_schema=Context)
        graph.add_node("a", kit.fn("a", lambda s: {"log": [repr(get_runtime().context)]}))
        return graph.add_edge(START, "a").compile()

    judge(make, [{"n": 1}], mode, context=context)


def fake_model(*texts: str) -> GenericFakeChatModel:
    return GenericFakeChatModel(messages=iter([AIMessage(text) for text in texts] * 10))


def runnables(kit: Kit) -> Any:
    """LCEL in all the places where a Runnable may stand."""
    chain = (
        RunnableLambda(kit.fn("first", lambda s: {"topic": str(s["n"])}))
        | ChatPromptTemplate.from_messages([("human", "{topic}")])
        | fake_model("one two")
        | StrOutputParser()
        | RunnableLambda(kit.fn("last", lambda text: {"log": [text]}))
    )
    flaky = {"left": 1}

    def fail_once(state: Any) -> Any:
        flaky["left"] -= 1
        if flaky["left"] % 2 == 0:
            raise ValueError("once")
        return {"log": ["retried"]}

    def generate(state: Any) -> Any:
        yield {"log": ["g1"]}

    inner = RunnableLambda(kit.fn("inner", lambda s: {"log": ["inner"]}))
    graph = StateGraph(Log)
    graph.add_node("chain", chain)
    graph.add_node("lambda", RunnableLambda(kit.fn("lambda", lambda s: {"log": ["lambda"]})))
    graph.add_node("bound", RunnableLambda(kit.fn("bound", lambda s: {"log": ["b"]})).with_config(tags=["own"]))
    graph.add_node("parallel", RunnableParallel(log=kit.fn("parallel", lambda s: ["parallel"]), n=lambda s: 3))
    graph.add_node("flaky", RunnableLambda(fail_once).with_retry(wait_exponential_jitter=False))
    graph.add_node("returns", kit.fn("returns", lambda s: inner))
    graph.add_node("yields", generate)
    graph.add_node("passes", RunnablePassthrough())
    names = ["chain", "lambda", "bound", "parallel", "flaky", "returns", "yields", "passes"]
    for before, after in zip([START, *names], names, strict=False):
        graph.add_edge(before, after)
    graph.add_conditional_edges("passes", RunnableLambda(lambda s: END, name="route"))
    return graph.compile()


@both
def test_runnables(mode: Mode) -> None:
    judge(runnables, [{"n": 1}], mode, {"tags": ["t"]})


def test_sync_and_async_mixed() -> None:
    def make(kit: Kit) -> Any:
        other = Kit("async")
        other.events = kit.events
        graph = StateGraph(Log)
        graph.add_node("a", kit.fn("a", add("a")))
        graph.add_node("b", other.fn("b", add("b")))
        graph.add_conditional_edges("b", kit.fn("route", lambda s: END))
        return graph.add_edge(START, "a").add_edge("a", "b").compile()

    outcomes = judge(make, [{"n": 1}], "sync")
    assert outcomes[0] == ("value", {"n": 1, "log": ["a", "b"]})
    assert outcomes[1][:2] == ("error", TypeError)  # `invoke` of an asynchronous node


@both
def test_context_variables_stay_in_their_node(mode: Mode) -> None:
    # `Kit.saw` sets COLOUR in every node and records what it found
    from tests.langgraph.test_native import diamond

    token = COLOUR.set("outer")
    try:
        judge(diamond, [{"n": 1}], mode)
        assert COLOUR.get() == "outer"
    finally:
        COLOUR.reset(token)


@both
def test_messages(mode: Mode) -> None:
    def make(kit: Kit) -> Any:
        class State(TypedDict):
            messages: Annotated[list[AnyMessage], add_messages]

        model = fake_model("one", "two")
        graph = StateGraph(MessagesState, input_schema=State)
        graph.add_node("a", kit.fn("a", lambda s: {"messages": [AIMessage("a", id="1"), ("human", "b")]}))
        graph.add_node("b", lambda s: {"messages": model.invoke(s["messages"])})
        return graph.add_edge(START, "a").add_edge("a", "b").compile()

    judge(make, [{"messages": "hi"}, {"messages": [("human", "x")]}], mode)
