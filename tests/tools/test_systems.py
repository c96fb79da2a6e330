"""The benchmark's systems on the simulated engine's terms: levels, sweeps, equality mode on every workload."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import halo_adapters.langgraph as halo
from benchmarks.workloads import shape
from benchmarks.workloads.catalog import NAMES, TOOLED, opened, repeats
from benchmarks.workloads.equality import differences
from benchmarks.workloads.shape import Workload, levels
from halo_core.pool import PoolConfig, SimulatedSpec, configure


@pytest.fixture
def simulated() -> Iterator[None]:
    pool = configure(PoolConfig(models={"*": "sim"}, engines=(SimulatedSpec(model="sim"),)))
    yield
    halo.uninstall()
    pool.close()


@pytest.mark.parametrize("name", NAMES)
def test_plain_langgraph_says_the_same(name: str, simulated: None) -> None:
    with opened(name, latency_scale=0.001, scale=0.05) as workload:
        assert differences(workload, 4, 8, sync=name in ("W3", "W6", "reflect-doc")) == []


def test_equality_finds_what_differs(simulated: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def drifting(step: Any, row: Any, found: Any, answers: Any) -> Any:
        asked.append(step.name)
        return shape.prompt(step, {**row, "asked": len(asked)}, found, answers)

    steps = (shape.Step("one", "A", "You answer."), shape.Step("two", "A", "You judge.", ("one",), ask=drifting))
    rows = [{"row": {"question": str(n)}} for n in range(3)]
    wrong = differences(Workload("drifts", steps, lambda count, distinct, seed: rows[:count]), 3, 8)
    assert {difference.position for difference in wrong} == {0, 1, 2}
    assert {difference.key for difference in wrong} == {"two"}


def test_levels_are_those_of_the_longest_way() -> None:
    def step(name: str, *needs: str) -> shape.Step:
        return shape.Step(name, "A", "", needs)

    steps = (step("a"), step("b", "a"), step("c"), step("d", "b", "c"), step("e", "c"))
    found = levels(Workload("w", steps, lambda count, distinct, seed: []))
    assert [[each.name for each in level] for level in found] == [["a", "c"], ["b", "e"], ["d"]]


def test_which_workloads_have_a_variant_without_repeats() -> None:
    assert [name for name in NAMES if repeats(name)] == ["W5", "W6", "mapreduce-doc", "debate-doc", "reflect-doc"]
    assert set(TOOLED) == {"W1", "W2", "W3", "W4", "W5", "W6"}
