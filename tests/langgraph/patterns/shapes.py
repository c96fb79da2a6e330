"""Shapes of graph around the call: functional API, sub-graphs, fan-out."""

from __future__ import annotations

import operator
from typing import Annotated, Any

from langgraph.func import entrypoint, task
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send
from typing_extensions import TypedDict

from tests.langgraph.patterns.pattern import Place, State, one_node, pattern


@pattern("@task", calls=2)
def tasks(place: Place) -> Any:
    model = place.model()

    @task
    def ask(question: str) -> str:
        return str(model.invoke(question).content)

    @entrypoint()
    def flow(row: State) -> State:
        first, second = ask(row["question"]), ask(row["question"] + " again")
        return {"answer": f"{first.result()} / {second.result()}"}

    return flow


@pattern("@entrypoint")
def functional(place: Place) -> Any:
    model = place.model()

    @entrypoint()
    def flow(row: State) -> State:
        return {"answer": str(model.invoke(row["question"]).content)}

    return flow


@pattern("sub-graph as node")
def subgraph(place: Place) -> Any:
    model = place.model()

    def node(state: State) -> State:
        return {"answer": str(model.invoke(state["question"]).content)}

    return one_node(one_node(node))


@pattern("sub-graph invoked in a node")
def nested_subgraph(place: Place) -> Any:
    model = place.model()

    def node(state: State) -> State:
        return {"answer": str(model.invoke(state["question"]).content)}

    inner = one_node(node)

    def outer(state: State) -> State:
        return {"answer": inner.invoke({"question": state["question"]})["answer"]}

    return one_node(outer)


class Parts(TypedDict, total=False):
    """A question asked in parts."""

    question: str
    answers: Annotated[list[str], operator.add]


@pattern("Send fan-out", calls=3)
def fan_out(place: Place) -> Any:
    model = place.model()

    def spread(state: Parts) -> list[Send]:
        return [Send("ask", {"question": f"{state['question']} part {part}"}) for part in range(3)]

    def ask(state: State) -> Parts:
        return {"answers": [str(model.invoke(state["question"]).content)]}

    builder = StateGraph(Parts)
    builder.add_node("ask", ask)
    builder.add_conditional_edges(START, spread, ["ask"])
    builder.add_edge("ask", END)
    return builder.compile()
