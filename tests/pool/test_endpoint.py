"""The endpoint engine against the stub server: answers, usage, streams, retries, errors, health, cancelling."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from halo_core.errors import EngineDiedError, EngineError, EngineStartError, PromptTooLongError
from halo_core.pool.call import LLMCall, Usage
from halo_core.pool.endpoint import EndpointEngine
from tests.stub_server import StubServer


def chat(text: str, *, stream: bool = False, **fields: Any) -> LLMCall:
    body = {"messages": [{"role": "user", "content": text}], "temperature": 0, **fields}
    return LLMCall("name-in-the-pool", body, stream=stream)


def engine_of(stub: StubServer, **options: Any) -> EndpointEngine:
    return EndpointEngine("e0", options.pop("model", "m"), stub.url, backoff_s=0.001, **options)


def state_of(engine: EndpointEngine) -> str:
    return engine.health.state


async def test_a_call_is_answered_and_counted() -> None:
    async with StubServer() as stub:
        engine = engine_of(stub)
        await engine.start()
        first = await engine.complete(chat("a prompt of some thirty characters, and then some more to fill blocks"))
        again = await engine.complete(chat("a prompt of some thirty characters, and then some more to fill blocks"))
        assert first.engine == "e0"
        assert first.parse()["choices"][0]["message"]["content"]
        assert first.usage.cached_tokens == 0
        assert again.usage == Usage(first.usage.prompt_tokens, 16, first.usage.generated_tokens)
        assert engine.counters.calls == 2
        assert engine.counters.cached_tokens == 16
        assert engine.counters.prompt_tokens == 2 * first.usage.prompt_tokens
        assert stub.bodies[0]["model"] == "m"  # the server's name for it, not the pool's
        await engine.close()


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
async def test_the_url_may_end_with_v1_or_not(suffix: str) -> None:
    async with StubServer() as stub:
        engine = EndpointEngine("e0", "m", stub.url + suffix)
        await engine.start()
        assert (await engine.check()).state == "ready"
        await engine.complete(chat("x"))
        await engine.reset_cache()
        assert stub.requests == {
            "/v1/models": 1, "/health": 1, "/v1/chat/completions": 1, "/reset_prefix_cache": 1
        }  # fmt: skip
        await engine.close()


async def test_another_api_root_and_its_query_are_kept() -> None:
    async with StubServer() as stub:
        engine = EndpointEngine("e0", "m", stub.url + "/gateway/openai?version=2")
        with pytest.raises(EngineError, match="404"):
            await engine.complete(chat("x"))
        assert list(stub.requests) == ["/gateway/openai/chat/completions"]
        await engine.close()


async def test_headers_and_key_are_sent_and_the_key_is_never_shown() -> None:
    async with StubServer() as stub:
        engine = engine_of(stub, api_key="sk-secret", headers={"X-Team": "a"})
        await engine.complete(chat("x"))
        assert stub.headers[0]["authorization"] == "Bearer sk-secret"
        assert stub.headers[0]["x-team"] == "a"
        with pytest.raises(EngineError) as caught:
            await engine.complete(chat("stub:fail=401"))
        assert "api_key" in str(caught.value)
        assert "sk-secret" not in str(caught.value) + repr(engine)
        await engine.close()


async def test_capacity_comes_from_the_model_list() -> None:
    async with StubServer(models=("m",), max_model_len=2048) as stub:
        engine = engine_of(stub, slots=7)
        await engine.start()
        await engine.start()
        assert (engine.capacity.slots, engine.capacity.max_model_len) == (7, 2048)
        assert stub.requests["/v1/models"] == 1
        await engine.close()


async def test_the_body_is_sent_unchanged_even_with_characters_that_utf8_lacks() -> None:
    async with StubServer() as stub:
        engine = engine_of(stub)
        for text in ("naïve 🙂 \u2028", "half a pair: \ud83d"):
            await engine.complete(chat(text))
            assert stub.bodies[-1] == {**chat(text).wire(), "model": "m"}
        with pytest.raises(EngineError, match="cannot be written as JSON"):
            await engine.complete(chat("x", extra=object()))
        await engine.close()


async def test_a_stream_adds_up_to_the_whole_answer_and_ends_with_usage() -> None:
    async with StubServer() as stub:
        engine = engine_of(stub)
        whole = await engine.complete(chat("a question"))
        chunks = [json.loads(chunk) async for chunk in engine.stream(chat("a question", stream=True))]
        text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
        assert text == whole.parse()["choices"][0]["message"]["content"]
        assert len(chunks) > 4
        assert Usage.from_wire(chunks[-1]["usage"]).generated_tokens == whole.usage.generated_tokens
        assert engine.counters.calls == 2
        assert engine.counters.generated_tokens == 2 * whole.usage.generated_tokens
        assert stub.connections == 1
        await engine.close()


async def test_a_refused_call_names_engine_model_status_and_cure_and_keeps_the_document() -> None:
    async with StubServer(models=("served-a", "served-b")) as stub:
        engine = engine_of(stub, model="typo")
        await engine.start()
        with pytest.raises(EngineError) as caught:
            await engine.complete(chat("x"))
        for part in ("'e0'", "'typo'", "404", "The model `typo` does not exist", "served-a, served-b"):
            assert part in str(caught.value)
        assert caught.value.status == 404
        assert json.loads(caught.value.body)["error"]["type"] == "NotFoundError"
        await engine.close()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 500, 502])
async def test_statuses_that_no_repetition_cures_are_not_repeated(status: int, stream: bool) -> None:
    async with StubServer() as stub:
        engine = engine_of(stub)
        with pytest.raises(EngineError, match=str(status)) as caught:
            await ask(engine, chat(f"stub:fail={status}", stream=stream))
        assert type(caught.value) is EngineError
        assert caught.value.status == status
        assert stub.chats == 1
        await engine.complete(chat("x"))  # this one call was at fault, not the engine
        await engine.close()


async def ask(engine: EndpointEngine, call: LLMCall) -> None:
    if call.stream:
        async for _ in engine.stream(call):
            pass
    else:
        await engine.complete(call)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_that_does_not_fit_is_told_apart(stream: bool) -> None:
    async with StubServer(max_model_len=512) as stub:
        engine = engine_of(stub)
        with pytest.raises(PromptTooLongError, match="maximum context length is 512") as caught:
            await ask(engine, chat("stub:fail=400,message=context", stream=stream))
        assert caught.value.status == 400
        await engine.close()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [429, 503])
async def test_a_busy_server_is_asked_again(status: int, stream: bool) -> None:
    async with StubServer() as stub:
        engine = engine_of(stub)
        await ask(engine, chat(f"stub:fail={status},times=2", stream=stream))
        assert stub.chats == 3
        assert engine.counters.extra == {"throttled": 2, "retries": 2}
        await engine.close()


async def test_a_server_that_stays_busy_is_an_error_after_the_retries() -> None:
    async with StubServer() as stub:
        engine = engine_of(stub, max_retries=1)
        with pytest.raises(EngineError, match=r"429.*slots") as caught:
            await engine.complete(chat("stub:fail=429"))
        assert caught.value.status == 429
        assert stub.chats == 2
        await engine.close()


async def test_a_pause_longer_than_the_timeout_is_an_error_at_once() -> None:
    async with StubServer() as stub:
        engine = engine_of(stub, request_timeout_s=5)
        with pytest.raises(EngineError, match="429"):
            await engine.complete(chat("stub:fail=429,retry-after=3600"))
        assert stub.chats == 1
        await engine.close()


async def test_a_limited_server_answers_everything_without_a_storm() -> None:
    async with StubServer(limit=4, delay_s=0.001) as stub:
        engine = engine_of(stub)
        calls = [chat(f"question {i}") for i in range(200)]
        answers = await asyncio.gather(*(engine.complete(call) for call in calls), return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, BaseException)]
        assert not refused
        # All were in flight when the first refusal came; after it the window finds the limit.
        assert stub.statuses[429] < 300
        await engine.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_lost_connection_is_tried_again_then_the_engine_is_dead(stream: bool) -> None:
    async with StubServer() as stub:
        engine = engine_of(stub)
        await engine.start()
        await ask(engine, chat("stub:drop,times=2", stream=stream))
        assert state_of(engine) == "ready"
        with pytest.raises(EngineDiedError, match=r"'e0'.*closed the connection"):
            await ask(engine, chat("stub:drop", stream=stream))
        assert state_of(engine) == "dead"
        await engine.start()  # the server is there after all
        assert state_of(engine) == "ready"
        await engine.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_cut_short_kills_and_is_not_repeated_here(stream: bool) -> None:
    async with StubServer() as stub:
        engine = engine_of(stub)
        with pytest.raises(EngineDiedError, match="in the middle"):
            await ask(engine, chat("stub:truncate", stream=stream))
        assert stub.chats == 1
        await engine.close()


async def test_a_server_that_is_gone_is_a_dead_engine_until_it_is_back() -> None:
    stub = await StubServer().start()
    engine = engine_of(stub, max_retries=1)
    await engine.start()
    await stub.stop()
    with pytest.raises(EngineDiedError, match="cannot connect"):
        await engine.complete(chat("x"))
    assert (await engine.check()).state == "dead"
    with pytest.raises(EngineStartError, match=r"cannot connect.*Start the server"):
        await engine.start()
    await stub.start(port=int(stub.url.rpartition(":")[2]))
    assert (await engine.check()).state == "ready"
    await engine.complete(chat("x"))
    await engine.close()
    await stub.stop()


async def test_an_error_inside_a_stream_is_raised() -> None:
    async with StubServer() as stub:
        engine = engine_of(stub)
        chunks = []
        with pytest.raises(EngineError, match="500: told to fail"):
            async for chunk in engine.stream(chat("stub:stream-error", stream=True)):
                chunks.append(chunk)
        assert chunks
        await engine.close()


async def test_a_silent_server_is_an_error_and_its_call_is_aborted() -> None:
    async with StubServer() as stub:
        engine = engine_of(stub, request_timeout_s=0.05)
        with pytest.raises(EngineError, match="request_timeout_s"):
            await engine.complete(chat("stub:hang"))
        stub.changed.clear()
        if not stub.aborted:
            await asyncio.wait_for(stub.changed.wait(), 10)
        assert stub.aborted == 1
        await engine.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_cancelling_a_call_aborts_it_in_the_server(stream: bool) -> None:
    async with StubServer() as stub:
        engine = engine_of(stub)
        task = asyncio.ensure_future(ask(engine, chat("stub:hang", stream=stream)))
        await asyncio.wait_for(stub.changed.wait(), 10)
        stub.changed.clear()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        await asyncio.wait_for(stub.changed.wait(), 10)
        assert (stub.aborted, stub.in_flight) == (1, 0)
        await engine.close()


async def test_health_falls_back_to_the_model_list() -> None:
    async with StubServer(health=False) as stub:
        engine = engine_of(stub)
        assert (await engine.check()).state == "ready"
        assert stub.requests == {"/health": 1, "/v1/models": 1}
        await engine.close()


async def test_resetting_the_cache_works_or_says_why_not() -> None:
    async with StubServer() as stub:
        engine = engine_of(stub)
        for cached in (0, 48, 0):
            assert (await engine.complete(chat("x" * 200))).usage.cached_tokens == cached
            if cached:
                await engine.reset_cache()
        await engine.close()
    async with StubServer(dev_mode=False) as stub:
        engine = engine_of(stub)
        with pytest.raises(EngineError, match="VLLM_SERVER_DEV_MODE"):
            await engine.reset_cache()
        await engine.close()


async def test_there_are_no_cache_events() -> None:
    engine = EndpointEngine("e0", "m", "http://localhost:1")
    assert [event async for event in engine.cache_events()] == []


async def test_closing_ends_calls_under_way_and_is_idempotent() -> None:
    async with StubServer() as stub:
        engine = engine_of(stub)
        task = asyncio.ensure_future(engine.complete(chat("stub:hang")))
        await asyncio.wait_for(stub.changed.wait(), 10)
        await engine.close()
        await engine.close()
        with pytest.raises(EngineDiedError, match="was closed"):
            await task
        assert state_of(engine) == (await engine.check()).state == "closed"
        with pytest.raises(EngineStartError, match="closed"):
            await engine.start()


async def test_a_page_that_is_no_api_is_named_as_such() -> None:
    async def page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n<html>welcome</html>")
        writer.close()

    server = await asyncio.start_server(page, "127.0.0.1", 0)
    engine = EndpointEngine("e0", "m", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    with pytest.raises(EngineError, match=r"not a chat completion.*welcome.*OpenAI-compatible"):
        await engine.complete(chat("x"))
    await engine.close()
    server.close()
