"""The runtime-less driver: for every kind of team what AutoGen's own runtime gives, and its rules of order."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from autogen_agentchat.base import TaskResult
from autogen_agentchat.conditions import ExternalTermination, TextMentionTermination
from autogen_agentchat.messages import ModelClientStreamingChunkEvent, TextMessage
from autogen_agentchat.teams import DiGraphBuilder, GraphFlow, MagenticOneGroupChat, RoundRobinGroupChat
from autogen_core import CancellationToken, MessageHandlerContext, SingleThreadedAgentRuntime

from halo_adapters.autogen import drive
from halo_adapters.autogen.clone import clone
from tests.autogen.shapes import SHAPES, EchoClient, Slow, agent, diamond, round_robin, said, selector, tools

TASKS = [f"Task number {i}" for i in range(25)]


def driven(team: Any) -> Any:
    copy = clone(team)
    drive.attach(copy)
    assert drive.is_driven(copy)
    return copy


@pytest.mark.parametrize("shape", SHAPES)
async def test_the_driver_says_what_the_runtime_says(shape: str) -> None:
    client, plain_client = EchoClient(), EchoClient()
    team = SHAPES[shape](client)
    lengths = set()
    for task in TASKS:
        native = await driven(team).run(task=task)
        plain = await SHAPES[shape](plain_client).run(task=task)
        assert said(native) == said(plain)
        lengths.add(len(native.messages))
    assert client.prompts == plain_client.prompts
    if shape in ("mention", "tools", "graph_loop", "swarm"):
        assert len(lengths) > 1  # the tasks took different ways


async def attempt(team: Any, task: str) -> Any:
    """What a run came to, be it an error."""
    try:
        return said(await team.run(task=task))
    except Exception as error:
        return type(error), str(error).splitlines()[0]


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_second_run_goes_on_and_a_reset_begins_anew(shape: str) -> None:
    native, plain = driven(SHAPES[shape](EchoClient())), SHAPES[shape](EchoClient())
    for task in ("one", "two"):
        assert await attempt(native, task) == await attempt(plain, task)
    await native.reset()
    await plain.reset()
    assert said(await native.run(task="one")) == said(await plain.run(task="one"))


@pytest.mark.parametrize("shape", ["round_robin", "selector", "swarm", "diamond", "nested"])
async def test_state_moves_between_the_driver_and_the_runtime(shape: str) -> None:
    native, plain = driven(SHAPES[shape](EchoClient())), SHAPES[shape](EchoClient())
    await native.run(task="one")
    await plain.run(task="one")
    from_plain, from_native = driven(SHAPES[shape](EchoClient())), SHAPES[shape](EchoClient())
    await from_plain.load_state(await plain.save_state())
    await from_native.load_state(await native.save_state())
    expected = await attempt(plain, "two")
    assert await attempt(from_plain, "two") == expected
    assert await attempt(from_native, "two") == expected


async def test_the_stream_has_the_runtimes_events_in_order() -> None:
    def kinds(events: list[Any]) -> list[Any]:
        return [(type(e).__name__, getattr(e, "source", None), getattr(e, "content", None)) for e in events]

    native = [event async for event in driven(tools(EchoClient())).run_stream(task="Task number 3")]
    plain = [event async for event in tools(EchoClient()).run_stream(task="Task number 3")]
    assert [k[:2] for k in kinds(native)] == [k[:2] for k in kinds(plain)]
    assert any(isinstance(event, ModelClientStreamingChunkEvent) for event in native)
    assert isinstance(native[-1], TaskResult)
    assert not any(isinstance(message, ModelClientStreamingChunkEvent) for message in native[-1].messages)


async def test_task_messages_can_be_left_out() -> None:
    results = [r async for r in driven(round_robin(EchoClient())).run_stream(task="hi", output_task_messages=False)]
    assert [m.source for m in results[-1].messages][:2] == ["a", "b"]


def fan_out(gates: dict[str, asyncio.Event], order: list[str], **options: Any) -> GraphFlow:
    people = [Slow(name, gates, order) for name in ("start", "b", "c", "d", "end")]
    builder = DiGraphBuilder()
    for each in people:
        builder.add_node(each)
    for middle in people[1:4]:
        builder.add_edge(people[0], middle).add_edge(middle, people[4])
    return GraphFlow(people, builder.build(), **options)


async def test_answers_side_by_side_are_heard_in_the_participants_order() -> None:
    order: list[str] = []
    gates = {"b": asyncio.Event(), "c": asyncio.Event()}  # d speaks first, then b and c
    gates["b"].clear()
    team = fan_out({}, order)
    drive.attach(team)
    for each in team._participants:
        each.gates = gates if each.name in ("b", "c", "d") else {}  # type: ignore[attr-defined]
    result = await team.run(task="go")
    assert order[:2] == ["start", "d"]
    assert [m.source for m in result.messages] == ["user", "start", "b", "c", "d", "end"]
    assert result.messages[-1].content == "heard user,start,b,c,d"  # type: ignore[union-attr]


async def test_the_last_participants_answer_decides_the_end_of_a_fan_out() -> None:
    """AutoGen shows a termination condition only the last answer; in canonical order that is always the same one."""
    team = fan_out({}, [], termination_condition=TextMentionTermination("heard", sources=["b"]))
    drive.attach(team)
    result = await team.run(task="go")
    assert result.messages[-1].source == "end"
    team = fan_out({}, [], termination_condition=TextMentionTermination("heard", sources=["d"]))
    drive.attach(team)
    result = await team.run(task="go")
    assert result.messages[-1].source == "d"


async def test_start_nodes_speak_in_the_participants_order() -> None:
    people = [Slow(name, {}, []) for name in ("n1", "n2", "n3", "n4", "last")]
    builder = DiGraphBuilder()
    for each in people:
        builder.add_node(each)
    for each in people[:4]:
        builder.add_edge(each, people[4])
    team = GraphFlow(people, builder.build())
    drive.attach(team)
    result = await team.run(task="go")
    assert [m.source for m in result.messages] == ["user", "n1", "n2", "n3", "n4", "last"]


async def test_an_agents_error_is_told_as_autogen_tells_it_with_its_cause() -> None:
    class Broken(EchoClient):
        async def create(self, *args: Any, **options: Any) -> Any:
            raise KeyError("no such thing")

    team = driven(RoundRobinGroupChat([agent("a", EchoClient()), agent("b", Broken())], max_turns=3))
    with pytest.raises(RuntimeError, match=r"KeyError: 'no such thing'(?s:.*)Traceback") as caught:
        await team.run(task="hi")
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(RuntimeError, match="KeyError"):
        await RoundRobinGroupChat([agent("a", EchoClient()), agent("b", Broken())], max_turns=3).run(task="hi")


async def test_one_of_several_speakers_failing_ends_the_others() -> None:
    never = {"b": asyncio.Event()}
    order: list[str] = []
    team = fan_out({}, order)
    drive.attach(team)
    cancelled: list[str] = []

    class Waits(Slow):
        async def on_messages(self, *args: Any) -> Any:
            try:
                await never["b"].wait()
            except asyncio.CancelledError:
                cancelled.append(self.name)
                raise

    class Fails(Slow):
        async def on_messages(self, *args: Any) -> Any:
            raise LookupError("c has nothing to say")

    team._participants[1].__class__ = Waits
    team._participants[2].__class__ = Fails
    with pytest.raises(RuntimeError, match="c has nothing to say"):
        await team.run(task="go")
    assert cancelled == ["b"]
    assert not team._is_running


@pytest.mark.parametrize("native", [True, False])
async def test_a_token_cancels_a_run(native: bool) -> None:
    gates = {"start": asyncio.Event()}
    team = fan_out(gates, [])
    if native:
        drive.attach(team)
    token = CancellationToken()
    run = asyncio.create_task(team.run(task="go", cancellation_token=token))
    for _ in range(20):  # until the agent waits
        await asyncio.sleep(0)
    token.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert not team._is_running


@pytest.mark.parametrize("native", [True, False])
async def test_an_agent_that_does_not_heed_the_token_finishes_and_is_heard(native: bool) -> None:
    order: list[str] = []
    gates = {"first": asyncio.Event()}
    people = [Slow("first", gates, order), Slow("second", {}, order)]
    people[0].heeds = False
    team = RoundRobinGroupChat(people, max_turns=4)
    if native:
        drive.attach(team)
    token = CancellationToken()
    run = asyncio.create_task(team.run(task="go", cancellation_token=token))
    for _ in range(20):
        await asyncio.sleep(0)
    token.cancel()
    await asyncio.sleep(0)
    assert not run.done()
    gates["first"].set()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert order == ["first"]
    result = await team.run(task="again")
    assert result.stop_reason == "Maximum number of turns 4 reached."
    assert [message.source for message in result.messages][:3] == ["user", "second", "first"]
    assert result.messages[1].content == "heard user,first,user"  # type: ignore[union-attr]


async def test_a_run_that_is_broken_off_does_not_stop_the_next() -> None:
    team = driven(round_robin(EchoClient()))
    stream = team.run_stream(task="one")
    async for event in stream:
        if getattr(event, "source", "") == "a":
            break
    await stream.aclose()
    result = await team.run(task="two")
    assert len([m for m in result.messages if m.source != "user"]) == 7


async def test_a_running_team_refuses_a_second_run() -> None:
    gates = {"start": asyncio.Event()}
    team = fan_out(gates, [])
    drive.attach(team)
    run = asyncio.create_task(team.run(task="go"))
    while not team._is_running:
        await asyncio.sleep(0)
    with pytest.raises(ValueError, match="already running"):
        await team.run(task="again")
    with pytest.raises(RuntimeError, match="currently running"):
        await team.reset()
    gates["start"].set()
    assert (await run).stop_reason == "Digraph execution is complete"


@pytest.mark.parametrize("task", [[], ["text"], 3])
async def test_tasks_that_autogen_refuses(task: Any) -> None:
    with pytest.raises(ValueError, match=r"Task|messages") as plain:
        await round_robin(EchoClient()).run(task=task)
    with pytest.raises(ValueError, match=r"Task|messages") as native:
        await driven(round_robin(EchoClient())).run(task=task)
    assert str(native.value) == str(plain.value)


async def test_message_tasks() -> None:
    messages = [TextMessage(content="one", source="user"), TextMessage(content="two", source="other")]
    native = await driven(round_robin(EchoClient())).run(task=messages)
    assert said(native) == said(await round_robin(EchoClient()).run(task=list(messages)))


async def test_agents_know_who_they_are() -> None:
    seen: list[str] = []

    class Curious(EchoClient):
        async def create(self, *args: Any, **options: Any) -> Any:
            seen.append(MessageHandlerContext.agent_id().type.rpartition("_")[0])
            return await super().create(*args, **options)

    client = Curious()
    await driven(diamond(client)).run(task="hi")
    assert sorted(seen) == ["a", "b", "c", "d"]
    seen.clear()
    team = selector(client)
    team._model_client = Curious(["ann", "bob", "cyd"])  # type: ignore[attr-defined]
    await driven(team).run(task="hi")
    assert seen[0] == "SelectorGroupChatManager"


async def test_an_external_termination_stops_a_driven_team() -> None:
    stop = ExternalTermination()
    team = RoundRobinGroupChat([agent("a", EchoClient()), agent("b", EchoClient())], termination_condition=stop)
    drive.attach(team)
    count = 0
    async for event in team.run_stream(task="hi"):
        count += 1
        if count == 4:
            stop.set()
        if isinstance(event, TaskResult):
            assert event.stop_reason == "External termination requested"
            assert len(event.messages) <= 5


def test_what_stays_on_autogens_runtime() -> None:
    client = EchoClient()
    magentic = MagenticOneGroupChat([agent("a", client)], model_client=client)
    assert "a manager of its own" in (drive.why_not_native(magentic) or "")
    external = RoundRobinGroupChat([agent("a", client)], runtime=SingleThreadedAgentRuntime())
    assert "given a runtime" in (drive.why_not_native(external) or "")

    class Custom(RoundRobinGroupChat):
        pass

    assert "Custom has a manager of its own" in (drive.why_not_native(Custom([agent("a", client)])) or "")
    assert drive.why_not_native(round_robin(client)) is None
    drive.attach(magentic)
    assert not drive.is_driven(magentic)


async def test_a_team_that_ran_on_the_runtime_stays_there() -> None:
    team = round_robin(EchoClient())
    await team.run(task="one")
    assert "has been run" in (drive.why_not_native(team) or "")


async def test_the_class_patch_drives_and_can_be_taken_off() -> None:
    original = RoundRobinGroupChat.run_stream
    drive.install_class_patch()
    try:
        team = round_robin(EchoClient())
        result = await team.run(task="hi")
        assert "_halo_driver" in team.__dict__
        await team.reset()
        await team.pause()
        await team.resume()
    finally:
        drive.uninstall_class_patch()
    assert RoundRobinGroupChat.run_stream is original
    assert said(result) == said(await round_robin(EchoClient()).run(task="hi"))
