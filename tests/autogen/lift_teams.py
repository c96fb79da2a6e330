"""Small teams of every shape that AutoGen knows, to be lifted; nothing of theirs is ever asked."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from hashlib import blake2b
from typing import Any

from autogen_agentchat.agents import (
    AssistantAgent,
    BaseChatAgent,
    MessageFilterAgent,
    MessageFilterConfig,
    PerSourceFilter,
    SocietyOfMindAgent,
    UserProxyAgent,
)
from autogen_agentchat.base import Response
from autogen_agentchat.conditions import (
    ExternalTermination,
    FunctionalTermination,
    HandoffTermination,
    MaxMessageTermination,
    TextMentionTermination,
    TimeoutTermination,
    TokenUsageTermination,
)
from autogen_agentchat.messages import BaseAgentEvent, BaseChatMessage, HandoffMessage, TextMessage
from autogen_agentchat.teams import (
    DiGraphBuilder,
    GraphFlow,
    MagenticOneGroupChat,
    RoundRobinGroupChat,
    SelectorGroupChat,
    Swarm,
)
from autogen_agentchat.tools import AgentTool, TeamTool
from autogen_core import CancellationToken
from autogen_core.memory import ListMemory
from autogen_core.model_context import BufferedChatCompletionContext, UnboundedChatCompletionContext
from autogen_core.models import ChatCompletionClient, CreateResult, ModelInfo, RequestUsage, UserMessage
from autogen_core.tools import StaticWorkbench
from autogen_ext.models.openai import OpenAIChatCompletionClient
from autogen_ext.models.replay import ReplayChatCompletionClient
from pydantic import BaseModel

EFFECTS: list[str] = []
"""What functions of the user's would leave behind if a lift called them."""

INFO = ModelInfo(vision=False, function_calling=True, json_output=True, family="unknown", structured_output=True)


def asked(name: str) -> None:
    """Stands in every function that lifting must not call."""
    EFFECTS.append(name)
    raise AssertionError(f"{name} was called")


def model(name: str = "small", **settings: Any) -> OpenAIChatCompletionClient:
    """A client that reaches nobody."""
    settings = {"temperature": 0, "max_tokens": 64, "base_url": "http://127.0.0.1:9/v1", "api_key": "x", **settings}
    return OpenAIChatCompletionClient(model=name, model_info=INFO, **settings)


def agent(name: str, says: str = "", **settings: Any) -> AssistantAgent:
    """An agent with a system message and a description."""
    settings = {"model_client": model(), "description": f"The {name}.", **settings}
    return AssistantAgent(name, system_message=says or f"You are the {name}.", **settings)


class EchoClient(ChatCompletionClient):
    """Answers with a word that only the prompt decides."""

    def __init__(self, words: Sequence[str] = ("yes", "no", "done")) -> None:
        self.words = list(words)
        self._create_args = {"model": "echo", "temperature": 0}

    async def create(self, messages: Any, **_: Any) -> CreateResult:
        said = "\n".join(f"{m.type} {m.content}" for m in messages)
        word = self.words[blake2b(said.encode()).digest()[0] % len(self.words)]
        return CreateResult(finish_reason="stop", content=word, usage=RequestUsage(1, 1), cached=False)

    async def create_stream(self, messages: Any, **_: Any) -> AsyncGenerator[str | CreateResult, None]:
        yield await self.create(messages)

    async def close(self) -> None:
        """Nothing to close."""

    def actual_usage(self) -> RequestUsage:
        return RequestUsage(0, 0)

    total_usage = actual_usage

    def count_tokens(self, messages: Any, **_: Any) -> int:
        return 0

    remaining_tokens = count_tokens

    @property
    def capabilities(self) -> ModelInfo:  # type: ignore[override]
        return INFO

    @property
    def model_info(self) -> ModelInfo:
        return INFO


class Clerk(BaseChatAgent):
    """An agent of the user's own that calls a model."""

    def __init__(self, name: str, client: ChatCompletionClient) -> None:
        super().__init__(name, "A clerk.")
        self._model = client

    @property
    def produced_message_types(self) -> Sequence[type[BaseChatMessage]]:
        return (TextMessage, HandoffMessage)

    async def on_messages(self, messages: Sequence[BaseChatMessage], cancellation_token: CancellationToken) -> Response:
        answer = await self._model.create([UserMessage(content=messages[-1].to_text(), source="user")])
        return Response(chat_message=TextMessage(content=str(answer.content), source=self.name))

    async def on_reset(self, cancellation_token: CancellationToken) -> None:
        """Nothing to forget."""


# -- one agent ----------------------------------------------------------------------------------------------------


def solo() -> Any:
    """An agent whose turn is one call."""
    return agent("solo")


