"""The real vLLM engine: answers, prefix cache and its events, cancelling, tools, limits, other clients beside us."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

from halo_core.errors import EngineError, EngineStartError, PromptTooLongError
from halo_core.pool.call import Completion, LLMCall
from halo_core.pool.engine import CacheEvent
from halo_core.pool.vllm import VLLMEngine
from halo_core.pool.vllm_command import VLLMSettings, find_model

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
T = TypeVar("T")


@pytest.fixture
def engine(real_engines: list[Any]) -> VLLMEngine:
    """One of the running engines, with an empty prefix cache."""
    engine: VLLMEngine = real_engines[0]
    on_loop(engine, engine.reset_cache())
    return engine


def on_loop(engine: VLLMEngine, work: Coroutine[Any, Any, T]) -> T:
    """Run `work` on the loop that the engine lives on."""
    assert engine._process is not None
    return asyncio.run_coroutine_threadsafe(work, engine._process._loop).result(600)


def call(text: str, **body: Any) -> LLMCall:
    """A greedy call."""
    stream = body.pop("stream", False)
    messages = [{"role": "user", "content": text}]
    return LLMCall("smollm2", {"messages": messages, "temperature": 0, "max_tokens": 12, **body}, stream=stream)


LONG = "The quick brown fox jumps over the lazy dog near the old stone bridge. " * 12


def test_it_answers_and_says_what_it_can_hold(engine: VLLMEngine) -> None:
    answer = on_loop(engine, engine.complete(call("What is the capital of France?")))
    assert "Paris" in answer.parse()["choices"][0]["message"]["content"]
    assert answer.usage.prompt_tokens > 30
    capacity = engine.capacity
    assert capacity.slots == 32
    assert capacity.block_size == 32
    assert capacity.kv_tokens >= capacity.max_model_len == 8192
    assert on_loop(engine, engine.check()).state == "ready"


def test_a_repeated_prefix_is_cached_in_whole_blocks_until_reset(engine: VLLMEngine) -> None:
    async def twice() -> list[Completion]:
        first = await engine.complete(call(LONG + "Who jumps?"))
        return [first, await engine.complete(call(LONG + "Over whom?"))]

    first, second = on_loop(engine, twice())
    assert first.usage.cached_tokens == 0
    assert second.usage.cached_tokens % engine.capacity.block_size == 0
    assert second.usage.cached_tokens > second.usage.prompt_tokens - 2 * engine.capacity.block_size - 10
    on_loop(engine, engine.reset_cache())
    assert on_loop(engine, engine.complete(call(LONG + "Who jumps?"))).usage.cached_tokens == 0


def test_cache_events_tell_what_is_stored_and_cleared(engine: VLLMEngine) -> None:
    async def watch() -> list[CacheEvent]:
        seen: list[CacheEvent] = []
        events = engine.cache_events()
        seen.append(await anext(events))  # the subscription stands
        answer = await engine.complete(call(LONG))
        blocks = answer.usage.prompt_tokens // engine.capacity.block_size
        while sum(len(event.block_hashes) for event in seen) < blocks:
            seen.append(await anext(events))
        await engine.reset_cache()
        await engine.complete(call("Hi"))  # vLLM tells of the reset with its next step
        while seen[-1].kind != "cleared":
            seen.append(await anext(events))
        await events.aclose()
        return seen

    seen = on_loop(engine, asyncio.wait_for(watch(), 120))
    assert seen[0].kind == "cleared"
    stored = [event for event in seen if event.kind == "stored"]
    size = engine.capacity.block_size
    assert all(len(event.token_ids) == size * len(event.block_hashes) for event in stored)
    assert stored[0].parent_hash is None
    assert seen[-1].kind == "cleared"


def test_equal_prefixes_have_equal_hashes_on_all_engines(real_engines: list[Any]) -> None:
    if len(real_engines) < 2:
        pytest.skip("one engine only")

    async def first_hashes(engine: VLLMEngine) -> tuple[int | bytes, ...]:
        await engine.reset_cache()
        events = engine.cache_events()
        await anext(events)
        await engine.complete(call(LONG))
        async for event in events:
            if event.kind == "stored":
                await events.aclose()
                return event.block_hashes
        raise AssertionError("no event")

    one, two = (on_loop(engine, first_hashes(engine)) for engine in real_engines[:2])
    assert one
    assert one == two


def test_streaming_ends_with_usage(engine: VLLMEngine) -> None:
    async def chunks() -> list[dict[str, Any]]:
        return [json.loads(chunk) async for chunk in engine.stream(call("Count to five.", stream=True))]

    received = on_loop(engine, chunks())
    text = "".join(choice["delta"].get("content") or "" for chunk in received for choice in chunk["choices"])
    assert text
    assert received[-1]["usage"]["completion_tokens"] > 0


def test_cancelling_frees_the_engine(engine: VLLMEngine) -> None:
    """The prefix cache can only be reset once no call holds blocks: so the engine has dropped the cancelled ones."""

    async def cancel() -> None:
        endless = call("Tell me a very long story.", max_tokens=4000, ignore_eos=True, stream=True)
        stream = engine.stream(endless)
        await anext(stream)
        task = asyncio.ensure_future(engine.complete(call("And another.", max_tokens=4000, ignore_eos=True)))
        await anext(stream)
        task.cancel()
        await stream.aclose()
        with pytest.raises(asyncio.CancelledError):
            await task
        await engine.reset_cache()

    on_loop(engine, cancel())


def test_a_prompt_longer_than_the_context_is_that_calls_fault(engine: VLLMEngine) -> None:
    with pytest.raises(PromptTooLongError, match="8192"):
        on_loop(engine, engine.complete(call("word " * 9000)))
    assert engine.health.state == "ready"


def test_a_bad_parameter_is_that_calls_fault(engine: VLLMEngine) -> None:
    with pytest.raises(EngineError) as failure:
        on_loop(engine, engine.complete(call("hi", temperature=-3)))
    assert failure.value.status == 400
    assert engine.health.state == "ready"


def test_priorities_and_several_samples_are_accepted(engine: VLLMEngine) -> None:
    sampled = LLMCall(
        "smollm2",
        {"messages": [{"role": "user", "content": "A word."}], "temperature": 0.9, "seed": 1, "n": 3, "max_tokens": 4},
        priority=-7,
    )
    assert len(on_loop(engine, engine.complete(sampled)).parse()["choices"]) == 3


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def test_tools_reach_the_prompt_and_forced_calls_come_back(engine: VLLMEngine) -> None:
    plain = on_loop(engine, engine.complete(call("What is the weather in Oslo?")))
    auto = on_loop(engine, engine.complete(call("What is the weather in Oslo?", tools=[WEATHER], max_tokens=40)))
    assert auto.usage.prompt_tokens > plain.usage.prompt_tokens + 40, "the chat template shows the tools to the model"
    choice = {"type": "function", "function": {"name": "get_weather"}}
    forced = on_loop(
        engine,
        engine.complete(call("What is the weather in Oslo?", tools=[WEATHER], tool_choice=choice, max_tokens=160)),
    )
    (tool_call,) = forced.parse()["choices"][0]["message"]["tool_calls"]
    assert tool_call["function"]["name"] == "get_weather"


def test_a_conversation_with_a_tools_answer_is_accepted(engine: VLLMEngine) -> None:
    asked = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
    messages = [
        {"role": "user", "content": "What is the weather in Oslo?"},
        {"role": "assistant", "content": None, "tool_calls": [asked]},
        {"role": "tool", "tool_call_id": "c1", "content": "Sunny, 21 degrees"},
    ]
    told = LLMCall("smollm2", {"messages": messages, "tools": [WEATHER], "temperature": 0, "max_tokens": 8})
    assert on_loop(engine, engine.complete(told)).usage.generated_tokens > 0


def test_other_clients_use_the_same_engine(engine: VLLMEngine) -> None:
    body = json.dumps({"model": "smollm2", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}).encode()
    request = urllib.request.Request(
        engine.base_url + "/chat/completions", body, {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        assert json.load(response)["usage"]["completion_tokens"] <= 2


def test_a_second_start_changes_nothing(engine: VLLMEngine) -> None:
    pid = engine.pid
    on_loop(engine, engine.start())
    assert engine.pid == pid


@pytest.mark.parametrize(
    ("settings", "cause", "cure"),
    [
        (VLLMSettings(find_model("SmolLM2-135M-Instruct"), dtype="float99"), "float99", "Give a dtype"),
        (
            VLLMSettings(find_model("SmolLM2-135M-Instruct"), kv_cache_gib=9999),
            "Available memory",
            "lower kv_cache_gib",
        ),
        (VLLMSettings(find_model("SmolLM2-135M-Instruct"), kv_cache_gib=0.1), "KV cache", "Lower max_model_len"),
    ],
)
async def test_a_start_that_vllm_refuses_is_explained(settings: VLLMSettings, cause: str, cure: str) -> None:
    engine = VLLMEngine("refused", "smollm2", settings)
    with pytest.raises(EngineStartError) as failure:
        await engine.start()
    first = str(failure.value).splitlines()[0]
    assert cause in first
    assert cure in first
    assert engine.pid is None or engine.health.state == "dead"
    await engine.close()
    assert engine.pid is None
