"""A batch whose app is known loads models by plan, as few times as can be."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from halo_core.optimize.switching import SwitchPlan
from halo_core.pool import EnginePool
from halo_core.pool.places import Places
from halo_core.runtime import Executor, foresight
from halo_core.stats import Catalog, DecodePoint, Distribution, EngineCurve, StepProfile
from tests.runtime.places import LOAD_S, Step, fewest_loads, placed_pool, plain, run_rows
from tests.runtime.test_residency import FAN, RETURN, WEAVE, chain, loads

CURVE = EngineCurve(
    prefill_step_s=0.0,
    prefill_token_s=0.0001,
    attention_pair_s=0.0,
    decode=(DecodePoint(batch=1, step_s=0.02), DecodePoint(batch=64, step_s=0.05)),
    load_s=LOAD_S,
)


@pytest.fixture
def three_on_two(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[EnginePool, Places]]:
    """Three models that were measured, on two places."""
    record = SimpleNamespace(curve=CURVE, slots=64, kv_tokens=0)
    monkeypatch.setattr(foresight, "remembered", lambda specs: record)
    pool, places = placed_pool("ABC", 2)
    yield pool, places
    pool.close()


def catalog(steps: list[Step], **facts: Any) -> Catalog:
    """What a run of these steps would have taught."""
    lengths = {"prompt_tokens": Distribution.of([30.0]), "answer_tokens": Distribution.of([8.0])}
    profiles = [
        StepProfile(operator=s.name, model=s.model, frequency=1.0, after=s.after, **lengths, **facts) for s in steps
    ]
    return Catalog(app="x", steps=tuple(profiles))


@pytest.mark.parametrize("steps", [chain("ACB"), chain("ABAB"), FAN, RETURN, WEAVE], ids=lambda steps: len(steps))
def test_the_plan_made_of_the_catalog_has_the_fewest_loads_and_is_followed(
    three_on_two: tuple[EnginePool, Places], steps: list[Step]
) -> None:
    pool, places = three_on_two
    executor = Executor(pool)
    followed: list[SwitchPlan | None] = []
    follow = executor.follow
    executor.follow = lambda plan: (followed.append(plan), follow(plan))[1]  # type: ignore[method-assign]
    batch = executor.open_batch("known", known=catalog(steps))
    executor.foresee(batch, 12, lambda: 12)
    done = run_rows(executor, steps, 12)
    executor.close_batch(batch)
    assert done.answers == plain(steps, 12)
    [plan, ended] = followed
    assert plan is not None and ended is None
    assert loads(places) == [[phase.model for phase in phases] for phases in plan.places]
    assert sum(map(len, loads(places))) == sum(map(len, fewest_loads(steps, 2, 12).places))


def test_a_model_that_was_never_measured_leaves_it_to_the_places(
    three_on_two: tuple[EnginePool, Places], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, _ = three_on_two
    monkeypatch.setattr(foresight, "remembered", lambda specs: None)
    executor = Executor(pool)
    batch = executor.open_batch("known", known=catalog(FAN))
    executor.foresee(batch, 12, lambda: 12)
    assert not batch.planned
    assert run_rows(executor, FAN, 12).answers == plain(FAN, 12)


def test_what_has_the_longest_way_to_go_is_served_first() -> None:
    pool = EnginePool()
    try:
        ranks = foresight.ranks(catalog([Step("short", "m"), Step("long", "m"), Step("next", "m", ("long",))]), pool)
        assert ranks["long"] > ranks["short"] == ranks["next"]
    finally:
        pool.close()
