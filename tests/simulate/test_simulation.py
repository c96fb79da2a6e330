"""A simulated batch takes what its curve says, shares what real batches share, and is the same every time."""

from __future__ import annotations

import asyncio
import time

import pytest

from halo_core.errors import PlanError
from halo_core.pool.virtual_loop import VirtualLoop
from halo_core.simulate import Fleet, RowSet, SimulatedGroup, Simulation, simulate
from halo_core.stats import Catalog, DecodePoint, Distribution, EngineCurve, SharedPart, StepProfile

CURVE = EngineCurve(
    prefill_step_s=0.5, prefill_token_s=0.01, attention_pair_s=0.0, decode=(DecodePoint(batch=1, step_s=1.0),)
)
"""A decode step takes a second, whatever the batch."""


def step(name: str, *after: str, prompt: float = 160, answer: float = 8, **facts: object) -> StepProfile:
    """A step of fixed lengths."""
    given = {"operator": name, "model": "m", "frequency": 1.0, "after": after, **facts}
    lengths = {"prompt_tokens": Distribution.of([prompt]), "answer_tokens": Distribution.of([answer])}
    return StepProfile(**{**lengths, **given})  # type: ignore[arg-type]


def run(
    *steps: StepProfile, rows: RowSet | int = 1, engines: int = 1, kv_tokens: int = 0, slots: int = 32
) -> Simulation:
    """Simulate rows of an app with these steps."""
    rowset = rows if isinstance(rows, RowSet) else RowSet.distinct(rows)
    group = SimulatedGroup("m", engines, CURVE, slots=slots, kv_tokens=kv_tokens)
    return simulate(Catalog(app="x", steps=steps), rowset, Fleet([group]))


def test_one_call_takes_its_prefill_and_its_steps() -> None:
    found = run(step("ask", prompt=160, answer=8))
    # The prefill's step gives the first token; the other seven take a second each.
    assert found.makespan_s == pytest.approx(0.5 + 160 * 0.01 + 7 * 1.0, abs=0.15)
    assert (found.calls, found.executed) == (1, 1)
    assert found.steps[0].prompt_tokens == 160 and found.steps[0].generated_tokens == 8


def test_steps_wait_for_each_other_and_for_their_tools() -> None:
    lead = Distribution.of([30.0])
    found = run(step("first"), step("second", "first", lead_s=lead))
    first, second = found.steps
    assert second.first_s == pytest.approx(first.last_s + 30.0, abs=0.2)


def test_parallel_calls_share_decode_steps() -> None:
    one, eight = run(step("ask")), run(step("ask"), rows=8)
    assert eight.makespan_s < one.makespan_s + 8 * (0.5 + 160 * 0.01) + 1
    assert eight.steps[0].executed == 8


def test_equal_rows_are_one_call_and_sampled_ones_are_not() -> None:
    rows = RowSet(["a", "b", "a", "a"])
    assert run(step("ask"), rows=rows).executed == 2
    assert run(step("ask", distinct=4.0), rows=rows).executed == 4
    assert run(step("ask", distinct=0.5), rows=rows).executed == 1


def test_shared_parts_are_found_in_the_cache() -> None:
    parts = (SharedPart(scope="app", key="role", tokens=112), SharedPart(scope="field:doc", key="doc", tokens=112))
    fields = [{"doc": "d1"}, {"doc": "d1"}, {"doc": "d2"}]
    # One at a time, so that each finds what the ones before it have left.
    found = run(step("ask", parts=parts, prompt=320), rows=RowSet(["a", "b", "c"], fields), slots=1)
    assert found.steps[0].ceiling_tokens == 224 + 112
    assert found.steps[0].cached_tokens == found.steps[0].ceiling_tokens


def test_a_conversation_goes_on_from_its_answer() -> None:
    found = run(step("ask", prompt=160, answer=32), step("again", "ask", prompt=320, answer=4, continues="ask"))
    again = found.steps[1]
    assert again.cached_tokens >= 160 + 16  # the answer's blocks too, but for the last
    assert again.prompt_tokens == pytest.approx(320, abs=12)


def test_the_same_simulation_is_the_same() -> None:
    wide = StepProfile.model_copy(step("ask"), update={"prompt_tokens": Distribution.of([50, 100, 400])})
    one, other = (run(wide, step("then", "ask"), rows=40, engines=2) for _ in range(2))
    assert one == other


def test_a_step_that_only_some_rows_make() -> None:
    found = run(step("ask"), step("sometimes", "ask", frequency=0.25), step("last", "sometimes"), rows=64)
    calls = {one.name: one.calls for one in found.steps}
    assert calls["ask"] == calls["last"] == 64
    assert 6 <= calls["sometimes"] <= 26


def test_an_engine_is_not_given_more_than_its_kv_holds() -> None:
    found = run(step("ask", prompt=600, answer=100), rows=48, kv_tokens=8000)
    assert not any(engine.preemptions for engine in found.engines)
    assert found.executed == 48


def test_a_model_without_engines_is_named() -> None:
    with pytest.raises(PlanError, match=r"no model other.*they serve: m"):
        run(step("ask", model="other"))


def test_a_virtual_loop_skips_the_waiting() -> None:
    loop = VirtualLoop()
    began = time.perf_counter()

    async def hours() -> float:
        await asyncio.gather(asyncio.sleep(7200), asyncio.sleep(3600))
        return loop.time()

    assert loop.run_until_complete(hours()) == pytest.approx(7200)
    assert time.perf_counter() - began < 60
    loop.close()


def test_engines_that_share_kv_compute_a_prefix_once() -> None:
    parts = (SharedPart(scope="app", key="role", tokens=512),)
    curve = CURVE.model_copy(update={"kv_copy_bytes_per_s": 1e9, "kv_bytes_per_token": 1000})
    catalog = Catalog(app="x", steps=(step("ask", parts=parts, prompt=640),))

    def made(store_tokens: int) -> Simulation:
        group = SimulatedGroup("m", 2, curve, store_tokens=store_tokens)
        return simulate(catalog, RowSet.distinct(8), Fleet([group]))

    alone, shared = made(0), made(1 << 20)
    assert alone.steps[0].moved_tokens == 0
    assert shared.steps[0].moved_tokens >= 512
    assert shared.steps[0].cached_tokens >= shared.steps[0].ceiling_tokens  # warm-ups have computed it beforehand
    assert (alone.warmups, shared.warmups) == (0, 1)


def test_little_kv_comes_back_from_the_store() -> None:
    """Conversations that an engine had to evict are loaded when they go on."""
    steps = (step("ask", prompt=320, answer=32), step("again", "ask", prompt=480, answer=4, continues="ask"))

    def made(store_tokens: int) -> Simulation:
        group = SimulatedGroup("m", 1, CURVE, kv_tokens=2048, store_tokens=store_tokens)
        return simulate(Catalog(app="x", steps=steps), RowSet.distinct(24), Fleet([group]))

    alone, shared = made(0), made(1 << 20)
    assert shared.steps[1].cached_tokens > alone.steps[1].cached_tokens
    assert shared.steps[1].cached_tokens >= 0.95 * shared.steps[1].ceiling_tokens
    assert shared.makespan_s < alone.makespan_s
