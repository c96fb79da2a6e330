"""Lifted graphs as text: the files in `expected/` are what a user sees of each shape. `UPDATE_EXPECTED=1` rewrites."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from typing_extensions import TypedDict

from halo_adapters.langgraph.lift import lift, nested
from halo_core.errors import LiftError
from halo_core.plan import Effect, LLMOperator, Plan, Route
from tests.langgraph import lift_apps

EXPECTED = Path(__file__).parent / "expected"
PRINT_FINGERPRINTS = """
from tests.langgraph import lift_apps
from halo_adapters.langgraph.lift import lift
for build in lift_apps.APPS:
    print(lift(build()).fingerprint)
"""


def check(name: str, text: str) -> None:
    """Compare with a file of `expected/`."""
    path = EXPECTED / f"{name}.txt"
    if os.environ.get("UPDATE_EXPECTED"):
        path.write_text(text + "\n")
    assert text + "\n" == path.read_text()


@pytest.mark.parametrize("build", lift_apps.APPS, ids=lambda build: build.__name__)
def test_plan_text(build: Callable[[], Any]) -> None:
    plan = lift(build())
    check(build.__name__, str(plan))
    assert Plan.from_json(plan.to_json()) == plan


def test_lifting_runs_nothing() -> None:
    for build in lift_apps.APPS:
        lift(build())
    assert lift_apps.EFFECTS == []


def test_name_and_default_name() -> None:
    app = lift_apps.fan()
    assert lift(app).name == "fan"
    assert lift(app, name="mine").name == "mine"


def test_fingerprints_are_equal_across_processes() -> None:
    here = [lift(build()).fingerprint for build in lift_apps.APPS]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PRINT_FINGERPRINTS],
        cwd=root,
        env={**os.environ, "PYTHONHASHSEED": "4711", "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == here
    assert len(set(here)) == len(here)


def test_inner_graphs_are_found_once() -> None:
    app = lift_apps.nested()
    assert [(where, graph.name) for where, graph in nested(app)] == [("draft", "loop")]


def test_a_chain_is_a_model_call_only_where_that_is_certain() -> None:
    plan = lift(lift_apps.chain())
    kinds = {operator.name: operator.kind for operator in plan.operators}
    assert kinds == {"sum_up": "llm", "judge": "opaque", "answer": "llm"}
    sum_up, answer = plan["sum_up"], plan["answer"]
    assert isinstance(sum_up, LLMOperator) and isinstance(answer, LLMOperator)
    assert sum_up.certain_writes == ("summary",)
    assert sum_up.sampling.stop == ("\n",)
    assert answer.certain_writes == ("answer",)


def test_declared_effects() -> None:
    plan = lift(lift_apps.fan())
    assert plan["score"].effect is Effect.PURE
    assert plan["outline"].effect is Effect.WRITE


def test_a_branch_that_only_looks_at_the_state_is_deterministic() -> None:
    decided = lift(lift_apps.loop())["grade.good"]
    asked = lift(lift_apps.anywhere())["first.pick"]
    assert isinstance(decided, Route) and decided.deterministic
    assert isinstance(asked, Route) and not asked.deterministic


def test_the_output_schema_hides_keys_unless_the_thread_is_saved() -> None:
    class Answer(TypedDict):
        answer: str

    builder = StateGraph(lift_apps.Review, output_schema=Answer)
    builder.add_node("step", lambda state: {"answer": state["text"]})
    builder.add_edge(START, "step")
    assert lift(builder.compile()).output == ("answer",)
    assert lift(builder.compile(checkpointer=InMemorySaver())).output is None
    assert lift(lift_apps.fan()).output is None  # all keys are


def test_a_graph_that_cannot_be_lifted_names_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    app = lift_apps.fan()
    app.builder.nodes["score"].metadata = {"halo": {"effect": object()}}
    assert lift(app)  # an unknown effect is no reason to fail
    app.builder.nodes["score"].retry_policy = 7
    app.builder.nodes["score"].timeout = type("Odd", (), {"run_timeout": "soon"})()
    with pytest.raises(LiftError, match=r"node 'score' of graph 'fan'.*runs as before"):
        lift(app)
