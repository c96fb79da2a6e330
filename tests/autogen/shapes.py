"""Teams of every kind over a client that answers with a hash of its prompt, so that any difference shows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from hashlib import sha256
from typing import Any

from autogen_agentchat.agents import AssistantAgent, BaseChatAgent, MessageFilterAgent, SocietyOfMindAgent
from autogen_agentchat.agents._message_filter_agent import MessageFilterConfig, PerSourceFilter
from autogen_agentchat.base import Response, TaskResult
from autogen_agentchat.conditions import HandoffTermination, MaxMessageTermination, TextMentionTermination
from autogen_agentchat.messages import BaseChatMessage, TextMessage
from autogen_agentchat.teams import (
    BaseGroupChat,
    DiGraphBuilder,
    GraphFlow,
    RoundRobinGroupChat,
    SelectorGroupChat,
    Swarm,
)
from autogen_core import CancellationToken, FunctionCall
from autogen_core.models import ChatCompletionClient, CreateResult, LLMMessage, ModelInfo, RequestUsage

from halo_adapters.autogen.tasks import stable

INFO: ModelInfo = {
    "vision": False,
    "function_calling": True,
    "json_output": True,
    "family": "unknown",
    "structured_output": True,
}


class EchoClient(ChatCompletionClient):
    """Answers with a hash of the messages; with tools, every other prompt calls one of them, chosen by the hash."""

    component_type = "model"

    def __init__(self, names: Sequence[str] = (), *, calls: bool = True) -> None:
        """`names`: one of them, chosen by the hash, ends every answer (for selectors)."""
        self.names = names
        self.calls = calls
        self.prompts: list[str] = []

    async def create(
        self, messages: Sequence[LLMMessage], *, tools: Sequence[Any] = (), tool_choice: Any = "auto", **_: Any
    ) -> CreateResult:
        await asyncio.sleep(0)
        prompt = json.dumps([canonical(message) for message in messages], sort_keys=True)
        self.prompts.append(prompt)
        digest = sha256(prompt.encode()).hexdigest()
        number = int(digest[:8], 16)
        content: Any = f"{digest[:12]} {self.names[number % len(self.names)]}" if self.names else digest[:12]
        if tools and self.calls and number % 2 and tool_choice != "none":
            tool = tools[number % len(tools)]
            schema = tool if isinstance(tool, Mapping) else tool.schema
            arguments = {name: number % 10 for name in schema.get("parameters", {}).get("properties", {})}
            content = [FunctionCall(id=f"id{len(self.prompts)}", name=schema["name"], arguments=json.dumps(arguments))]
        usage = RequestUsage(len(prompt) // 4, 5)
        reason: Any = "stop" if isinstance(content, str) else "function_calls"
        return CreateResult(finish_reason=reason, content=content, usage=usage, cached=False)

    async def create_stream(self, messages: Any, **options: Any) -> AsyncGenerator[str | CreateResult, None]:
        result = await self.create(messages, **options)
        if isinstance(result.content, str):
            yield result.content[:5]
            yield result.content[5:]
        yield result

    async def close(self) -> None: ...

    def actual_usage(self) -> RequestUsage:
        return RequestUsage(0, 0)

    total_usage = actual_usage

    def count_tokens(self, messages: Any, *, tools: Any = ()) -> int:
        return 0

    remaining_tokens = count_tokens

    @property
    def capabilities(self) -> Any:
        return INFO

    @property
    def model_info(self) -> ModelInfo:
        return INFO


def canonical(message: LLMMessage) -> Any:
    """A message without the ids of its tool calls."""
    data = message.model_dump()
    for part in data["content"] if isinstance(data["content"], list) else ():
        if isinstance(part, dict):
            part.pop("id", None)
            part.pop("call_id", None)
    return data


def said(result: TaskResult) -> tuple[list[Any], str | None]:
    """What a run came to, without what differs from run to run."""
    return [_without_ids(stable(message)) for message in result.messages], result.stop_reason


def _without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_ids(v) for k, v in value.items() if k not in ("id", "call_id", "created_at")}
    return [_without_ids(v) for v in value] if isinstance(value, list) else value


def agent(name: str, client: ChatCompletionClient, **options: Any) -> AssistantAgent:
    return AssistantAgent(name, client, system_message=f"You are {name}.", description=f"The {name}.", **options)


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def fail(a: int) -> int:
    """Always fails."""
    raise ValueError(f"cannot {a}")


def round_robin(client: ChatCompletionClient) -> BaseGroupChat:
    return RoundRobinGroupChat([agent(n, client) for n in ("a", "b", "c")], max_turns=7)


def mention(client: ChatCompletionClient) -> BaseGroupChat:
    """Ends when somebody says 7a or after nine messages."""
    ends = TextMentionTermination("7a", sources=["a", "b"]) | MaxMessageTermination(9)
    return RoundRobinGroupChat([agent("a", client), agent("b", client)], termination_condition=ends)


def tools(client: ChatCompletionClient) -> BaseGroupChat:
    people = [
        agent("summer", client, tools=[add, fail]),
        agent("thinker", client, tools=[add], reflect_on_tool_use=True),
        agent("worker", client, tools=[add, fail], max_tool_iterations=3, model_client_stream=True),
    ]
    return RoundRobinGroupChat(people, max_turns=6, emit_team_events=True)


def diamond(client: ChatCompletionClient) -> BaseGroupChat:
    people = [agent(n, client) for n in ("a", "b", "c", "d")]
    a, b, c, d = people
    builder = DiGraphBuilder()
    for each in people:
        builder.add_node(each)
    builder.add_edge(a, b).add_edge(a, c).add_edge(b, d).add_edge(c, d)
    return GraphFlow(people, builder.build())


def graph_loop(client: ChatCompletionClient) -> BaseGroupChat:
    """a -> b -> (0 in the answer: c, else back to a), with a filter on what c sees."""
    a, b = agent("a", client), agent("b", client)
    c = MessageFilterAgent(
        "c",
        agent("inner_c", client),
        MessageFilterConfig(per_source=[PerSourceFilter(source="b", position="last", count=1)]),
    )
    builder = DiGraphBuilder()
    builder.add_node(a).add_node(b).add_node(c)
    builder.add_edge(a, b)
    builder.add_edge(b, c, condition=lambda message: "0" in message.to_model_text())
    builder.add_edge(b, a, condition=lambda message: "0" not in message.to_model_text())
    builder.set_entry_point(a)
    return GraphFlow([a, b, c], builder.build(), termination_condition=MaxMessageTermination(10))


def selector(client: ChatCompletionClient) -> BaseGroupChat:
    return SelectorGroupChat(
        [agent(n, client) for n in ("ann", "bob", "cyd")],
        model_client=EchoClient(["ann", "bob", "cyd"]),
        termination_condition=MaxMessageTermination(7),
        emit_team_events=True,
    )


def swarm(client: ChatCompletionClient) -> BaseGroupChat:
    people = [
        agent("desk", client, handoffs=["clerk", "boss"]),
        agent("clerk", client, handoffs=["desk"], tools=[add]),
        agent("boss", client, handoffs=["clerk", "user"]),
    ]
    return Swarm(people, termination_condition=HandoffTermination("user") | MaxMessageTermination(12))


def society(client: ChatCompletionClient) -> BaseGroupChat:
    inner = RoundRobinGroupChat([agent("x", client), agent("y", client)], max_turns=3)
    return RoundRobinGroupChat([SocietyOfMindAgent("soc", inner, client), agent("z", client)], max_turns=4)


def nested(client: ChatCompletionClient) -> BaseGroupChat:
    inner = RoundRobinGroupChat([agent("x", client), agent("y", client)], max_turns=3, name="Inner")
    return RoundRobinGroupChat([inner, agent("z", client)], max_turns=4)


class Slow(BaseChatAgent):
    """Speaks when it is let; `order` says who has spoken, in time."""

    def __init__(self, name: str, gates: dict[str, asyncio.Event], order: list[str]) -> None:
        super().__init__(name, "speaks when let")
        self.gates, self.order = gates, order
        self.heeds = True
        """Whether it stops waiting when the run's token is cancelled."""

    @property
    def produced_message_types(self) -> Sequence[type[BaseChatMessage]]:
        return (TextMessage,)

    async def on_messages(self, messages: Sequence[BaseChatMessage], cancellation_token: CancellationToken) -> Response:
        gate = self.gates.get(self.name)
        if gate is not None:
            waiting = asyncio.ensure_future(gate.wait())
            if self.heeds:
                cancellation_token.link_future(waiting)
            await waiting
        self.order.append(self.name)
        for other in self.gates.values():
            other.set()
        heard = ",".join(f"{message.source}" for message in messages)
        return Response(chat_message=TextMessage(content=f"heard {heard}", source=self.name))

    async def on_reset(self, cancellation_token: CancellationToken) -> None: ...


SHAPES: dict[str, Callable[[ChatCompletionClient], BaseGroupChat]] = {
    f.__name__: f for f in (round_robin, mention, tools, diamond, graph_loop, selector, swarm, society, nested)
}
