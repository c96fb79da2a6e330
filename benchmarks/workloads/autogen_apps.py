"""Debate and Parallel of the primitives as AutoGen teams, with tasks out of the same made-up texts."""

from __future__ import annotations

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.base import ChatAgent
from autogen_agentchat.conditions import MaxMessageTermination
from autogen_agentchat.messages import BaseChatMessage, TextMessage
from autogen_agentchat.teams import DiGraphBuilder, GraphFlow, RoundRobinGroupChat
from autogen_core.models import ChatCompletionClient

from benchmarks.workloads import primitives
from benchmarks.workloads.primitives import CHUNKS, DEBATERS, ROLES, SCALE, expert, rules
from examples.document_flow.flow import hears

ROUNDS = 2

_ANEW = "Once others have answered too, compare their answers with your own and write your whole answer anew."


def debate(client: ChatCompletionClient, *, scale: float = SCALE) -> RoundRobinGroupChat:
    """Three agents, twice round: 6 calls. They take turns, so that each hears all that was said before."""
    agents: list[ChatAgent | RoundRobinGroupChat] = [
        AssistantAgent(name, client, system_message=f"{rules(first, 60, scale)} {_ANEW}")
        for name, first in DEBATERS.items()
    ]
    ends = MaxMessageTermination(1 + ROUNDS * len(agents))
    return RoundRobinGroupChat(agents, name="debate", termination_condition=ends)  # type: ignore[arg-type]


def debate_tasks(count: int, seed: int, *, scale: float = SCALE) -> list[str]:
    """Questions, no two alike."""
    return [row["row"]["question"] for row in primitives.debate_qa(scale).rows(count, False, seed)]


def parallel(client: ChatCompletionClient, *, chunks: int = CHUNKS, scale: float = SCALE) -> GraphFlow:
    """Seven roles read each of so many chunks, each role joins its notes, a writer joins those: 7 x (chunks + 1) + 1.

    AutoGen sends every message to every agent, so a run costs with the square of its agents: 50 with six chunks. Each
    agent hears only what it works on, so that its prompt does not depend on who was first.
    """
    builder = DiGraphBuilder()
    system = rules("You are the panel's writer and make one report of its members' summaries.", 850, scale)
    writer = hears(AssistantAgent("writer", client, system_message=system), *ROLES)
    builder.add_node(writer)
    for role in ROLES:
        readers = {f"chunk_{i}": f"{role}_{i}" for i in range(1, chunks + 1)}
        system = rules(f"{expert(role)} You join your notes on the parts of a text.", 750, scale)
        joins = hears(AssistantAgent(role, client, system_message=system), *readers.values())
        builder.add_node(joins).add_edge(joins, writer)
        system = rules(expert(role), 750, scale)
        for chunk, name in readers.items():
            reader = hears(AssistantAgent(name, client, system_message=system), chunk)
            builder.add_node(reader).add_edge(reader, joins)
    return GraphFlow(builder.get_participants(), builder.build(), name="parallel")


def parallel_tasks(count: int, seed: int, *, chunks: int = CHUNKS, scale: float = SCALE) -> list[list[BaseChatMessage]]:
    """Long texts: a message for each chunk, whose source is the chunk's name."""
    return [
        [TextMessage(content=text, source=f"chunk_{i}") for i, text in enumerate(row["row"]["chunks"][:chunks], 1)]
        for row in primitives.parallel(scale).rows(count, False, seed)
    ]
