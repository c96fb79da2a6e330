"""Proofs from a node's source: what is harmless is proven, with the keys read; whatever could be noticed is not."""

from __future__ import annotations

import asyncio
import functools
import json
import operator
import random
import re
import time
from collections import defaultdict
from typing import Annotated, Any, TypedDict

import httpx
import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langchain_core.tools import StructuredTool
from langgraph.config import get_stream_writer
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt

import halo_adapters.langgraph as halo
import halo_core
from halo_adapters.langgraph.lift import lift
from halo_adapters.langgraph.lift_nodes import _tool_effect, composed
from halo_adapters.langgraph.lift_proof import Proof, prove
from halo_core.plan import Effect, OpaqueStep
from halo_core.pool import PoolConfig, configure

PURE, READ = Effect.PURE, Effect.READ

llm = FakeListChatModel(responses=["yes", "no"])
template = ChatPromptTemplate.from_template("Sum up {text}")
chain = template | llm | StrOutputParser()
ROLE = "You are terse."
SEEN: list[Any] = []
COUNTS = {"calls": 0}
LIMIT = 3
PATTERN = re.compile("x")
client = httpx.Client()
database = halo_core.sql("duckdb:", name="facts")
web = halo_core.http("http://localhost:1", name="web")


def proof(function: Any) -> Proof:
    return prove(function, composed, _tool_effect)


@halo_core.tool(effect="read")
def look_up(q: str) -> str:
    return q


@halo_core.tool(effect="write")
def book(q: str) -> str:
    return q


FIND = {"halo": {"effect": "read"}}
finder = StructuredTool.from_function(len, name="find", description="Find.", args_schema={}, metadata=FIND)
booker = StructuredTool.from_function(len, name="book", description="Book.", args_schema={})


# -- what is proven ----------------------------------------------------------------------------------------------------


def ask(state):
    """Has a docstring."""
    return {"answer": llm.invoke(f"Answer: {state['question']}").content}


async def ask_with_history(state, config: RunnableConfig):
    messages = [SystemMessage("Be brief."), *state["history"]]
    messages.append(HumanMessage(state.get("question", "")))
    said = await llm.ainvoke(messages, config)
    return {"history": [said], "answer": said.content.strip().lower()}


def own_chain(state):
    made = template | llm.bind(stop=["."]) | StrOutputParser()
    return {"answer": made.invoke({"text": state["text"]})}


async def many(state):
    async def one(part):
        return await llm.ainvoke(part)

    found = await asyncio.gather(*(one(part) for part in state["parts"]))
    return {"found": [message.content for message in found]}


def computes(state):
    totals = {}
    for item in state["items"]:
        totals[item["kind"]] = totals.get(item["kind"], 0) + item["n"]
    best = sorted(totals.items(), key=lambda pair: pair[1])
    kinds: defaultdict[str, list[Any]] = defaultdict(list)
    kinds.setdefault("all", [])
    if "limit" in state and best:
        best = best[: state["limit"]]
    while len(totals) > 100:
        break
    try:
        share = 1 / len(best)
    except ZeroDivisionError:
        share = 0.0
    return {"best": json.dumps(dict(best)), "share": round(share, 2)}


def parses(state):
    found = re.search(r"\d+", state["text"])
    return {"n": int(found.group()) if found else 0}


def with_global(state):
    return {"answer": llm.invoke([SystemMessage(ROLE), HumanMessage(state["question"])]).content}


def looks_up(state):
    return {"facts": look_up(state["question"])}


def asks_tool(state):
    return {"facts": finder.invoke({"q": state["question"]})}


async def queries(state):
    return {"facts": await database.aquery("SELECT 1 AS one WHERE $n > 0", {"n": state["n"]})}


def fetches(state):
    return {"facts": web.get("/facts", params={"q": state["question"]}).text}


def prompt_of(state, role="You help."):
    return [SystemMessage(role), HumanMessage(state["question"])]


def with_helper(state):
    return {"answer": llm.invoke(prompt_of(state)).content}


def ask_model(state, model=llm):
    return model.invoke(state["question"])


def whole(state):
    return {**state, "answer": "x"}


def handed_on(state):
    return {"answer": json.dumps(dict(state))}


def with_default(state, model=llm):
    return {"answer": model.invoke(state["question"]).content}


def needs_model(state, model):
    return {"answer": model.invoke(state["question"]).content}


def jumps(state):
    return Command(update={"answer": "x"}, goto="b" if state["n"] > LIMIT else "c")


def raises(state):
    if not state["question"]:
        raise ValueError("no question")
    return {}


class Agent:
    def __init__(self) -> None:
        self.llm = llm
        self.role = "You are an agent."

    def prompt(self, question):
        return [SystemMessage(self.role), HumanMessage(question)]

    def node(self, state):
        return {"answer": self.llm.invoke(self.prompt(state["question"])).content}

    def __call__(self, state):
        return self.node(state)


