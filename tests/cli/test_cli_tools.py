"""Tools under `halo run`: a broken tool costs its own row only; writes are made once, whatever dies."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cli.conftest import Halo, Project

APP = """
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TypedDict

import halo_core
from langgraph.graph import END, START, StateGraph


class State(TypedDict, total=False):
    question: str
    answer: str


@halo_core.tool(effect="write", source="ledger")
def book(entry):
    with open("ledger", "a") as file:
        file.write(entry + "\\n")
    if entry == "killer" and not Path("cured").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return {"booked": entry}


@halo_core.tool(effect="write", source="ledger", retries=1)
def book_again(entry):
    return book.__wrapped__(entry)


@halo_core.tool(effect="read", timeout_s=0.3)
def slow(entry):
    time.sleep(30 if entry == "hangs" else 0)
    return entry


@halo_core.tool(effect="read", timeout_s=0.3)
async def aslow(entry):
    await asyncio.sleep(30 if entry == "hangs" else 0)
    return entry


CHILD = '''
import os, signal, sys
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
print("{" * (sys.argv[1] == "garbage") + "1")
'''


@halo_core.tool(effect="read")
def child(entry):
    return subprocess.run([sys.executable, "-c", CHILD, entry], check=True, capture_output=True, text=True).stdout


def books(state):
    done = book(state["question"])
    if state["question"] == "fails" and not Path("cured").exists():
        raise RuntimeError("after the booking")
    return {"answer": str(done)}


def books_again(state):
    return {"answer": str(book_again(state["question"]))}


def waits(state):
    return {"answer": slow(state["question"])}


async def awaits(state):
    return {"answer": await aslow(state["question"])}


def spawns(state):
    return {"answer": json.loads(child(state["question"]))}


def build(node):
    builder = StateGraph(State)
    builder.add_node("node", node)
    builder.add_edge(START, "node")
    builder.add_edge("node", END)
    return builder.compile()


booking, again, waiting, awaiting, spawning = map(build, (books, books_again, waits, awaits, spawns))
"""


@pytest.fixture
def tools(project: Project) -> Project:
    project.write("tools.py", APP)
    return project


def run(app: str, *more: str) -> list[str]:
    return ["run", f"tools:{app}", "--input", "rows.jsonl", "--output", "out.jsonl", "--quiet", *more]


def errors(project: Project) -> list[Any]:
    return [row.get("error") for row in project.output()]


@pytest.mark.parametrize("app", ["waiting", "awaiting"])
def test_a_tool_that_hangs_costs_its_own_row(app: str, tools: Project, halo: Halo) -> None:
    tools.rows("a", "hangs", "b")
    result = halo(*run(app))
    assert result.code == 1
    first, hung, last = errors(tools)
    assert first is None and last is None
    assert hung["type"] == "TimeoutError" and "no answer within 0.3 s from tool '" in hung["message"]
    assert "hangs" in hung["message"]


def test_a_tool_that_is_killed_or_gives_garbage_costs_its_own_row(tools: Project, halo: Halo) -> None:
    tools.rows("a", "killed", "garbage", "b")
    assert halo(*run("spawning")).code == 1
    fine, killed, garbage, also = errors(tools)
    assert fine is None and also is None
    assert killed["type"] == "CalledProcessError" and "SIGKILL" in killed["message"]
    assert "raised by tool 'child' called with" in killed["message"] and '"killed"' in killed["message"]
    assert garbage["type"] == "JSONDecodeError"


def test_writes_of_a_row_that_is_tried_again_are_not_made_again(tools: Project, halo: Halo) -> None:
    tools.rows("a", "fails", "a")
    assert halo(*run("booking")).code == 1
    assert errors(tools)[1]["message"] == "after the booking"
    tools.write("cured", "")
    assert halo(*run("booking", "--resume")).code == 0
    assert tools.output()[1]["answer"] == "{'booked': 'fails'}"
    ledger = (tools.path / "ledger").read_text().splitlines()
    assert sorted(ledger) == ["a", "a", "fails"]  # equal writes of two rows are two writes


def test_a_write_that_was_cut_off_is_not_guessed_at(tools: Project) -> None:
    tools.rows("a", "killer")
    assert tools.run(*run("booking", "--concurrency", "1")).code == -9
    tools.write("cured", "")
    resumed = tools.run(*run("booking", "--resume"))
    assert resumed.code == 1
    fine, doubtful = errors(tools)
    assert fine is None and doubtful["type"] == "InDoubtError"
    assert "the tool 'book' was called with" in doubtful["message"] and "--redo-writes" in doubtful["message"]
    assert (tools.path / "ledger").read_text().splitlines() == ["a", "killer"]
    assert tools.run(*run("booking", "--resume", "--redo-writes")).code == 0
    assert (tools.path / "ledger").read_text().splitlines() == ["a", "killer", "killer"]
    assert json.loads((tools.path / "out.jsonl").read_text().splitlines()[1])["answer"] == "{'booked': 'killer'}"


def test_a_cut_off_write_that_may_be_repeated_is(tools: Project) -> None:
    tools.rows("a", "killer")
    assert tools.run(*run("again", "--concurrency", "1")).code == -9
    tools.write("cured", "")
    assert tools.run(*run("again", "--resume")).code == 0
    assert (tools.path / "ledger").read_text().splitlines() == ["a", "killer", "killer"]
