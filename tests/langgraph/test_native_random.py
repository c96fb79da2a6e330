"""Native execution against Pregel on graphs that Hypothesis makes up: edges, joins, routes, loops, Sends, Commands."""

from __future__ import annotations

import operator
from typing import Annotated, Any, TypedDict

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langgraph.channels import EphemeralValue, Topic
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, Overwrite, Send

from tests.langgraph.test_native import Kit, judge

NAMES = ("a", "b", "c", "d", "e")


class State(TypedDict, total=False):
    n: int
    one: int
    log: Annotated[list, operator.add]
    total: Annotated[int, operator.add]
    topic: Annotated[list, Topic(str, True)]
    brief: Annotated[str, EphemeralValue]


names = st.sampled_from(NAMES)
targets = st.sampled_from([*NAMES, END])
sends = st.builds(lambda node, n: ("send", node, n), names, st.integers(0, 3))
routes = st.lists(st.one_of(targets, sends), min_size=1, max_size=3)

updates = st.fixed_dictionaries(
    {},
    optional={
        "log": st.lists(st.sampled_from("xyz"), max_size=2),
        "total": st.integers(-3, 3),
        "one": st.integers(0, 3),
        "topic": st.sampled_from(["t", "u"]),
        "brief": st.just("brief"),
    },
)
results = st.one_of(
    st.just(("count",)),
    st.builds(lambda update: ("update", update), updates),
    st.just(("nothing",)),
    st.just(("overwrite",)),
    st.builds(lambda update, goto: ("command", update, goto), updates, routes),
    st.builds(lambda a, b: ("commands", a, b), updates, updates),
    st.just(("wrong",)),
)
nodes = st.fixed_dictionaries(
    {
        "result": results,
        "defer": st.sampled_from([False, False, False, True]),
        "raises_at": st.sampled_from([None] * 6 + [1]),
    }
)
shapes = st.fixed_dictionaries(
    {
        "nodes": st.fixed_dictionaries(dict.fromkeys(NAMES, nodes)),
        "starts": st.lists(names, min_size=1, max_size=3, unique=True),
        "edges": st.lists(st.tuples(names, names), max_size=6, unique=True),
        "joins": st.lists(st.tuples(st.lists(names, min_size=2, max_size=3, unique=True), names), max_size=2),
        "routes": st.dictionaries(names, st.tuples(routes, routes), max_size=3),
    }
)


def goto(route: Any) -> list[Any]:
    return [Send(item[1], {"n": item[2], "log": ["sent"]}) if isinstance(item, tuple) else item for item in route]


def body(name: str, node: dict[str, Any]) -> Any:
    def run(state: Any) -> Any:
        if node["raises_at"] is not None and state.get("n", 0) == node["raises_at"]:
            return ValueError(name, state.get("n"))
        kind, *rest = node["result"]
        if kind == "count":
            return {"log": [name], "n": state.get("n", 0) + 1}
        if kind == "update":
            return dict(rest[0])
        if kind == "overwrite":
            return {"log": Overwrite([name])}
        if kind == "command":
            return Command(update=rest[0], goto=goto(rest[1]) if len(state.get("log", [])) < 6 else ())
        if kind == "commands":
            return [Command(update=rest[0]), Command(update=rest[1]), {"log": ["third"]}]
        if kind == "wrong":
            return "not a dict"
        return None

    return run


def route(pair: Any) -> Any:
    return lambda state: goto(pair[0] if state.get("total", 0) % 2 == 0 else pair[1])


def build(shape: dict[str, Any], kit: Kit) -> Any:
    graph = StateGraph(State)
    for name, node in shape["nodes"].items():
        graph.add_node(name, kit.fn(name, body(name, node)), defer=node["defer"])
    for name in shape["starts"]:
        graph.add_edge(START, name)
    for left, right in shape["edges"]:
        graph.add_edge(left, right)
    for lefts, right in shape["joins"]:
        graph.add_edge(lefts, right)
    for name, pair in shape["routes"].items():
        graph.add_conditional_edges(name, kit.fn(f"from {name}", route(pair)), [*NAMES, END])
    return graph.compile()


@given(shape=shapes, n=st.integers(0, 1))
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
def test_random_graph(shape: dict[str, Any], n: int) -> None:
    judge(lambda kit: build(shape, kit), [{"n": n, "log": ["in"]}], "async", {"recursion_limit": 9}, chances=40)


@given(shape=shapes, n=st.integers(0, 1))
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_random_graph_of_synchronous_nodes(shape: dict[str, Any], n: int) -> None:
    for node in shape["nodes"].values():  # a failure keeps siblings from starting, or not: threads decide
        node["raises_at"] = None
        node["result"] = ("count",) if node["result"][0] == "wrong" else node["result"]
    judge(lambda kit: build(shape, kit), [{"n": n, "log": ["in"]}], "sync", {"recursion_limit": 7}, chances=40)
