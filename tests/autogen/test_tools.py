"""AutoGen's function tools inside a batch."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.messages import ToolCallSummaryMessage
from autogen_agentchat.teams import RoundRobinGroupChat
from autogen_core import CancellationToken, FunctionCall
from autogen_core.models import CreateResult, RequestUsage
from autogen_core.tools import FunctionTool

import halo_core
from halo_adapters.autogen import arun_batch, intercept
from halo_core.pool import PoolConfig, configure
from tests.autogen.shapes import EchoClient


@pytest.fixture(autouse=True)
def pool() -> Iterator[None]:
    intercept.uninstall()
    made = configure(PoolConfig())
    yield
    intercept.uninstall()
    made.close()


class Asking(EchoClient):
    """Calls the only tool with a number that the task gives."""

    async def create(self, messages: Any, *, tools: Any = (), **options: Any) -> Any:
        number = int(messages[-1].content) % 3
        name = (tools[0] if isinstance(tools[0], dict) else tools[0].schema)["name"]
        calls = [FunctionCall(id="c", name=name, arguments=json.dumps({"q": number}))]
        return CreateResult(finish_reason="function_calls", content=calls, usage=RequestUsage(1, 1), cached=False)


def team(function: Any) -> RoundRobinGroupChat:
    return RoundRobinGroupChat([AssistantAgent("a", Asking(), tools=[function])], max_turns=1)


def summaries(batch: Any) -> list[str]:
    return [
        message.content
        for run in batch
        for message in run.unwrap().messages
        if isinstance(message, ToolCallSummaryMessage)
    ]


TASKS = [str(n) for n in range(9)]


@pytest.mark.parametrize("driver", ["native", "autogen"])
@pytest.mark.parametrize("sync", [True, False])
async def test_equal_calls_of_a_declared_function_are_one(driver: str, sync: bool) -> None:
    seen: list[int] = []

    def look(q: int) -> str:
        """Look it up."""
        seen.append(q)
        time.sleep(0.01)
        return f"found {q}"

    async def alook(q: int) -> str:
        """Look it up."""
        return look(q)

    declared = halo_core.tool(effect="read", name="look")(look if sync else alook)
    batch = await arun_batch(team(declared), TASKS, driver=driver)
    assert summaries(batch) == [f"found {n % 3}" for n in range(9)]
    assert sorted(seen) == [0, 1, 2]
    stats = batch.stats.tools["look"]
    assert (stats.executed, stats.shared) == (3, 6)


@pytest.mark.parametrize("sync", [True, False])
async def test_undeclared_functions_are_called_as_often_as_asked(sync: bool) -> None:
    seen: list[int] = []

    def book(q: int) -> str:
        """Book it."""
        seen.append(q)
        return f"booked {q}"

    async def abook(q: int) -> str:
        """Book it."""
        return book(q)

    batch = await arun_batch(team(book if sync else abook), TASKS)
    assert summaries(batch) == [f"booked {n % 3}" for n in range(9)]
    assert sorted(seen) == sorted(n % 3 for n in range(9))
    assert batch.stats.tool_total.executed == 9 and batch.stats.tool_total.shared == 0


async def test_outside_a_batch_it_is_autogens_own() -> None:
    seen: list[int] = []

    @halo_core.tool(effect="read")
    def look(q: int) -> int:
        """Look it up."""
        seen.append(q)
        return q

    own = FunctionTool(look, "Look it up.")
    intercept.install()
    assert [await own.run_json({"q": 1}, CancellationToken()) for _ in range(2)] == [1, 1] and seen == [1, 1]
