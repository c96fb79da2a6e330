"""The team: a checker with tools, a writer and an editor take turns until the editor approves, or twice round.

An ordinary AutoGen app. Nothing in it knows of Halo.
"""

from __future__ import annotations

import os
from typing import Any

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.conditions import MaxMessageTermination, TextMentionTermination
from autogen_agentchat.teams import RoundRobinGroupChat
from autogen_core.models import ChatCompletionClient
from autogen_ext.models.openai import OpenAIChatCompletionClient

from examples.review_team.roles import CHECKER, EDITOR, WRITER
from examples.review_team.tools import count_words, look_up


def chat_client(**overrides: Any) -> OpenAIChatCompletionClient:
    """The model as an app would define it: the name that the team uses, temperature 0, short answers."""
    settings: dict[str, Any] = {
        "model": "gpt-4o-mini",
        "model_info": {
            "vision": False,
            "function_calling": True,
            "json_output": True,
            "family": "unknown",
            "structured_output": True,
        },
        "temperature": 0,
        "max_tokens": int(os.environ.get("REVIEW_TEAM_TOKENS", "32")),
        "api_key": os.environ.get("OPENAI_API_KEY", "unused"),
    }
    return OpenAIChatCompletionClient(**(settings | overrides))


def team(client: ChatCompletionClient | None = None) -> RoundRobinGroupChat:
    """The team over one model client."""
    client = client or chat_client()
    checker = AssistantAgent(
        "checker",
        model_client=client,
        tools=[look_up, count_words],
        max_tool_iterations=2,
        reflect_on_tool_use=True,
        system_message=CHECKER,
        description="Looks terms up and compares drafts with the task.",
    )
    writer = AssistantAgent("writer", model_client=client, system_message=WRITER, description="Writes the note.")
    editor = AssistantAgent("editor", model_client=client, system_message=EDITOR, description="Finds faults, approves.")
    return RoundRobinGroupChat(
        [checker, writer, editor],
        name="review_team",
        termination_condition=TextMentionTermination("APPROVED", sources=["editor"]) | MaxMessageTermination(20),
        max_turns=6,
    )
