"""The cost model against figures worked out by hand, and a timeline's switches and waits."""

from __future__ import annotations

import pytest

from halo_core.optimize.cost import CostModel
from halo_core.optimize.problem import Problem, Task, Worker
from halo_core.optimize.timeline import Timeline, replay
from halo_core.stats import DecodePoint, EngineCurve

CURVE = EngineCurve(
    prefill_step_s=0.5,
    prefill_token_s=0.01,
    attention_pair_s=0.001,
    decode=(DecodePoint(batch=1, step_s=1.0), DecodePoint(batch=4, step_s=1.6)),
    decode_context_token_s=0.01,
    request_s=0.1,
    load_s=30.0,
)
SYSTEM = ("system", 40)


def one(task: Task, slots: int = 4, resident: str = "m") -> CostModel:
    return CostModel(Problem([task], [Worker("w", {"m": CURVE}, resident, slots)]))


def test_prefill_requests_and_decode_of_a_full_batch() -> None:
    work = one(Task("t", "m", prefix=(SYSTEM,), shared_tokens=10, own_tokens=5, answer_tokens=20, calls=4)).work(0, 0)
    prefill_s = 0.5 + 70 * 0.01 + (50 * 51 / 2 + 4 * 5 * (50 + 3)) * 0.001
    decode_s = 20 * (1.6 + 4 * 65 * 0.01)  # with a mean context of 50 + 5 + 10
    assert work.busy_s == pytest.approx(prefill_s + 4 * 0.1 + decode_s)
    assert work.latency_s == pytest.approx(work.busy_s)
    assert work.beside_tokens == 10 + 4 * 25


def test_one_call_is_busy_for_its_share_of_a_batch_and_takes_its_own_time() -> None:
    work = one(Task("t", "m", answer_tokens=10)).work(0, 0)
    assert work.busy_s == pytest.approx(0.1 + 10 * (1.6 + 4 * 5 * 0.01) / 4)
    assert work.latency_s == pytest.approx(0.1 + 10 * (1.0 + 5 * 0.01))


def test_calls_beyond_the_slots_come_in_waves() -> None:
    work = one(Task("t", "m", answer_tokens=10, calls=9)).work(0, 0)
    assert work.latency_s == pytest.approx(0.9 + 3 * 10 * (1.6 + 4 * 5 * 0.01))
    assert work.busy_s == pytest.approx(0.9 + 9 * 10 * (1.6 + 4 * 5 * 0.01) / 4)


def test_cached_tokens_save_themselves_and_the_pairs_among_them() -> None:
    work = one(Task("t", "m", prefix=(SYSTEM,), own_tokens=5)).work(0, 0)
    cold_s = CURVE.step_s(45, 40 * 41 / 2 + 5 * (40 + 3), 0, 0)
    warm_s = CURVE.step_s(13, 8 * (32 + 4.5) + 5 * (40 + 3), 0, 0)
    assert work.busy_s - 0.1 == pytest.approx(cold_s)
    assert work.saved_s(32) == pytest.approx(cold_s - warm_s)
    assert one(Task("t", "m", prefix=(("whole", 32),))).work(0, 0).saved_s(32) == pytest.approx(CURVE.prefill_s(32))


def test_a_load_waits_for_running_answers_and_overlaps_with_tools() -> None:
    slow = Task("slow", "a", answer_tokens=10)
    other = Task("other", "b", lead_s=100.0, answer_tokens=10)
    problem = Problem([slow, other, other], [Worker("w", {"a": CURVE, "b": CURVE}, "a", 4)])
    placements = replay(CostModel(problem), [[0, 1, 2]])
    assert placements is not None
    first, second, third = placements
    assert first.prepare_s == 0 and first.end_s > first.busy_s
    assert (second.prepare_s, second.start_s) == (30.0, 100.0)
    assert (third.prepare_s, third.start_s) == (0.0, 100.0 + second.busy_s)
    without_tools = Problem([slow, Task("other", "b")], problem.workers)
    again = replay(CostModel(without_tools), [[0, 1]])
    assert again is not None and again[1].start_s == pytest.approx(first.end_s + 30)


def test_a_switch_forgets_the_prefixes() -> None:
    tasks = [Task(model, model, prefix=(SYSTEM,)) for model in "aaba"]
    timeline = Timeline(CostModel(Problem(tasks, [Worker("w", {"a": CURVE, "b": CURVE}, "a")])))
    assert [timeline.place(task, 0).hit_tokens for task in range(4)] == [0, 32, 0, 0]


def test_successors_wait_for_the_latency_and_their_tools() -> None:
    tasks = [Task("t", "m", answer_tokens=10), Task("u", "m", after=(0,), lead_s=7.0)]
    timeline = Timeline(CostModel(Problem(tasks, [Worker("w", {"m": CURVE}, "m")])))
    ends_s = timeline.place(0, 0).end_s
    assert timeline.place(1, 0).start_s == pytest.approx(ends_s + 7)


def test_orders_that_wait_for_each_other_have_no_times() -> None:
    tasks = [Task("t0", "m"), Task("t1", "m"), Task("t2", "m", after=(1,)), Task("t3", "m", after=(0,))]
    workers = [Worker(name, {"m": CURVE}, "m") for name in ("w0", "w1")]
    cost = CostModel(Problem(tasks, workers))
    assert replay(cost, [[2, 0], [3, 1]]) is None
    assert replay(cost, [[0, 2], [1, 3]]) is not None
