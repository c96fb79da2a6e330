"""Residency: models take turns on places with the fewest switches, without deadlock, and with the same answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halo_core.errors import ConfigError, EngineDiedError
from halo_core.optimize.switching import Phase, SwitchPlan
from halo_core.pool import EnginePool, LLMCall, SimulatedSpec, VLLMSpec
from halo_core.pool.places import Places
from halo_core.pool.simulated import SimulatedEngine
from halo_core.runtime import Executor
from tests.runtime.places import LOAD_S, Loading, Step, chain, fewest_loads, placed_pool, plain, run_rows
from tests.runtime.scripted import ask


@pytest.fixture
def three_on_two() -> Iterator[tuple[EnginePool, Places]]:
    pool, places = placed_pool("ABC", 2)
    yield pool, places
    pool.close()


def loads(places: Places) -> list[list[str]]:
    """The models that came up on each place, in order."""
    return [place.loads for place in places.all]


FAN = [Step("a", "A"), Step("b", "B"), Step("c", "C", ("a", "b"))]
RETURN = [*chain("ABC"), Step("s3", "A", ("s2",))]
"""A is needed again in the end: B has to make room for C, not A."""
WEAVE = [
    Step("a1", "A"),
    Step("b1", "B"),
    Step("c1", "C", ("a1",)),
    Step("b2", "B", ("c1",)),
    Step("a2", "A", ("b1",)),
    Step("c2", "C", ("b2", "a2")),
]


@pytest.mark.parametrize("steps", [chain("ACB"), chain("ABAB"), FAN], ids=["chain", "no switch", "fan"])
def test_without_a_plan_simple_apps_need_the_fewest_loads(
    three_on_two: tuple[EnginePool, Places], steps: list[Step]
) -> None:
    pool, places = three_on_two
    done = run_rows(Executor(pool), steps, 40)
    assert done.answers == plain(steps, 40)
    least = fewest_loads(steps, 2, 40)
    assert sum(map(len, loads(places))) == sum(map(len, least.places))
    assert Loading.most_alive <= 2


@pytest.mark.parametrize("steps", [chain("ACB"), FAN, RETURN, WEAVE, chain("ABCABC")], ids=lambda steps: len(steps))
def test_a_plan_is_followed_exactly(three_on_two: tuple[EnginePool, Places], steps: list[Step]) -> None:
    pool, places = three_on_two
    executor = Executor(pool)
    plan = fewest_loads(steps, 2, 12)
    executor.follow(plan)
    done = run_rows(executor, steps, 12)
    assert done.answers == plain(steps, 12)
    assert loads(places) == [[phase.model for phase in phases] for phases in plan.places]
    assert Loading.most_alive <= 2
    assert places.switches == sum(max(len(phases) - 1, 0) for phases in plan.places)


def test_all_rows_pass_a_model_before_it_makes_room(three_on_two: tuple[EnginePool, Places]) -> None:
    """Rows beyond the engines' slots are let in while the others wait for a model that is not loaded."""
    pool, places = three_on_two

    async def small(spec: SimulatedSpec | VLLMSpec, index: int) -> SimulatedEngine:
        return Loading(f"{spec.model}#{index}", spec.model, slots=4)

    places.build = small
    steps = chain("ACB")
    run_rows(Executor(pool), steps, 300)
    assert sum(map(len, loads(places))) == 3


def test_a_model_is_loaded_while_tools_run(three_on_two: tuple[EnginePool, Places]) -> None:
    """C is loaded beside A and B beside C's tools: one after the other it would take 100 s and more."""
    pool, _ = three_on_two
    executor = Executor(pool)
    steps = [Step("a", "A"), Step("c", "C", ("a",), tool_s=20), Step("b", "B", ("c",), tool_s=20)]
    executor.follow(fewest_loads(steps, 2, 5))
    run_rows(executor, steps, 5)
    assert 60 < pool.thread.loop.time() < 62


def test_a_plan_that_expects_too_much_costs_one_switch_at_most(three_on_two: tuple[EnginePool, Places]) -> None:
    """Rows that end early never make the calls that a phase waits for."""
    pool, places = three_on_two
    executor = Executor(pool)
    a, b, c = Phase("A", frozenset({"s0"}), 99), Phase("B", frozenset({"s2"}), 99), Phase("C", frozenset({"s1"}), 99)
    executor.follow(SwitchPlan([[a, b], [c]]))
    done = run_rows(executor, chain("ACB"), 5)
    assert done.answers == plain(chain("ACB"), 5)
    assert loads(places) == [["A", "B"], ["C"]]
    assert done.seconds < 3 * LOAD_S  # nobody waited as long as for a load: it was seen that nothing can come


def test_a_plan_that_expects_too_little_keeps_its_model(three_on_two: tuple[EnginePool, Places]) -> None:
    pool, places = three_on_two
    executor = Executor(pool)
    a, b, c = Phase("A", frozenset({"s0"}), 2), Phase("B", frozenset({"s2"}), 2), Phase("C", frozenset({"s1"}), 2)
    executor.follow(SwitchPlan([[a, b], [c]]))
    run_rows(executor, chain("ACB"), 30)
    assert loads(places) == [["A", "B"], ["C"]]


