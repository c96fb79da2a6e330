"""Same answers: on the real engine in float32, the transcripts of four kinds of team equal plain AutoGen's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from autogen_agentchat.agents import AssistantAgent, SocietyOfMindAgent
from autogen_agentchat.conditions import MaxMessageTermination, TextMentionTermination
from autogen_agentchat.teams import (
    BaseGroupChat,
    DiGraphBuilder,
    GraphFlow,
    RoundRobinGroupChat,
    SelectorGroupChat,
)
from autogen_core import MessageHandlerContext
from autogen_core.models import ChatCompletionClient, CreateResult
from autogen_ext.models.openai import OpenAIChatCompletionClient

from halo_adapters.autogen import HaloChatCompletionClient, PoolConfig, arun_batch, configure
from halo_core.pool import EndpointSpec
from tests.autogen.shapes import INFO, said
from tests.conftest import MODEL

pytestmark = pytest.mark.engine

TASKS = ["rain", "bread", "the sea", "rain", "a dog", "winter", "bread", "ships"]
SETTINGS: dict[str, Any] = {"temperature": 0, "max_tokens": 16, "model_info": INFO}


@pytest.fixture(autouse=True)
def halo_on_the_real_engines(real_urls: list[str]) -> Iterator[None]:
    engines = tuple(EndpointSpec(model=MODEL, url=url, slots=32) for url in real_urls)
    pool = configure(PoolConfig(engines=engines))
    yield
    pool.close()


class InOrder(OpenAIChatCompletionClient):
    """AutoGen's own client; where agents speak side by side, `right` is answered after `left` (as can happen)."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.left: dict[str, asyncio.Event] = {}

    async def create(self, *args: Any, **options: Any) -> CreateResult:
        result = await super().create(*args, **options)
        who = MessageHandlerContext.agent_id()
        done = self.left.setdefault(who.key, asyncio.Event())
        if who.type.startswith("left_"):
            done.set()
        elif who.type.startswith("right_"):
            await done.wait()
            await asyncio.sleep(0.05)  # the other answer goes through the runtime's queue
        return result


def count_letters(word: str) -> int:
    """Count the letters of a word."""
    return len(word)


def agent(name: str, client: ChatCompletionClient, does: str, **options: Any) -> AssistantAgent:
    system = f"You are {name}. You {does}. Answer in one short sentence."
    return AssistantAgent(name, client, system_message=system, description=f"{name} can {does}.", **options)


def review(client: ChatCompletionClient) -> BaseGroupChat:
    people = [
        agent("writer", client, "write about the topic"),
        agent("checker", client, "check facts", tools=[count_letters], reflect_on_tool_use=True),
        agent("editor", client, "shorten what was written"),
    ]
    return RoundRobinGroupChat(
        people, termination_condition=TextMentionTermination("APPROVE") | MaxMessageTermination(5)
    )


def graph(client: ChatCompletionClient) -> BaseGroupChat:
    people = [
        agent("start", client, "open the topic"),
        agent("left", client, "praise it"),
        agent("right", client, "criticise it"),
        agent("end", client, "sum up what the others said"),
    ]
    builder = DiGraphBuilder()
    for each in people:
        builder.add_node(each)
    for middle in people[1:3]:
        builder.add_edge(people[0], middle).add_edge(middle, people[3])
    return GraphFlow(people, builder.build())


def selected(client: ChatCompletionClient) -> BaseGroupChat:
    people = [agent("poet", client, "write a verse"), agent("critic", client, "judge a verse")]
    people.append(agent("friend", client, "cheer up"))
    return SelectorGroupChat(people, model_client=client, max_turns=3, max_selector_attempts=2)


def society(client: ChatCompletionClient) -> BaseGroupChat:
    inner = RoundRobinGroupChat([agent("one", client, "begin"), agent("two", client, "go on")], max_turns=2)
    people = [SocietyOfMindAgent("society", inner, client), agent("last", client, "translate into plain words")]
    return RoundRobinGroupChat(people, max_turns=2)


async def plain(make: Callable[[Any], BaseGroupChat], clients: Sequence[ChatCompletionClient]) -> list[Any]:
    """Plain AutoGen: a fresh team for each task, all at once, over both engines."""
    runs = (make(clients[i % len(clients)]).run(task=f"The topic is {topic}.") for i, topic in enumerate(TASKS))
    return [said(result) for result in await asyncio.gather(*runs)]


@pytest.mark.parametrize("make", [review, graph, selected, society], ids=lambda make: make.__name__)
async def test_transcripts_equal_plain_autogens(make: Callable[[Any], BaseGroupChat], real_urls: list[str]) -> None:
    kind = InOrder if make is graph else OpenAIChatCompletionClient
    clients = [kind(model=MODEL, api_key="unused", base_url=url, **SETTINGS) for url in real_urls]
    expected = await plain(make, clients)
    ours = HaloChatCompletionClient(model=MODEL, **SETTINGS)
    result = await arun_batch(make(ours), [f"The topic is {topic}." for topic in TASKS])
    assert [said(run.unwrap()) for run in result] == expected
    assert result.stats.total.shared > 0  # two topics come twice
    assert result.stats.total.failed == 0
    assert all(len(messages) > 2 for messages, _ in expected)
