"""AutoGen's tools inside a batch."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.conditions import MaxMessageTermination, TextMentionTermination
from autogen_agentchat.messages import ToolCallSummaryMessage
from autogen_agentchat.teams import RoundRobinGroupChat, Swarm
from autogen_core import CancellationToken, FunctionCall
from autogen_core.models import CreateResult, RequestUsage
from autogen_core.tools import (
    BaseStreamTool,
    BaseTool,
    FunctionTool,
    TextResultContent,
    ToolResult,
    ToolSchema,
    Workbench,
)
from pydantic import BaseModel

import halo_core
from halo_adapters.autogen import arun_batch, intercept
from halo_core.pool import PoolConfig, configure
from halo_core.runtime.tool_desk import OBSERVERS
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


# -- tools that are no functions ---------------------------------------------------------------------------------------


Note = Callable[[int], object]
"""Told of every call."""


class Asked(BaseModel):
    q: int


class Booking(BaseTool[Asked, str]):
    """A tool of its own class."""

    def __init__(self, note: Note, name: str = "book") -> None:
        super().__init__(Asked, str, name, "Book it.")
        self._note = note

    async def run(self, args: Asked, cancellation_token: CancellationToken) -> str:
        self._note(args.q)
        return f"booked {args.q}"


class Twice(Booking):
    """Calls its base class's method."""

    async def run(self, args: Asked, cancellation_token: CancellationToken) -> str:
        return f"{await super().run(args, cancellation_token)} twice"


class Streaming(BaseStreamTool[Asked, str, str]):
    def __init__(self, note: Note) -> None:
        super().__init__(Asked, str, "book", "Book it.")
        self._note = note

    async def run(self, args: Asked, cancellation_token: CancellationToken) -> str:
        return [item async for item in self.run_stream(args, cancellation_token)][-1]

    async def run_stream(self, args: Asked, cancellation_token: CancellationToken) -> AsyncGenerator[str, None]:
        self._note(args.q)
        yield f"booked {args.q}"


class Desk(Workbench):
    """A workbench with tools of its own, as an MCP server's."""

    def __init__(self, note: Note) -> None:
        self._note = note

    async def list_tools(self) -> list[ToolSchema]:
        return [Booking(print).schema]

    async def call_tool(
        self,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        cancellation_token: CancellationToken | None = None,
        call_id: str | None = None,
    ) -> ToolResult:
        q = (arguments or {})["q"]
        self._note(q)
        if q == 2:
            return ToolResult(name=name, result=[TextResultContent(content="sold out")], is_error=True)
        return ToolResult(name=name, result=[TextResultContent(content=f"booked {q}")])

    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    async def reset(self) -> None: ...
    async def save_state(self) -> Mapping[str, Any]:
        return {}

    async def load_state(self, state: Mapping[str, Any]) -> None: ...


KINDS: dict[str, Callable[[Note], Any]] = {
    "tool": Booking,
    "subclass": Twice,
    "stream": Streaming,
    "workbench": Desk,
}


def team_with(thing: Any, agent: type[AssistantAgent] = AssistantAgent) -> RoundRobinGroupChat:
    given = {"workbench": thing} if isinstance(thing, Workbench) else {"tools": [thing]}
    return RoundRobinGroupChat([agent("a", Asking(), **given)], max_turns=1)


@pytest.mark.parametrize("driver", ["native", "autogen"])
@pytest.mark.parametrize("kind", KINDS)
async def test_tools_of_every_kind_count_as_writes(kind: str, driver: Any) -> None:
    """Each is called as often as it is asked, and what others have read is read again behind it."""
    calls: list[int] = []
    plain = [await team_with(KINDS[kind](lambda q: None)).run(task=task) for task in TASKS]
    written: list[tuple[str, ...]] = []

    def watch(call: Any) -> None:
        written.append((call.tool, call.effect.value))

    OBSERVERS.append(watch)
    try:
        batch = await arun_batch(team_with(KINDS[kind](lambda q: calls.append(q))), TASKS, driver=driver)
    finally:
        OBSERVERS.remove(watch)
    assert summaries(batch) == [result.messages[-1].content for result in plain]  # type: ignore[union-attr]
    assert sorted(calls) == sorted(n % 3 for n in range(9))
    assert written == [("book", "write")] * 9
    told = 3 if kind == "workbench" else 0
    stats = batch.stats.tools["book"]
    assert (stats.executed, stats.failed, stats.shared) == (9 - told, told, 0)


