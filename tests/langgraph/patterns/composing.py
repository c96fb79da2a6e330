"""Models inside other runnables: chains, bound tools, structured output, retries, streams, inner batches."""

from __future__ import annotations

import asyncio
from typing import Any

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from pydantic import BaseModel, Field

from tests.langgraph.patterns.pattern import Place, State, one_node, pattern


class Verdict(BaseModel):
    """A verdict about a question."""

    label: str = Field(description="one word")
    score: int = Field(description="from 0 to 10")


@tool
def look_up(term: str) -> str:
    """Look a term up."""
    return f"{term}: found"


@pattern("LCEL chain as node")
def chain(place: Place) -> Any:
    prompt = ChatPromptTemplate.from_messages([("system", "Answer in one line."), ("user", "{question}")])
    return one_node(prompt | place.model() | StrOutputParser() | (lambda text: {"answer": text}))


@pattern("bind_tools")
def bound_tools(place: Place) -> Any:
    model = place.model().bind_tools([look_up])

    def node(state: State) -> State:
        return {"answer": repr([(call["name"], call["args"]) for call in model.invoke(state["question"]).tool_calls])}

    return one_node(node)


@pattern("with_structured_output (json_schema, function_calling, include_raw)", calls=3)
def structured(place: Place) -> Any:
    by_schema = place.model().with_structured_output(Verdict, method="json_schema")
    by_function = place.model().with_structured_output(Verdict, method="function_calling")
    with_raw = place.model().with_structured_output(Verdict, method="json_schema", include_raw=True)

    def node(state: State) -> State:
        raw = with_raw.invoke("raw " + state["question"])
        verdicts = [by_schema.invoke(state["question"]), by_function.invoke(state["question"]), raw["parsed"]]
        return {"answer": repr((verdicts, raw["raw"].content, raw["parsing_error"]))}

    return one_node(node)


@pattern("with_retry and with_fallbacks", calls=2)
def retried(place: Place) -> Any:
    model = place.model().with_retry(stop_after_attempt=2).with_fallbacks([place.model()])

    def refuse(state: State) -> State:
        raise ValueError("the first runnable of the fallback always fails")

    fallback = place.model().with_retry()

    def node(state: State) -> State:
        first = model.invoke(state["question"]).content
        second = fallback.invoke(f"{state['question']} again").content
        return {"answer": f"{first} / {second}"}

    return one_node(node)


@pattern("stream in the node")
def streamed(place: Place) -> Any:
    model = place.model()

    def node(state: State) -> State:
        return {"answer": "".join(str(chunk.content) for chunk in model.stream(state["question"]))}

    return one_node(node)


@pattern("astream in the node", asynchronous=True)
def astreamed(place: Place) -> Any:
    model = place.model()

    async def node(state: State) -> State:
        return {"answer": "".join([str(chunk.content) async for chunk in model.astream(state["question"])])}

    return one_node(node)


@pattern("batch in the node", calls=3)
def batched(place: Place) -> Any:
    model = place.model()

    def node(state: State) -> State:
        answers = model.batch([f"{state['question']} part {part}" for part in range(3)])
        return {"answer": " | ".join(str(answer.content) for answer in answers)}

    return one_node(node)


@pattern("abatch and gather in the node", calls=4, asynchronous=True)
def abatched(place: Place) -> Any:
    model = place.model()

    async def node(state: State) -> State:
        answers = await model.abatch([f"{state['question']} part {part}" for part in range(2)])
        answers += await asyncio.gather(*(model.ainvoke(f"{state['question']} piece {part}") for part in range(2)))
        return {"answer": " | ".join(str(answer.content) for answer in answers)}

    return one_node(node)