PROVEN: list[tuple[Any, Effect, set[str] | None]] = [
    (ask, PURE, {"question"}),
    (ask_with_history, PURE, {"history", "question"}),
    (own_chain, PURE, {"text"}),
    (many, PURE, {"parts"}),
    (computes, PURE, {"items", "limit"}),
    (parses, PURE, {"text"}),
    (raises, PURE, {"question"}),
    (with_global, READ, {"question"}),
    (looks_up, READ, {"question"}),
    (asks_tool, READ, {"question"}),
    (queries, READ, {"n"}),
    (fetches, READ, {"question"}),
    (with_helper, PURE, {"question"}),
    (whole, PURE, None),
    (handed_on, PURE, None),
    (with_default, PURE, {"question"}),
    (jumps, READ, {"n"}),
    (Agent().node, READ, {"question"}),
    (Agent(), READ, {"question"}),
    (lambda state: {"answer": state["question"].upper()}, PURE, {"question"}),
    (RunnableLambda(ask), PURE, {"question"}),
    (functools.partial(with_default, model=chain), PURE, {"question"}),
    (functools.partial(needs_model, model=llm), PURE, {"question"}),
]


@pytest.mark.parametrize("node, effect, reads", PROVEN, ids=lambda value: getattr(value, "__name__", None))
def test_proven(node: Any, effect: Effect, reads: set[str] | None) -> None:
    found = proof(node)
    assert (found.doubt, found.effect) == ("", effect)
    assert found.reads == (None if reads is None else frozenset(reads))


# -- what is not -------------------------------------------------------------------------------------------------------


def notes(state):
    SEEN.append(state["n"])
    return {}


def counts(state):
    COUNTS["calls"] += 1
    return {}


def counts_anew(state):
    COUNTS["calls"] = 1
    return {}


def changes_the_state(state):
    state["items"].append(1)
    return {}


def changes_a_key(state):
    state["n"] = 1
    return {}


def changes_an_alias(state):
    items = state["items"]
    items.append(1)
    return {}


def extends_an_alias(state):
    items = state["items"]
    items += [1]
    return {}


def changes_inside_its_own(state):
    items = [state["items"]]
    items[0].append(1)
    return {}


def changes_a_loop_variable(state):
    for item in state["items"]:
        item["seen"] = True
    return {}


def changes_what_may_be_its_own(state):
    items = []
    if state["n"]:
        items = state["items"]
    items.append(1)
    return {}


def changes_what_a_helper_returned(state):
    inner = first(state)
    inner.append(1)
    return {}


def first(state):
    return state["items"]


def helper_that_notes(state):
    SEEN.append(1)
    return state["n"]


def calls_a_helper_that_notes(state):
    return {"n": helper_that_notes(state)}


def maps_a_helper_that_notes(state):
    return {"n": list(map(helper_that_notes, state["items"]))}


def sorts_by_a_helper_that_notes(state):
    return {"n": sorted(state["items"], key=helper_that_notes)}


def maps_what_the_state_holds(state):
    return {"n": list(map(state["f"], state["items"]))}


def sorts_by_what_the_state_holds(state):
    return {"n": sorted(state["items"], key=state["f"])}


def calls_what_the_state_holds(state):
    return {"n": state["f"](1)}


def inner_that_notes(state):
    def inner(x):
        SEEN.append(x)

    return {"n": [inner(x) for x in state["items"]]}


def lambda_that_notes(state):
    return {"n": list(map(lambda x: SEEN.append(x), state["items"]))}


def prints(state):
    print(state["n"])
    return {}


def sleeps(state):
    time.sleep(0)
    return {}


def draws(state):
    return {"n": random.random()}


def opens(state):
    with open("x") as file:
        return {"n": file.read()}


def posts(state):
    return {"n": client.post("http://localhost:1").text}


def gets_by_another_client(state):
    return {"n": client.get("http://localhost:1").text}


def posts_by_our_client(state):
    return {"n": web.request("POST", "/x").text}


def inserts(state):
    database.query("INSERT INTO t VALUES (1)")
    return {}


def runs_any_text(state):
    return {"n": database.query(state["sql"])}


def books(state):
    return {"n": book(state["n"])}


def books_by_tool(state):
    return {"n": booker.invoke({"q": "x"})}


def interrupts(state):
    return {"n": interrupt("well?")}


def streams(state):
    get_stream_writer()("x")
    return {}


def asks_the_runtime(state, runtime):
    return {"n": runtime.store.get(("a",), "b")}


def asks_the_config(state, config):
    return {"n": config["configurable"]["client"].split("x")}


def declares_global(state):
    global LIMIT
    LIMIT = 4
    return {}


def imports(state):
    import antigravity  # noqa: F401

    return {}


def samples(state):
    return {"n": llm.invoke("x", temperature=1.0).content}


def may_sample(state):
    options = {"temperature": 1.0}
    return {"n": llm.bind(**options).invoke("x").content}


def hands_on_what_may_be_a_client(state):
    return {"n": ask_model(state, state["client"]).content}


def runs_code_in_a_chain(state):
    return {"n": (llm | RunnableLambda(helper_that_notes)).invoke("x")}


