"""A batch that a node runs inside its row: one journal, one doubt, and what it writes is written for the row, too."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

import pytest
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph

import halo_adapters.langgraph as halo
from halo_core import tool
from halo_core.errors import InDoubtError
from halo_core.pool import SimulatedSpec, get_pool
from halo_core.runtime import BatchOptions, Journal


@pytest.fixture(autouse=True)
def pool() -> Iterator[None]:
    halo.install()
    made = halo.configure(halo.PoolConfig(models={"*": "sim"}, engines=(SimulatedSpec(model="sim"),)))
    yield
    made.close()
    halo.uninstall()


class State(TypedDict, total=False):
    n: int
    part: Any
    found: list[Any]


def graph(node: Any) -> Any:
    builder: Any = StateGraph(State)
    builder.add_node("node", node)
    builder.add_edge(START, "node")
    builder.add_edge("node", END)
    return builder.compile(backend="halo")


class Cut(BaseException):
    """Ends the process, as far as the batch can tell."""


@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize("worded", [False, True])
def test_its_writes_and_calls_are_not_made_again_on_resume(tmp_path: Path, sync: bool, worded: bool) -> None:
    """`worded`: the parts are messages, whose ids are others in every run."""
    made: list[tuple[int, str]] = []
    broken = [True]
    model = ChatOpenAI(model="gpt-4o-mini", temperature=0, api_key="unused")  # type: ignore[arg-type]

    @tool(effect="write")
    def book(n: int, text: str) -> str:
        made.append((n, text))
        return f"booked {text}"

    async def write(state: State) -> State:
        text = state["part"].content if worded else state["part"]
        await model.ainvoke(f"{text}?")
        return {"found": [book(state["n"], text)]}

    def write_sync(state: State) -> State:
        text = state["part"].content if worded else state["part"]
        model.invoke(f"{text}?")
        return {"found": [book(state["n"], text)]}

    inner = graph(write_sync if sync else write)

    def parts(state: State) -> list[Any]:
        texts = ["x", "y", "x"]
        return [{"n": state["n"], "part": HumanMessage(t, id=str(object())) if worded else t} for t in texts]

    async def outer(state: State) -> State:
        outs = await inner.abatch(parts(state))
        if broken and state["n"] == 1:
            raise ConnectionError("the row fails behind its inner batch")
        return {"found": [out["found"][0] for out in outs]}

    def outer_sync(state: State) -> State:
        outs = inner.batch(parts(state))
        if broken and state["n"] == 1:
            raise ConnectionError("the row fails behind its inner batch")
        return {"found": [out["found"][0] for out in outs]}

    app = graph(outer_sync if sync else outer)

    def run(*, resume: bool) -> list[Any]:
        journal = Journal(tmp_path / "j.db", app="x", resume=resume)
        options = {"halo_options": BatchOptions(journal=journal), "return_exceptions": True}
        rows: list[Any] = [{"n": n} for n in range(3)]
        outs = app.batch(rows, **options) if sync else asyncio.run(app.abatch(rows, **options))
        journal.close()
        return outs

    first = run(resume=False)
    assert [isinstance(out, ConnectionError) for out in first] == [False, True, False]
    wanted = sorted((n, text) for n in range(3) for text in ("x", "x", "y"))
    assert sorted(made) == wanted
    broken.clear()
    again = run(resume=True)
    assert [out["found"] for out in again] == [["booked x", "booked y", "booked x"]] * 3
    assert sorted(made) == wanted
    assert inner.last_run.stats.total.executed == 0 and inner.last_run.stats.tool_total.replayed == 3


def test_a_doubtful_write_inside_fails_the_row_though_its_node_collects_exceptions(tmp_path: Path) -> None:
    cut = [True]

    @tool(effect="write")
    def book(n: int) -> str:
        if cut:
            raise Cut
        return "booked"

    def write(state: State) -> State:
        return {"found": [book(state["n"])]}

    inner = graph(write)

    def outer(state: State) -> State:
        return {"found": list(inner.batch([{"n": 1}, {"n": 2}], return_exceptions=True))}

    app = graph(outer)

    def run(*, resume: bool, redo: bool = False) -> list[Any]:
        journal = Journal(tmp_path / "j.db", app="x", resume=resume, redo=redo)
        try:
            outs: list[Any] = app.batch([{"n": 0}], return_exceptions=True, halo_options=BatchOptions(journal=journal))
        finally:
            journal.close()
        return outs

    with pytest.raises(Cut):
        run(resume=False)
    cut.clear()
    assert [type(out) for out in run(resume=True)] == [InDoubtError]
    assert [out["found"] for out in run(resume=True, redo=True)[0]["found"]] == [["booked"], ["booked"]]


def test_what_it_writes_ends_the_sharing_of_what_its_row_has_read() -> None:
    stock = {"tea": 5}

    @tool(effect="read", source="stock")
    def count(what: str) -> int:
        return stock[what]

    @tool(effect="write", source="stock")
    def take(what: str) -> None:
        stock[what] -= 1

    def write(state: State) -> State:
        take("tea")
        return {"found": [count("tea")]}

    inner = graph(write)

    def outer(state: State) -> State:
        before = count("tea")
        inside = [out["found"][0] for out in inner.batch([{"n": 0}, {"n": 1}])]
        return {"found": [before, sorted(inside)[0], count("tea")]}

    assert graph(outer).batch([{"n": 0}, {"n": 1}], {"max_concurrency": 1})[0]["found"] == [5, 3, 3]


@pytest.fixture
def asked() -> dict[str, int]:
    """How the calls of the inner batches of `ask_inside` got their answers."""
    return {"executed": 0, "shared": 0, "replayed": 0}


def engine_calls() -> int:
    return sum(engine.counters.calls for engine in get_pool().engines())


def ask_inside(asked: dict[str, int], texts: list[str], times: int = 1, journal: Journal | None = None) -> Any:
    """A graph whose node asks the model `texts` in a batch inside its row, so many times one after the other."""
    model = ChatOpenAI(model="gpt-4o-mini", temperature=0, api_key="unused")  # type: ignore[arg-type]

    async def ask(state: State) -> State:
        return {"found": [(await model.ainvoke(state["part"])).content]}

    inner = graph(ask)

    async def outer(state: State) -> State:
        found = []
        for _ in range(times):
            outs = await inner.abatch([{"part": text} for text in texts], halo_options=BatchOptions(journal=journal))
            total = inner.last_run.stats.total
            for name in asked:
                asked[name] += getattr(total, name)
            found += [out["found"][0] for out in outs]
        return {"found": found}

    return graph(outer)


@pytest.mark.parametrize("limit", [1, None])
@pytest.mark.parametrize("journaled", [False, True])
def test_equal_calls_inside_different_rows_are_one(
    tmp_path: Path, asked: dict[str, int], limit: int | None, journaled: bool
) -> None:
    app = ask_inside(asked, ["x?", "y?", "x?"])
    journal = Journal(tmp_path / "j.db", app="x", resume=False) if journaled else None
    outs = asyncio.run(
        app.abatch([{"n": n} for n in range(4)], {"max_concurrency": limit}, halo_options=BatchOptions(journal=journal))
    )
    assert len({tuple(out["found"]) for out in outs}) == 1
    assert engine_calls() == 2
    if limit == 1:  # else the counts of one inner batch may be read behind another's
        assert asked == {"executed": 2, "shared": 10, "replayed": 0}


def test_what_a_row_asks_again_in_its_next_inner_batch_is_a_repetition(asked: dict[str, int]) -> None:
    app = ask_inside(asked, ["x?", "x?"], times=3)
    asyncio.run(app.abatch([{"n": n} for n in range(4)]))
    assert engine_calls() == 3


def test_nothing_is_shared_inside_a_batch_that_shares_nothing(asked: dict[str, int]) -> None:
    app = ask_inside(asked, ["x?", "x?"])
    app.halo.merge = False
    asyncio.run(app.abatch([{"n": n} for n in range(2)]))
    assert engine_calls() == 4


def test_with_a_journal_of_its_own_it_shares_model_calls_with_none(tmp_path: Path, asked: dict[str, int]) -> None:
    journal = Journal(tmp_path / "j.db", app="x", resume=False)
    app = ask_inside(asked, ["x?"], journal=journal)
    asyncio.run(app.abatch([{"n": n} for n in range(3)], {"max_concurrency": 1}))
    journal.close()
    assert asked == {"executed": 1, "shared": 0, "replayed": 2}


@pytest.mark.parametrize("limit", [1, 2])
def test_reads_inside_different_rows_are_one_until_somebody_writes(limit: int) -> None:
    stock, counted = {"tea": 5}, []

    @tool(effect="read", source="stock")
    def count(what: str) -> int:
        counted.append(what)
        return stock[what]

    @tool(effect="write", source="stock")
    def take(what: str) -> None:
        stock[what] -= 1

    read = graph(lambda state: {"found": [count("tea")]})

    def outer(state: State) -> State:
        before = [out["found"][0] for out in read.batch([{"n": 0}, {"n": 1}])]
        if state["n"] == 3:
            take("tea")  # in the row itself, not inside: who reads inside must hear of it
        after = [out["found"][0] for out in read.batch([{"n": 0}, {"n": 1}])]
        return {"found": [*before, *after]}

    outs = graph(outer).batch([{"n": n} for n in range(4)], {"max_concurrency": limit})
    assert outs[3]["found"][2:] == [4, 4]
    if limit == 1:
        assert [out["found"] for out in outs] == [[5, 5, 5, 5]] * 3 + [[5, 5, 4, 4]]
        assert len(counted) == 2
