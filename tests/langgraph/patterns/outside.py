"""Calls that are no chat model's: the raw SDK, and a thread that carries no context."""

from __future__ import annotations

import threading
from typing import Any

from openai import AsyncOpenAI, OpenAI

from tests.langgraph.patterns.pattern import Place, State, one_node, pattern


@pattern("raw OpenAI SDK", routed="sdk_hook")
def raw_sdk(place: Place) -> Any:
    client = OpenAI(base_url=place.base_url, api_key="not-needed", max_retries=0)

    def node(state: State) -> State:
        reply = client.chat.completions.create(
            model=place.model_name, temperature=0, messages=[{"role": "user", "content": state["question"]}]
        )
        return {"answer": reply.choices[0].message.content or ""}

    return one_node(node)


@pattern("raw OpenAI SDK, streamed", routed="sdk_hook")
def raw_sdk_stream(place: Place) -> Any:
    """Every chunk has a choice, as long as nobody asks for the tokens used."""
    client = OpenAI(base_url=place.base_url, api_key="not-needed", max_retries=0)

    def node(state: State) -> State:
        chunks = client.chat.completions.create(
            model=place.model_name,
            temperature=0,
            messages=[{"role": "user", "content": state["question"]}],
            stream=True,
        )
        return {"answer": "".join(chunk.choices[0].delta.content or "" for chunk in chunks)}

    return one_node(node)


@pattern("raw AsyncOpenAI SDK", routed="sdk_hook", asynchronous=True)
def raw_async_sdk(place: Place) -> Any:
    async def node(state: State) -> State:
        async with AsyncOpenAI(base_url=place.base_url, api_key="not-needed", max_retries=0) as client:
            reply = await client.chat.completions.create(
                model=place.model_name, temperature=0, messages=[{"role": "user", "content": state["question"]}]
            )
        return {"answer": reply.choices[0].message.content or ""}

    return one_node(node)


@pattern("the application's own thread", routed="never")
def own_thread(place: Place) -> Any:
    model = place.model()

    def node(state: State) -> State:
        answers: list[str] = []
        thread = threading.Thread(target=lambda: answers.append(str(model.invoke(state["question"]).content)))
        thread.start()
        thread.join()
        return {"answer": answers[0]}

    return one_node(node)
