"""Overlap: nodes that start before their superstep and lookups begun early; results stay LangGraph's."""

from __future__ import annotations

import asyncio
import operator
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Annotated, Any, TypedDict

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import Command

import halo_adapters.langgraph as halo
import halo_core
from halo_adapters.langgraph import accelerate
from halo_adapters.langgraph.lift import lift
from halo_core.plan import starts
from halo_core.pool import PoolConfig, SimulatedSpec, configure

PURE = {"halo": {"effect": "pure"}}
READ = {"halo": {"effect": "read"}}


class State(TypedDict, total=False):
    seed: int
    a: int
    b: int
    c: int
    d: int
    log: Annotated[list, operator.add]
    messages: Annotated[list, add_messages]


def given_keys(*keys: str) -> Any:
    return TypedDict("Given", {key: State.__annotations__[key] for key in keys}, total=False)  # type: ignore[misc]


class Trace:
    """Nodes that note when they begin and end."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.lock = threading.Lock()

    def note(self, event: str) -> None:
        with self.lock:
            self.events.append(event)

    def anode(self, name: str, seconds: float, fails: bool = False) -> Callable[[Any], Any]:
        key = name

        async def node(state: Any) -> Any:
            self.note(f"+{name}")
            await asyncio.sleep(seconds)
            if fails:
                raise ValueError(f"{name} fails")
            self.note(f"-{name}")
            return {key: sum(v for v in state.values() if isinstance(v, int)) + 1, "log": [name]}

        return node

    def node(self, name: str, seconds: float) -> Callable[[Any], Any]:
        key = name

        def node(state: Any) -> Any:
            self.note(f"+{name}")
            time.sleep(seconds)
            self.note(f"-{name}")
            return {key: sum(v for v in state.values() if isinstance(v, int)) + 1, "log": [name]}

        return node


def chains(
    trace: Trace, *, sync: bool = False, metadata: Any = PURE, fails: str = "", b_reads: tuple[str, ...] = ()
) -> Any:
    """a (quick) -> c -> d beside b (slow); d reads c."""
    builder: Any = StateGraph(State)
    for name, seconds, keys in (
        ("a", 0.0, ("seed",)),
        ("b", 0.15, ("seed", *b_reads)),
        ("c", 0.0, ("a",)),
        ("d", 0.0, ("c",)),
    ):
        node = trace.node(name, seconds) if sync else trace.anode(name, seconds, fails == name)
        builder.add_node(name, node, input_schema=given_keys(*keys), metadata=metadata)
    for edge in ((START, "a"), (START, "b"), ("a", "c"), ("c", "d"), ("d", END), ("b", END)):
        builder.add_edge(*edge)
    return builder.compile()


@pytest.mark.parametrize("sync", [False, True])
def test_a_chain_does_not_wait_for_an_unrelated_sibling(sync: bool) -> None:
    trace, plain = Trace(), Trace()
    app = accelerate(chains(trace, sync=sync))
    expected = chains(plain, sync=sync).invoke({"seed": 1}) if sync else asyncio.run(chains(plain).ainvoke({"seed": 1}))
    result = app.invoke({"seed": 1}) if sync else asyncio.run(app.ainvoke({"seed": 1}))
    assert result == expected
    assert result["log"] == ["a", "b", "c", "d"]  # in the supersteps' order, not as they ended
    assert trace.events.index("-d") < trace.events.index("-b")
    assert plain.events.index("-b") < plain.events.index("+c")


def test_without_overlap_or_the_authors_word_the_superstep_stays() -> None:
    for app, _ in (
        (accelerate(chains(one := Trace()), overlap=False), one),
        (accelerate(chains(two := Trace(), metadata=None)), two),
    ):
        asyncio.run(app.ainvoke({"seed": 1}))
    for trace in (one, two):
        assert trace.events.index("-b") < trace.events.index("+c")


def test_what_a_slow_sibling_writes_is_waited_for() -> None:
    """`c` reads `b`'s key, too."""
    trace = Trace()
    builder: Any = StateGraph(State)
    builder.add_node("a", trace.anode("a", 0), input_schema=given_keys("seed"), metadata=PURE)
    builder.add_node("b", trace.anode("b", 0.05), input_schema=given_keys("seed"), metadata=PURE)
    builder.add_node("c", trace.anode("c", 0), input_schema=given_keys("a", "b"), metadata=PURE)
    for edge in ((START, "a"), (START, "b"), ("a", "c")):
        builder.add_edge(*edge)
    app = accelerate(builder.compile())
    result = asyncio.run(app.ainvoke({"seed": 1}))
    assert result == {"seed": 1, "a": 2, "b": 2, "c": 5, "log": ["a", "b", "c"], "messages": []}
    assert trace.events.index("-b") < trace.events.index("+c")


