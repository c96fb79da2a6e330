"""Native execution against Pregel: kinds of state, of nodes, of injection, of control flow."""

from __future__ import annotations

import asyncio
import functools
import operator
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableConfig, RunnableLambda, RunnableParallel, RunnablePassthrough
from langgraph.channels import AnyValue, EphemeralValue, Topic, UntrackedValue
from langgraph.config import get_stream_writer
from langgraph.errors import GraphInterrupt
from langgraph.func import task
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.message import add_messages
from langgraph.managed import IsLastStep, RemainingSteps
from langgraph.runtime import Runtime, get_runtime
from langgraph.store.base import BaseStore
from langgraph.types import Command, Overwrite, Send, StreamWriter, interrupt
from pydantic import BaseModel

from tests.langgraph.test_native import COLOUR, Kit, Log, Mode, add, judge, seen_config, threads  # noqa: F401

Make = Callable[[Kit], Any]
both = pytest.mark.parametrize("mode", ["async", "sync"])


# kinds of state


class Model(BaseModel):
    n: int = 1
    log: Annotated[list[str], operator.add] = []


@dataclass
class Data:
    n: int = 1
    log: Annotated[list[str], operator.add] = field(default_factory=list)


@both
@pytest.mark.parametrize("schema", [Model, Data])
def test_class_state(schema: Any, mode: Mode, threads: ThreadPoolExecutor) -> None:  # noqa: F811
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
    judge(make, [{"n": 1}, {"n": 9}, schema(n=3), {"n": "x"}, {"log": ["in"]}, {}], mode, threads)


class Out(TypedDict):
    answer: str


class Private(TypedDict):
    secret: int


class Wide(TypedDict, total=False):
    question: str
    answer: str
    n: int


@both
def test_schemas(mode: Mode, threads: ThreadPoolExecutor) -> None:  # noqa: F811
    class Question(TypedDict):
        question: str

    def make(kit: Kit) -> Any:
        graph = StateGraph(Wide, input_schema=Question, output_schema=Out)
        graph.add_node("a", kit.fn("a", lambda s: {"secret": 5, "n": 3}), input_schema=Question)
        graph.add_node("b", kit.fn("b", lambda s: {"answer": f"{s}"}), input_schema=Private)
        graph.add_node("c", kit.fn("c", lambda s: {"n": 4}))
        return graph.add_edge(START, "a").add_edge("a", "b").add_edge("b", "c").compile()

    judge(make, [{"question": "q"}, {"question": "q", "n": 7}, {"answer": "in"}, {}], mode, threads)


@both
def test_root_state(mode: Mode, threads: ThreadPoolExecutor) -> None:  # noqa: F811
    def make(kit: Kit) -> Any:
        graph = StateGraph(Annotated[list, operator.add])
        graph.add_node("a", kit.fn("a", lambda s: [len(s)]))
        graph.add_node("b", kit.fn("b", lambda s: Command(update=["b"])))
        graph.add_node("c", kit.fn("c", lambda s: None))
        graph.add_edge(START, "a").add_edge("b", "c")
        graph.add_conditional_edges("a", kit.fn("route", lambda s: "b" if len(s) > 2 else END))
        return graph.compile()

    judge(make, [["x"], ["x", "y", "z"], [], "text", 5, None], mode, threads)


@both
def test_channel_kinds(mode: Mode, threads: ThreadPoolExecutor) -> None:  # noqa: F811
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

    judge(make, [{"log": ["in"]}, {"brief": 7}, {"topic": ["x"], "any": 5, "loose": 1}, {}], mode, threads)


@both
def test_two_overwrites(mode: Mode, threads: ThreadPoolExecutor) -> None:  # noqa: F811
    def make(kit: Kit) -> Any:
        graph = StateGraph(Log)
        for name in "ab":
            graph.add_node(name, kit.fn(name, lambda s: {"log": Overwrite([])}))
            graph.add_edge(START, name)
        return graph.compile()

    judge(make, [{"n": 1}], mode, threads)


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
def test_failing_reducer_and_mutable_state(mode: Mode, threads: ThreadPoolExecutor) -> None:  # noqa: F811
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
    judge(make, [{"n": 1}, {"items": "x"}], mode, threads, same_events=mode == "async")


@both
def test_managed_values(mode: Mode, threads: ThreadPoolExecutor) -> None:  # noqa: F811
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

    judge(make, [{}, {"log": [1]}], mode, threads, {"recursion_limit": 6})


# kinds of nodes


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


def test_injection(threads: ThreadPoolExecutor) -> None:  # noqa: F811
    judge(injected, [{"n": 1}], "async", threads, {"tags": ["t"], "configurable": {"thread_id": "x"}})


@dataclass
class Context:
    user: str = "nobody"


