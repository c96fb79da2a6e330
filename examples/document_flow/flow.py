"""The flow: three readers side by side, an editor who joins their parts, a loop while the note is too long, a headline.

New code on Halo: the agents hold `HaloChatCompletionClient`, and nothing else in here knows of Halo.
"""

from __future__ import annotations

from typing import Any

from autogen_agentchat.agents import AssistantAgent, MessageFilterAgent, MessageFilterConfig, PerSourceFilter
from autogen_agentchat.messages import BaseChatMessage
from autogen_agentchat.teams import DiGraphBuilder, GraphFlow
from autogen_core.models import ChatCompletionClient

from examples.reading_desk.roles import EDITOR, FACTS, HOUSE, SUMMARY, TONE
from halo_adapters.autogen import HaloChatCompletionClient

LONGEST = 100
"""Characters of a note that fits."""

STEPS = 7
"""The readers, the editor, two revisions of two steps each, and the headline."""

SETTINGS: dict[str, Any] = {"model": "gpt-4o-mini", "temperature": 0, "max_tokens": 32}

CUTTER = (
    HOUSE
    + """
You are the desk's cutter. You get a note that is too long for the page and say which words can go. Name the words; do
not write the note again, because the editor does that. Take adjectives first, then examples, then what is said twice.
"""
)

HEADLINE = (
    HOUSE
    + """
You are the desk's headline writer. You get a finished note and write the line above it: at most seven words, no verb in
the past, no question, no full stop, nothing that the note does not say.
"""
)


def fits(message: BaseChatMessage) -> bool:
    """Whether the note can be printed."""
    return len(message.to_model_text()) <= LONGEST


def too_long(message: BaseChatMessage) -> bool:
    """Whether the note has to be cut."""
    return not fits(message)


def hears(agent: AssistantAgent, *sources: str) -> MessageFilterAgent:
    """The agent, who hears only the last message of each of these, in this order whoever was first."""
    filters = [PerSourceFilter(source=source, position="last", count=1) for source in sources]
    return MessageFilterAgent(agent.name, agent, MessageFilterConfig(per_source=filters))


def flow(client: ChatCompletionClient | None = None) -> GraphFlow:
    """The flow over one model client."""
    client = client or HaloChatCompletionClient(**SETTINGS)

    def agent(name: str, rules: str) -> AssistantAgent:
        return AssistantAgent(name, model_client=client, system_message=rules, description=name)

    readers = [agent("summary", SUMMARY), agent("facts", FACTS), agent("tone", TONE)]
    editor = hears(agent("editor", EDITOR), "user", "summary", "facts", "tone", "cutter")
    cutter = hears(agent("cutter", CUTTER), "editor")
    headline = hears(agent("headline", HEADLINE), "editor")
    builder = DiGraphBuilder()
    for each in (*readers, editor, cutter, headline):
        builder.add_node(each)
    for reader in readers:
        builder.add_edge(reader, editor)
    builder.add_edge(editor, cutter, condition=too_long)
    builder.add_edge(editor, headline, condition=fits)
    builder.add_edge(cutter, editor, activation_group="revision")
    return GraphFlow(builder.get_participants(), graph=builder.build(), name="document_flow", max_turns=STEPS)
