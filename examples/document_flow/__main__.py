"""`python -m examples.document_flow`: 24 documents through the flow on Halo's pool, and a report."""

from __future__ import annotations

import functools
import json
from pathlib import Path

from autogen_agentchat.teams import GraphFlow
from autogen_ext.models.openai import OpenAIChatCompletionClient

import examples.reading_desk as reading_desk
from examples.document_flow.flow import SETTINGS, flow
from examples.review_team.report import SERVED, Example, run
from halo_adapters.autogen import HaloChatCompletionClient

PASSAGES = Path(str(reading_desk.__file__)).parent / "passages.jsonl"
DOCUMENTS = 24


def read_documents(rows: int | None = None) -> list[str]:
    """The first `rows` documents as tasks; every second one has been there before, as it is with real piles."""
    lines = [json.loads(line) for line in PASSAGES.read_text("utf-8").splitlines()]
    picked = [lines[i // 2 if i % 2 == 0 else i // 4] for i in range(DOCUMENTS)]
    return [f"Passage:\n{line['passage']}\n\nQuestion: {line['question']}" for line in picked][:rows]


@functools.cache
def client_of(url: str) -> OpenAIChatCompletionClient:
    """AutoGen's client of one engine; its `model_info` is Halo's, since agents decide by it."""
    info = HaloChatCompletionClient(**SETTINGS).model_info
    return OpenAIChatCompletionClient(**(SETTINGS | {"model": SERVED}), base_url=url, api_key="unused", model_info=info)


def plain_flow(url: str) -> GraphFlow:
    """The same flow over one engine."""
    return flow(client_of(url))


def example(rows: int | None = None) -> Example:
    """The flow and its documents."""
    readers = frozenset({"summary", "facts", "tone"})
    return Example("document flow", flow, plain_flow, read_documents(rows), _beginning, "editor", readers)


def _beginning(task: str) -> str:
    return task.partition("\n")[2][:40] + "…"


if __name__ == "__main__":
    run(example)
