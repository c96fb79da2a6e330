"""The graph: three specialists read a passage side by side, an editor joins their parts into one note.

An ordinary LangGraph app. Nothing in it knows of Halo but the last two lines of `graph`.
"""

from __future__ import annotations

import os
from typing import Any, TypedDict

from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph

from examples.reading_desk.roles import EDITOR, FACTS, SUMMARY, TONE


class Desk(TypedDict, total=False):
    """One row: a passage and a question, and the parts of the note as they are written."""

    passage: str
    question: str
    summary: str
    tone: str
    facts: str
    note: str


def specialist(llm: BaseChatModel, key: str, rules: str) -> Any:
    """A node that reads the passage under its own rules."""

    async def read(state: Desk) -> Desk:
        asked = f"Passage:\n{state['passage']}\n\nQuestion: {state['question']}"
        answer = await llm.ainvoke([("system", rules), ("user", asked)])
        return {key: str(answer.content)}  # type: ignore[misc]

    return read


def editor(llm: BaseChatModel) -> Any:
    """The node that joins the parts."""

    async def join(state: Desk) -> Desk:
        parts = f"Précis: {state['summary']}\nVoice: {state['tone']}\nChecks: {state['facts']}"
        answer = await llm.ainvoke([("system", EDITOR), ("user", f"Question: {state['question']}\n{parts}")])
        return {"note": str(answer.content)}

    return join


def build(llm: BaseChatModel) -> StateGraph[Desk, None, Desk, Desk]:
    """The graph over one chat model; compile it with the backend of your choice."""
    builder: StateGraph[Desk, None, Desk, Desk] = StateGraph(Desk)
    for key, rules in (("summary", SUMMARY), ("tone", TONE), ("facts", FACTS)):
        builder.add_node(f"read_{key}", specialist(llm, key, rules))
        builder.add_edge(START, f"read_{key}")
    builder.add_node("edit", editor(llm))
    builder.add_edge(["read_summary", "read_tone", "read_facts"], "edit")
    builder.add_edge("edit", END)
    return builder


def chat_model(**overrides: Any) -> ChatOpenAI:
    """The model as an app would define it: the name that the team uses, temperature 0, short answers."""
    settings: dict[str, Any] = {
        "model": "gpt-4o-mini",
        "temperature": 0,
        "max_tokens": int(os.environ.get("READING_DESK_TOKENS", "40")),
        "api_key": os.environ.get("OPENAI_API_KEY", "unused"),
    }
    return ChatOpenAI(**(settings | overrides))


def graph() -> Any:
    """The compiled app for `halo run examples.reading_desk.app:graph`."""
    import halo_adapters.langgraph as halo

    halo.install()
    return build(chat_model()).compile(backend="halo", name="reading_desk")  # type: ignore[call-arg]
