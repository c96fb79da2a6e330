"""`python -m examples.review_team`: 24 release notes by the review team on Halo's pool, and a report."""

from __future__ import annotations

import functools
import json
from pathlib import Path

from autogen_agentchat.teams import RoundRobinGroupChat
from autogen_ext.models.openai import OpenAIChatCompletionClient

from examples.review_team.report import SERVED, Example, run
from examples.review_team.team import chat_client, team

TASKS = Path(__file__).parent / "tasks.jsonl"


def read_tasks(rows: int | None = None) -> list[str]:
    """The first `rows` tasks of the file."""
    return [json.loads(line)["task"] for line in TASKS.read_text("utf-8").splitlines()][:rows]


@functools.cache
def client_of(url: str) -> OpenAIChatCompletionClient:
    """AutoGen's client of one engine, for all teams that use it."""
    return chat_client(base_url=url, model=SERVED)


def plain_team(url: str) -> RoundRobinGroupChat:
    """The same team over one engine."""
    return team(client_of(url))


def example(rows: int | None = None) -> Example:
    """The team and its tasks."""
    return Example("review team", team, plain_team, read_tasks(rows), _change, "writer")


def _change(task: str) -> str:
    return task.partition(": ")[2].partition(". First")[0]


if __name__ == "__main__":
    run(example)