def test_a_failure_is_that_of_the_step_that_langgraph_would_have_reached() -> None:
    """`c` runs early and fails first; `b`, of the step before, fails later: LangGraph never starts `c`."""
    trace = Trace()
    builder: Any = StateGraph(State)
    builder.add_node("a", trace.anode("a", 0), input_schema=given_keys("seed"), metadata=PURE)
    builder.add_node("b", trace.anode("b", 0.05, fails=True), input_schema=given_keys("seed"), metadata=PURE)
    builder.add_node("c", trace.anode("c", 0, fails=True), input_schema=given_keys("a"), metadata=PURE)
    for edge in ((START, "a"), (START, "b"), ("a", "c")):
        builder.add_edge(*edge)
    with pytest.raises(ValueError, match="b fails"):
        asyncio.run(accelerate(builder.compile()).ainvoke({"seed": 1}))
    assert "+c" in trace.events


def test_an_early_failure_is_raised_when_its_step_begins() -> None:
    trace = Trace()
    with pytest.raises(ValueError, match="c fails") as failure:
        asyncio.run(accelerate(chains(trace, fails="c")).ainvoke({"seed": 1}))
    assert "-b" in trace.events and any("During task with name 'c'" in note for note in failure.value.__notes__)


def test_what_runs_early_is_cancelled_with_the_run() -> None:
    trace = Trace()

    async def forever(state: Any) -> Any:
        trace.note("+c")
        try:
            await asyncio.sleep(60)
        finally:
            trace.note("cancelled c")

    builder: Any = StateGraph(State)
    builder.add_node("a", trace.anode("a", 0), input_schema=given_keys("seed"), metadata=PURE)
    builder.add_node("b", trace.anode("b", 0.05, fails=True), input_schema=given_keys("seed"), metadata=PURE)
    builder.add_node("c", forever, input_schema=given_keys("a"), metadata=PURE)
    for edge in ((START, "a"), (START, "b"), ("a", "c")):
        builder.add_edge(*edge)
    with pytest.raises(ValueError, match="b fails"):
        asyncio.run(accelerate(builder.compile()).ainvoke({"seed": 1}))
    assert trace.events[-1] == "cancelled c"


def test_max_concurrency_bounds_early_nodes_too() -> None:
    trace = Trace()
    asyncio.run(accelerate(chains(trace)).ainvoke({"seed": 1}, {"max_concurrency": 1}))
    running, most = 0, 0
    for event in trace.events:
        running += 1 if event[0] == "+" else -1
        most = max(most, running)
    assert most == 1


# -- what the plan proves --------------------------------------------------------------------------------------------


def why(builder: Any, node: str) -> str:
    return starts(lift(builder.compile()))[node].why_not


def plain(state: Any) -> Any:
    return {"c": 1}


def tells(state: Any) -> Any:
    print("as we speak")
    return {"b": 1}


def two(
    second: Callable[[Any], Any], reads: tuple[str, ...], *, effect: Any = PURE, first: Any = PURE, b: Any = None
) -> Any:
    """a and b start together; c follows a."""
    builder: Any = StateGraph(State)
    builder.add_node("a", lambda state: {"a": 1}, input_schema=given_keys("seed"), metadata=first)
    builder.add_node("b", b or (lambda state: {"b": 1}), input_schema=given_keys("seed"), metadata=first)
    builder.add_node("c", second, input_schema=given_keys(*reads), metadata=effect)
    builder.add_edge(START, "a").add_edge(START, "b").add_edge("a", "c")
    return builder


def test_reasons() -> None:
    assert why(two(plain, ("a",)), "c") == ""
    assert starts(lift(two(plain, ("a",)).compile()))["c"].without == ("b",)
    assert why(two(plain, ("a",), effect=None), "c") == ""
    assert why(two(tells, ("a",), effect=None), "c") == (
        "it may change the world outside: its code calls print, of which nothing is known"
    )
    assert why(two(plain, ("messages",)), "c") == (
        "'messages' is reduced by langgraph.graph.message.add_messages when a step ends"
    )
    # A reader must see what is written outside before it, a pure node need not.
    builder = two(plain, ("a",), effect=READ, first=None, b=tells)
    assert starts(lift(builder.compile()))["c"].after == {"a", "b"}
    assert starts(lift(two(plain, ("a",), first=None, b=tells).compile()))["c"].after == {"a"}


def test_what_may_or_may_not_run_is_not_relied_on() -> None:
    builder = two(plain, ("a", "d"))
    builder.add_node("maybe", lambda state: {"d": 1}, input_schema=given_keys("seed"), metadata=PURE)
    builder.add_conditional_edges(START, lambda state: "maybe" if state["seed"] else END, ["maybe", END])
    assert why(builder, "c") == "maybe, which may run before it, may write 'd'"
    builder = two(plain, ("a",), b=lambda state: Command(goto="c", update={"b": 1}))
    assert "c" not in starts(lift(builder.compile()))


