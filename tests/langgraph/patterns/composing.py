"""Models inside other runnables: chains, bound tools, structured output, retries, streams, inner batches."""

from __future__ import annotations

from typing import Any

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from pydantic import BaseModel, Field

from tests.langgraph.patterns.pattern import Place, State, one_node, pattern, two_nodes


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
        calls = model.invoke(f"Use tool: {state['question']}").tool_calls
        return {"answer": repr([(call["name"], call["args"]) for call in calls])}

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
    patient = place.model().with_retry(stop_after_attempt=2)
    cautious = RunnableLambda(_refuse).with_fallbacks([place.model()])

    def node(state: State) -> State:
        first = patient.invoke(state["question"])
        second = cautious.invoke(f"{state['question']} again")
        return {"answer": f"{first.content} / {second.content}"}

    return one_node(node)


def _refuse(prompt: Any) -> Any:
    raise ValueError("this runnable always leaves it to its fallback")


@pattern("stream and astream in nodes", calls=2, asynchronous=True)
def streamed(place: Place) -> Any:
    model = place.model()

    def first(state: State) -> State:
        return {"question": "".join(str(chunk.content) for chunk in model.stream(state["question"]))}

    async def second(state: State) -> State:
        return {"answer": "".join([str(chunk.content) async for chunk in model.astream(state["question"])])}

    return two_nodes(first, second)


@pattern("batch and abatch in nodes", calls=5, asynchronous=True)
def batched(place: Place) -> Any:
    model = place.model()

    def first(state: State) -> State:
        answers = model.batch([f"{state['question']} part {part}" for part in range(3)])
        return {"question": " | ".join(str(answer.content) for answer in answers)}

    async def second(state: State) -> State:
        answers = await model.abatch([f"{state['question']} part {part}" for part in range(2)])
        return {"answer": " | ".join(str(answer.content) for answer in answers)}

    return two_nodes(first, second)