def test_a_starving_model_is_served_in_the_end() -> None:
    """A's calls never end, so its only place is never idle."""
    pool, places = placed_pool("AB", 1)
    executor = Executor(pool)

    async def main() -> float:
        batch = executor.open_batch("b")
        busy = True

        async def stream_of_calls(n: int) -> None:
            serial = 0
            while busy:
                serial += 1
                run = executor.begin(batch, f"{n}.{serial}")
                await executor.call(run, replace(ask(f"{n}.{serial}"), model="A"))
                executor.end(run)

        callers = [asyncio.ensure_future(stream_of_calls(n)) for n in range(3)]
        await asyncio.sleep(30)
        began_s = asyncio.get_running_loop().time()
        await executor.call(executor.begin(batch, "b"), replace(ask("b"), model="B"))
        waited_s = asyncio.get_running_loop().time() - began_s
        busy = False
        await asyncio.gather(*callers)
        return waited_s

    waited_s = pool.thread.run(main(), timeout_s=60)
    assert 5 * LOAD_S < waited_s < 8 * LOAD_S
    assert places.all[0].loads == ["A", "B", "A"]
    pool.close()


def test_a_model_with_much_work_gets_a_second_place_when_that_pays() -> None:
    pool, places = placed_pool("A", 2, lambda model, index: Loading(f"{model}#{index}", model, slots=1))
    done = run_rows(Executor(pool), [Step("s", "A")], 3)
    assert loads(places) == [["A"], []]
    done = run_rows(Executor(pool), [Step("s", "A")], 2000)
    assert loads(places) == [["A"], ["A"]] and len(done.answers) == 2000
    pool.close()


def test_a_copy_makes_room_for_a_model_that_nobody_has() -> None:
    """Both places serve A when C is asked for: it waits for one load, not for the end of A's work."""
    pool, places = placed_pool("AC", 2, lambda model, index: Loading(f"{model}#{index}", model, slots=1))
    executor = Executor(pool)

    async def late_call() -> float:
        while not (places.all[0].model == places.all[1].model == "A"):
            await asyncio.sleep(1)
        began_s = asyncio.get_running_loop().time()
        await executor.call(executor.begin(executor.open_batch("late"), "c"), replace(ask("c"), model="C"))
        return asyncio.get_running_loop().time() - began_s

    waited = pool.thread.submit(late_call())
    run_rows(executor, [Step("s", "A")], 2000)
    assert waited.result(20) < 3 * LOAD_S
    pool.close()


def test_a_place_that_had_to_leave_its_plan_returns_to_it(three_on_two: tuple[EnginePool, Places]) -> None:
    """C is not in the plan and starves; A's place serves it and goes back to A, though B's never rests."""
    pool, places = three_on_two
    executor = Executor(pool)
    steps = [Step("a", "A"), Step("b", "B")]

    async def stray_call() -> None:
        await asyncio.sleep(LOAD_S + 1)
        await executor.call(executor.begin(executor.open_batch("stray"), "c"), replace(ask("c"), model="C"))

    plan = [[Phase(model, frozenset({name}), 1500)] for name, model in [("a", "A"), ("b", "B")]]

    async def one_slot(spec: SimulatedSpec | VLLMSpec, index: int) -> SimulatedEngine:
        return Loading(f"{spec.model}#{index}", spec.model, slots=1)

    places.build = one_slot
    executor.follow(SwitchPlan(plan))
    stray = pool.thread.submit(stray_call())
    run_rows(executor, steps, 1500)
    stray.result(20)
    assert sorted(loads(places)) in ([["A"], ["B", "C", "B"]], [["A", "C", "A"], ["B"]])


def test_a_user_limit_on_rows_is_no_deadlock(three_on_two: tuple[EnginePool, Places]) -> None:
    pool, _ = three_on_two
    executor = Executor(pool)
    executor.follow(fewest_loads(chain("ACB"), 2, 6))
    assert run_rows(executor, chain("ACB"), 6, limit=2).answers == plain(chain("ACB"), 6)


def test_a_model_that_does_not_come_up_fails_its_own_calls_only(three_on_two: tuple[EnginePool, Places]) -> None:
    pool, places = three_on_two
    Loading.broken = frozenset({"C"})
    steps = [Step("a", "A"), Step("b", "B"), Step("c", "C"), Step("a2", "A", ("b",))]
    done = run_rows(Executor(pool), steps, 6)
    expected = plain(steps, 6)
    for row, said in zip(done.answers, expected, strict=True):
        assert "C has no weights" in row.pop("c")
        said.pop("c")
        assert row == said
    assert "C" not in [model for place in places.all for model in place.loads]


