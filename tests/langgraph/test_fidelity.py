"""What a model gives its caller inside a Halo run is what it gives without Halo: messages, chunks, schemas, errors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from langchain.agents import create_agent
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.tools import tool
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from halo_adapters import langgraph as halo
from halo_core.pool import PoolConfig
from tests.langgraph.patterns import Place
from tests.langgraph.patterns.comparable import comparable
from tests.langgraph.patterns.pattern import State, one_node
from tests.stub_server import StubServer


class Verdict(BaseModel):
    """A verdict about a question."""

    label: str = Field(description="one word")
    score: int = Field(description="from 0 to 10")


class Note(TypedDict):
    """A note."""

    title: str


AS_DICT = {
    "title": "verdict",
    "description": "A verdict.",
    "type": "object",
    "properties": {"label": {"type": "string"}},
    "required": ["label"],
    "additionalProperties": False,
}


@tool
def look_up(term: str) -> str:
    """Look a term up."""
    return f"{term}: found"


@tool
def forget(term: str) -> str:
    """Forget a term."""
    return f"{term}: gone"


Make = Callable[[Place], Any]

MODELS: dict[str, Make] = {
    "plain": lambda place: place.model(),
    "sampled": lambda place: place.model(temperature=0.7, top_p=0.9, seed=7, presence_penalty=0.5),
    "cut off": lambda place: place.model(max_tokens=5),
    "stop words": lambda place: place.model().bind(stop=["never", "ever"]),
    "extra_body": lambda place: place.model(extra_body={"top_k": 5, "min_p": 0.1}),
    "logprobs": lambda place: place.model(logprobs=True, top_logprobs=2),
    "v1 content blocks": lambda place: place.model(output_version="v1"),
    "streaming=True": lambda place: place.model(streaming=True),
    "without stream usage": lambda place: place.model(stream_usage=False),
    "tools, free choice": lambda place: place.model().bind_tools([look_up, forget]),
    "tools, any": lambda place: place.model().bind_tools([look_up, forget], tool_choice="any"),
    "tools, named": lambda place: place.model().bind_tools([look_up, forget], tool_choice="forget", strict=True),
    "tools, none": lambda place: place.model().bind_tools([look_up], tool_choice="none"),
    "json_schema": lambda place: place.model().with_structured_output(Verdict, method="json_schema"),
    "json_schema, raw": lambda place: place.model().with_structured_output(
        Verdict, method="json_schema", include_raw=True
    ),
    "function_calling": lambda place: place.model().with_structured_output(Verdict, method="function_calling"),
    "function_calling, raw": lambda place: place.model().with_structured_output(
        Verdict, method="function_calling", include_raw=True
    ),
    "json_mode": lambda place: place.model().with_structured_output(AS_DICT, method="json_mode"),
    "schema as dict": lambda place: place.model().with_structured_output(AS_DICT, method="json_schema", strict=True),
    "schema as TypedDict": lambda place: place.model().with_structured_output(Note),
}

PROMPT = [
    SystemMessage("Answer in one line."),
    HumanMessage([{"type": "text", "text": "Use tool: what is a halo?"}]),
]


def in_invoke(runnable: Any, prompt: Any) -> Any:
    """A node that waits for the answer."""
    return lambda state: runnable.invoke(prompt)


def in_stream(runnable: Any, prompt: Any) -> Any:
    """A node that takes the answer in pieces."""
    return lambda state: list(runnable.stream(prompt))


def in_ainvoke(runnable: Any, prompt: Any) -> Any:
    """A coroutine node that waits for the answer."""

    async def ask(state: State) -> Any:
        return await runnable.ainvoke(prompt)

    return ask


def in_astream(runnable: Any, prompt: Any) -> Any:
    """A coroutine node that takes the answer in pieces."""

    async def ask(state: State) -> Any:
        return [chunk async for chunk in runnable.astream(prompt)]

    return ask


WAYS = (in_invoke, in_stream, in_ainvoke, in_astream)
LOOP = asyncio.Runner()
"""One loop for the whole module: plain ChatOpenAI keeps its client, with the connections of the first loop it saw."""


@pytest.fixture(scope="module")
def stub() -> Iterator[StubServer]:
    with StubServer().threaded() as server:
        yield server
        LOOP.close()


@pytest.fixture
def place(stub: StubServer) -> Iterator[Place]:
    halo.uninstall()
    halo.configure(PoolConfig())
    yield Place(f"{stub.url}/v1")
    halo.uninstall()
    halo.configure(PoolConfig())


def asked(ask: Any) -> Any:
    """What the node's call gave or raised."""
    got: list[Any] = []

    def node(state: State) -> State:
        try:
            got.append(ask(state))
        except Exception as error:
            got.append(error)
        return {"answer": "done"}

    async def anode(state: State) -> State:
        try:
            got.append(await ask(state))
        except Exception as error:
            got.append(error)
        return {"answer": "done"}

    LOOP.run(one_node(anode if asyncio.iscoroutinefunction(ask) else node).ainvoke({"question": "?"}))
    return got[0]


