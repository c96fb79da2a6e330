"""The client: answers, streams, cancellation, sharing, usage, events, components, errors, loops and attribution."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from autogen_agentchat.agents import AssistantAgent, BaseChatAgent
from autogen_agentchat.base import Response
from autogen_agentchat.conditions import MaxMessageTermination
from autogen_agentchat.messages import BaseChatMessage, TextMessage
from autogen_agentchat.teams import BaseGroupChat, RoundRobinGroupChat, SelectorGroupChat
from autogen_core import EVENT_LOGGER_NAME, CancellationToken, Image
from autogen_core.memory import ListMemory, MemoryContent
from autogen_core.model_context import TokenLimitedChatCompletionContext
from autogen_core.models import CreateResult, LLMMessage, ModelFamily, RequestUsage, SystemMessage, UserMessage
from autogen_core.tools import FunctionTool
from pydantic import BaseModel

from halo_adapters.autogen import HaloChatCompletionClient, PoolConfig, arun_batch, configure
from halo_adapters.autogen import client as client_module
from halo_core.errors import ClosedError, ConfigError, EngineError, EngineStartError, UnknownModelError
from halo_core.pool import Completion, EnginePool, LLMCall, SimulatedSpec, simulated_model
from halo_core.pool.simulated import SimulatedEngine
from halo_core.runtime import get_executor
from halo_core.runtime.stats import OperatorStats
from tests.stub_server import StubServer

PIXEL = Image.from_base64(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)
INFO: dict[str, Any] = {
    "vision": False,
    "function_calling": False,
    "json_output": False,
    "family": ModelFamily.UNKNOWN,
    "structured_output": False,
}


class Verdict(BaseModel):
    label: str
    score: int


def look_up(term: str) -> str:
    """Look a term up."""
    return f"{term}: found"


def forget(term: str) -> str:
    """Forget a term."""
    return f"{term}: gone"


LOOK_UP = FunctionTool(look_up, description="Look a term up.")
FORGET = FunctionTool(forget, description="Forget a term.")


def asked(text: str = "Hello", source: str = "user") -> list[LLMMessage]:
    return [UserMessage(content=text, source=source)]


@pytest.fixture(autouse=True)
def pool() -> Iterator[EnginePool]:
    """One simulated model, for every name."""
    yield configure(PoolConfig(models={"*": "sim"}, engines=(SimulatedSpec(model="sim"),)))
    configure(PoolConfig()).close()


@pytest.fixture
def stub() -> Iterator[StubServer]:
    """A server of one's own; the pool has no model."""
    configure(PoolConfig())
    with StubServer().threaded() as server:
        yield server


def client_of(server: StubServer | None = None, **arguments: Any) -> HaloChatCompletionClient:
    if server is not None:
        arguments["base_url"] = f"{server.url}/v1"
    return HaloChatCompletionClient(**{"model": "m", "temperature": 0, **arguments})


async def streamed(client: HaloChatCompletionClient, *arguments: Any, **options: Any) -> tuple[list[str], CreateResult]:
    """(texts, result) of a streamed answer."""
    *texts, result = [item async for item in client.create_stream(*arguments, **options)]
    assert all(isinstance(text, str) for text in texts)
    assert isinstance(result, CreateResult)
    return texts, result  # type: ignore[return-value]


def comparable(result: CreateResult) -> Any:
    """A result without the ids of its tool calls."""
    dumped = result.model_dump()
    if isinstance(dumped["content"], list):
        for call in dumped["content"]:
            del call["id"]
    return dumped


# -- an engine that waits to be told ---------------------------------------------------------------------------------


class GatedEngine(SimulatedEngine):
    """Answers once the gate is opened; tells which calls have arrived and which were cancelled."""

    def __init__(self, model: str) -> None:
        super().__init__(model, model, clock="zero")
        self.gate = asyncio.Event()
        self.arrived = threading.Semaphore(0)
        self.cancelled = threading.Semaphore(0)
        self.taken = 0

    async def complete(self, call: LLMCall) -> Completion:
        await self._wait()
        return await super().complete(call)

    async def stream(self, call: LLMCall) -> AsyncIterator[bytes]:
        chunks = super().stream(call)
        for _ in range(2):  # the opening and the first text
            yield await anext(chunks)
        await self._wait()
        async for chunk in chunks:
            yield chunk

    async def _wait(self) -> None:
        self.taken += 1
        self.arrived.release()
        try:
            await self.gate.wait()
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.release()
            raise


class Gate:
    """A gated engine, seen from a test's own loop."""

    def __init__(self, pool: EnginePool, model: str) -> None:
        self.pool = pool
        self.engine = GatedEngine(model)
        pool.add(self.engine)

    async def arrivals(self, number: int) -> None:
        """Wait until the engine has got so many more calls."""
        for _ in range(number):
            assert await asyncio.to_thread(self.engine.arrived.acquire, timeout=10)

    async def cancellations(self, number: int) -> None:
        """Wait until so many more calls were cancelled in the engine."""
        for _ in range(number):
            assert await asyncio.to_thread(self.engine.cancelled.acquire, timeout=10)

    async def settled(self) -> None:
        """Wait until tasks of this loop have sent their calls, and the pool's loop has taken in what was sent."""
        await asyncio.sleep(0)

        async def nothing() -> None: ...

        for _ in range(2):
            await asyncio.to_thread(self.pool.thread.run, nothing())

    def open(self) -> None:
        self.pool.thread.mailbox.post(self.engine.gate.set)