@pytest.mark.parametrize("kind", KINDS)
async def test_declared_reads_of_every_kind_are_shared(kind: str) -> None:
    calls: list[int] = []
    thing = KINDS[kind](lambda q: calls.append(q))
    thing.halo = {"book": {"effect": "read"}} if kind == "workbench" else {"effect": "read"}
    tasks = [str(3 * n + n % 2) for n in range(8)]  # none that the workbench refuses
    batch = await arun_batch(team_with(thing), tasks)
    assert [text.partition(" twice")[0] for text in summaries(batch)] == [f"booked {n % 2}" for n in range(8)]
    assert sorted(calls) == [0, 1]
    assert batch.stats.tools["book"].shared == 6


@pytest.mark.parametrize("kind", KINDS)
async def test_writes_of_every_kind_are_not_made_again_on_resume(kind: str, tmp_path: Path) -> None:
    calls: list[int] = []
    broken = [True]

    class Breaking(AssistantAgent):
        async def on_messages_stream(self, messages: Any, cancellation_token: Any) -> AsyncGenerator[Any, None]:
            async for item in super().on_messages_stream(messages, cancellation_token):
                yield item
            if broken:
                raise ConnectionError("the row fails behind its tool")

    def made() -> RoundRobinGroupChat:
        return team_with(KINDS[kind](lambda q: calls.append(q)), Breaking)

    first = await arun_batch(made(), ["0", "1"], journal=tmp_path / "j.db", on_error="collect")
    assert len(first.errors) == 2 and sorted(calls) == [0, 1]
    broken.clear()
    again = await arun_batch(made(), ["0", "1"], journal=tmp_path / "j.db", resume=True)
    assert [text.partition(" twice")[0] for text in summaries(again)] == ["booked 0", "booked 1"]
    assert sorted(calls) == [0, 1] and again.stats.tools["book"].replayed == 2


async def test_a_wrong_declaration_fails_the_run_though_autogen_tells_the_model() -> None:
    tool = Booking(print)
    tool.halo = {"efect": "read"}  # type: ignore[attr-defined]
    batch = await arun_batch(team_with(tool), ["1"], on_error="collect")
    assert "'book': unknown declaration efect" in str(batch.errors[0])


async def test_handoffs_write_nothing() -> None:
    class Handing(EchoClient):
        async def create(self, messages: Any, *, tools: Any = (), **options: Any) -> Any:
            calls = [FunctionCall(id="c", name="transfer_to_b", arguments="{}")]
            return CreateResult(finish_reason="function_calls", content=calls, usage=RequestUsage(1, 1), cached=False)

    swarm = Swarm(
        [AssistantAgent("a", Handing(), handoffs=["b"]), AssistantAgent("b", EchoClient())],
        termination_condition=TextMentionTermination("said") | MaxMessageTermination(3),
    )
    batch = await arun_batch(swarm, ["1"])
    assert batch.stats.tool_total.executed == 0
    assert "transfer_to_b" in str(batch[0].unwrap().messages) and not batch.stats.tools


async def test_what_a_tool_writes_inside_another_is_counted_apart(tmp_path: Path) -> None:
    """Once the outer call is known, a resumed run does not ask for what it did; the same write outside is another."""
    booked: list[int] = []
    broken = [True]

    @halo_core.tool(effect="write")
    def book(q: int) -> str:
        booked.append(q)
        return f"booked {q}"

    class Outer(Booking):
        async def run(self, args: Asked, cancellation_token: CancellationToken) -> str:
            return book(args.q)

    class Agent(AssistantAgent):
        async def on_messages_stream(self, messages: Any, cancellation_token: Any) -> AsyncGenerator[Any, None]:
            async for item in super().on_messages_stream(messages, cancellation_token):
                yield item
            if broken:
                raise ConnectionError("the run fails between the two")
            book(1)

    def made() -> RoundRobinGroupChat:
        return team_with(Outer(print, "outer"), Agent)

    await arun_batch(made(), ["1"], journal=tmp_path / "j.db", on_error="collect")
    assert booked == [1]
    broken.clear()
    await arun_batch(made(), ["1"], journal=tmp_path / "j.db", resume=True)
    assert booked == [1, 1]
