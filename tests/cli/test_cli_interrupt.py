"""Runs that are killed or interrupted half-way, and continued."""

from __future__ import annotations

import shlex
import signal
import sqlite3
from collections import Counter
from pathlib import Path

import pytest

from halo_core.cli.interrupt import Interrupted, Interruption
from tests.cli.conftest import Halo, Project
from tests.cli.gated_stub import GatedStub, last_message

QUESTIONS = ("a", "b", "c hold", "d hold", "a", "e hold")
"""Rows whose second call is held have "hold" in its prompt; five distinct rows, so ten distinct calls."""


def journaled_calls(path: Path) -> int:
    """Finished calls in a journal that nobody has open any more."""
    with sqlite3.connect(path) as db:
        return int(db.execute("select count(*) from calls").fetchone()[0])


@pytest.mark.parametrize(
    ("target", "number"),
    [
        ("app:graph", signal.SIGKILL),
        ("app:graph", signal.SIGINT),
        ("app:graph", signal.SIGTERM),
        ("app:agraph", signal.SIGKILL),
        ("app:agraph", signal.SIGINT),
    ],
)
def test_no_finished_call_is_repeated(project: Project, halo: Halo, target: str, number: signal.Signals) -> None:
    project.rows(*QUESTIONS)
    arguments = ("run", target, "--input", "rows.jsonl", "--output", "out.jsonl")
    stub = GatedStub(lambda text: "Improve" in text and "hold" in text)
    with stub.threaded():
        project.endpoint(stub.url)
        process = project.start(*arguments)
        # A row asks its second call only once its first is journaled: when three are held, so many are in.
        stub.wait_held(3)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        finished = journaled_calls(project.path / "out.jsonl.halo.db")
        asked = [last_message(body) for body in stub.bodies]
        assert 3 <= finished <= 7
        assert set(Counter(asked).values()) == {1} and not project.exists("out.jsonl")

        if number is signal.SIGKILL:
            assert process.returncode == -signal.SIGKILL
            again = (*arguments, "--resume")
        else:
            assert process.returncode == 130, err
            assert "interrupted" in err and "Traceback" not in err, err
            program, *again_list = shlex.split(err.strip().splitlines()[-1])
            assert program.startswith("python") and again_list[:2] == ["-m", "halo_core.cli"]
            again = tuple(again_list[2:])
            assert again == (*arguments, "--resume")

        stub.open()
        resumed = halo(*again)
        assert resumed.code == 0, resumed.err
        repeated = [last_message(body) for body in stub.bodies[len(asked) :]]
        assert len(repeated) == 10 - finished
        assert not any(text.startswith("Draft") and "hold" in text for text in repeated)
        output = project.output()
    assert [row["question"] for row in output] == list(QUESTIONS)

    (project.path / "out.jsonl.halo.db").unlink()
    with GatedStub().threaded() as stub:
        project.endpoint(stub.url)
        assert halo(*arguments, "--quiet").code == 0
    assert project.output() == output


def test_a_signal_ends_the_iteration_only_while_it_waits() -> None:
    seen: list[int] = []

    def numbers():  # type: ignore[no-untyped-def]
        yield 1
        yield 2
        signal.raise_signal(signal.SIGINT)
        seen.append(-1)
        yield 3

    with pytest.raises(Interrupted), Interruption() as interruption:
        for number in interruption.items(numbers()):
            seen.append(number)
    assert seen == [1, 2]

    seen.clear()
    with pytest.raises(Interrupted), Interruption() as interruption:
        for number in interruption.items(iter([1, 2, 3])):
            if number == 2:
                signal.raise_signal(signal.SIGTERM)  # work on an item is finished first
            seen.append(number)
    assert seen == [1, 2]


def test_signals_are_ones_own_again_afterwards() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Interruption() as interruption:
        assert list(interruption.items(iter([1]))) == [1]
        assert signal.getsignal(signal.SIGINT) is not before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_second_ctrl_c_is_immediate(project: Project) -> None:
    """An async node that blocks its loop keeps the first Ctrl-C from ending the run; the second does not wait."""
    project.write(
        "stuck.py",
        "import asyncio, os, signal, threading\n"
        "from typing import TypedDict\n"
        "from langgraph.graph import START, StateGraph\n"
        "class State(TypedDict, total=False):\n"
        "    question: str\n"
        "async def stuck(state):\n"
        "    print('stuck', flush=True)\n"
        "    threading.Event().wait()\n"
        "builder = StateGraph(State)\n"
        "builder.add_node('stuck', stuck)\n"
        "builder.add_edge(START, 'stuck')\n",
    )
    project.rows("a")
    process = project.start("run", "stuck:builder", "--input", "rows.jsonl", "--output", "out.jsonl", "--quiet")
    assert process.stdout is not None
    assert process.stdout.readline() == "stuck\n"
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)  # in the same instant: the kernel may give it to any thread
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert not project.exists("out.jsonl")