@pytest.fixture
def gate() -> Gate:
    """The only model of the pool."""
    return Gate(configure(PoolConfig(models={"*": "gated"})), "gated")


# -- create ----------------------------------------------------------------------------------------------------------


async def test_an_answer_is_what_the_engine_says() -> None:
    client = client_of()
    result = await client.create([SystemMessage(content="Be brief."), *asked()])
    body = {
        "temperature": 0,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hello", "name": "user"},
        ],
    }
    expected = simulated_model.answer("sim", body)
    assert result.content == expected.choices[0].text
    assert result.finish_reason == "stop"
    assert result.usage == RequestUsage(simulated_model.count_tokens(expected.prompt), expected.tokens)
    assert (result.cached, result.thought, result.logprobs) == (False, None, None)


WAYS: dict[str, dict[str, Any]] = {
    "text": {},
    "cut off": {"extra_create_args": {"max_tokens": 3}},
    "json_object": {"json_output": True},
    "text mode": {"json_output": False},
    "class": {"json_output": Verdict},
    "tool": {"tools": [LOOK_UP, FORGET], "tool_choice": "required"},
    "named tool": {"tools": [LOOK_UP, FORGET], "tool_choice": FORGET},
    "no tool": {"tools": [LOOK_UP], "tool_choice": "none"},
}


@pytest.mark.parametrize("dedup", [0, 0.7], ids=["shared", "sampled"])
@pytest.mark.parametrize("way", WAYS)
async def test_a_streamed_answer_is_the_whole_one(way: str, dedup: float) -> None:
    client = client_of(temperature=dedup)
    whole = await client.create(asked(), **WAYS[way])
    texts, result = await streamed(client, asked(), **WAYS[way])
    assert comparable(result) == comparable(whole)
    assert result.usage.prompt_tokens > 0 and result.usage.completion_tokens > 0
    if isinstance(whole.content, str):
        assert "".join(texts) == whole.content
    else:
        assert texts == []


async def test_json_output_is_json() -> None:
    client = client_of()
    answer = (await client.create(asked(), json_output=Verdict)).content
    assert isinstance(answer, str)
    Verdict.model_validate_json(answer)
    answer = (await client.create(asked(), json_output=True)).content
    assert isinstance(answer, str)
    assert isinstance(json.loads(answer), dict)
    answer = (await client.create(asked(), json_output=False)).content
    assert isinstance(answer, str)
    with pytest.raises(ValueError):
        json.loads(answer)


async def test_a_class_in_the_constructor_is_structured_output_too() -> None:
    client = client_of(response_format=Verdict)
    answer = (await client.create(asked())).content
    assert isinstance(answer, str)
    Verdict.model_validate_json(answer)


@pytest.mark.parametrize("where", ["json_output", "response_format", "constructor"])
@pytest.mark.parametrize("stream", [False, True], ids=["create", "create_stream"])
async def test_structured_answers_that_were_cut_off_are_errors(stream: bool, where: str) -> None:
    client = client_of(max_tokens=2, **({"response_format": Verdict} if where == "constructor" else {}))
    options: dict[str, Any] = {}
    if where == "json_output":
        options["json_output"] = Verdict
    elif where == "response_format":
        options["extra_create_args"] = {"response_format": Verdict}
    with pytest.raises(EngineError, match=r"cut off.*raise max_tokens"):
        await (streamed(client, asked(), **options) if stream else client.create(asked(), **options))


@pytest.mark.parametrize(
    ("choice", "expected"), [("required", "look_up"), (FORGET, "forget"), ("none", None), ("auto", None)]
)
async def test_tools_are_chosen(choice: Any, expected: str | None) -> None:
    result = await client_of().create(asked(), tools=[LOOK_UP, FORGET.schema], tool_choice=choice)
    if expected is None:
        assert isinstance(result.content, str)
    else:
        assert isinstance(result.content, list)
        assert [call.name for call in result.content] == [expected]
        assert set(json.loads(result.content[0].arguments)) == {"term"}
        assert result.finish_reason == "function_calls"


@pytest.mark.parametrize("stream", [False, True], ids=["create", "create_stream"])
async def test_a_tool_that_is_not_among_the_tools_is_named(stream: bool) -> None:
    client = client_of()
    ask = (lambda **o: streamed(client, asked(), **o)) if stream else (lambda **o: client.create(asked(), **o))
    with pytest.raises(ValueError, match=r"'forget'.*not in the provided tools \(look_up\)"):
        await ask(tools=[LOOK_UP], tool_choice=FORGET)
    with pytest.raises(ValueError, match=r"'forget'.*no tools provided"):
        await ask(tool_choice=FORGET)


async def test_without_tools_no_choice_is_sent(stub: StubServer) -> None:
    client = client_of(stub)
    for choice in ("auto", "required", "none"):
        await client.create(asked(), tools=[], tool_choice=choice)  # type: ignore[arg-type]
    await client.create(asked(), tools=[LOOK_UP], tool_choice="required")
    assert [{"tools", "tool_choice"} & set(body) for body in stub.bodies] == [*3 * [set()], {"tools", "tool_choice"}]


