"""Copies of teams: independent, equal to fresh ones, sharing what is meant to be shared, clear where they cannot be."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from autogen_agentchat.agents import AssistantAgent, BaseChatAgent
from autogen_agentchat.base import Response
from autogen_agentchat.conditions import (
    ExternalTermination,
    FunctionalTermination,
    MaxMessageTermination,
    TextMentionTermination,
    TimeoutTermination,
)
from autogen_agentchat.messages import TextMessage
from autogen_agentchat.teams import MagenticOneGroupChat, RoundRobinGroupChat
from autogen_agentchat.tools import AgentTool, TeamTool
from autogen_core import SingleThreadedAgentRuntime
from autogen_core.memory import ListMemory, MemoryContent, MemoryMimeType
from autogen_core.model_context import BufferedChatCompletionContext, UnboundedChatCompletionContext
from autogen_core.models import UserMessage

from halo_adapters.autogen.clone import clone
from halo_core.errors import CloneError
from tests.autogen.shapes import SHAPES, EchoClient, add, agent, diamond, round_robin, said


@pytest.mark.parametrize("shape", SHAPES)
async def test_copies_are_equal_to_fresh_teams_and_independent(shape: str) -> None:
    template = SHAPES[shape](EchoClient())
    results = await asyncio.gather(*(clone(template).run(task=f"Task {i % 4}") for i in range(12)))
    for i, result in enumerate(results):
        assert said(result) == said(await SHAPES[shape](EchoClient()).run(task=f"Task {i % 4}"))


@pytest.mark.parametrize("shape", SHAPES)
async def test_running_a_copy_leaves_the_original_as_it_was(shape: str) -> None:
    template = SHAPES[shape](EchoClient())
    await clone(template).run(task="first")
    assert said(await template.run(task="Task 1")) == said(await SHAPES[shape](EchoClient()).run(task="Task 1"))


async def test_what_is_shared_and_what_is_not() -> None:
    client, memory = EchoClient(), ListMemory()
    context = BufferedChatCompletionContext(5, initial_messages=[UserMessage(content="before", source="user")])
    one = AssistantAgent("one", client, tools=[add], memory=[memory], model_context=context)
    ends = MaxMessageTermination(4) | TextMentionTermination("x") & FunctionalTermination(lambda messages: False)
    team = RoundRobinGroupChat([one, agent("two", client)], termination_condition=ends)
    copy = clone(team)
    own: Any = copy._participants[0]
    assert own is not one
    assert own._model_client is client and own._workbench[0] is one._workbench[0] and own._memory[0] is memory
    assert own._model_context is not context and own._model_context._messages == context._messages
    assert own._model_context._messages[0] is not context._messages[0]
    assert copy._team_id != team._team_id and copy._output_message_queue is not team._output_message_queue
    assert copy._runtime is not team._runtime
    assert copy._participant_topic_types == [f"one_{copy._team_id}", f"two_{copy._team_id}"]
    theirs: Any = copy._termination_condition
    mine: Any = ends
    assert theirs is not ends and theirs._conditions[0] is not mine._conditions[0]
    assert theirs._conditions[1]._conditions[1]._func is mine._conditions[1]._conditions[1]._func


async def test_an_agent_that_stands_twice_is_one_in_the_copy() -> None:
    client = EchoClient()
    expert = agent("expert", client)
    inner = RoundRobinGroupChat([expert], max_turns=1, name="Inner")
    team = RoundRobinGroupChat([inner, expert], max_turns=2)
    copy = clone(team)
    inside: Any = copy._participants[0]
    assert inside._participants[0] is copy._participants[1]
    assert copy._participants[1] is not expert


async def test_agents_and_teams_behind_tools_have_conversations_of_their_own() -> None:
    client = EchoClient()
    inner = round_robin(client)
    boss = agent("boss", client, tools=[AgentTool(agent("helper", client)), TeamTool(inner, "crew", "a crew"), add])
    copy = clone(boss)
    old, new = boss._workbench[0]._tools, copy._workbench[0]._tools  # type: ignore[attr-defined]
    assert new[0] is not old[0] and new[0]._task_runner is not old[0]._task_runner
    assert new[1]._task_runner._team_id != inner._team_id
    assert new[2] is old[2]
    await asyncio.gather(*(clone(boss)._workbench[0]._tools[1]._task_runner.run(task="x") for _ in range(3)))  # type: ignore[attr-defined]


async def test_a_timeout_begins_with_the_copy() -> None:
    ends = TimeoutTermination(100)
    ends._start_time -= 1000
    team = RoundRobinGroupChat([agent("a", EchoClient())], termination_condition=ends, max_turns=2)
    result = await clone(team).run(task="hi")
    assert result.stop_reason == "Maximum number of turns 2 reached."


async def test_an_external_termination_stops_every_run() -> None:
    stop = ExternalTermination()
    people = [agent("a", EchoClient()), agent("b", EchoClient())]
    copies = [clone(RoundRobinGroupChat(people, termination_condition=stop, max_turns=6)) for _ in range(2)]
    streams = [copy.run_stream(task="hi") for copy in copies]
    for stream in streams:
        for _ in range(2):
            await anext(stream)
    stop.set()
    for stream in streams:
        last = [event async for event in stream][-1]
        assert last.stop_reason == "External termination requested"
    await stop.reset()
    again = await clone(RoundRobinGroupChat(people, termination_condition=stop, max_turns=6)).run(task="hi")
    assert again.stop_reason == "Maximum number of turns 6 reached."


async def test_memories_are_seen_by_every_copy() -> None:
    memory = ListMemory()
    await memory.add(MemoryContent(content="the sky is green", mime_type=MemoryMimeType.TEXT))
    client = EchoClient()
    copy = clone(AssistantAgent("a", client, memory=[memory]))
    await copy.run(task="hi")
    assert "the sky is green" in client.prompts[0]


class Custom(BaseChatAgent):
    """An agent of the user's own, with state."""

    def __init__(self, name: str, client: Any, extra: Any = None) -> None:
        super().__init__(name, "custom")
        self.client = client
        self.seen: list[str] = []
        self.context = UnboundedChatCompletionContext()
        self.deep = {"box": [extra]}

    @property
    def produced_message_types(self) -> Any:
        return (TextMessage,)

    async def on_messages(self, messages: Any, cancellation_token: Any) -> Response:
        self.seen += [message.content for message in messages]
        return Response(chat_message=TextMessage(content=str(len(self.seen)), source=self.name))

    async def on_reset(self, cancellation_token: Any) -> None:
        self.seen.clear()