@pytest.mark.parametrize("context", [None, {"user": "ann"}, Context("bob"), {}])
@both
def test_context(mode: Mode, context: Any, threads: ThreadPoolExecutor) -> None:  # noqa: F811
    def make(kit: Kit) -> Any:
        graph = StateGraph(Log, context_schema=Context)
        graph.add_node("a", kit.fn("a", lambda s: {"log": [repr(get_runtime().context)]}))
        return graph.add_edge(START, "a").compile()

    judge(make, [{"n": 1}], mode, threads, context=context)


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
def test_runnables(mode: Mode, threads: ThreadPoolExecutor) -> None:  # noqa: F811
    judge(runnables, [{"n": 1}], mode, threads, {"tags": ["t"]})


def test_sync_and_async_mixed(threads: ThreadPoolExecutor) -> None:  # noqa: F811
    def make(kit: Kit) -> Any:
        other = Kit("async")
        other.events = kit.events
        graph = StateGraph(Log)
        graph.add_node("a", kit.fn("a", add("a")))
        graph.add_node("b", other.fn("b", add("b")))
        graph.add_conditional_edges("b", kit.fn("route", lambda s: END))
        return graph.add_edge(START, "a").add_edge("a", "b").compile()

    outcomes = judge(make, [{"n": 1}], "sync", threads)
    assert outcomes[0] == ("value", {"n": 1, "log": ["a", "b"]})
    assert outcomes[1][:2] == ("error", TypeError)  # `invoke` of an asynchronous node


@both
def test_context_variables_stay_in_their_node(mode: Mode, threads: ThreadPoolExecutor) -> None:  # noqa: F811
    # `Kit.saw` sets COLOUR in every node and records what it found
    from tests.langgraph.test_native import diamond

    token = COLOUR.set("outer")
    try:
        judge(diamond, [{"n": 1}], mode, threads)
        assert COLOUR.get() == "outer"
    finally:
        COLOUR.reset(token)


# control flow


@both
def test_interrupts(mode: Mode, threads: ThreadPoolExecutor) -> None:  # noqa: F811
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
    judge(make, inputs if mode == "async" else inputs[1:], mode, threads)


@both
def test_drain(mode: Mode, threads: ThreadPoolExecutor) -> None:  # noqa: F811
    def make(kit: Kit) -> Any:
        graph = StateGraph(Log)
        graph.add_node("a", kit.fn("a", lambda s: get_runtime().control.request_drain("enough")))
        graph.add_node("b", kit.fn("b", add("b")))
        return graph.add_edge(START, "a").add_edge("a", "b").compile()

    judge(make, [{"n": 1}], mode, threads)


@both
def test_command_as_input(mode: Mode, threads: ThreadPoolExecutor) -> None:  # noqa: F811
    from tests.langgraph.test_native import linear

    judge(
        linear,
        [Command(update={"n": 4}), Command(goto="b"), Command(), Command(resume=1)],
        mode,
        threads,
        same_events=False,
    )


@both
def test_send_with_timeout(mode: Mode, threads: ThreadPoolExecutor) -> None:  # noqa: F811
    def make(kit: Kit) -> Any:
        graph = StateGraph(Log)
        graph.add_node("a", kit.fn("a", lambda s: {"log": ["a"]}))
        graph.add_conditional_edges(START, kit.fn("fan", lambda s: [Send("a", {"n": 1}, timeout=60), Send("a", {})]))
        return graph.compile()

    judge(make, [{"n": 1}], mode, threads, same_events=mode == "async")


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
def test_task_calls(mode: Mode, threads: ThreadPoolExecutor) -> None:  # noqa: F811
    judge(functional, [{"n": n} for n in (1, 13, 5, 6)], mode, threads, {"tags": ["t"]}, same_events=mode == "async")


@both
def test_hidden_subgraph(mode: Mode, threads: ThreadPoolExecutor) -> None:  # noqa: F811
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

    judge(make, [{"n": n} for n in (1, 2, 3, 4)], mode, threads, {"tags": ["t"]})


# agents


@both
def test_agent(mode: Mode, threads: ThreadPoolExecutor) -> None:  # noqa: F811
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

    judge(make, [{"messages": [HumanMessage("go")]}], mode, threads, same_events=False)


@both
def test_messages(mode: Mode, threads: ThreadPoolExecutor) -> None:  # noqa: F811
    def make(kit: Kit) -> Any:
        class State(TypedDict):
            messages: Annotated[list[AnyMessage], add_messages]

        model = fake_model("one", "two")
        graph = StateGraph(MessagesState, input_schema=State)
        graph.add_node("a", kit.fn("a", lambda s: {"messages": [AIMessage("a", id="1"), ("human", "b")]}))
        graph.add_node("b", lambda s: {"messages": model.invoke(s["messages"])})
        return graph.add_edge(START, "a").add_edge("a", "b").compile()

    judge(make, [{"messages": "hi"}, {"messages": [("human", "x")]}], mode, threads)
