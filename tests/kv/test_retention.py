"""What is kept of a call's KV: the whole conversation that somebody goes on with, what is shared, else nothing."""

from __future__ import annotations

import pytest

from halo_core.kv import ALL, PINNED, Keep, keeps, moving_pays
from halo_core.stats import Catalog, DecodePoint, EngineCurve, SharedPart, StepProfile


def step(operator: str, *, shared: int = 0, continues: str = "", turn: int = 0) -> StepProfile:
    parts = (SharedPart(scope="app", key="k", tokens=shared),) if shared else ()
    return StepProfile(operator=operator, turn=turn, model="m", frequency=1, parts=parts, continues=continues)


def test_a_conversation_that_goes_on_is_kept_and_let_go_by_its_last_call() -> None:
    known = Catalog(app="a", steps=(step("first"), step("other", shared=200), step("last", continues="first")))
    assert keeps(known) == {"first": PINNED, "other": Keep(232), "last": Keep(0, last=True)}


def test_nobody_lets_go_of_what_two_go_on_with() -> None:
    known = Catalog(app="a", steps=(step("first"), step("b", continues="first"), step("c", continues="first")))
    assert keeps(known)["b"] == Keep(0)


def test_a_loop_keeps_its_history_and_pins_none_of_it_since_any_turn_may_be_the_last() -> None:
    turns = (step("agent"), step("agent", turn=1, continues="agent"))
    assert keeps(Catalog(app="a", steps=turns)) == {"agent": ALL}


def test_nothing_is_known_of_a_new_app() -> None:
    assert keeps(None) == {}


@pytest.mark.parametrize(("bytes_per_s", "pays"), [(3e9, True), (1e5, False), (0.0, True)])
def test_moving_pays_where_copying_is_faster_than_computing(bytes_per_s: float, pays: bool) -> None:
    curve = EngineCurve(
        prefill_step_s=0.01,
        prefill_token_s=0.004,
        attention_pair_s=0,
        decode=(DecodePoint(batch=1, step_s=0.1),),
        kv_copy_bytes_per_s=bytes_per_s,
        kv_bytes_per_token=46_080,
    )
    assert moving_pays(curve) is pays


def test_moving_pays_where_nothing_was_measured() -> None:
    assert moving_pays(None)