REFUSED: dict[str, dict[str, Any]] = {
    "function calling": {"tools": [LOOK_UP]},
    "JSON output": {"json_output": True},
    "structured output": {"json_output": Verdict},
    "vision": {"messages": [UserMessage(content=["what?", PIXEL], source="user")]},
}


@pytest.mark.parametrize("stream", [False, True], ids=["create", "create_stream"])
@pytest.mark.parametrize("what", REFUSED)
async def test_what_the_model_cannot_do_is_refused_before_it_is_sent(what: str, stream: bool, stub: StubServer) -> None:
    client = client_of(stub, model_info=INFO)
    arguments = {"messages": asked(), **REFUSED[what]}
    with pytest.raises(ValueError, match=f"Model does not support {what}"):
        await (streamed(client, **arguments) if stream else client.create(**arguments))
    assert stub.chats == 0


async def test_images_are_sent_to_models_that_see(stub: StubServer) -> None:
    client = client_of(stub, model_info={**INFO, "vision": True})
    await client.create([UserMessage(content=["what?", PIXEL], source="user")])
    assert [part["type"] for part in stub.bodies[0]["messages"][0]["content"]] == ["text", "image_url"]


@pytest.mark.parametrize("stream", [False, True], ids=["create", "create_stream"])
async def test_messages_of_no_known_kind_are_refused(stream: bool) -> None:
    wrong: Any = [object()]
    client = client_of()
    with pytest.raises(ValueError, match="Unknown message type"):
        await (streamed(client, wrong) if stream else client.create(wrong))


async def test_a_call_may_name_another_model() -> None:
    configure(PoolConfig(engines=(SimulatedSpec(model="one"), SimulatedSpec(model="two"))))
    client = client_of(model="one")
    answers = [
        (await client.create(asked(), extra_create_args=extra)).content
        for extra in ({}, {"model": "two"}, {"model": "one"})
    ]
    assert answers[0] == answers[2] != answers[1] == (await client_of(model="two").create(asked())).content
    with pytest.raises(UnknownModelError, match="'three'"):
        await client.create(asked(), extra_create_args={"model": "three"})


async def test_models_of_two_names_that_are_one_share_their_calls(gate: Gate) -> None:
    clients = [client_of(model=name) for name in ("gpt-4o", "my-model")]
    tasks = [asyncio.create_task(client.create(asked())) for client in clients]
    await gate.arrivals(1)
    await gate.settled()
    gate.open()
    first, second = await asyncio.gather(*tasks)
    assert comparable(first) == comparable(second)
    assert gate.engine.taken == 1


# -- streams ---------------------------------------------------------------------------------------------------------


async def test_texts_arrive_while_the_engine_still_works(gate: Gate) -> None:
    client = client_of()
    stream = client.create_stream(asked())
    first = await anext(stream)
    assert isinstance(first, str) and first
    assert not gate.engine.gate.is_set(), "the text came before the engine went on"
    rest = asyncio.create_task(collect(stream))
    await gate.arrivals(1)
    assert not rest.done()
    gate.open()
    *texts, result = await rest
    assert first + "".join(texts) == result.content
    assert len(texts) > 1
    assert result.usage.completion_tokens > 0


async def collect(stream: Any) -> list[Any]:
    return [item async for item in stream]


@pytest.mark.parametrize("include_usage", [None, True, False])
async def test_streams_always_know_their_usage(include_usage: bool | None, stub: StubServer) -> None:
    client = client_of(stub, stream_options={"include_usage": False})
    whole = await client.create(asked())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, result = await streamed(
            client, asked(), include_usage=include_usage, max_consecutive_empty_chunk_tolerance=3
        )
    assert result.usage == whole.usage != RequestUsage(0, 0)
    assert stub.bodies[1]["stream_options"] == {"include_usage": True}
    assert "stream_options" not in stub.bodies[0]


async def test_a_stream_that_joins_another_gets_all_of_it(gate: Gate) -> None:
    client = client_of()
    early = asyncio.create_task(streamed(client, asked()))
    await gate.arrivals(1)
    late = asyncio.create_task(streamed(client, asked()))
    await gate.settled()
    gate.open()
    (first_texts, first), (texts, second) = await asyncio.gather(early, late)
    assert texts == first_texts
    assert comparable(first) == comparable(second)
    assert gate.engine.taken == 1


async def test_leaving_a_stream_early_cancels_it_in_the_engine(gate: Gate) -> None:
    stream = client_of().create_stream(asked())
    await anext(stream)
    await gate.arrivals(1)
    await stream.aclose()
    await gate.cancellations(1)


async def test_an_error_in_the_middle_of_a_stream_is_raised(stub: StubServer) -> None:
    texts: list[Any] = []
    with pytest.raises(EngineError, match="told to fail"):
        async for item in client_of(stub).create_stream(asked("stub:stream-error")):
            texts.append(item)
    assert texts and all(isinstance(text, str) for text in texts)


# -- cancellation ----------------------------------------------------------------------------------------------------