# -- looking ahead ---------------------------------------------------------------------------------------------------


@pytest.fixture
def simulated() -> Iterator[None]:
    pool = configure(PoolConfig(models={"*": "sim"}, engines=(SimulatedSpec(model="sim"),)))
    halo.install()
    yield
    halo.uninstall()
    pool.close()


class Desk:
    """Tools that count, and nodes that use them."""

    def __init__(self, *, seconds: float = 0.05, fails: bool = False) -> None:
        self.asked: Counter[int] = Counter()
        self.written: Counter[int] = Counter()
        self.began: dict[int, float] = {}
        self.model = ChatOpenAI(model="m", api_key="unused", temperature=0, max_tokens=4)
        self.bodies = 0

        @halo_core.tool(effect="read", source="desk")
        async def look(n: int) -> int:
            self.asked[n] += 1
            self.began[n] = time.monotonic()
            await asyncio.sleep(seconds)
            if fails:
                raise LookupError(f"no {n}")
            return n * 10

        @halo_core.tool(effect="read", source="desk")
        def look_sync(n: int) -> int:
            self.asked[n] += 1
            self.began[n] = time.monotonic()
            time.sleep(seconds)
            if fails:
                raise LookupError(f"no {n}")
            return n * 10

        @halo_core.tool(effect="write", source="desk")
        async def put(n: int) -> None:
            self.written[n] += 1

        self.look, self.look_sync, self.put = look, look_sync, put

    def app(self, *, sync: bool = False, writes: bool = False, patience: int = 0) -> Any:
        """a asks the model; b looks something up by the row's seed and needs a's answer.

        `patience`: hundredths of a second that a waits for that lookup to have begun.
        """
        builder: Any = StateGraph(State)
        model, desk = self.model, self
        ended: list[float] = []
        self.ended = ended

        async def a(state: Any) -> Any:
            answer = await model.ainvoke(f"seed {state['seed']}")
            if writes:
                await asyncio.sleep(0.03)
                await desk.put(state["seed"])
            for _ in range(0 if writes else patience):
                if state["seed"] in desk.began:
                    break
                await asyncio.sleep(0.01)
            ended.append(time.monotonic())
            return {"a": len(str(answer.content))}

        async def b(state: Any) -> Any:
            desk.bodies += 1
            found = await desk.look(state["seed"])
            return {"b": found + state["a"], "messages": [await model.ainvoke(f"{found} {state['a']}")]}

        def a_sync(state: Any) -> Any:
            answer = model.invoke(f"seed {state['seed']}")
            for _ in range(patience):
                if state["seed"] in desk.began:
                    break
                time.sleep(0.01)
            ended.append(time.monotonic())
            return {"a": len(str(answer.content))}

        def b_sync(state: Any) -> Any:
            desk.bodies += 1
            found = desk.look_sync(state["seed"])
            return {"b": found + state["a"], "messages": [model.invoke(f"{found} {state['a']}")]}

        builder.add_node("a", a_sync if sync else a, input_schema=given_keys("seed"), metadata=None if writes else READ)
        builder.add_node("b", b_sync if sync else b, input_schema=given_keys("seed", "a"), metadata=READ)
        builder.add_edge(START, "a").add_edge("a", "b")
        return builder.compile(backend="halo")


def run(app: Any, rows: list[Any], sync: bool = False, **options: Any) -> list[Any]:
    return app.batch(rows, **options) if sync else asyncio.run(app.abatch(rows, **options))


@pytest.mark.parametrize("sync", [False, True])
def test_a_lookup_that_needs_only_the_row_begins_with_the_row(sync: bool, simulated: None) -> None:
    desk = Desk()
    app = desk.app(sync=sync, patience=500)
    outs = run(app, [{"seed": n} for n in range(4)], sync)
    assert [out["b"] - out["a"] for out in outs] == [0, 10, 20, 30]
    assert desk.asked == Counter(range(4))
    stats = app.last_run.stats.tool_total
    assert (stats.planned, stats.executed, stats.ahead, stats.failed, stats.cancelled) == (4, 4, 4, 0, 0)
    assert app.last_run.stats.total.planned == 8


def test_a_lookup_does_not_overtake_a_write_of_its_row(simulated: None) -> None:
    desk = Desk()
    app = desk.app(writes=True)
    run(app, [{"seed": n} for n in range(3)])
    assert min(desk.began.values()) > min(desk.ended) and desk.written == desk.asked == Counter(range(3))
    assert app.last_run.stats.tool_total.ahead == 0