def asks_a_property(state):
    return {"n": state["thing"].expensive}


def sorts_in_place_by_what_the_state_holds(state):
    items = list(state["items"])
    items.sort(key=state["f"])
    return {"items": items}


def replaces_by_what_the_state_holds(state):
    return {"n": PATTERN.sub(state["f"], "x")}


def of_a_client(client, state):
    return {"n": client.get("http://localhost:1")}


class Traced:
    def __init__(self, func):
        self.func = func

    def __call__(self, state):
        SEEN.append(1)
        return self.func(state)


class Counter:
    total = 0

    def node(self, state):
        self.total += 1
        return {}

    @property
    def hook(self):
        SEEN.append(1)
        return helper_that_notes

    def by_property(self, state):
        return {"n": self.hook(state)}


def wraps(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        SEEN.append(1)
        return function(*args, **kwargs)

    return wrapper


@wraps
def decorated(state):
    return {"n": state["n"]}


UNPROVEN = [
    *(notes, counts, counts_anew, changes_the_state, changes_a_key, changes_an_alias, extends_an_alias),
    *(changes_inside_its_own, changes_a_loop_variable, changes_what_may_be_its_own, changes_what_a_helper_returned),
    *(calls_a_helper_that_notes, maps_a_helper_that_notes, sorts_by_a_helper_that_notes, maps_what_the_state_holds),
    *(sorts_by_what_the_state_holds, calls_what_the_state_holds, inner_that_notes, lambda_that_notes, prints, sleeps),
    *(draws, opens, posts, gets_by_another_client, posts_by_our_client, inserts, runs_any_text, books, books_by_tool),
    *(interrupts, streams, asks_the_runtime, asks_the_config, declares_global, imports, samples, may_sample),
    *(hands_on_what_may_be_a_client, runs_code_in_a_chain, asks_a_property, Counter().node, Counter().by_property),
    *(decorated, len, sorts_in_place_by_what_the_state_holds, replaces_by_what_the_state_holds, Traced(ask)),
    *(functools.partial(of_a_client, client), functools.partial(with_default, model=client)),
]


@pytest.mark.parametrize("node", UNPROVEN, ids=lambda value: getattr(value, "__name__", None))
def test_unproven(node: Any) -> None:
    found = proof(node)
    assert found.effect is Effect.WRITE and found.doubt and found.reads is None


def test_the_doubt_names_what_the_code_does() -> None:
    assert proof(posts).doubt == "its code calls client.post, of which nothing is known"
    assert proof(books).doubt == "its code calls the tool 'book', which may write"
    assert proof(changes_a_key).doubt == "its code assigns to state['n']"
    assert proof(samples).doubt == "its code may sample: llm.invoke is given temperature"


def test_a_file_that_changed_since_it_was_loaded_proves_nothing(tmp_path: Any) -> None:
    file = tmp_path / "app.py"
    file.write_text("def node(state):\n    print(1)\n    return {}\n")
    loaded: dict[str, Any] = {}
    exec(compile(file.read_text(), str(file), "exec", dont_inherit=True), loaded)
    assert "calls print" in proof(loaded["node"]).doubt
    file.write_text("def node(state):\n    str(1)\n    return {}\n")
    import linecache

    linecache.checkcache(str(file))
    assert proof(loaded["node"]).doubt == "its code cannot be read: node has no source that is certain"


# -- what it is for ----------------------------------------------------------------------------------------------------


class State(TypedDict, total=False):
    question: str
    slow: str
    a: str
    b: str
    log: Annotated[list[str], operator.add]


def test_plain_nodes_start_early_without_a_word_of_their_author() -> None:
    """`b` needs only `a`: it does not wait for `slow`, which is unknown code in the step of `a`."""
    events: list[str] = []

    async def slow(state: State) -> Any:
        await asyncio.sleep(0.2)
        events.append("slow")
        return {"slow": "done"}

    @halo_core.tool(effect="read")
    async def note(event: str) -> str:
        events.append(event)
        return event

    async def a(state: State) -> Any:
        return {"a": state["question"].upper()}

    async def b(state: State) -> Any:
        return {"b": await note(f"b after {state['a']}"), "log": ["b"]}

    builder = StateGraph(State)
    for node in (a, b):
        builder.add_node(node)
    builder.add_node("slow", slow, metadata={"halo": {"effect": "read"}})
    builder.add_edge(START, "a")
    builder.add_edge(START, "slow")
    builder.add_edge("a", "b")
    builder.add_edge("b", END)
    step = lift(builder.compile())["b"]
    assert isinstance(step, OpaqueStep) and step.reads == ("a",) and step.effect is Effect.READ
    pool = configure(PoolConfig())
    halo.install()
    try:
        app: Any = builder.compile(backend="halo")  # type: ignore[call-arg]
        out = asyncio.run(app.abatch([{"question": "x"}]))[0]
    finally:
        halo.uninstall()
        pool.close()
    assert events == ["b after X", "slow"]
    assert out == asyncio.run(builder.compile().ainvoke({"question": "x"}))
