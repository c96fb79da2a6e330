"""The simulated engine: answers, the cost of time, exact prefix hits, preemption, streams, death and cancelling."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halo_core.errors import ConfigError, EngineDiedError, EngineError, EngineStartError, PromptTooLongError
from halo_core.pool.call import Completion, LLMCall
from halo_core.pool.clock import VirtualClock
from halo_core.pool.engine import CacheEvent, Engine
from halo_core.pool.simulated import SimulatedEngine

HEADER = len("<|user|>") + len("\n<|assistant|>")


def prompt(tokens: int, tail: str = "", *, head: str = "") -> str:
    """A text that makes a prompt of exactly so many tokens, with that start and end."""
    return (head + "word " * tokens)[: tokens * 4 - HEADER - len(tail)] + tail


def chat(text: str, *, stream: bool = False, priority: int = 0, **fields: Any) -> LLMCall:
    body = {"messages": [{"role": "user", "content": text}], "temperature": 0, **fields}
    return LLMCall("m", body, stream=stream, priority=priority)


def virtual(clock: VirtualClock | None = None, **options: Any) -> SimulatedEngine:
    """An engine whose prefill takes 1 ms a token and whose decode step takes 1 s."""
    slow: dict[str, Any] = {"prefill_tokens_per_s": 1000.0, "decode_step_s": lambda batch: 1.0, "answer_tokens": 4}
    return SimulatedEngine("s0", "m", clock=clock or VirtualClock(), **slow | options)


def content(completion: Completion) -> str:
    text = completion.parse()["choices"][0]["message"]["content"]
    assert isinstance(text, str)
    return text


async def test_it_is_an_engine() -> None:
    engine: Engine = SimulatedEngine("s0", "m", clock="zero", slots=3)
    await engine.start()
    await engine.start()
    assert (await engine.check()).state == engine.health.state == "ready"
    assert engine.capacity.slots == 3
    await engine.close()
    await engine.close()


@pytest.mark.parametrize("clock", ["zero", "real", "virtual"])
async def test_the_answer_does_not_depend_on_the_clock(clock: Any) -> None:
    fast: dict[str, Any] = {"prefill_tokens_per_s": 1e9, "decode_step_s": lambda batch: 1e-6}
    engine = SimulatedEngine("s0", "m", clock=VirtualClock() if clock == "virtual" else clock, **fast)
    call = chat("what is it?")
    completion = await engine.complete(call)
    assert content(completion) == content(await SimulatedEngine("s1", "m", clock="zero").complete(call))
    assert completion.engine == "s0"
    assert completion.usage.prompt_tokens == -(-(len("what is it?") + HEADER) // 4)
    assert engine.counters.calls == 1
    assert engine.counters.generated_tokens == completion.usage.generated_tokens > 0


@pytest.mark.parametrize("clock", ["zero", "virtual"])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"max_tokens": 5},
        {"n": 3},
        {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required"},
        {"response_format": {"type": "json_object"}},
    ],
)
async def test_a_stream_adds_up_to_the_whole_answer(clock: Any, fields: dict[str, Any]) -> None:
    engine = SimulatedEngine("s0", "m", clock=VirtualClock() if clock == "virtual" else clock)
    whole = (await engine.complete(chat("question", **fields))).parse()
    chunks = [json.loads(chunk) async for chunk in engine.stream(chat("question", stream=True, **fields))]
    texts: dict[int, str] = {}
    finishes: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            delta = choice["delta"]
            text = delta.get("content") or "".join(c["function"]["arguments"] for c in delta.get("tool_calls", ()))
            texts[choice["index"]] = texts.get(choice["index"], "") + text
            if choice["finish_reason"]:
                finishes[choice["index"]] = choice["finish_reason"]
    for choice in whole["choices"]:
        message = choice["message"]
        expected = message["content"] or message["tool_calls"][0]["function"]["arguments"]
        assert texts[choice["index"]] == expected
        assert finishes[choice["index"]] == choice["finish_reason"]
    assert chunks[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert len(chunks) >= 3
    assert engine.counters.calls == 2


async def test_a_lone_call_costs_its_prefill_and_a_step_for_each_further_token() -> None:
    clock = VirtualClock()
    await virtual(clock).complete(chat(prompt(500), max_tokens=4))
    assert clock.now() == pytest.approx(0.5 + 3)


async def test_calls_that_come_together_are_decoded_together() -> None:
    clock = VirtualClock()
    engine = virtual(clock, slots=8)
    await asyncio.gather(*(engine.complete(chat(prompt(100, head=str(i)))) for i in range(8)))
    assert clock.now() == pytest.approx(8 * 0.1 + 3)
    assert engine.counters.extra["steps"] == 4


async def test_more_calls_than_slots_wait_by_priority_then_arrival() -> None:
    engine, order = virtual(slots=1), []

    async def call(name: str, priority: int) -> None:
        await engine.complete(chat(name, priority=priority))
        order.append(name)

    await asyncio.gather(call("a", 1), call("b", 1), call("c", 0), call("d", 2))
    assert order == ["c", "a", "b", "d"]


async def test_a_call_that_comes_in_the_middle_joins_at_the_next_step() -> None:
    clock = VirtualClock()
    engine = virtual(clock, answer_tokens=100)
    long = asyncio.ensure_future(engine.complete(chat(prompt(1000))))
    await clock.sleep(1 + 10.5)
    await engine.complete(chat(prompt(100, head="other"), max_tokens=1))
    # It waits for the end of the 11th decode step, then is prefilled beside the 12th.
    assert clock.now() == pytest.approx(1 + 11 + 1 + 0.1)
    await long
    assert clock.now() == pytest.approx(1 + 99 + 0.1)


async def test_long_prompts_are_prefilled_in_chunks() -> None:
    clock = VirtualClock()
    engine = virtual(clock, max_batched_tokens=100, slots=4)
    await asyncio.gather(engine.complete(chat(prompt(250), max_tokens=1)))
    assert engine.counters.extra["steps"] == 3
    assert clock.now() == pytest.approx(0.25)


async def test_whole_blocks_of_a_known_prefix_are_hits() -> None:
    clock = VirtualClock()
    engine = virtual(clock)
    first = await engine.complete(chat(prompt(160, "A" * 100)))
    started = clock.now()
    again = await engine.complete(chat(prompt(160, "A" * 100)))
    other = await engine.complete(chat(prompt(160, "B" * 100)))
    assert first.usage.cached_tokens == 0
    assert again.usage.cached_tokens == 144  # the last block is computed, because the last token must be
    shared = (160 * 4 - 100 - len("\n<|assistant|>")) // 64 * 16
    assert other.usage.cached_tokens == shared
    assert clock.now() - started == pytest.approx(0.016 + 3 + (160 - shared) * 0.001 + 3)


async def test_calls_scheduled_in_the_step_of_the_first_holder_hit() -> None:
    engine = virtual()
    text = prompt(160)
    together = await asyncio.gather(engine.complete(chat(text)), engine.complete(chat(text)))
    later = await engine.complete(chat(text))
    assert [answer.usage.cached_tokens for answer in together] == [0, 144]
    assert later.usage.cached_tokens == 144


async def test_the_next_turn_of_a_conversation_hits_the_answer_too() -> None:
    engine = virtual(answer_tokens=64)
    question = {"role": "user", "content": prompt(160)}
    answer = content(await engine.complete(LLMCall("m", {"messages": [question]})))
    history = [question, {"role": "assistant", "content": answer}, {"role": "user", "content": "and?"}]
    second = await engine.complete(LLMCall("m", {"messages": history}))
    assert second.usage.cached_tokens == (160 + 63) // 16 * 16


async def test_a_small_cache_forgets_the_least_recently_used() -> None:
    engine = virtual(kv_tokens=512)
    for tail, cached in (("A", 0), ("B", 0), ("A", 144), ("C", 0), ("D", 0), ("A", 144), ("B", 0)):
        text = tail * (160 * 4 - HEADER)
        assert (await engine.complete(chat(text, max_tokens=1))).usage.cached_tokens == cached, tail


async def test_without_a_cache_nothing_hits() -> None:
    engine = virtual(kv_tokens=0)
    for _ in range(2):
        assert (await engine.complete(chat(prompt(160)))).usage.cached_tokens == 0


async def test_zero_latency_counts_hits_when_it_is_given_a_cache() -> None:
    engine = SimulatedEngine("s0", "m", clock="zero", kv_tokens=1600)
    hits = [(await engine.complete(chat(prompt(160)))).usage.cached_tokens for _ in range(2)]
    assert hits == [0, 144]
    await engine.reset_cache()
    assert (await engine.complete(chat(prompt(160)))).usage.cached_tokens == 0


async def test_when_blocks_run_out_the_latest_is_preempted_and_all_finish() -> None:
    engine = virtual(kv_tokens=480, answer_tokens=64, slots=8)
    answers = await asyncio.gather(*(engine.complete(chat(prompt(100, head=f"{i}"))) for i in range(4)))
    assert engine.counters.extra["preemptions"] > 0
    assert {answer.usage.generated_tokens for answer in answers} == {64}
    assert engine._cache.available == 480 // 16
    assert engine.counters.calls == 4


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(8, 200), st.integers(1, 60), st.integers(0, 30)), min_size=1, max_size=12),
    kv_tokens=st.sampled_from([320, 480, 4096]),
    slots=st.integers(1, 5),
    budget=st.integers(8, 300),
    cancelled=st.sets(st.integers(0, 11)),
)
def test_every_call_ends_and_no_block_leaks(
    lengths: list[tuple[int, int, int]], kv_tokens: int, slots: int, budget: int, cancelled: set[int]
) -> None:
    async def run() -> tuple[float, list[Any]]:
        clock = VirtualClock()
        engine = virtual(clock, kv_tokens=kv_tokens, slots=slots, max_batched_tokens=budget, answer_tokens=1000)

        async def one(index: int, tokens: int, limit: int, pause: int) -> Any:
            await clock.sleep(pause)
            call = chat(prompt(tokens, f"{index % 3}"), max_tokens=limit, stream=bool(index % 2))
            if index % 2:
                return [chunk async for chunk in engine.stream(call)]
            return (await engine.complete(call)).raw

        tasks = [asyncio.ensure_future(one(i, *item)) for i, item in enumerate(lengths)]
        await clock.sleep(20)
        for index in cancelled:
            if index < len(tasks):
                tasks[index].cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(not isinstance(o, Exception) for o in outcomes)
        assert all(isinstance(o, asyncio.CancelledError) <= (i in cancelled) for i, o in enumerate(outcomes))
        await clock.sleep(1000)  # a cancelled call leaves at once, its step still ends
        assert engine._cache.available == engine._cache.blocks
        await engine.reset_cache()
        assert engine._cache.known == 0
        return clock.now(), [str(outcome) for outcome in outcomes]

    assert asyncio.run(run()) == asyncio.run(run())


async def test_thousands_of_calls_over_an_hour_are_quick_and_the_same_every_time() -> None:
    async def run() -> tuple[float, dict[str, float]]:
        clock = VirtualClock()
        engines = [virtual(clock, slots=16, answer_tokens=30) for _ in range(4)]

        async def row(index: int) -> None:
            for step in range(4):
                await engines[(index + step) % 4].complete(chat(prompt(200, f"{index} {step}")))

        await asyncio.gather(*(row(index) for index in range(500)))
        return clock.now(), engines[0].counters.extra

    first, second = await run(), await run()
    assert first == second
    assert first[0] > 900


async def test_cache_events_tell_what_is_stored() -> None:
    engine = virtual(kv_tokens=320)
    events: list[CacheEvent] = []

    async def listen(feed: Any) -> None:
        async for event in feed:
            events.append(event)

    feed = engine.cache_events()
    await engine.complete(chat("A" * (160 * 4 - HEADER), max_tokens=1))
    listener = asyncio.ensure_future(listen(feed))
    await engine.complete(chat("B" * (200 * 4 - HEADER), max_tokens=1))
    await engine.reset_cache()
    await engine.close()
    await listener
    assert [event.kind for event in events] == ["stored", "removed", "stored", "cleared"]
    stored = events[0]
    assert len(stored.block_hashes) == 10
    assert len(stored.token_ids) == 160
    assert stored.parent_hash is None
    assert set(events[1].block_hashes) <= set(stored.block_hashes)
    assert [event async for event in engine.cache_events()] == []


async def test_a_prompt_that_does_not_fit_is_an_error_and_an_answer_that_does_not_is_cut() -> None:
    engine = virtual(max_model_len=128, answer_tokens=100)
    with pytest.raises(PromptTooLongError, match=r"'s0'.*128") as caught:
        await engine.complete(chat(prompt(128)))
    assert caught.value.status == 400
    assert "maximum context length" in json.loads(caught.value.body)["error"]["message"]
    completion = await engine.complete(chat(prompt(100)))
    assert completion.usage.generated_tokens == 28
    assert completion.parse()["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("stream", [False, True])
async def test_death_ends_the_calls_under_way_and_start_revives_with_a_cold_cache(stream: bool) -> None:
    clock = VirtualClock()
    engine = virtual(clock)
    await engine.complete(chat(prompt(160)))

    async def ask() -> None:
        if stream:
            async for _ in engine.stream(chat(prompt(160), stream=True)):
                pass
        else:
            await engine.complete(chat(prompt(160)))

    tasks = [asyncio.ensure_future(ask()) for _ in range(3)]
    await clock.sleep(1.5)
    engine.die("power cut")
    engine.die()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(outcome, EngineDiedError) and "power cut" in str(outcome) for outcome in outcomes)
    with pytest.raises(EngineDiedError, match="dead: power cut"):
        await engine.complete(chat("x"))
    assert (await engine.check()).state == "dead"
    await engine.start()
    assert (await engine.complete(chat(prompt(160)))).usage.cached_tokens == 0


async def test_it_can_be_told_to_die_after_some_calls() -> None:
    engine = SimulatedEngine("s0", "m", clock="zero", fail_after=2)
    await engine.complete(chat("1"))
    await engine.complete(chat("2"))
    with pytest.raises(EngineDiedError, match="after 2 calls"):
        await engine.complete(chat("3"))
    await engine.start()
    await engine.complete(chat("3"))
    assert engine.counters.calls == 3


async def test_single_calls_can_be_told_to_fail() -> None:
    def fault(call: LLMCall) -> Exception | None:
        return EngineError("told to", status=500) if "bad" in call.body["messages"][0]["content"] else None

    engine = SimulatedEngine("s0", "m", clock="zero", fault=fault)
    with pytest.raises(EngineError, match="told to"):
        await engine.complete(chat("bad"))
    await engine.complete(chat("good"))


async def test_a_cancelled_call_makes_room_at_once() -> None:
    clock = VirtualClock()
    engine = virtual(clock, slots=1, answer_tokens=1000)
    first = asyncio.ensure_future(engine.complete(chat("long")))
    second = asyncio.ensure_future(engine.complete(chat("short", max_tokens=1)))
    await clock.sleep(5)
    first.cancel()
    await second
    assert clock.now() < 1000
    assert first.cancelled()


async def test_leaving_a_stream_early_frees_its_slot() -> None:
    engine = virtual(slots=1, answer_tokens=1000)
    stream = engine.stream(chat("long", stream=True))
    async for _ in stream:
        break
    await stream.aclose()  # type: ignore[attr-defined]
    await engine.complete(chat("short", max_tokens=1))
    assert engine.counters.calls == 1


async def test_a_slow_reader_of_a_stream_gets_all_of_it() -> None:
    clock = VirtualClock()
    engine = virtual(clock, answer_tokens=10)
    text = ""
    async for chunk in engine.stream(chat("x", stream=True)):
        for choice in json.loads(chunk)["choices"]:
            text += choice["delta"].get("content", "")
        await clock.sleep(100)
    assert text == content(await engine.complete(chat("x")))


async def test_the_cache_is_not_reset_under_running_calls() -> None:
    clock = VirtualClock()
    engine = virtual(clock)
    task = asyncio.ensure_future(engine.complete(chat("x")))
    await clock.sleep(1.5)
    with pytest.raises(EngineError, match="calls still run"):
        await engine.reset_cache()
    await task
    await engine.reset_cache()


async def test_a_closed_engine_stays_closed() -> None:
    clock = VirtualClock()
    engine = virtual(clock)
    task = asyncio.ensure_future(engine.complete(chat("x")))
    await clock.sleep(1)
    await engine.close()
    with pytest.raises(EngineDiedError, match="closed"):
        await task
    with pytest.raises(EngineDiedError, match="closed"):
        await engine.complete(chat("x"))
    with pytest.raises(EngineStartError):
        await engine.start()


@pytest.mark.parametrize("options", [{"slots": 0}, {"kv_tokens": 5}, {"kv_tokens": -1}, {"prefill_tokens_per_s": 0}])
def test_senseless_settings_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="'s0'"):
        SimulatedEngine("s0", "m", **options)