def both(place: Place, stub: StubServer, run: Callable[[], Any]) -> tuple[Any, Any]:
    """The outcome of `run` without and with Halo, and the proof that Halo made the requests."""
    stub.forget()
    expected = run()
    stub.forget()
    first = len(stub.headers)
    halo.install()
    with halo.backend("halo"):
        got = run()
    agents = [headers.get("user-agent", "") for headers in stub.headers[first:]]
    assert agents and not any("openai" in agent.lower() for agent in agents), "a call did not go through the pool"
    return got, expected


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODELS)
def test_answers_are_equal(name: str, way: Any, place: Place, stub: StubServer) -> None:
    got, expected = both(place, stub, lambda: asked(way(MODELS[name](place), PROMPT)))
    assert not isinstance(expected, Exception), expected
    assert comparable(got) == comparable(expected)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("directive", ["fail=400", "fail=401", "fail=404", "fail=422", "fail=500"])
def test_errors_are_of_the_same_type(directive: str, way: Any, place: Place, stub: StubServer) -> None:
    got, expected = both(place, stub, lambda: asked(way(place.model(), f"stub:{directive}")))
    assert isinstance(expected, openai.APIStatusError)
    assert type(got) is type(expected)
    assert got.status_code == expected.status_code


@pytest.mark.parametrize("way", [in_stream, in_astream])
def test_an_error_in_the_middle_of_a_stream_is_of_the_same_type(way: Any, place: Place, stub: StubServer) -> None:
    got, expected = both(place, stub, lambda: asked(way(place.model(), "stub:stream-error")))
    assert isinstance(expected, openai.APIError)
    assert type(got) is type(expected)


@pytest.mark.parametrize("way", WAYS)
def test_a_prompt_that_is_too_long_is_told_as_such(way: Any, place: Place, stub: StubServer) -> None:
    got, expected = both(place, stub, lambda: asked(way(place.model(), "stub:fail=400,message=context")))
    assert isinstance(expected, openai.BadRequestError)
    # LangChain does not know vLLM's words for it, Halo does: handlers of either kind catch it.
    assert isinstance(got, openai.BadRequestError)
    assert isinstance(got, ContextOverflowError)


@pytest.mark.parametrize("mode", ["values", "updates", "messages", "debug"])
@pytest.mark.parametrize("asynchronous", [False, True], ids=["stream", "astream"])
def test_agents_stream_the_same_transcript(mode: str, asynchronous: bool, place: Place, stub: StubServer) -> None:
    row = {"messages": [("user", "Use tool: what is a halo?")]}

    def run() -> list[Any]:
        agent: Any = create_agent(place.model(), [look_up], system_prompt="You look things up.")
        if not asynchronous:
            return list(agent.stream(row, stream_mode=mode))

        async def collect() -> list[Any]:
            return [item async for item in agent.astream(row, stream_mode=mode)]

        return LOOP.run(collect())

    got, expected = both(place, stub, run)
    assert len(expected) > 2
    assert without_volatile(comparable(got)) == without_volatile(comparable(expected))


def without_volatile(value: Any) -> Any:
    """Debug events carry times, and metadata carries random namespaces of tasks."""
    if isinstance(value, dict):
        return {
            key: without_volatile(item)
            for key, item in value.items()
            if key not in ("timestamp", "langgraph_checkpoint_ns", "checkpoint_ns")
        }
    if isinstance(value, list | tuple):
        return [without_volatile(item) for item in value]
    return value
