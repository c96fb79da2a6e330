"""A pattern: one way of holding a model, as a graph that a test can build anew and run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph
from pydantic import SecretStr
from typing_extensions import TypedDict

Routed = Literal["default", "sdk_hook", "never"]


class State(TypedDict, total=False):
    """A question and its answer."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where the model is served, and the way to make a client for it."""

    base_url: str
    model_name: str = "stub"

    def model(self, **settings: Any) -> ChatOpenAI:
        """A chat model as an application would make it."""
        settings = {"temperature": 0, "max_retries": 0, **settings}
        return ChatOpenAI(model=self.model_name, base_url=self.base_url, api_key=SecretStr("none"), **settings)


Build = Callable[[Place], Any]


@dataclass(frozen=True, slots=True)
class Pattern:
    """One pattern, its graph's builder, and what Halo claims about it."""

    name: str
    build: Build
    """Makes the graph; called once without Halo and once with it."""
    routed: Routed = "default"
    """What it takes for the model call to go through the pool."""
    calls: int = 1
    """Model calls of one run."""
    asynchronous: bool = False
    """Whether the nodes are coroutines, which `invoke` refuses."""
    messages: bool = False
    """Whether the state is a list of messages instead of `State`."""
    config: dict[str, Any] = field(default_factory=dict)
    """Config that the application passes to each run."""
    arguments: Callable[[Place], dict[str, Any]] = lambda place: {}
    """Further arguments that the application passes to each run."""

    def row(self, number: int) -> dict[str, Any]:
        """An input that no other run has; the stub calls a tool where a user asks to use one."""
        question = f"{self.name}, row {number}"
        return {"messages": [("user", f"Use tool: {question}")]} if self.messages else {"question": question}


PATTERNS: list[Pattern] = []


def pattern(name: str, **claims: Any) -> Callable[[Build], Build]:
    """Add a builder to the matrix."""

    def add(build: Build) -> Build:
        PATTERNS.append(Pattern(name, build, **claims))
        return build

    return add


def one_node(node: Any, **settings: Any) -> Any:
    """START -> node -> END over `State`, compiled."""
    builder = StateGraph(State, **settings)
    builder.add_node("answer", node)
    builder.add_edge(START, "answer")
    builder.add_edge("answer", END)
    return builder.compile()


def two_nodes(first: Any, second: Any) -> Any:
    """START -> first -> second -> END over `State`, compiled."""
    builder = StateGraph(State)
    builder.add_node("first", first)
    builder.add_node("second", second)
    builder.add_edge(START, "first")
    builder.add_edge("first", "second")
    builder.add_edge("second", END)
    return builder.compile()