Ask = Callable[..., Any]


def ask_whole(client: HaloChatCompletionClient, token: CancellationToken | None = None) -> Any:
    return client.create(asked(), cancellation_token=token)


async def ask_streamed(client: HaloChatCompletionClient, token: CancellationToken | None = None) -> CreateResult:
    return (await streamed(client, asked(), cancellation_token=token))[1]


BOTH = pytest.mark.parametrize("ask", [ask_whole, ask_streamed])


@BOTH
@pytest.mark.parametrize("leaver", [0, 1], ids=["the first leaves", "the second leaves"])
async def test_whoever_stays_gets_the_answer_of_a_shared_call(leaver: int, ask: Ask, gate: Gate) -> None:
    clients = [client_of(), client_of()]
    tokens = [CancellationToken(), CancellationToken()]
    tasks = []
    for client, token in zip(clients, tokens, strict=True):
        tasks.append(asyncio.create_task(ask(client, token)))
        await gate.settled()
    await gate.arrivals(1)
    tokens[leaver].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[leaver]
    await gate.settled()
    gate.open()
    result = await tasks[1 - leaver]
    assert isinstance(result.content, str) and result.content
    assert gate.engine.taken == 1
    assert clients[1 - leaver].actual_usage() == clients[1 - leaver].total_usage() == result.usage
    assert clients[leaver].total_usage() == RequestUsage(0, 0)


@BOTH
async def test_a_call_that_everybody_left_is_cancelled_in_the_engine(ask: Ask, gate: Gate) -> None:
    token = CancellationToken()
    tasks = [asyncio.create_task(ask(client_of(), token)) for _ in range(2)]
    await gate.arrivals(1)
    await gate.settled()
    token.cancel()
    for task in tasks:
        with pytest.raises(asyncio.CancelledError):
            await task
    await gate.cancellations(1)
    gate.open()
    assert (await ask(client_of())).content  # the same call again is a call of its own
    assert gate.engine.taken == 2