async def test_custom_agents_are_copied_deeply_but_for_clients() -> None:
    client = EchoClient()
    template = Custom("mine", client)
    copy = clone(RoundRobinGroupChat([template], max_turns=1))
    await copy.run(task="hello")
    assert template.seen == []
    own: Any = copy._participants[0]
    assert own.seen == ["hello"] and own.client is client and own.context is not template.context


class Box:
    def __init__(self) -> None:
        self.lock = threading.Lock()


def test_what_cannot_be_copied_is_named_with_its_path() -> None:
    team = RoundRobinGroupChat([agent("a", EchoClient()), Custom("mine", EchoClient(), Box())], max_turns=1)
    where = r"participants\['mine'\]\.deep\['box'\]\[0\]\.lock \(a lock\) cannot be copied"
    with pytest.raises(CloneError, match=where):
        clone(team)


async def test_a_running_team_is_refused() -> None:
    team = round_robin(EchoClient())
    stream = team.run_stream(task="hi")
    await anext(stream)
    with pytest.raises(CloneError, match="already running"):
        clone(team)
    async for _ in stream:
        pass
    clone(team)


def test_an_external_runtime_is_refused() -> None:
    team = RoundRobinGroupChat([agent("a", EchoClient())], runtime=SingleThreadedAgentRuntime())
    with pytest.raises(CloneError, match="runtime=") as caught:
        clone(team)
    assert "function that makes a team" in str(caught.value)


def test_magentic_one_is_copied() -> None:
    client = EchoClient()
    team = MagenticOneGroupChat([agent("a", client)], model_client=client)
    copy = clone(team)
    assert copy._participants[0] is not team._participants[0]
    assert copy._model_client is client


def test_a_graph_is_shared_since_nobody_changes_it() -> None:
    team: Any = diamond(EchoClient())
    copy: Any = clone(team)
    assert copy._graph is team._graph
    assert copy._input_participants == copy._participants
