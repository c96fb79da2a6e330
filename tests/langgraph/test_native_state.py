"""Native execution against Pregel: kinds of state and of channels."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.channels import AnyValue, EphemeralValue, Topic, UntrackedValue
from langgraph.graph import END, START, StateGraph
from langgraph.managed import IsLastStep, RemainingSteps
from langgraph.types import Command, Overwrite
from pydantic import BaseModel

from tests.langgraph.test_native import Kit, Log, Mode, judge

both = pytest.mark.parametrize("mode", ["async", "sync"])


class Model(BaseModel):
    n: int = 1
    log: Annotated[list[str], operator.add] = []


@dataclass
class Data:
    n: int = 1
    log: Annotated[list[str], operator.add] = field(default_factory=list)


@both
@pytest.mark.parametrize("schema", [Model, Data])
def test_class_state(schema: Any, mode: Mode) -> None:
    def make(kit: Kit) -> Any:
        graph = StateGraph(schema)
        graph.add_node("a", kit.fn("a", lambda s: {"n": s.n + 1, "log": ["a"]}))
        graph.add_node("b", kit.fn("b", lambda s: schema(n=s.n * 2, log=["b"])))
        graph.add_node("bad", kit.fn("bad", lambda s: {"n": "not a number"}))
        graph.add_node("c", kit.fn("c", lambda s: {"log": [type(s).__name__]}))
        graph.add_edge(START, "a").add_edge("a", "b").add_edge("bad", "c")
        graph.add_conditional_edges("b", kit.fn("route", lambda s: "bad" if s.n > 10 else "c"))
        return graph.compile()

    # a pydantic state refuses what `bad` wrote, before the task of `c`
    judge(make, [{"n": 1}, {"n": 9}, schema(n=3), {"n": "x"}, {"log": ["in"]}, {}], mode)


class Out(TypedDict):
    answer: str


class Private(TypedDict):
    secret: int


class Wide(TypedDict, total=False):
    question: str
    answer: str
    n: int


@both
def test_schemas(mode: Mode) -> None:
    class Question(TypedDict):
        question: str

    def make(kit: Kit) -> Any:
        graph = StateGraph(Wide, input_schema=Question, output_schema=Out)
        graph.add_node("a", kit.fn("a", lambda s: {"secret": 5, "n": 3}), input_schema=Question)
        graph.add_node("b", kit.fn("b", lambda s: {"answer": f"{s}"}), input_schema=Private)
        graph.add_node("c", kit.fn("c", lambda s: {"n": 4}))
        return graph.add_edge(START, "a").add_edge("a", "b").add_edge("b", "c").compile()

    judge(make, [{"question": "q"}, {"question": "q", "n": 7}, {"answer": "in"}, {}], mode)


@both
def test_root_state(mode: Mode) -> None:
    def make(kit: Kit) -> Any:
        graph = StateGraph(Annotated[list, operator.add])
        graph.add_node("a", kit.fn("a", lambda s: [len(s)]))
        graph.add_node("b", kit.fn("b", lambda s: Command(update=["b"])))
        graph.add_node("c", kit.fn("c", lambda s: None))
        graph.add_edge(START, "a").add_edge("b", "c")
        graph.add_conditional_edges("a", kit.fn("route", lambda s: "b" if len(s) > 2 else END))
        return graph.compile()

    judge(make, [["x"], ["x", "y", "z"], [], "text", 5, None], mode)


@both
def test_channel_kinds(mode: Mode) -> None:
    class Kinds(TypedDict, total=False):
        brief: Annotated[int, EphemeralValue]
        topic: Annotated[list, Topic(str)]
        all: Annotated[list, Topic(str, True)]
        any: Annotated[int, AnyValue]
        loose: Annotated[int, UntrackedValue]
        log: Annotated[list, operator.add]

    def make(kit: Kit) -> Any:
        graph = StateGraph(Kinds)
        graph.add_node("a", kit.fn("a", lambda s: {"brief": 1, "topic": "a", "all": ["a1", "a2"], "any": 1}))
        graph.add_node("b", kit.fn("b", lambda s: {"topic": "b", "all": "b", "any": 1, "loose": 3}))
        graph.add_node("c", kit.fn("c", lambda s: {"log": Overwrite(["c"])}))
        graph.add_node("d", kit.fn("d", lambda s: {"log": ["d"]}))
        graph.add_node("e", kit.fn("e", lambda s: None))
        graph.add_edge(START, "a").add_edge(START, "b").add_edge("a", "c").add_edge("b", "d")
        graph.add_conditional_edges("c", kit.fn("route", lambda s: "e"))
        return graph.compile()

    judge(make, [{"log": ["in"]}, {"brief": 7}, {"topic": ["x"], "any": 5, "loose": 1}, {}], mode)


@both
def test_two_overwrites(mode: Mode) -> None:
    def make(kit: Kit) -> Any:
        graph = StateGraph(Log)
        for name in "ab":
            graph.add_node(name, kit.fn(name, lambda s: {"log": Overwrite([])}))
            graph.add_edge(START, name)
        return graph.compile()

    judge(make, [{"n": 1}], mode)


def gather_good(left: list[Any], right: Any) -> list[Any]:
    """A reducer that changes its left side in place, and fails oddly."""
    if right == "bad":
        raise StopIteration("reducer")
    left.append(right)
    return left


class Mutable(TypedDict, total=False):
    items: Annotated[list, gather_good]
    n: int


@both
def test_failing_reducer_and_mutable_state(mode: Mode) -> None:
    def mutate(state: Any) -> Any:
        state["n"] = 100
        state["extra"] = 1
        state.setdefault("items", []).append("mutated")
        return {"items": "bad" if len(state["items"]) > 4 else "good"}

    def make(kit: Kit) -> Any:
        graph = StateGraph(Mutable)
        for name in "abc":
            graph.add_node(name, kit.fn(name, mutate))
            graph.add_edge(START, name)
        graph.add_node("d", kit.fn("d", mutate))
        return graph.add_edge(["a", "b", "c"], "d").compile()

    # threads race on the shared list
    judge(make, [{"n": 1}, {"items": "x"}], mode, same_events=mode == "async")


@both
def test_managed_values(mode: Mode) -> None:
    class Managed(TypedDict, total=False):
        last: IsLastStep
        left: RemainingSteps
        log: Annotated[list, operator.add]

    def make(kit: Kit) -> Any:
        graph = StateGraph(Managed)
        graph.add_node("a", kit.fn("a", lambda s: {"log": [(s["left"], s["last"])]}))
        graph.add_edge(START, "a")
        graph.add_conditional_edges("a", kit.fn("route", lambda s: END if s["left"] < 2 or s["last"] else "a"))
        return graph.compile()

    judge(make, [{}, {"log": [1]}], mode, {"recursion_limit": 6})
