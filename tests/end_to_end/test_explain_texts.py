"""EXPLAIN of every example and of every benchmark workload: the files in `expected/` are what a user sees.

`UPDATE_EXPECTED=1` rewrites them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_openai import ChatOpenAI

import halo_adapters.langgraph as halo
from benchmarks.planner_problems import workload
from benchmarks.workloads.catalog import NAMES
from benchmarks.workloads.primitives import PRIMITIVES
from benchmarks.workloads.shape import Step, build
from examples.document_flow.flow import flow as document_flow
from examples.reading_desk.app import build as reading_desk
from examples.review_team.team import team as review_team
from halo_adapters.autogen import explain
from halo_core.pool import PoolConfig, SimulatedSpec, configure

EXPECTED = Path(__file__).parent / "expected"


@pytest.fixture(autouse=True)
def pool() -> Iterator[None]:
    """A pool that serves every model."""
    made = configure(PoolConfig(models={"*": "sim"}, engines=(SimulatedSpec(model="sim"),)))
    yield
    made.close()


def check(name: str, text: str) -> None:
    """Compare with a file of `expected/`."""
    path = EXPECTED / f"{name}.txt"
    if os.environ.get("UPDATE_EXPECTED"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text + "\n")
    assert text + "\n" == path.read_text()


def model(step: Step) -> Any:
    """The chat model of a step, never called."""
    return ChatOpenAI(model=f"model-{step.model.lower()}", temperature=0, max_tokens=24, api_key="unused")


@pytest.mark.parametrize("name", NAMES)
def test_explain_of_a_workload(name: str) -> None:
    made = PRIMITIVES[name]() if name in PRIMITIVES else workload(name)
    app: Any = halo.accelerate(build(made, model).compile(name=made.name))
    check(name.lower(), app.explain(made.rows(8, False, 0)))


def test_explain_of_the_reading_desk() -> None:
    llm = ChatOpenAI(model="gpt-4o-mini", temperature=0, max_tokens=40, api_key="unused")
    app: Any = halo.accelerate(reading_desk(llm).compile(name="reading_desk"))
    rows = [{"passage": f"Passage {i % 3}.", "question": "Who?"} for i in range(6)]
    check("reading_desk", app.explain(rows))


@pytest.mark.parametrize("make", [review_team, document_flow], ids=["review_team", "document_flow"])
def test_explain_of_a_team(make: Any, request: pytest.FixtureRequest) -> None:
    check(request.node.callspec.id, explain(make(), ["Write a note.", "Write a note.", "Write another."]))
