"""Native execution against Pregel: the judge, and hand-written graph shapes.

`judge` runs one graph both ways (by LangGraph and natively) and compares results, exceptions
with their notes, the order in which nodes started, and everything that a node's code can see of its run.
"""

from __future__ import annotations

import asyncio
import copy
import operator
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Annotated, Any, Literal, TypedDict

import pytest
from langchain_core.callbacks import BaseCallbackManager
from langchain_core.messages import BaseMessage
from langgraph.config import get_config
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, Send

from halo_adapters.langgraph.native import NativeGraph, ineligible, ineligible_call

UUID = re.compile(r"[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}")
ADDRESS = re.compile(r" at 0x[0-9a-f]+")
COLOUR: ContextVar[str] = ContextVar("colour", default="none")
Mode = Literal["async", "sync"]
THREADS = ThreadPoolExecutor(8)


def plain(value: Any) -> Any:
    """`value` without what differs between any two runs: ids, addresses, times."""
    if isinstance(value, str):
        return ADDRESS.sub("", UUID.sub("#", value))
    if isinstance(value, BaseMessage):
        return type(value).__name__, plain(value.model_dump(exclude={"id"}))
    if isinstance(value, BaseCallbackManager):
        names = ("handlers", "inheritable_handlers", "tags", "inheritable_tags", "metadata", "inheritable_metadata")
        return type(value).__name__, {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(*map(plain, value)) if hasattr(value, "_fields") else type(value)(map(plain, value))
    if is_dataclass(value) and not isinstance(value, type):
        return type(value).__name__, {
            field.name: plain(getattr(value, field.name)) for field in fields(value) if "time" not in field.name
        }
    if value is None or isinstance(value, bool | int | float):
        return value
    if callable(value):
        return "callable"
    return plain(repr(value))


def seen_config(config: Any) -> dict[str, Any]:
    """What code can see of a run through its config."""
    shown = {key: value for key, value in config.items() if key != "configurable"}
    return {**plain(shown), "configurable": {key: plain(value) for key, value in config["configurable"].items()}}


class Kit:
    """Makes the functions of a graph, and remembers what they saw, in order."""

    def __init__(self, mode: Mode) -> None:
        self.mode = mode
        self.events: list[tuple[Any, ...]] = []

    def saw(self, name: str, state: Any, **more: Any) -> None:
        colour = COLOUR.get()
        COLOUR.set(name)  # must never be seen by another node
        config = get_config()
        step = config["metadata"]["langgraph_step"]
        self.events.append((step, name, plain(state), colour, seen_config(config), plain(more)))

    def fn(self, name: str, body: Callable[[Any], Any]) -> Callable[..., Any]:
        """A function that notes what it sees and returns `body(state)`; raises it if that is an exception."""

        def result(state: Any) -> Any:
            value = body(state)
            if isinstance(value, BaseException):
                raise type(value)(*value.args)  # afresh: notes stay on an exception
            return value

        async def arun(state: Any) -> Any:
            self.saw(name, state)
            await asyncio.sleep(0)
            return result(state)

        def run(state: Any) -> Any:
            self.saw(name, state)
            return result(state)

        chosen: Callable[..., Any] = arun if self.mode == "async" else run
        chosen.__name__ = name
        return chosen


def outcome(run: Callable[[], Any]) -> Any:
    """The result, or all that can be told of the exception."""
    try:
        return "value", plain(run())
    except Exception as error:
        return (
            "error",
            type(error),
            plain(str(error)),
            plain(error.args),
            plain(getattr(error, "__notes__", [])),
            type(error.__cause__),
        )


def by_step(events: list[tuple[Any, ...]], ordered: bool) -> list[Any]:
    return events if ordered else sorted(events, key=lambda event: (event[0], repr(event)))


def judge(
    make: Callable[[Kit], Any],
    inputs: list[Any],
    mode: Mode,
    config: dict[str, Any] | None = None,
    *,
    same_events: bool = True,
    chances: int = 0,
    **options: Any,
) -> list[Any]:
    """Assert that native execution of `make`'s graph equals LangGraph's; returns the outcomes.

    Where several nodes fail in one step, LangGraph reports any of them: it may be asked again, up to `chances` times.
    """
    assert ineligible_call(config) is None
    outcomes = []
    for value in inputs:
        for way in ("ainvoke", "invoke") if mode == "sync" else ("ainvoke",):

            def run(native: bool) -> tuple[Any, list[Any]]:
                kit = Kit(mode)
                app = make(kit)
                assert ineligible(app) is None
                invoke = getattr(NativeGraph(app, THREADS) if native else app, way)  # noqa: B023
                call = partial(invoke, copy.deepcopy(value), config, **options)  # noqa: B023
                result = outcome(partial(asyncio.run, _await(call)) if way == "ainvoke" else call)  # noqa: B023
                return result, by_step(kit.events, ordered=mode == "async")

            theirs, ours = run(native=False), run(native=True)
            tries = chances if ours[0][0] == theirs[0][0] == "error" else 0
            while tries and ours[0] != theirs[0]:
                tries -= 1
                theirs = run(native=False)
            assert ours[0] == theirs[0], way
            # with threads, a failure may come before or after a sibling has started
            if same_events and not (chances and mode == "sync" and theirs[0][0] == "error"):
                assert ours[1] == theirs[1], way
            outcomes.append(theirs[0])
    return outcomes


async def _await(call: Callable[[], Any]) -> Any:
    return await call()


class Log(TypedDict, total=False):
    """The state of most shapes: a value, and a log that every node appends to."""

    n: int
    log: Annotated[list[str], operator.add]


def add(name: str) -> Callable[[Any], Any]:
    return lambda state: {"log": [name]}


def linear(kit: Kit) -> Any:
    graph = StateGraph(Log)
    graph.add_sequence(
        [
            ("a", kit.fn("a", lambda s: {"log": ["a"], "n": s["n"] + 1})),
            ("b", kit.fn("b", add("b"))),
            ("c", kit.fn("c", lambda s: None)),
        ]
    )
    return graph.add_edge(START, "a").compile()


def diamond(kit: Kit) -> Any:
    graph = StateGraph(Log)
    for name in "abcd":
        graph.add_node(name, kit.fn(name, add(name)))
    graph.add_edge(START, "a").add_edge("a", "c").add_edge("a", "b").add_edge("b", "d").add_edge("c", "d")
    return graph.add_edge("d", END).compile()


def uneven_join(kit: Kit) -> Any:
    graph = StateGraph(Log)
    for name in "abcde":
        graph.add_node(name, kit.fn(name, add(name)))
    graph.add_edge(START, "a").add_edge(START, "b").add_edge("b", "c").add_edge(["a", "c"], "d").add_edge("d", "e")
    return graph.compile()


def uneven_fan_in(kit: Kit) -> Any:
    """Without a join the last node runs twice."""
    graph = StateGraph(Log)
    for name in "abcd":
        graph.add_node(name, kit.fn(name, add(name)))
    graph.add_edge(START, "a").add_edge(START, "b").add_edge("b", "c").add_edge("a", "d").add_edge("c", "d")
    return graph.compile()


def deferred(kit: Kit) -> Any:
    graph = StateGraph(Log)
    for name in "abc":
        graph.add_node(name, kit.fn(name, add(name)))
    graph.add_node("last", kit.fn("last", add("last")), defer=True)
    graph.add_node("joined", kit.fn("joined", add("joined")), defer=True)
    graph.add_edge(START, "a").add_edge(START, "b").add_edge("b", "c").add_edge("a", "last").add_edge("c", "last")
    return graph.add_edge(["a", "b"], "joined").compile()


def looping(kit: Kit) -> Any:
    graph = StateGraph(Log)
    graph.add_node("a", kit.fn("a", lambda s: {"n": s["n"] - 1, "log": [f"a{s['n']}"]}))
    graph.add_node("b", kit.fn("b", add("b")))
    graph.add_edge(START, "a").add_edge("a", "b")
    graph.add_conditional_edges("b", kit.fn("route", lambda s: "a" if s["n"] > 0 else END))
    return graph.compile()


def routed(kit: Kit) -> Any:
    graph = StateGraph(Log)
    for name in "abcd":
        graph.add_node(name, kit.fn(name, add(name)), metadata={"halo": {"pure": True}, "who": name})

    def choose(state: Any) -> Any:
        return {0: "left", 1: ["left", "right"], 2: ["right"], 3: [Send("b", {"n": 9}), "right"]}[state["n"]]

    graph.add_conditional_edges(START, kit.fn("entry", lambda s: "a"))
    graph.add_conditional_edges("a", kit.fn("choose", choose), {"left": "b", "right": "c"})
    graph.add_conditional_edges("a", kit.fn("also", lambda s: ["d", END]))
    return graph.add_edge("b", "d").compile()


def wrong_routes(kit: Kit) -> Any:
    graph = StateGraph(Log)
    graph.add_node("a", kit.fn("a", add("a")))
    graph.add_node("b", kit.fn("b", add("b")))
    choices: list[Any] = [None, START, "nobody", Send(END, {}), Send("nobody", {}), 17, ["b", None], KeyError("x")]
    graph.add_conditional_edges("a", kit.fn("route", lambda s: choices[s["n"]]))
    return graph.add_edge(START, "a").compile()


def wrong_keys(kit: Kit) -> Any:
    graph = StateGraph(Log)
    graph.add_node("a", kit.fn("a", add("a")))
    graph.add_conditional_edges("a", kit.fn("route", lambda s: "there"), {"here": END})
    return graph.add_edge(START, "a").compile()


def commands(kit: Kit) -> Any:
    graph = StateGraph(Log)

    def leap(state: Any) -> Any:
        return [
            Command(goto="b", update={"log": ["to b"]}),
            Command(goto=["b", "c"], update=[("log", ["one"]), ("log", ["two"])]),
            Command(goto=Send("b", {"n": 100})),
            Command(goto=[Send("b", {"n": 1}), Send("b", {"n": 2}), "c"]),
            [Command(goto="b", update={"n": 7}), {"log": ["mixed"]}],
            [Command(update={"n": 7}), Command(update={"n": 8})],
            Command(goto=END),
            Command(goto="nobody"),
            Command(update=5),
            Command(goto="b", graph=Command.PARENT),
            Command(goto="b", update={"log": ["own name"]}, graph="a"),
            Send("c", {"n": 3}),
        ][state["n"]]

    graph.add_node("a", kit.fn("a", leap), destinations=("b", "c"))
    graph.add_node("b", kit.fn("b", lambda s: {"log": [f"b{s.get('n')}"]}))
    graph.add_node("c", kit.fn("c", lambda s: {"log": [f"c{s.get('n')}"]}))
    return graph.add_edge(START, "a").compile()


def map_reduce(kit: Kit) -> Any:
    graph = StateGraph(Log)
    graph.add_node("plan", kit.fn("plan", add("plan")))
    graph.add_node("work", kit.fn("work", lambda s: {"log": [f"work{s['n']}"]}))
    graph.add_node("also", kit.fn("also", add("also")))
    graph.add_node("sum", kit.fn("sum", lambda s: {"n": len(s["log"])}))
    graph.add_edge(START, "plan").add_edge("plan", "also")
    graph.add_conditional_edges(
        "plan", kit.fn("fan", lambda s: [Send("work", {"n": i}) for i in range(s["n"])]), ["work"]
    )
    return graph.add_edge("work", "sum").compile()


def clash(kit: Kit) -> Any:
    """Two nodes write a key that takes one value per step."""
    graph = StateGraph(Log)
    for name in "ab":
        graph.add_node(name, kit.fn(name, lambda s: {"n": 1}))
        graph.add_edge(START, name)
    return graph.compile()


def bad_results(kit: Kit) -> Any:
    graph = StateGraph(Log)
    results: list[Any] = ["text", 5, [], ["x"], {"unknown": 1}, {"log": 5}, {"log": None}, (), {}, None, object]
    graph.add_node("a", kit.fn("a", lambda s: results[s["n"]]))
    return graph.add_edge(START, "a").compile()


def failing(kit: Kit) -> Any:
    graph = StateGraph(Log)
    errors: list[Any] = [
        ValueError("v", 1),
        StopIteration(3),
        StopAsyncIteration(),
        asyncio.CancelledError("mine"),
        TimeoutError(),
        ExceptionGroup("g", [KeyError("k")]),
    ]
    graph.add_node("a", kit.fn("a", add("a")))
    graph.add_node("b", kit.fn("b", lambda s: errors[s["n"]]))
    graph.add_node("c", kit.fn("c", add("c")))
    return graph.add_edge(START, "a").add_edge("a", "b").add_edge("b", "c").compile()


def failing_sibling(kit: Kit) -> Any:
    graph = StateGraph(Log)
    for name in "abd":
        graph.add_node(name, kit.fn(name, add(name)))
        graph.add_edge(START, name)
    graph.add_node("c", kit.fn("c", lambda s: RuntimeError("c fails")))
    return graph.add_edge(START, "c").compile()


SHAPES: dict[str, tuple[Callable[[Kit], Any], list[Any]]] = {
    "linear": (linear, [{"n": 1}, {"n": 2, "log": ["in"]}, {"n": 1, "other": 2}, {}, None, [], "text", 5]),
    "diamond": (diamond, [{"n": 1}, {"log": []}]),
    "uneven_join": (uneven_join, [{"n": 1}]),
    "uneven_fan_in": (uneven_fan_in, [{"n": 1}]),
    "deferred": (deferred, [{"n": 1}]),
    "looping": (looping, [{"n": n} for n in (1, 3)]),
    "routed": (routed, [{"n": n} for n in range(5)]),
    "wrong_routes": (wrong_routes, [{"n": n} for n in range(8)]),
    "wrong_keys": (wrong_keys, [{"n": 1}]),
    "commands": (commands, [{"n": n} for n in range(12)]),
    "map_reduce": (map_reduce, [{"n": n} for n in (0, 1, 5, 12)]),
    "clash": (clash, [{"n": 1}]),
    "bad_results": (bad_results, [{"n": n} for n in range(11)]),
    "failing": (failing, [{"n": n} for n in range(6)]),
}


@pytest.mark.parametrize("mode", ["async", "sync"])
@pytest.mark.parametrize("name", SHAPES)
def test_shape(name: str, mode: Mode) -> None:
    make, inputs = SHAPES[name]
    judge(make, inputs, mode)


@pytest.mark.parametrize("mode", ["async", "sync"])
def test_failing_sibling(mode: Mode) -> None:
    # which siblings get as far as starting is up to the threads
    judge(failing_sibling, [{"n": 1}], mode, same_events=mode == "async")


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 4, 5, 6, 7])
def test_recursion_limit(limit: int) -> None:
    judge(looping, [{"n": 2}], "async", {"recursion_limit": limit})


@pytest.mark.parametrize(
    "config",
    [
        {"tags": ["t", "u"], "metadata": {"m": 1, "nested": {"a": [1]}}, "run_name": "name"},
        {"configurable": {"thread_id": "7", "user": 5}, "max_concurrency": 2},
        {"metadata": {"lc_versions": {"x": "1"}}, "user_key": 4, "recursion_limit": 20},
        {"tags": [], "metadata": {}, "configurable": {}, "max_concurrency": None},
        {"max_concurrency": 1, "tags": ["x", "x"]},
    ],
)
@pytest.mark.parametrize("mode", ["async", "sync"])
@pytest.mark.parametrize("make", [routed, diamond, map_reduce])
def test_config(make: Callable[[Kit], Any], mode: Mode, config: dict[str, Any]) -> None:
    judge(make, [{"n": 3}], mode, config)


def test_bound_config() -> None:
    bound = {"recursion_limit": 4, "tags": ["bound"], "metadata": {"b": 1}, "configurable": {"k": 1}}
    given = {"tags": ["given"], "metadata": {"b": 2}, "configurable": {"j": 2}}
    judge(lambda kit: looping(kit).with_config(bound), [{"n": 1}, {"n": 3}], "async", given)