def handy() -> Any:
    """An agent with tools that looks at their results."""

    def look_up(city: str) -> str:
        """Look a city up."""
        asked("look_up")
        return city

    return agent("handy", tools=[look_up], reflect_on_tool_use=True, max_tool_iterations=3)


# -- turns --------------------------------------------------------------------------------------------------------


def chain() -> Any:
    """One round, then the end."""
    return RoundRobinGroupChat([agent("writer"), agent("critic")], name="chain", max_turns=2)


def cut_chain() -> Any:
    """A round that the bound on messages ends before all have spoken, or a word before that."""
    ends = MaxMessageTermination(3) | TextMentionTermination("DONE")
    return RoundRobinGroupChat([agent("one"), agent("two"), agent("three")], name="cut", termination_condition=ends)


def rounds() -> Any:
    """Two rounds and a half: only the bound ends it."""
    return RoundRobinGroupChat([agent("writer"), agent("critic")], name="rounds", max_turns=5)


def debate() -> Any:
    """Rounds until a word, or tokens, end them."""
    ends = TextMentionTermination("APPROVE", sources=["critic"]) | TokenUsageTermination(max_total_token=900)
    return RoundRobinGroupChat([agent("writer"), agent("critic")], name="debate", termination_condition=ends)


PRAISE = {"good", "fine", "great", "superb"}
"""A set: its order differs from process to process."""


def judged() -> Any:
    """Rounds until a function of the user's, a clock or someone outside ends them."""

    def good(messages: Sequence[BaseAgentEvent | BaseChatMessage]) -> bool:
        asked("good")
        return bool(PRAISE & set(messages[-1].to_text().split())) or messages[-1].source in {"critic", "user"}

    ends = (FunctionalTermination(good) & MaxMessageTermination(4)) | TimeoutTermination(60) | ExternalTermination()
    return RoundRobinGroupChat([agent("writer"), agent("critic")], name="judged", termination_condition=ends)


def endless() -> Any:
    """Nothing ends it."""
    return RoundRobinGroupChat([agent("alone")], name="endless")


def mixed() -> Any:
    """Participants of every kind: filtered, cut, remembering, structured, custom, human, unknown model."""

    class Verdict(BaseModel):
        good: bool

    memory = ListMemory()
    rules = MessageFilterConfig(per_source=[PerSourceFilter(source="user", position="first", count=1)])
    begun = UnboundedChatCompletionContext([UserMessage(content="Be brief.", source="user")])
    return RoundRobinGroupChat(
        [
            agent("begun", model_context=begun),
            agent("cut", model_context=BufferedChatCompletionContext(5)),
            agent("remembers", memory=[memory]),
            agent("verdict", output_content_type=Verdict),
            agent("benched", workbench=Bench([])),
            MessageFilterAgent("filtered", agent("filtered"), rules),
            AssistantAgent("unknown", ReplayChatCompletionClient(["hi"])),
            Clerk("clerk", model("large")),
            UserProxyAgent("human", input_func=lambda prompt: asked("input") or ""),
        ],
        name="mixed",
        max_turns=9,
    )


class Bench(StaticWorkbench):
    """A workbench whose tools only it knows."""

    async def list_tools(self) -> Any:
        asked("list_tools")


# -- graphs -------------------------------------------------------------------------------------------------------


def uneven() -> Any:
    """Two ways of different length: supersteps keep them level."""
    names = ("start", "short", "long", "longer", "after", "last")
    start, short, long, longer, after, last = (agent(name) for name in names)
    built = DiGraphBuilder()
    for one in (start, short, long, longer, after, last):
        built.add_node(one)
    built.add_edge(start, short).add_edge(start, long).add_edge(long, longer).add_edge(short, after)
    built.add_edge(longer, last).add_edge(after, last)
    return GraphFlow([start, short, long, longer, after, last], built.build(), name="uneven")


def good_enough(message: BaseChatMessage) -> bool:
    """A condition of the user's."""
    asked("good_enough")
    return True


def review() -> Any:
    """A loop with conditions of both kinds, and a node that any of two edges starts."""
    draft, judge, final = agent("draft"), agent("judge"), agent("final")
    built = DiGraphBuilder()
    built.add_node(draft).add_node(judge).add_node(final)
    built.add_edge(draft, judge)
    built.add_edge(judge, draft, condition="again", activation_group="retry", activation_condition="any")
    built.add_edge(judge, final, condition=good_enough)
    built.set_entry_point(draft)
    ends = MaxMessageTermination(10)
    return GraphFlow([draft, judge, final], built.build(), name="review", termination_condition=ends)


