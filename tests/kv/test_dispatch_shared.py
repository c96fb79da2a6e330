"""Dispatch over engines that share KV: what several need is computed once per host, wherever it is needed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from halo_core.kv import SLACK_TOKENS, Keep
from halo_core.pool import EnginePool, LLMCall, PoolConfig
from halo_core.pool.call import Completion, Usage
from halo_core.pool.clock import VirtualClock
from halo_core.pool.engine import CacheEvent
from halo_core.pool.prefix_cache import SimulatedStore
from halo_core.pool.simulated import SimulatedEngine
from halo_core.runtime import Executor
from halo_core.runtime.flight import Flight
from halo_core.runtime.prefix import CHUNK_TOKENS, Prompt
from halo_core.stats import DecodePoint, EngineCurve
from tests.runtime.scripted import ScriptedEngine
from tests.runtime.test_merging import until

ROLES = ["You write the summary of what is said. " * 40, "You check every fact in the text. " * 45]


def with_role(text: str, role: str = ROLES[0]) -> LLMCall:
    messages = [{"role": "system", "content": role}, {"role": "user", "content": text}]
    return LLMCall("m", {"messages": messages, "temperature": 0})


@pytest.fixture
def engines() -> list[ScriptedEngine]:
    store = SimulatedStore()
    made = [ScriptedEngine(name=f"e{i}", slots=32) for i in range(2)]
    for engine in made:
        engine.sharing = store  # type: ignore[assignment]
    return made


@pytest.fixture
def executor(engines: list[ScriptedEngine]) -> Iterator[Executor]:
    pool = EnginePool(PoolConfig())
    for engine in engines:
        pool.add(engine)
    yield Executor(pool)
    pool.close()


def warmups(engine: ScriptedEngine) -> list[LLMCall]:
    return [call for call in engine.seen if call.body.get("max_tokens") == 1]


async def run(executor: Executor, calls: list[LLMCall]) -> None:
    batch = executor.open_batch("b")
    await asyncio.gather(*(executor.call(executor.begin(batch, str(n)), call) for n, call in enumerate(calls)))


async def test_a_prefix_is_warmed_once_per_host(executor: Executor, engines: list[ScriptedEngine]) -> None:
    await run(executor, [with_role(f"question {n}") for n in range(12)])
    assert [len(warmups(engine)) for engine in engines] in ([1, 0], [0, 1])
    real = [len(engine.seen) - len(warmups(engine)) for engine in engines]
    assert sum(real) == 12 and min(real) > 0  # the other engine took some when the store had the prefix


async def test_a_prefix_that_is_being_computed_is_not_warmed_again_when_its_blocks_go(
    executor: Executor, engines: list[ScriptedEngine]
) -> None:
    for engine in engines:
        engine.held = True
    batch = executor.open_batch("b")
    asked = [
        asyncio.create_task(executor.call(executor.begin(batch, str(n)), with_role(f"question {n}"))) for n in range(12)
    ]
    await until(lambda: any(map(warmups, engines)))

    async def evict() -> tuple[bool, int]:
        dispatcher = executor._dispatchers["m"]
        warming = next(s for s in dispatcher._stations.values() if s.warming)
        (chain, waiting) = next(iter(warming.warming.items()))
        for station in dispatcher._stations.values():
            station.forget()
        later = Flight(with_role("later"), None, ("", "later", 0), (0, 0.0, 99), chain, static_chunks=len(chain))
        dispatcher._book(later, warming)
        sent_to = dispatcher._sent_to(later, warming)
        dispatcher._unplace(later, warming)
        assert warming.warming == {chain: waiting}
        return sent_to is warming, len(waiting)

    there, waiting = executor.pool.thread.run(evict())
    assert there and waiting > 0
    for engine in engines:
        executor.pool.thread.loop.call_soon_threadsafe(engine.release)
    await asyncio.wait_for(asyncio.gather(*asked), 20)
    assert sum(len(warmups(engine)) for engine in engines) == 1


async def test_two_prefixes_are_warmed_at_once_on_two_engines(
    executor: Executor, engines: list[ScriptedEngine]
) -> None:
    await run(executor, [with_role(f"question {n}", role) for n in range(6) for role in ROLES])
    assert [len(warmups(engine)) for engine in engines] == [1, 1]


async def test_without_moves_each_engine_keeps_to_itself(executor: Executor, engines: list[ScriptedEngine]) -> None:
    executor.pool.kv_moves = "never"
    await run(executor, [with_role(f"question {n}", role) for n in range(12) for role in ROLES])
    calls = [call for engine in engines for call in engine.seen]
    assert {(call.share_tokens, call.share_loads) for call in calls} == {(0, False)}


async def test_forced_moves_save_all_and_go_where_the_prefix_is_not(
    executor: Executor, engines: list[ScriptedEngine]
) -> None:
    executor.pool.kv_moves = "always"
    batch = executor.open_batch("b")
    row = executor.begin(batch, "row")
    for _ in range(2):
        await executor.call(row, with_role("the same beginning"))
    assert [len(engine.seen) for engine in engines] == [1, 1]
    assert {call.share_tokens for engine in engines for call in engine.seen} == {-1}


async def test_calls_say_what_others_need_of_their_kv(executor: Executor, engines: list[ScriptedEngine]) -> None:
    batch = executor.open_batch("b")
    batch.keeps = {"first": Keep(-1), "last": Keep(96, last=True)}
    for operator in ("first", "last", "new", "newer"):
        row = executor.begin(batch, operator)
        role = "Of its own. " * 60 if "new" in operator else ROLES[0]
        call = LLMCall("m", with_role(operator, role).body, origin=row.origin(operator))
        await executor.call(row, call)
    said = {c.origin.operator: (c.share_tokens, c.share_ends, c.share_loads) for e in engines for c in e.seen}
    shared = int(len(Prompt.of(with_role("x", "Of its own. " * 60).body).chain) * CHUNK_TOKENS) + SLACK_TOKENS
    assert said == {
        "first": (-1, False, True),
        "last": (96, True, True),
        "new": (0, False, True),  # nothing is known of it, and nobody else has begun so
        "newer": (shared, False, True),
    }


async def test_a_conversation_that_was_gone_on_with_once_is_kept_from_then_on(
    executor: Executor, engines: list[ScriptedEngine]
) -> None:
    batch = executor.open_batch("b")
    for n in range(2):
        row = executor.begin(batch, f"row {n}")
        first = [*with_role(f"{n} " * 300).body["messages"]]
        for operator, messages in (("draft", first), ("final", [*first, *with_role("go on").body["messages"]])):
            body = {"messages": messages, "temperature": 0}
            await executor.call(row, LLMCall("m", body, origin=row.origin(operator)))
    said = [(c.origin.operator, c.share_tokens) for e in engines for c in e.seen if c.body.get("max_tokens") != 1]
    drafts = [share for operator, share in said if operator == "draft"]
    assert sorted(drafts)[0] == -1
    assert len(drafts) == 2 and max(drafts) >= 0


async def test_where_copying_is_slow_nothing_moves(executor: Executor, engines: list[ScriptedEngine]) -> None:
    slow = {"kv_copy_bytes_per_s": 1e3, "kv_bytes_per_token": 46_080}
    decode = (DecodePoint(batch=1, step_s=0.1),)
    executor.pool.group("m").curve = EngineCurve(
        prefill_step_s=0, prefill_token_s=0.004, attention_pair_s=0, decode=decode, **slow
    )
    await run(executor, [with_role(f"question {n}") for n in range(12)])
    assert not any(call.share_loads for engine in engines for call in engine.seen)


class TalkingEngine(ScriptedEngine):
    """Says how it names its blocks, and what it evicts."""

    async def complete(self, call: LLMCall) -> Completion:
        made = await super().complete(call)
        blocks = tuple(bytes([i]) * 32 for i in range(20))
        return Completion(made.raw, Usage(prompt_tokens=380, generated_tokens=4), self.name, blocks)

    async def cache_events(self) -> AsyncIterator[CacheEvent]:
        yield CacheEvent("cleared")
        yield CacheEvent("stored", tuple(bytes([i]) * 32 for i in range(20)))
        await asyncio.sleep(0.2)
        yield CacheEvent("removed", tuple(bytes([i]) * 32 for i in range(3, 20)))
        await asyncio.Event().wait()


async def test_what_an_engine_evicts_is_believed_no_longer() -> None:
    pool = EnginePool(PoolConfig())
    engine = TalkingEngine()
    pool.add(engine)
    executor = Executor(pool)
    try:
        await run(executor, [with_role("one")])
        (station,) = executor._dispatchers["m"]._stations.values()
        chain = Prompt.of(with_role("one").body).chain
        assert station.held.depth(chain) == len(chain)
        await asyncio.sleep(0.5)
        assert station.blocks is not None and len(station.blocks) == 3
        assert station.held.depth(chain) < len(chain)
    finally:
        pool.close()


# -- simulated engines -------------------------------------------------------------------------------------------------


async def test_simulated_engines_move_what_the_store_holds() -> None:
    curve = EngineCurve(
        prefill_step_s=0,
        prefill_token_s=0.001,
        attention_pair_s=0,
        decode=(DecodePoint(batch=1, step_s=0.001),),
        kv_copy_bytes_per_s=46_080 * 10_000,
        kv_bytes_per_token=46_080,
    )
    clock = VirtualClock()
    store = SimulatedStore()
    one, two = (
        SimulatedEngine(f"e{i}", "m", kv_tokens=10_000, clock=clock, curve=curve, store=store, answer_tokens=4)
        for i in range(2)
    )
    await one.start()
    await two.start()

    async def served(engine: SimulatedEngine, call: LLMCall) -> tuple[int, int, float]:
        began = clock.now()
        usage = (await engine.complete(call)).usage
        return usage.cached_tokens, usage.moved_tokens, clock.now() - began

    def ask(share: int, question: str = "question") -> LLMCall:
        return LLMCall("m", with_role(question).body, share_tokens=share)

    cold = await served(one, ask(0))
    assert cold[:2] == (0, 0)
    assert (await served(two, ask(160)))[:2] == (0, 0)  # nobody had kept it
    await one.reset_cache()
    await served(two, ask(160, "other"))
    await served(two, ask(160, "third"))
    moved = await served(one, ask(0))
    assert moved[:2] == (160, 160)  # a hit of its own is kept too
    await one.reset_cache()
    await two.reset_cache()
    await served(one, ask(160))
    cached, loaded, took_s = await served(two, ask(0))
    assert cached == loaded == 160
    assert cold[2] - took_s == pytest.approx(160 * (0.001 - 0.0001), rel=0.05)