def test_a_lookup_that_fails_early_fails_its_row_once(simulated: None) -> None:
    desk = Desk(fails=True)
    app = desk.app(patience=500)
    outs = run(app, [{"seed": n} for n in range(3)], return_exceptions=True)
    assert [type(out) for out in outs] == [LookupError] * 3
    assert desk.asked == Counter(range(3))  # nothing is tried again because it was tried early
    assert app.last_run.stats.tool_total.failed == 3


def test_without_merging_or_outside_a_batch_nothing_is_looked_up_early(simulated: None) -> None:
    desk = Desk()
    app = halo.accelerate(desk.app(), merge=False)
    run(app, [{"seed": 1}])
    assert desk.bodies == 1
    asyncio.run(desk.app().ainvoke({"seed": 1}))
    assert desk.bodies == 2


def test_code_without_lookups_is_soon_left_in_peace(simulated: None) -> None:
    bodies = Counter[str]()

    async def a(state: Any) -> Any:
        return {"a": 1}

    async def b(state: Any) -> Any:
        bodies["b"] += 1
        return {"b": state["seed"] + state["a"]}

    builder: Any = StateGraph(State)
    builder.add_node("a", a, input_schema=given_keys("seed"), metadata=READ)
    builder.add_node("b", b, input_schema=given_keys("seed", "a"), metadata=READ)
    builder.add_edge(START, "a").add_edge("a", "b")
    app = builder.compile(backend="halo")
    for _ in range(3):
        assert [out["b"] for out in run(app, [{"seed": n} for n in range(10)])] == list(range(1, 11))
    assert 30 < bodies["b"] <= 40


# -- random graphs ---------------------------------------------------------------------------------------------------

NAMES = "abcdefg"
shapes = st.lists(
    st.tuples(
        st.sets(st.sampled_from(NAMES), max_size=3), st.sets(st.sampled_from(NAMES), max_size=3), st.integers(0, 3)
    ),
    min_size=2,
    max_size=7,
)


@given(shape=shapes, joins=st.booleans(), failing=st.sampled_from(["", "", *NAMES]))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_random_graphs_give_what_langgraph_gives(shape: Any, joins: bool, failing: str) -> None:
    """Nodes with random edges from earlier ones, random keys read, random durations, some pure and some not."""

    async def both() -> None:
        outcomes = []
        for halved in (False, True):
            app = _random_app(shape, joins, failing)
            app = accelerate(app) if halved else app
            try:
                outcomes.append(await app.ainvoke({"seed": 1}))
            except Exception as error:
                outcomes.append((type(error), str(error)))
        assert outcomes[0] == outcomes[1]

    asyncio.run(both())


def _random_app(shape: Any, joins: bool, failing: str, sync: bool = False) -> Any:
    keys: dict[str, Any] = {"seed": int, "log": Annotated[list, operator.add]} | dict.fromkeys(NAMES, int)
    builder: Any = StateGraph(TypedDict("S", keys, total=False))  # type: ignore[misc]
    names = NAMES[: len(shape)]
    for i, (before, reads, units) in enumerate(shape):
        name = names[i]
        sources = sorted(before & set(names[:i]))
        read = sorted(reads | ({"log"} if units == 3 else set()))
        schema: Any = TypedDict("G", {"seed": int, **{key: keys[key] for key in read}}, total=False)  # type: ignore[misc]
        builder.add_node(
            name,
            _random_node(name, units, failing == name, sync),
            input_schema=schema,
            metadata=PURE if units < 3 else None,
        )
        if joins and len(sources) > 1:
            builder.add_edge(sources, name)
        else:
            for source in sources or [START]:
                builder.add_edge(source, name)
    return builder.compile()


def _random_node(name: str, units: int, fails: bool, sync: bool) -> Any:
    key = name

    def node(state: Any) -> Any:
        if fails:
            raise ValueError(name)
        text = ",".join(f"{k}={state[k]}" for k in sorted(state))
        return {key: sum(map(ord, text)) % 1000, "log": [f"{name}({text})"]}

    def waits(state: Any) -> Any:
        time.sleep(0.001 * units)
        return node(state)

    async def awaits(state: Any) -> Any:
        await asyncio.sleep(0.002 * units)
        return node(state)

    return waits if sync else awaits


@given(shape=shapes, joins=st.booleans())
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_random_graphs_of_synchronous_nodes(shape: Any, joins: bool) -> None:
    """Early tasks end in threads of their own, at any moment of the superstep."""
    outcomes = []
    for overlapping in (False, True):
        app = _random_app(shape, joins, "", sync=True)
        app = accelerate(app) if overlapping else app
        outcomes.append(app.invoke({"seed": 1}))
    assert outcomes[0] == outcomes[1]
