"""EXPLAIN and EXPLAIN ANALYZE as text: the files in `expected/` are what a user sees. `UPDATE_EXPECTED=1` rewrites."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from langchain_core.prompts import ChatPromptTemplate
from langgraph.graph import START, StateGraph
from typing_extensions import TypedDict

from halo_adapters.langgraph import accelerate
from halo_adapters.langgraph.report import explain_analyze
from halo_core.explain import Tree, render, table
from halo_core.explain.analyze import analyze
from halo_core.pool import EnginePool, PoolConfig, Usage, configure
from halo_core.pool.engine import EngineCounters, Health
from halo_core.runtime import Batch, How
from tests.langgraph import lift_apps

EXPECTED = Path(__file__).parent / "expected"
TEXTS = ["one", "two", "one", "three", "one", "two"]


@pytest.fixture(autouse=True)
def pool() -> Iterator[EnginePool]:
    """A pool that maps one of the names, with an engine that has done something."""
    made = configure(PoolConfig.model_validate({"models": {"small": "served"}}))
    made.add(FakeEngine())  # type: ignore[arg-type]
    yield made
    configure(PoolConfig())


class FakeEngine:
    """As much of an engine as a report reads."""

    name = "served#0"
    model = "served"
    health = Health("ready")
    sharing = None
    counters = EngineCounters(calls=14, prompt_tokens=2_400, cached_tokens=1_100, generated_tokens=700)

    async def close(self) -> None:
        """Nothing to close."""


def check(name: str, text: str) -> None:
    """Compare with a file of `expected/`."""
    path = EXPECTED / f"{name}.txt"
    if os.environ.get("UPDATE_EXPECTED"):
        path.write_text(text + "\n")
    assert text + "\n" == path.read_text()


def report_of(app: Any) -> Any:
    """A batch that has been run, without running it."""
    batch = Batch("demo")
    return SimpleNamespace(batch=batch, app=app.halo, graph=app, stats=batch.stats)


def count(report: Any, operator: str, how: How, times: int, usage: Usage) -> None:
    for _ in range(times):
        report.stats.count(operator, how, usage)


# -- explain ------------------------------------------------------------------------------------------------------


def test_explain_with_rows() -> None:
    app = accelerate(lift_apps.fan())
    check("explain_fan", app.explain([{"text": text} for text in TEXTS]))


def test_explain_without_rows() -> None:
    check("explain_nested", accelerate(lift_apps.nested()).explain())


def test_explain_an_agent() -> None:
    rows = [{"messages": [("user", text)]} for text in TEXTS]
    check("explain_agent", accelerate(lift_apps.agent()).explain(rows))


class Answer(TypedDict):
    """What is given back."""

    answer: str


def test_explain_what_the_rules_find() -> None:
    rulebook = "Quote every clause that you rely on, by its number, and say what it means. " * 12
    builder = StateGraph(lift_apps.Review, output_schema=Answer)
    for key, prompt in [
        ("summary", [("system", rulebook + "Sum up."), ("human", "{text}")]),
        ("critique", [("system", rulebook + "Find fault."), ("human", "{text}")]),
        ("answer", [("human", "{summary}\n" + rulebook)]),
    ]:
        builder.add_node(f"{key}_of", {key: ChatPromptTemplate.from_messages(prompt) | lift_apps.model()})
    builder.add_edge(START, "summary_of")
    builder.add_edge("summary_of", "critique_of")
    builder.add_edge("critique_of", "answer_of")
    check("explain_rules", accelerate(builder.compile(name="rules")).explain([{"text": text} for text in TEXTS]))


def test_explain_adds_nothing_to_the_pool(pool: EnginePool) -> None:
    accelerate(lift_apps.nested()).explain()
    assert pool.models == ["served"]


def test_explain_a_graph_that_cannot_be_lifted() -> None:
    app = accelerate(lift_apps.loop())
    app.builder.nodes["grade"].timeout = SimpleNamespace(run_timeout="soon")
    text = app.explain()
    assert text.startswith("no plan: node 'grade' of graph 'loop' has no operator")
    assert "writer" in text  # models are found without a plan


def test_explain_names_what_is_left_alone(pool: EnginePool) -> None:
    configure(PoolConfig(adopt=False)).add(FakeEngine())  # type: ignore[arg-type]
    text = accelerate(lift_apps.chain()).explain()
    assert "left alone: no engine serves it (pool: served)" in text


# -- explain analyze ----------------------------------------------------------------------------------------------


def test_explain_analyze() -> None:
    report = report_of(accelerate(lift_apps.fan()))
    stats = report.stats
    stats.rows_done, stats.rows_failed, stats.rows_replayed, stats.wall_s = 5, 1, 2, 2.5
    count(report, "outline", How.EXECUTED, 3, Usage(100, 40, 50))
    count(report, "outline", How.SHARED, 3, Usage(100, 40, 50))
    count(report, "critique", How.EXECUTED, 3, Usage(1_200, 0, 64))
    count(report, "critique", How.REPLAYED, 2, Usage(1_200, 0, 64))
    count(report, "answer", How.FAILED, 1, Usage())
    count(report, "answer", How.CANCELLED, 1, Usage())
    count(report, "(no node)", How.EXECUTED, 1, Usage(10, 0, 5))
    stats.leave_alone("no route for FakeListChatModel")
    stats.leave_alone("the request uses audio output (audio=)")
    stats.leave_alone("no route for FakeListChatModel")
    report.batch.errors.append("the journal's disk is full")
    check("analyze_fan", explain_analyze(report))


def test_explain_analyze_follows_calls_into_inner_graphs() -> None:
    report = report_of(accelerate(lift_apps.nested()))
    report.stats.rows_done, report.stats.wall_s = 1, 0.5
    count(report, "write", How.EXECUTED, 2, Usage(100, 0, 50))
    count(report, "grade", How.EXECUTED, 2, Usage(80, 64, 3))
    check("analyze_nested", explain_analyze(report))


def test_explain_analyze_without_a_plan() -> None:
    app = accelerate(lift_apps.loop())
    app.builder.nodes["grade"].timeout = SimpleNamespace(run_timeout="soon")
    report = report_of(app)
    count(report, "write", How.EXECUTED, 2, Usage(100, 0, 50))
    lines = explain_analyze(report).splitlines()
    assert lines[0].endswith("│ batch 'demo', without a plan")
    assert lines[1].split() == ["2", "2", "-", "-", "-", "200", "-", "-", "100", "-", "│", "write"]


def test_explain_analyze_shows_what_is_loaded_where() -> None:
    engines = [{"kind": "simulated", "model": model} for model in "abc"]
    made = configure(PoolConfig.model_validate({"places": 2, "engines": engines}))
    for model in "abc":
        made.thread.run(made.start(model))
    lines = analyze(Batch("b"), []).splitlines()
    shown = lines[lines.index("places: 2, 1 switch between 3 models:") + 1 :]
    assert [line.split()[:4] for line in shown] == [
        ["place", "resident", "loads", "switches"],
        ["0", "c", "2", "1"],
        ["1", "b", "1", "-"],
    ]


def test_explain_analyze_of_a_batch_without_calls() -> None:
    report = report_of(accelerate(lift_apps.uneven()))
    text = explain_analyze(report)
    assert "rows: 0 done, 0 failed" in text
    assert "outside Halo: 0 calls" in text


# -- columns ------------------------------------------------------------------------------------------------------


def test_columns_of_a_tree_are_aligned() -> None:
    tree = Tree(["title", "a  [\0a\0]", "  more", "b  [\0b\0]"], {"a": (1, 20_000), "b": (0, 3)}, {"b": "why"})
    assert render(("n", "many"), [tree]) == [
        "n    many │ title",
        "1  20,000 │ a",
        "          │   more",
        "-       3 │ b  [why]",
    ]


def test_tables_put_numbers_to_the_right() -> None:
    rows = [("a", 1), ("long name", 1_000)]
    assert table(("name", "n"), rows) == ["name           n", "a              1", "long name  1,000"]