def branches() -> Any:
    """Conditions that exclude each other, a node that any of them starts, and a join that may wait in vain."""
    sort, left, right, either, both, idle = (
        agent(name) for name in ("sort", "left", "right", "either", "both", "idle")
    )
    built = DiGraphBuilder()
    for one in (sort, left, right, either, both, idle):
        built.add_node(one)
    built.add_edge(sort, left, condition="left").add_edge(sort, right, condition="right")
    built.add_edge(left, either, activation_group="any", activation_condition="any")
    built.add_edge(right, either, activation_group="any", activation_condition="any")
    built.add_edge(left, both).add_edge(right, both)
    built.add_edge(idle, idle, condition="never")
    built.set_entry_point(sort)
    return GraphFlow([sort, left, right, either, both, idle], built.build(), name="branches")


# -- choices ------------------------------------------------------------------------------------------------------


def panel() -> Any:
    """A model chooses the next speaker."""
    ends = TextMentionTermination("DONE") | MaxMessageTermination(8)
    speakers = [agent("planner"), agent("searcher"), agent("writer")]
    return SelectorGroupChat(speakers, model("router"), name="panel", termination_condition=ends)


def picked() -> Any:
    """A function of the user's chooses, a model where it does not."""

    def pick(messages: Sequence[BaseAgentEvent | BaseChatMessage]) -> str | None:
        asked("pick")
        return None

    return SelectorGroupChat(
        [agent("planner"), agent("writer")],
        model("router"),
        name="picked",
        max_turns=4,
        selector_func=pick,
        allow_repeated_speaker=True,
        selector_prompt="Who is next of {participants}?\n{history}",
    )


def handoffs() -> Any:
    """Agents that hand over, one of them to the user, and one that nobody hands over to."""
    ends = HandoffTermination("user")
    front = agent("front", handoffs=["refunds", "user"])
    return Swarm(
        [front, agent("refunds", handoffs=["front"]), agent("spare")], name="handoffs", termination_condition=ends
    )


def anyone() -> Any:
    """A custom agent in a swarm may hand over to anyone."""
    return Swarm([Clerk("clerk", model()), agent("helper")], name="anyone", max_turns=6)


def magentic() -> Any:
    """An orchestrator and two agents."""
    return MagenticOneGroupChat([agent("coder"), agent("surfer")], model("large"), name="magentic", max_turns=7)


# -- teams inside -------------------------------------------------------------------------------------------------


def outer() -> Any:
    """Teams inside an agent, as a participant, inside that, and as an agent's tool."""
    thinkers = RoundRobinGroupChat([agent("think"), agent("doubt")], name="thinkers", max_turns=2)
    deepest = RoundRobinGroupChat([agent("deep")], name="deepest", max_turns=1)
    middle = SelectorGroupChat([agent("left"), agent("right"), deepest], model("router"), name="middle", max_turns=2)
    called = RoundRobinGroupChat([agent("called")], name="called", max_turns=1)
    tools = [TeamTool(called, "ask_team", "Ask the team."), AgentTool(agent("expert"))]
    return RoundRobinGroupChat(
        [SocietyOfMindAgent("society", thinkers, model()), middle, agent("caller", tools=tools)],
        name="outer",
        max_turns=3,
    )


TEAMS: tuple[Callable[[], Any], ...] = (
    solo,
    handy,
    chain,
    cut_chain,
    rounds,
    debate,
    judged,
    endless,
    mixed,
    uneven,
    review,
    branches,
    panel,
    picked,
    handoffs,
    anyone,
    magentic,
    outer,
)


def changed(
    *,
    says: str = "You write.",
    name: str = "small",
    temperature: float = 0,
    tool: Callable[..., Any] | None = None,
    condition: Any = "yes",
    group: str = "all",
    ends: Any = None,
    turns: int | None = 9,
    prompt: str = "Pick from {participants}.",
    pick: Any = None,
    keep: int = 3,
    reflect: bool = False,
    address: str = "http://127.0.0.1:9/v1",
    key: str = "x",
) -> Any:
    """A team with one of everything that a fingerprint must see, and addresses and keys that it must not."""

    def look_up(city: str) -> str:
        """Look a city up."""
        return city

    client = model(name, temperature=temperature, base_url=address, api_key=key)
    writer = AssistantAgent("writer", client, system_message=says, tools=[tool or look_up], reflect_on_tool_use=reflect)
    one, two = agent("one"), agent("two", model_context=BufferedChatCompletionContext(keep))
    built = DiGraphBuilder()
    built.add_node(one).add_node(two)
    built.add_edge(one, two, condition=condition, activation_condition=group)  # type: ignore[arg-type]
    inner = GraphFlow([one, two], built.build(), name="inner", termination_condition=ends)
    return SelectorGroupChat(
        [writer, SocietyOfMindAgent("society", inner, client)],
        client,
        max_turns=turns,
        selector_prompt=prompt,
        selector_func=pick,
    )