def test_an_engine_that_dies_while_it_drains_loses_nothing() -> None:
    """A's place is taken for B by force; A dies with its last call under way."""
    engines: list[SimulatedEngine] = []

    def build(model: str, index: int) -> SimulatedEngine:
        engines.append(Loading(f"{model}#{index}", model, answer_tokens=2000))
        return engines[-1]

    pool, places = placed_pool("AB", 1, build)
    executor = Executor(pool)

    async def main() -> list[str]:
        batch = executor.open_batch("b")

        async def call(model: str) -> str:
            completion = await executor.call(executor.begin(batch, model), replace(ask(f"q{model}"), model=model))
            return completion.engine

        first = asyncio.ensure_future(call("A"))
        await asyncio.sleep(LOAD_S + 1)
        assert places.all[0].model == "A"
        switching = places.switch(places.all[0], "B")
        second = asyncio.ensure_future(call("B"))
        await asyncio.sleep(1)
        engines[0].die()
        await switching
        return [await first, await second]

    assert pool.thread.run(main(), timeout_s=60) == ["A#0", "B#0"]
    assert places.all[0].loads == ["A", "B", "A"]
    assert engines[0].counters.restarts == 0
    pool.close()


def test_a_dead_engine_comes_back_on_its_place(three_on_two: tuple[EnginePool, Places]) -> None:
    pool, places = three_on_two
    calls = iter(range(1000))

    async def mortal(spec: SimulatedSpec | VLLMSpec, index: int) -> SimulatedEngine:
        engine = Loading(f"{spec.model}#{index}", spec.model, slots=4)

        def fault(call: LLMCall) -> Exception | None:
            if next(calls) != 7:
                return None
            engine.die()
            return EngineDiedError("with its eighth call")

        engine.fault = fault
        return engine

    places.build = mortal
    done = run_rows(Executor(pool), chain("ACB"), 20)
    assert done.answers == plain(chain("ACB"), 20)
    assert sum(engine.counters.restarts for engine in pool.engines()) == 1
    assert sum(map(len, loads(places))) == 3


def test_a_plan_needs_places_and_models_that_exist(three_on_two: tuple[EnginePool, Places]) -> None:
    executor = Executor(three_on_two[0])
    with pytest.raises(ConfigError, match="the plan loads Z"):
        executor.follow(SwitchPlan([[Phase("Z", frozenset({"z"}), 1)]]))
    with pytest.raises(ConfigError, match="3 places, the pool 2"):
        executor.follow(SwitchPlan([[], [], []]))
    pool = EnginePool()
    with pytest.raises(ConfigError, match="places"):
        Executor(pool).follow(SwitchPlan([]))
    pool.close()


def test_counting_tokens_waits_for_the_model_like_a_call(three_on_two: tuple[EnginePool, Places]) -> None:
    pool, places = three_on_two
    executor = Executor(pool)
    run_rows(executor, chain("AC"), 3)
    body = {"messages": [{"role": "user", "content": "how long is this?"}]}
    count, _ = pool.thread.run(pool.count_tokens("B", body), timeout_s=60)
    assert count
    assert sum(map(len, loads(places))) == 3


@st.composite
def apps(draw: st.DrawFn) -> tuple[list[Step], int, int, SwitchPlan | None]:
    """A random DAG over up to four models, places, rows, and a plan that may be as wrong as it likes."""
    models = "ABCD"[: draw(st.integers(1, 4))]
    steps: list[Step] = []
    for i in range(draw(st.integers(1, 6))):
        after = draw(st.sets(st.sampled_from([step.name for step in steps]), max_size=2)) if steps else set[str]()
        tool_s = draw(st.sampled_from([0.0, 0.0, 0.05, 3.0, 50.0]))
        steps.append(Step(f"s{i}", draw(st.sampled_from(models)), tuple(sorted(after)), tool_s))
    places = draw(st.integers(1, 3))
    rows = draw(st.integers(1, 5))
    if draw(st.booleans()):
        return steps, places, rows, None
    used = sorted({step.model for step in steps})
    phases = st.builds(
        lambda model, count: Phase(model, frozenset(s.name for s in steps if s.model == model), count),
        st.sampled_from(used),
        st.integers(0, 12),
    )
    return steps, places, rows, SwitchPlan([draw(st.lists(phases, max_size=4)) for _ in range(places)])


@given(apps())
@settings(max_examples=60, deadline=None)
def test_every_row_ends_whatever_the_plan_says(app: tuple[list[Step], int, int, SwitchPlan | None]) -> None:
    steps, places, rows, plan = app
    pool, _ = placed_pool("ABCD", places)
    try:
        executor = Executor(pool)
        executor.follow(plan)
        done = run_rows(executor, steps, rows)
        assert done.answers == plain(steps, rows)
        assert Loading.most_alive <= places
    finally:
        pool.close()
    assert Loading.alive == 0


def test_a_call_alone_needs_no_row(three_on_two: tuple[EnginePool, Places]) -> None:
    """Calls that belong to no run of a plan are served as well."""
    pool, places = three_on_two
    executor = Executor(pool)

    async def main() -> None:
        batch = executor.open_batch("b")
        for model in "ABCBA":
            call = LLMCall(model, {"messages": [{"role": "user", "content": model}]})
            await executor.call(executor.begin(batch, model), call)

    pool.thread.run(main(), timeout_s=60)
    assert sum(map(len, loads(places))) <= 5