@BOTH
async def test_cancelling_the_task_leaves_the_others_their_answer(ask: Ask, gate: Gate) -> None:
    tasks = [asyncio.create_task(ask(client_of())) for _ in range(2)]
    await gate.arrivals(1)
    await gate.settled()
    tasks[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    gate.open()
    assert (await tasks[1]).content
    assert gate.engine.taken == 1


@BOTH
async def test_a_token_that_is_cancelled_before_gives_no_answer(ask: Ask) -> None:
    client, token = client_of(), CancellationToken()
    token.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ask(client, token)
    assert client.total_usage() == RequestUsage(0, 0)
    assert (await ask(client)).content


# -- usage and sharing -----------------------------------------------------------------------------------------------


def doubled(usage: RequestUsage) -> RequestUsage:
    return RequestUsage(2 * usage.prompt_tokens, 2 * usage.completion_tokens)


@BOTH
async def test_shared_calls_count_once_as_actual_and_always_as_total(ask: Ask, gate: Gate) -> None:
    client = client_of()
    tasks = [asyncio.create_task(ask(client)) for _ in range(2)]
    await gate.arrivals(1)
    await gate.settled()
    gate.open()
    first, second = await asyncio.gather(*tasks)
    assert gate.engine.taken == 1
    assert first.usage == second.usage != RequestUsage(0, 0), "a shared answer has its full usage"
    assert client.total_usage() == doubled(first.usage)
    assert client.actual_usage() == first.usage


async def test_sampled_calls_are_not_shared(gate: Gate) -> None:
    client = client_of(temperature=0.7)
    tasks = [asyncio.create_task(client.create(asked())) for _ in range(2)]
    await gate.arrivals(2)
    gate.open()
    first, _ = await asyncio.gather(*tasks)
    assert client.total_usage() == client.actual_usage() == doubled(first.usage)


async def test_failed_calls_cost_nothing(stub: StubServer) -> None:
    client = client_of(stub)
    with pytest.raises(EngineError):
        await client.create(asked("stub:fail=400"))
    assert client.total_usage() == client.actual_usage() == RequestUsage(0, 0)


async def test_usage_is_a_snapshot() -> None:
    client = client_of()
    before = client.total_usage()
    await client.create(asked())
    assert before == RequestUsage(0, 0) != client.total_usage()
    client.actual_usage().prompt_tokens = -1
    assert client.actual_usage().prompt_tokens > 0


async def test_shared_answers_are_objects_of_their_own(gate: Gate) -> None:
    client = client_of()
    options: dict[str, Any] = {"tools": [LOOK_UP], "tool_choice": "required"}
    tasks: list[asyncio.Task[Any]] = [asyncio.create_task(client.create(asked(), **options)) for _ in range(2)]
    await gate.arrivals(1)
    await gate.settled()
    gate.open()
    first, second = await asyncio.gather(*tasks)
    assert gate.engine.taken == 1
    assert comparable(first) == comparable(second)
    assert first.content[0].id != second.content[0].id
    before = second.model_copy(deep=True)
    first.content[0].name = "other"
    first.content.clear()
    first.usage.prompt_tokens = -1
    first.thought, first.cached = "changed", True
    assert second == before


# -- tokens ----------------------------------------------------------------------------------------------------------

CONVERSATION: list[LLMMessage] = [SystemMessage(content="Be brief."), *asked("Hello, how long is this?")]


async def test_tokens_are_counted_by_the_engine() -> None:
    configure(PoolConfig(engines=(SimulatedSpec(model="m", max_model_len=500),)))
    client = client_of()
    count = client.count_tokens(CONVERSATION)
    result = await client.create(CONVERSATION)
    assert count == result.usage.prompt_tokens
    assert client.remaining_tokens(CONVERSATION) == 500 - count
    with_tools = client.count_tokens(CONVERSATION, tools=[LOOK_UP, FORGET.schema])
    assert with_tools > count
    assert client.remaining_tokens(CONVERSATION, tools=[LOOK_UP, FORGET.schema]) == 500 - with_tools
    assert client.total_usage() == result.usage, "counting is no call"


@pytest.mark.parametrize("given", [None, 1000])
def test_tokens_are_estimated_where_the_server_cannot_tell(given: int | None) -> None:
    configure(PoolConfig())
    with StubServer(models=("m",), max_model_len=4096).threaded() as server:
        client = client_of(server, context_length=given)
        short, long = client.count_tokens(asked("x" * 40)), client.count_tokens(asked("x" * 4040))
        assert long - short == 1000
        assert client.count_tokens(asked(), tools=[LOOK_UP]) > client.count_tokens(asked())
        assert client.remaining_tokens(asked("x" * 40)) == (given or 4096) - short
        assert server.requests["/tokenize"] == 5
        assert server.chats == 0


def test_a_context_that_nobody_knows_must_be_given() -> None:
    with pytest.raises(ConfigError, match="give context_length=TOKENS"):
        client_of().remaining_tokens(CONVERSATION)
    assert client_of(context_length=900).remaining_tokens(CONVERSATION) == 900 - client_of().count_tokens(CONVERSATION)


class Tokenizer(BaseHTTPRequestHandler):
    """vLLM's `/tokenize`, which refuses prompts that say so."""

    asked: list[Any]

    def do_GET(self) -> None:
        self._send(200, {"object": "list", "data": [{"id": "m", "max_model_len": 100}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        assert self.path == "/tokenize"
        self.asked.append(body)
        if "too long" in str(body["messages"]):
            self._send(400, {"error": {"message": "This model's maximum context length is 100 tokens.", "code": 400}})
        else:
            self._send(200, {"count": 42, "max_model_len": 100, "tokens": [1] * 42})

    def _send(self, status: int, document: Any) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None: ...


@contextmanager
def tokenizer() -> Iterator[tuple[str, list[Any]]]:
    """(URL, requests) of a server that can count."""
    bodies: list[Any] = []
    handler = type("Handler", (Tokenizer,), {"asked": bodies})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", bodies
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


def test_tokens_are_counted_by_the_server() -> None:
    pool = configure(PoolConfig())
    with tokenizer() as (url, bodies):
        client = client_of(base_url=f"{url}/v1", add_name_prefixes=True)
        assert client.count_tokens(asked(), tools=[LOOK_UP]) == 42
        assert client.remaining_tokens(asked()) == 58
        assert client_of(base_url=f"{url}/v1", context_length=50).remaining_tokens(asked()) == 8
        text = "too long " * 100
        assert client.count_tokens(asked(text)) > len(text) // 4, "a prompt beyond the context is estimated"
        assert client.remaining_tokens(asked(text)) < 0
        assert client.remaining_tokens(asked("too long")) < 0, "an estimate must not say that it fits"
        pool.close()
    assert bodies[0]["messages"] == [{"role": "user", "content": "user said:\nHello", "name": "user"}]
    assert [tool["function"]["name"] for tool in bodies[0]["tools"]] == ["look_up"]
    assert bodies[0]["model"] == "m"


async def test_token_limited_contexts_work() -> None:
    configure(PoolConfig(engines=(SimulatedSpec(model="m"),)))
    client = client_of()
    limit = client.count_tokens(asked("x" * 400)) + 5
    context = TokenLimitedChatCompletionContext(client, token_limit=limit)
    for letter in "abc":
        await context.add_message(UserMessage(content=letter * 200, source="user"))
    kept = await context.get_messages()
    assert 0 < len(kept) < 3
    assert client.count_tokens(kept) <= limit


async def test_contexts_are_cut_to_what_the_model_takes() -> None:
    with tokenizer() as (url, _):
        pool = configure(PoolConfig())
        context = TokenLimitedChatCompletionContext(client_of(base_url=f"{url}/v1"))
        for text in ("one", "two", "too long"):
            await context.add_message(UserMessage(content=text, source="user"))
        kept = await context.get_messages()
        pool.close()
    assert "too long" not in str(kept)


# -- events ----------------------------------------------------------------------------------------------------------


@contextmanager
def events(level: int) -> Iterator[list[Any]]:
    """What is logged of calls."""
    logger = logging.getLogger(EVENT_LOGGER_NAME)
    records: list[Any] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.msg)  # type: ignore[method-assign]
    before = logger.level
    logger.setLevel(level)
    logger.addHandler(handler)
    try:
        yield records
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def of_calls(records: Sequence[Any]) -> list[Any]:
    """The events that model clients log."""
    return [json.loads(str(record)) for record in records if type(record).__name__.startswith("LLM")]


async def test_calls_are_logged() -> None:
    client = client_of(model="gpt-4o", temperature=0)
    with events(logging.INFO) as records:
        result = await client.create(asked(), tools=[LOOK_UP])
    (event,) = of_calls(records)
    assert event["type"] == "LLMCall"
    assert event["messages"] == [{"role": "user", "content": "Hello", "name": "user"}]
    assert [tool["function"]["name"] for tool in event["tools"]] == ["look_up"]
    assert event["response"]["model"] == "gpt-4o"
    assert event["response"]["choices"][0]["message"]["content"] == result.content
    assert (event["prompt_tokens"], event["completion_tokens"]) == (
        result.usage.prompt_tokens,
        result.usage.completion_tokens,
    )
    assert event["agent_id"] is None


async def test_streams_are_logged() -> None:
    client = client_of()
    with events(logging.INFO) as records:
        _, result = await streamed(client, asked())
    start, end = of_calls(records)
    assert start["type"] == "LLMStreamStart"
    assert start["messages"] == [{"role": "user", "content": "Hello", "name": "user"}]
    assert end["type"] == "LLMStreamEnd"
    assert end["response"] == result.model_dump()
    assert (end["prompt_tokens"], end["completion_tokens"]) == (
        result.usage.prompt_tokens,
        result.usage.completion_tokens,
    )


@pytest.mark.parametrize("stream", [False, True], ids=["create", "create_stream"])
async def test_events_name_the_agent(stream: bool) -> None:
    team = RoundRobinGroupChat([AssistantAgent("writer", client_of(), model_client_stream=stream)], max_turns=1)
    with events(logging.INFO) as records:
        await team.run(task="Hello")
    found = of_calls(records)
    assert len(found) == (2 if stream else 1)
    assert all(event["agent_id"].startswith("writer_") for event in found)


async def test_nothing_is_built_for_a_logger_that_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise AssertionError("an event was built")

    for name in ("LLMCallEvent", "LLMStreamStartEvent", "LLMStreamEndEvent"):
        monkeypatch.setattr(client_module, name, refuse)
    client = client_of()
    with events(logging.WARNING):
        await client.create(asked())
        await streamed(client, asked())
    with events(logging.INFO):
        with pytest.raises(AssertionError, match="an event was built"):
            await client.create(asked())
        with pytest.raises(AssertionError, match="an event was built"):
            await streamed(client, asked())


# -- components ------------------------------------------------------------------------------------------------------


async def test_a_team_written_as_json_runs() -> None:
    client = client_of(model="gpt-4o", top_k=3)
    team = RoundRobinGroupChat(
        [
            AssistantAgent("writer", client, system_message="You write."),
            AssistantAgent("critic", client, system_message="You criticise."),
        ],
        termination_condition=MaxMessageTermination(4),
    )
    text = team.dump_component().model_dump_json()
    loaded = BaseGroupChat.load_component(json.loads(text))

    def said(result: Any) -> list[Any]:
        return [(m.source, m.content, m.models_usage) for m in result.messages]

    expected = said(await team.run(task="Hello"))
    assert said(await loaded.run(task="Hello")) == expected
    assert [source for source, *_ in expected] == ["user", "writer", "critic", "writer"]
    assert loaded.dump_component().model_dump_json() == text


async def test_keys_of_the_environment_are_sent_and_not_written(
    monkeypatch: pytest.MonkeyPatch, stub: StubServer
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-mine")
    client = client_of(stub, api_key_env="MY_KEY")
    assert "sk-mine" not in client.dump_component().model_dump_json()
    loaded = HaloChatCompletionClient.load_component(json.loads(client.dump_component().model_dump_json()))
    await loaded.create(asked())
    assert stub.headers[0]["authorization"] == "Bearer sk-mine"


async def test_stars_are_never_sent_as_a_key(monkeypatch: pytest.MonkeyPatch, stub: StubServer) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    await client_of(stub, api_key="**********").create(asked())
    assert "authorization" not in stub.headers[0]


async def test_copies_of_a_team_share_the_client() -> None:
    import copy

    client = client_of()
    assert copy.deepcopy({"client": client})["client"] is client


# -- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True], ids=["create", "create_stream"])
async def test_a_closed_client_makes_no_calls_and_others_go_on(stream: bool) -> None:
    client, other = client_of(), client_of()
    await client.create(asked())
    await client.close()
    await client.close()
    with pytest.raises(ClosedError, match=r"model='m'.*closed"):
        await (streamed(client, asked()) if stream else client.create(asked()))
    with pytest.raises(ClosedError):
        client.count_tokens(asked())
    assert (await other.create(asked())).content


@pytest.mark.parametrize("stream", [False, True], ids=["create", "create_stream"])
async def test_an_unknown_model_is_named_with_those_that_are_served(stream: bool) -> None:
    configure(PoolConfig(engines=(SimulatedSpec(model="small"), SimulatedSpec(model="large"))))
    client = client_of(model="gpt-4o")
    with pytest.raises(UnknownModelError, match=r"'gpt-4o'.*large, small"):
        await (streamed(client, asked()) if stream else client.create(asked()))
    with pytest.raises(UnknownModelError, match="'gpt-4o'"):
        client.count_tokens(asked())
    assert (await client_of(model="small").create(asked())).content


async def test_a_name_that_is_mapped_to_nothing_is_named() -> None:
    configure(PoolConfig(models={"m": "gone"}, engines=(SimulatedSpec(model="sim"),)))
    with pytest.raises(UnknownModelError, match=r"'m'.*'gone'.*served: sim"):
        await client_of().create(asked())


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


async def test_an_offline_server_fails_its_own_calls_only(stub: StubServer) -> None:
    url = f"http://127.0.0.1:{closed_port()}/v1"
    offline = client_of(base_url=url)
    failed, answered = await asyncio.gather(
        offline.create(asked()), client_of(stub).create(asked()), return_exceptions=True
    )
    assert isinstance(failed, EngineStartError)
    assert url.removesuffix("/v1") in str(failed) and "Start the server" in str(failed)
    assert isinstance(answered, CreateResult)
    with pytest.raises(EngineError):
        await streamed(offline, asked())
    assert (await client_of(stub).create(asked("again"))).content


@pytest.mark.parametrize("directive", ["fail=400", "fail=500", "fail=404", "truncate"])
@pytest.mark.parametrize("stream", [False, True], ids=["create", "create_stream"])
async def test_a_refused_call_is_an_error_and_the_next_is_answered(
    stream: bool, directive: str, stub: StubServer
) -> None:
    client = client_of(stub)
    messages = asked(f"stub:{directive}")
    with pytest.raises(EngineError) as caught:
        await (streamed(client, messages) if stream else client.create(messages))
    if directive.startswith("fail"):
        assert caught.value.status == int(directive.removeprefix("fail="))
        assert "told to fail" in str(caught.value)
    assert (await client.create(asked())).content


# -- loops and threads -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", [False, True], ids=["simulated", "server"])
def test_one_client_serves_one_loop_after_another(server: bool, stub: StubServer) -> None:
    if not server:
        configure(PoolConfig(models={"*": "sim"}, engines=(SimulatedSpec(model="sim"),)))
    client = client_of(stub if server else None)
    first = asyncio.run(client.create(asked()))
    second = asyncio.run(client.create(asked()))
    assert first == second
    assert asyncio.run(streamed(client, asked()))[1] == first
    agent = AssistantAgent("writer", client)
    for _ in range(2):
        team = RoundRobinGroupChat([agent], max_turns=1)
        assert len(asyncio.run(team.run(task="Hello")).messages) == 2
        asyncio.run(team.reset())


def test_one_client_serves_two_loops_at_once() -> None:
    client = client_of()
    texts = [f"Question {i}" for i in range(40)]
    together = threading.Barrier(2)
    got: list[list[Any]] = [[], []]

    async def ask_all() -> list[Any]:
        return [result.content for result in await asyncio.gather(*(client.create(asked(text)) for text in texts))]

    def work(i: int) -> None:
        together.wait(10)
        got[i] = asyncio.run(ask_all())

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    expected = [
        simulated_model.answer(
            "sim", {"temperature": 0, "messages": [{"role": "user", "content": text, "name": "user"}]}
        )
        .choices[0]
        .text
        for text in texts
    ]
    assert got == [expected, expected]


# -- attribution -----------------------------------------------------------------------------------------------------


class Asker(BaseChatAgent):
    """Asks the model the very same question several times."""

    def __init__(self, name: str, client: HaloChatCompletionClient, times: int) -> None:
        super().__init__(name, "asks")
        self._model_client = client
        self._times = times

    @property
    def produced_message_types(self) -> Sequence[type[BaseChatMessage]]:
        return (TextMessage,)

    async def on_messages(self, messages: Sequence[BaseChatMessage], cancellation_token: CancellationToken) -> Response:
        for _ in range(self._times):
            await self._model_client.create(asked("the same"))
        return Response(chat_message=TextMessage(content="done", source=self.name))

    async def on_reset(self, cancellation_token: CancellationToken) -> None: ...


@contextmanager
def ambient() -> Iterator[dict[str, OperatorStats]]:
    """What is counted, by operator, of runs outside any batch; they all belong to one ambient batch meanwhile."""
    executor = get_executor()
    run = executor.begin(executor.ambient(), "another run that goes on")
    try:
        yield run.batch.stats.operators
    finally:
        executor.end(run)


def roles(client: HaloChatCompletionClient) -> list[Any]:
    return [AssistantAgent(name, client, description=name) for name in ("writer", "critic")]


async def test_calls_are_attributed_to_the_agents_of_a_team() -> None:
    team = RoundRobinGroupChat(roles(client_of()), termination_condition=MaxMessageTermination(4))
    with ambient() as operators:
        await team.run(task="Hello")
        assert {name: stats.executed for name, stats in operators.items()} == {"writer": 2, "critic": 1}


async def test_a_selectors_calls_are_its_managers() -> None:
    client = client_of()
    team = SelectorGroupChat(roles(client), client, termination_condition=MaxMessageTermination(3))
    with ambient() as operators, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        await team.run(task="Hello")
        spoken = {name: stats.planned for name, stats in operators.items()}
    assert spoken.pop("SelectorGroupChatManager") >= 2
    assert set(spoken) <= {"writer", "critic"}
    assert sum(spoken.values()) == 2


@pytest.mark.parametrize("driver", ["native", "autogen"])
async def test_batches_attribute_calls_the_same_way(driver: Any) -> None:
    client = client_of()
    team = SelectorGroupChat(roles(client), client, termination_condition=MaxMessageTermination(3))
    result = await arun_batch(team, ["one", "two"], driver=driver)
    counted = {name: stats.planned for name, stats in result.stats.operators.items()}
    assert counted.pop("SelectorGroupChatManager") >= 4
    assert set(counted) <= {"writer", "critic"}
    assert sum(counted.values()) == 4


async def test_an_agent_by_itself_has_a_name_inside_a_batch_only() -> None:
    agent = AssistantAgent("writer", client_of())
    with ambient() as operators:
        await agent.run(task="Hello")
        assert set(operators) == {"(no agent)"}
    result = await arun_batch(agent, ["one", "two"])
    assert {name: stats.executed for name, stats in result.stats.operators.items()} == {"writer": 2}


async def test_a_team_that_asks_twice_is_answered_twice() -> None:
    """Even while another run keeps the ambient batch, and so its answers, alive."""
    client = client_of()
    with ambient() as operators:
        for _ in range(2):  # the second team asks what the first one has asked
            await RoundRobinGroupChat([Asker("asker", client, 2)], max_turns=1).run(task="Hello")
        stats = operators["asker"]
        assert (stats.executed, stats.shared) == (2, 2)
    assert client.actual_usage() == RequestUsage(
        client.total_usage().prompt_tokens // 2, client.total_usage().completion_tokens // 2
    )


async def test_another_team_that_goes_on_answers_no_repetition() -> None:
    gate = Gate(
        configure(PoolConfig(models={"*": "gated", "fast": "sim"}, engines=(SimulatedSpec(model="sim"),))), "gated"
    )
    slow = RoundRobinGroupChat([AssistantAgent("slow", client_of())], max_turns=1)
    other = asyncio.create_task(slow.run(task="Hello"))
    await gate.arrivals(1)
    batch = get_executor().ambient()
    client = client_of(model="fast")
    await RoundRobinGroupChat([Asker("asker", client, 2)], max_turns=1).run(task="Hello")
    assert get_executor().ambient() is batch, "the other team keeps it alive"
    assert batch.stats.operators["asker"].executed == 2
    assert client.actual_usage() == client.total_usage()
    gate.open()
    await other


async def test_conversations_with_tools_are_shared_although_their_ids_differ() -> None:
    agent = AssistantAgent("writer", client_of(), tools=[LOOK_UP], reflect_on_tool_use=True)
    result = await arun_batch(RoundRobinGroupChat([agent], max_turns=1), ["Use tool: what is it?"] * 3)
    stats = result.stats.operators["writer"]
    assert (stats.executed, stats.shared) == (2, 4)
    ids = [
        call.id
        for run in result
        for message in run.unwrap().messages
        if message.type == "ToolCallRequestEvent"
        for call in message.content  # type: ignore[attr-defined]
    ]
    assert len(set(ids)) == len(ids) == 3


async def test_calls_outside_any_team_share_while_the_ambient_batch_lives() -> None:
    client = client_of()
    with ambient() as operators:
        for _ in range(3):
            await client.create(asked("the same"))
        assert (operators["(no agent)"].executed, operators["(no agent)"].shared) == (1, 2)


async def test_calls_outside_any_team_are_answered_anew_when_nothing_else_runs() -> None:
    client = client_of()
    for _ in range(2):
        await client.create(asked("the same"))
    assert client.actual_usage() == client.total_usage()


async def test_repetitions_are_counted_within_one_run_of_a_batch() -> None:
    client = client_of()
    team = RoundRobinGroupChat([Asker("asker", client, 3)], max_turns=1)
    result = await arun_batch(team, ["one", "two"])
    stats = result.stats.operators["asker"]
    assert (stats.executed, stats.shared) == (3, 3)


async def test_equal_pictures_are_equal_prompts() -> None:
    def message() -> list[LLMMessage]:
        return [UserMessage(content=["what?", Image(PIXEL.image.copy())], source="user")]

    assert client_module._content(message()) == client_module._content(message())


async def test_memories_come_as_late_system_messages() -> None:
    memory = ListMemory()
    await memory.add(MemoryContent(content="The user likes tea.", mime_type="text/plain"))
    with StubServer().threaded() as server:
        configure(PoolConfig())
        agent = AssistantAgent("writer", client_of(server), memory=[memory], system_message="Be brief.")
        await agent.run(task="Hello")
        sent = [(message["role"], message["content"]) for message in server.bodies[0]["messages"]]
        assert [role for role, _ in sent] == ["system", "user", "user"]
        assert "likes tea" in sent[-1][1] or "likes tea" in sent[1][1]
        agent = AssistantAgent("writer", client_of(server, late_system="error"), memory=[memory])
        with pytest.raises(ValueError, match="Not continuous"):
            await agent.run(task="Hello")
