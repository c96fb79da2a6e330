"""Prebuilt agents: the framework itself makes the graph around the model."""

from __future__ import annotations

import warnings
from typing import Any

from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ModelRequest
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, create_react_agent, tools_condition

from tests.langgraph.patterns.pattern import Place, pattern


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


class Brief(AgentMiddleware):
    """Changes the request before the model sees it, as middleware does."""

    def wrap_model_call(self, request: ModelRequest, handler: Any) -> Any:
        return handler(request.override(model_settings={"max_tokens": 20}))

    async def awrap_model_call(self, request: ModelRequest, handler: Any) -> Any:
        return await handler(request.override(model_settings={"max_tokens": 20}))


@pattern("create_agent", calls=2, messages=True)
def agent(place: Place) -> Any:
    return create_agent(place.model(), [weather], system_prompt="You report the weather.")


@pattern("create_agent with middleware", calls=2, messages=True)
def agent_with_middleware(place: Place) -> Any:
    return create_agent(place.model(), [weather], system_prompt="You report the weather.", middleware=[Brief()])


@pattern("create_react_agent", calls=2, messages=True)
def react_agent(place: Place) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and in wide use
        return create_react_agent(place.model(), [weather], prompt="You report the weather.")


@pattern("ToolNode loop", calls=2, messages=True)
def tool_loop(place: Place) -> Any:
    model = place.model().bind_tools([weather])

    def think(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    builder = StateGraph(MessagesState)
    builder.add_node("think", think)
    builder.add_node("tools", ToolNode([weather]))
    builder.add_edge(START, "think")
    builder.add_conditional_edges("think", tools_condition)
    builder.add_edge("tools", "think")
    return builder.compile()
