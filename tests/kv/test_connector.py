"""KV shared by the real engines: equal tokens wherever a prefix was computed, and nothing lost by what goes wrong."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from halo_core.errors import EngineDiedError
from halo_core.pool import Completion, EnginePool, LLMCall, PoolConfig, VLLMSpec
from halo_core.pool.endpoint import EndpointEngine
from halo_core.pool.kv_speed import kv_bytes_per_token
from halo_core.pool.synthetic import text
from halo_core.runtime import Executor
from halo_core.runtime.prefix import Prompt

pytestmark = pytest.mark.engine
BLOCK = 32
PREFIX = 10 * BLOCK


def ask(seed: int, question: str = "What is this?", *, share: int = 0, tokens: int = 8, **fields: Any) -> LLMCall:
    """A call with a prefix of a little more than ten blocks."""
    messages = [{"role": "system", "content": text(seed, PREFIX)}, {"role": "user", "content": question}]
    body = {"messages": messages, "temperature": 0, "max_tokens": tokens, "ignore_eos": True}
    return LLMCall("smollm2", body, share_tokens=share, **fields)


class Pair:
    """Two engines, with blocking calls."""

    def __init__(self, pool: EnginePool) -> None:
        self.pool = pool
        self.one, self.two = pool.group("smollm2").engines

    def answer(self, engine: Any, call: LLMCall) -> tuple[str, int, int]:
        """(text, tokens from the engine's own cache, tokens moved)"""
        completion: Completion = self.pool.thread.run(engine.complete(call))
        usage = completion.usage
        content = completion.parse()["choices"][0]["message"]["content"]
        return content, usage.cached_tokens - usage.moved_tokens, usage.moved_tokens

    def forget(self, engine: Any) -> None:
        """The engine's own cache only."""
        self.pool.thread.run(EndpointEngine.reset_cache(engine))

    def counted(self, engine: Any) -> dict[str, int]:
        return dict(engine.sharing.counters())

    def blocks(self) -> list[Path]:
        return [file for file in self.one.sharing.root.glob("*/*") if not file.name.startswith(".")]


@pytest.fixture
def pair(real_pool: EnginePool) -> Iterator[Pair]:
    """Two cold engines that share KV."""
    made = Pair(real_pool) if len(real_pool.group("smollm2").engines) > 1 else None
    if made is None:
        pytest.skip("one core has one engine")
    assert made.one.sharing is not None, made.one.not_sharing
    real_pool.thread.run(real_pool.reset_caches())
    yield made
    real_pool.thread.run(real_pool.reset_caches())


def test_a_prefix_moves_and_the_tokens_are_the_same(pair: Pair) -> None:
    alone = pair.answer(pair.two, ask(1))[0]
    pair.forget(pair.two)
    before = pair.counted(pair.two)
    first, cached, moved = pair.answer(pair.one, ask(1, share=-1))
    assert (first, cached, moved) == (alone, 0, 0)
    again, cached, moved = pair.answer(pair.two, ask(1))
    assert again == alone
    assert cached == 0
    assert moved >= PREFIX
    loaded = pair.counted(pair.two)["loaded_bytes"] - before["loaded_bytes"]
    assert loaded == moved * kv_bytes_per_token(pair.two.settings.path, "float32")
    assert pair.answer(pair.two, ask(1))[1:] == (moved, 0)  # now it is its own


def test_calls_that_are_scheduled_together_compute_their_prefix_once(pair: Pair) -> None:
    """What the dispatcher counts on when it lets none of them wait."""
    questions = [f"Question {n}?" for n in range(4)]

    async def together() -> list[Completion]:
        busy = asyncio.ensure_future(pair.one.complete(ask(30)))
        await asyncio.sleep(0.3)  # they arrive while the engine computes something else, and wait for its next step
        answers = await asyncio.gather(*(pair.one.complete(ask(31, question)) for question in questions))
        await busy
        return answers

    answers = pair.pool.thread.run(together())
    cached = sorted(answer.usage.cached_tokens for answer in answers)
    assert cached[0] == 0 and cached[1] >= PREFIX
    for question, answer in zip(questions, answers, strict=True):
        pair.forget(pair.one)
        assert pair.answer(pair.one, ask(31, question))[0] == answer.parse()["choices"][0]["message"]["content"]


def test_only_what_is_asked_for_is_saved_and_loaded(pair: Pair) -> None:
    pair.answer(pair.one, ask(2))
    assert pair.blocks() == []
    pair.answer(pair.one, ask(2, "Another one?", share=3 * BLOCK + 5))
    assert len(pair.blocks()) == 3
    assert pair.answer(pair.two, ask(2, share_loads=False))[2] == 0
    pair.forget(pair.two)
    assert pair.answer(pair.two, ask(2))[2] == 3 * BLOCK


def test_calls_that_do_not_come_from_halo_neither_load_nor_save(pair: Pair) -> None:
    """A baseline on the same engines is not helped."""
    pair.answer(pair.one, ask(3, share=-1))
    saved = len(pair.blocks())

    class Plain(EndpointEngine):
        pass

    plain = Plain("plain", "smollm2", pair.two.base_url)
    completion = pair.pool.thread.run(plain.complete(ask(3, share=-1)))
    assert completion.usage.cached_tokens == 0
    assert len(pair.blocks()) == saved
    pair.pool.thread.run(plain.close())


def test_an_answer_is_the_next_turns_prefix_on_another_engine(pair: Pair) -> None:
    call = ask(4, share=-1, tokens=3 * BLOCK)
    said, _, _ = pair.answer(pair.one, call)
    messages = [*call.body["messages"], {"role": "assistant", "content": said}, {"role": "user", "content": "Go on."}]
    turn = LLMCall("smollm2", {**call.body, "messages": messages, "max_tokens": 8})
    moved = pair.answer(pair.two, turn)
    local = pair.answer(pair.one, turn)
    assert moved[0] == local[0]
    assert moved[2] > PREFIX + 2 * BLOCK  # decoded tokens too, up to the last whole block


def test_the_last_turn_lets_go_of_the_conversation(pair: Pair) -> None:
    pair.answer(pair.one, ask(5, share=-1))
    whole = len(pair.blocks())
    pair.answer(pair.one, ask(5, share=2 * BLOCK, share_ends=True))
    assert len(pair.blocks()) == 2 < whole


def test_the_history_of_a_planned_turn_is_pinned(pair: Pair) -> None:
    pair.answer(pair.one, ask(8))
    pair.answer(pair.one, ask(8, share=2 * BLOCK))
    pair.answer(pair.one, ask(8, share=-1, share_pin_s=60.0))
    blocks = pair.blocks()
    assert len(blocks) >= 10 and all(file.stat().st_mtime > time.time() + 30 for file in blocks)
    assert pair.answer(pair.two, ask(8, share_ends=True))[2] >= PREFIX
    assert not any(file.exists() for file in blocks[:1])


@pytest.mark.parametrize("harm", ["torn", "gone", "folder"])
def test_what_is_lost_or_torn_is_computed(pair: Pair, harm: str) -> None:
    alone = pair.answer(pair.two, ask(6))[0]
    pair.forget(pair.two)
    pair.answer(pair.one, ask(6, share=-1))
    files = sorted(pair.blocks())
    assert len(files) >= 10
    if harm == "torn":
        for file in files[:5]:
            os.truncate(file, 1000)
    elif harm == "gone":
        files[3].unlink()
    else:
        shutil.rmtree(files[0].parent)
    before = pair.counted(pair.two)["failed_blocks"]
    assert pair.answer(pair.two, ask(6, share=-1))[0] == alone
    if harm == "torn":
        assert pair.counted(pair.two)["failed_blocks"] > before
    pair.forget(pair.two)
    assert pair.answer(pair.two, ask(6))[0] == alone  # what was saved meanwhile is right too
    assert pair.answer(pair.one, ask(7, share=-1))[0] == pair.answer(pair.one, ask(7))[0]


def test_long_prefixes_are_loaded_while_others_decode(pair: Pair) -> None:
    """The store's threshold for that is 64 MiB: this takes more than a prompt of the others' length."""
    words = 1600
    messages = [{"role": "system", "content": text(8, words)}, {"role": "user", "content": "What?"}]
    long = LLMCall("smollm2", {"messages": messages, "temperature": 0, "max_tokens": 4}, share_tokens=-1)
    said, _, _ = pair.answer(pair.one, long)

    async def both() -> tuple[Completion, Completion]:
        decoding = asyncio.ensure_future(pair.two.complete(ask(9, share=-1, tokens=60)))
        await asyncio.sleep(3)
        return await asyncio.gather(pair.two.complete(long), decoding)

    moved, _ = pair.pool.thread.run(both())
    assert moved.usage.moved_tokens >= words
    assert moved.parse()["choices"][0]["message"]["content"] == said
    assert pair.counted(pair.two)["hidden_us"] > 0


def test_an_engine_killed_while_it_saves_and_loads_poisons_nothing(pair: Pair) -> None:
    calls = [ask(20 + i % 6, f"Question {i}?", share=-1) for i in range(12)]
    alone = [pair.answer(pair.two, call)[0] for call in calls]
    pair.pool.thread.run(pair.pool.reset_caches())

    async def killed() -> list[Completion | BaseException]:
        under_way = [asyncio.ensure_future(pair.one.complete(call)) for call in calls]
        while not pair.blocks():
            await asyncio.sleep(0.01)
        os.killpg(pair.one.pid, signal.SIGKILL)
        return await asyncio.gather(*under_way, return_exceptions=True)

    outcomes = pair.pool.thread.run(killed())
    assert any(isinstance(outcome, EngineDiedError) for outcome in outcomes)
    assert pair.blocks()
    assert [pair.answer(pair.two, call)[0] for call in calls] == alone
    pair.pool.thread.run(pair.one.start())
    assert [pair.answer(pair.one, call)[0] for call in calls] == alone


SECOND = """
import json, sys
from halo_core.pool import Completion, EnginePool, LLMCall, PoolConfig, VLLMSpec
call = json.loads(sys.argv[2])
spec = VLLMSpec(model="smollm2", path=sys.argv[1], layout="1x1", dtype="float32", kv_cache_gib=0.5, kv_store_gib=0.5)
pool = EnginePool(PoolConfig(engines=(spec,), calibrate=False))
pool.thread.run(pool.start("smollm2"))
engine = pool.group("smollm2").engines[0]
completion = pool.thread.run(engine.complete(LLMCall("smollm2", call, share_tokens=-1)))
counters = dict(engine.sharing.counters()) if engine.sharing else {}
pool.close()
said = completion.parse()["choices"][0]["message"]["content"]
print(json.dumps([said, completion.usage.moved_tokens, counters, engine.not_sharing]))
"""


def second(pair: Pair, call: LLMCall, **env: str) -> list[Any]:
    """What an engine of another Halo process answers."""
    ran = subprocess.run(
        [sys.executable, "-c", SECOND, pair.one.settings.path, json.dumps(dict(call.body))],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    found: list[Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


def test_two_halo_processes_share_a_host(pair: Pair) -> None:
    said, _, _ = pair.answer(pair.one, ask(10, share=-1))
    blocks = len(pair.blocks())
    theirs, moved, _, _ = second(pair, ask(10))
    assert theirs == said
    assert moved >= PREFIX
    assert len(pair.blocks()) == blocks  # the other one's end takes nothing away


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to mount a file system")
def test_a_full_store_costs_only_speed(pair: Pair, tmp_path: Path) -> None:
    said, _, _ = pair.answer(pair.one, ask(11))
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", small], capture_output=True).returncode:
        pytest.skip("may not mount")
    try:
        theirs, moved, counters, _ = second(pair, ask(11), HALO_KV_STORE=str(small / "store"))
    finally:
        subprocess.run(["umount", small], check=True)
    assert (theirs, moved) == (said, 0)
    assert counters["saved_blocks"] <= 2
    assert counters["refused_blocks"] >= 8


def test_the_engine_says_how_it_names_the_blocks_and_what_became_of_them(pair: Pair) -> None:
    events: list[Any] = []

    async def heard() -> Completion:
        stream = pair.one.cache_events()
        events.append(await anext(stream))

        async def listen() -> None:
            async for event in stream:
                events.append(event)

        listening = asyncio.ensure_future(listen())
        completion: Completion = await pair.one.complete(ask(12))
        while not any(event.kind == "stored" for event in events):
            await asyncio.sleep(0.05)
        listening.cancel()
        return completion

    completion = pair.pool.thread.run(heard())
    stored = [block for event in events if event.kind == "stored" for block in event.block_hashes]
    assert len(completion.blocks) >= PREFIX // BLOCK
    assert list(completion.blocks) == stored[: len(completion.blocks)]
    assert b"halo" not in completion.raw and completion.parse()["choices"]


def test_what_an_engine_evicts_is_known(pair: Pair) -> None:
    """The runtime's belief follows the engine's own events, here a reset that somebody else has asked for."""
    executor = Executor(pair.pool)
    batch = executor.open_batch("b")

    async def call() -> None:
        await executor.call(executor.begin(batch, "r"), ask(13))

    asyncio.run(call())
    dispatcher = executor._dispatchers["smollm2"]
    station = next(s for s in dispatcher._stations.values() if s.blocks is not None)
    chain = Prompt.of(ask(13).body).chain
    assert station.held.depth(chain) == len(chain) > 0
    pair.forget(station.engine)
    pair.answer(station.engine, ask(14))  # the reset is told with the next step
    deadline = time.monotonic() + 20
    while station.held.depth(chain) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert station.held.depth(chain) == station.sent.depth(chain) == 0


def test_calls_that_lose_their_kv_are_counted_and_answered_alike(pair: Pair) -> None:
    calls = [ask(20 + i, share=-1, tokens=64) for i in range(3)]
    alone = [pair.answer(pair.one, call)[0] for call in calls]
    gib = 1152 * kv_bytes_per_token(pair.one.settings.path, "float32") / 2**30  # less than three of them need
    spec = VLLMSpec(
        model="small", path=pair.one.settings.path, layout="1x1", dtype="float32", kv_cache_gib=gib, max_model_len=640
    )
    pool = EnginePool(PoolConfig(engines=(spec,), calibrate=False))

    async def together() -> list[Completion]:
        return await asyncio.gather(*(engine.complete(replace(call, model="small")) for call in calls))

    try:
        pool.thread.run(pool.start("small"))
        engine = pool.group("small").engines[0]
        said = [done.parse()["choices"][0]["message"]["content"] for done in pool.thread.run(together())]
        assert engine.sharing is not None
        assert engine.sharing.counters()["preemptions"] >= 1
    finally:
        pool.close()
    assert said == alone
