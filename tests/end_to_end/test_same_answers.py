"""Same answers: on the real engine in float32, every row equals plain LangGraph's, for three kinds of graph."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.prebuilt import ToolNode

import halo_adapters.langgraph as halo
from benchmarks.balanced import BalancedChatOpenAI
from examples.reading_desk.app import build
from halo_core.pool import EndpointSpec, PoolConfig
from tests.conftest import MODEL

pytestmark = pytest.mark.engine

ROWS = Path(__file__).parents[2] / "examples" / "reading_desk" / "rows.jsonl"


@pytest.fixture(autouse=True)
def halo_on_the_real_engines(real_urls: list[str]) -> Iterator[None]:
    halo.install()
    engines = tuple(EndpointSpec(model=MODEL, url=url, slots=32) for url in real_urls)
    pool = halo.configure(PoolConfig(models={"gpt-4o-mini": MODEL}, engines=engines))
    yield
    pool.close()
    halo.uninstall()


def models(urls: list[str], **settings: Any) -> tuple[ChatOpenAI, ChatOpenAI]:
    """(the app's model as Halo sees it, the same straight to the engines)."""
    common: dict[str, Any] = {"temperature": 0, "max_tokens": 24, "api_key": "unused", **settings}
    return ChatOpenAI(model="gpt-4o-mini", **common), BalancedChatOpenAI.over(urls, model=MODEL, **common)


def desk_rows() -> list[dict[str, str]]:
    rows = [json.loads(line) for line in ROWS.read_text("utf-8").splitlines()]
    return [*rows[:6], rows[0], rows[3]]


def test_fan_out_and_fan_in(real_urls: list[str]) -> None:
    ours, plain = models(real_urls)
    app: Any = build(ours).compile(backend="halo")  # type: ignore[call-arg]
    rows = desk_rows()
    expected = asyncio.run(build(plain).compile().abatch(rows))  # type: ignore[arg-type]
    assert asyncio.run(app.abatch(rows)) == expected
    assert all(out["note"].strip() for out in expected)
    total = app.last_run.stats.total
    assert (total.planned, total.shared, total.failed) == (32, 8, 0)


class Draft(TypedDict, total=False):
    topic: str
    text: str
    rounds: int


def looping(llm: Any) -> Any:
    """Write, then continue until the text is long enough or three rounds are over: the number depends on the text."""

    async def write(state: Draft) -> Draft:
        so_far = state.get("text", "")
        answer = await llm.ainvoke(f"Continue in one short sentence about {state['topic']}: {so_far}")
        return {"text": f"{so_far} {answer.content}", "rounds": state.get("rounds", 0) + 1}

    def enough(state: Draft) -> str:
        return "stop" if len(state["text"]) > 180 or state["rounds"] == 3 else "again"

    builder: Any = StateGraph(Draft)
    builder.add_node("write", write)
    builder.add_edge(START, "write")
    builder.add_conditional_edges("write", enough, {"again": "write", "stop": END})
    return builder


def test_a_conditional_loop(real_urls: list[str]) -> None:
    ours, plain = models(real_urls)
    topics = ["rain", "bread", "rain", "the sea", "a dog", "winter", "bread", "ships"]
    rows = [{"topic": topic} for topic in topics]
    expected = asyncio.run(looping(plain).compile().abatch(rows))
    app = looping(ours).compile(backend="halo")
    assert asyncio.run(app.abatch(rows)) == expected
    assert app.last_run.stats.total.shared > 0


@tool
def population(city: Literal["Oslo", "Rome", "Lima"]) -> str:
    """How many people live in a city."""
    return {"Oslo": "700,000", "Rome": "2.8 million", "Lima": "10 million"}[city]


class Chat(TypedDict):
    messages: Annotated[list[BaseMessage], add_messages]


def agent(llm: Any) -> Any:
    """A tools agent: the model is made to call a tool once, then answers from what the tool said."""
    forced = llm.bind_tools([population], tool_choice="population")
    free = llm.bind_tools([population], tool_choice="none")

    def think(state: Chat) -> Chat:
        used = any(isinstance(message, ToolMessage) for message in state["messages"])
        return {"messages": [(free if used else forced).invoke(state["messages"])]}

    def route(state: Chat) -> str:
        last = state["messages"][-1]
        return "tools" if isinstance(last, AIMessage) and last.tool_calls else END

    builder: Any = StateGraph(Chat)
    builder.add_node("think", think)
    builder.add_node("tools", ToolNode([population]))
    builder.add_edge(START, "think")
    builder.add_conditional_edges("think", route, ["tools", END])
    builder.add_edge("tools", "think")
    return builder


def transcript(out: Chat) -> list[tuple[str, Any, Any]]:
    """A conversation without the ids that differ from call to call."""
    return [
        (message.type, message.content, [(call["name"], call["args"]) for call in getattr(message, "tool_calls", [])])
        for message in out["messages"]
    ]


def test_a_tools_agent_with_synchronous_nodes(real_urls: list[str]) -> None:
    ours, _ = models(real_urls, max_tokens=48)
    plain = ChatOpenAI(
        model=MODEL,
        base_url=real_urls[0],
        temperature=0,
        max_tokens=48,
        api_key="unused",  # type: ignore[arg-type]
    )
    cities = ["Oslo", "Rome", "Oslo", "Lima", "Paris", "Rome", "the capital of Norway", "Paris"]
    rows = [{"messages": [HumanMessage(f"How many people live in {city}?")]} for city in cities]
    expected = [transcript(out) for out in agent(plain).compile().batch(rows)]
    app = agent(ours).compile(backend="halo")
    assert [transcript(out) for out in app.batch(rows)] == expected
    # A model of this size does not always manage a well-formed call; where it does not, the rows must agree as well.
    assert any(any(kind == "tool" for kind, _, _ in conversation) for conversation in expected)
    total = app.last_run.stats.total
    assert total.planned == sum(sum(kind == "ai" for kind, _, _ in conversation) for conversation in expected)
    assert total.failed == 0 and total.shared >= 3  # three rows are repeated
