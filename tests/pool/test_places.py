"""Places: one model makes room for another, and nothing is lost or left behind whatever happens in between."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from pydantic import ValidationError

from halo_core.errors import ConfigError, EngineStartError
from halo_core.pool import EndpointSpec, EnginePool, LLMCall, PoolConfig, SimulatedSpec, VLLMSpec
from halo_core.pool.calibrate import curve_key
from halo_core.pool.layout import build_placed_engine, over_places
from halo_core.pool.machine import GPU, Machine
from halo_core.pool.places import Places
from tests.pool.test_vllm_process import fake_vllm, gone


def hello(model: str) -> LLMCall:
    return LLMCall(model, {"messages": [{"role": "user", "content": "hello"}]})


@pytest.fixture
def pool() -> Iterator[EnginePool]:
    """Three simulated models on two places."""
    pool = EnginePool(PoolConfig(engines=tuple(SimulatedSpec(model=model) for model in "ABC"), places=2))
    yield pool
    pool.close()


def places_of(pool: EnginePool) -> Places:
    assert pool.places is not None
    return pool.places


def test_what_is_asked_for_is_loaded_where_nothing_is(pool: EnginePool) -> None:
    places = places_of(pool)
    for model in "ABAC":
        group = pool.thread.run(pool.start(model), timeout_s=20)
        assert [engine.model for engine in group.ready] == [model]
    assert sorted(model for place in places.all for model in place.loads) == ["A", "B", "C"]
    assert sorted(filter(None, (place.model for place in places.all))) in (["A", "C"], ["B", "C"])
    assert places.switches == 1


def test_more_models_than_places_asked_for_at_once(pool: EnginePool) -> None:
    async def main() -> list[str]:
        groups = await asyncio.gather(*(pool.start(model) for model in "ABC"))
        return [group.model for group in groups]

    assert pool.thread.run(main(), timeout_s=20) == ["A", "B", "C"]


def test_an_engine_keeps_its_counters_over_switches(pool: EnginePool) -> None:
    async def main() -> list[tuple[str, int, str]]:
        place = places_of(pool).all[0]
        for model in "ABA":
            await places_of(pool).switch(place, model)
            assert place.engine is not None
            await place.engine.complete(hello(model))
        return [(engine.name, engine.counters.calls, engine.health.state) for engine in pool.engines()]

    assert pool.thread.run(main(), timeout_s=20) == [("A#0", 2, "ready"), ("B#0", 1, "closed")]


def test_a_switch_waits_for_the_calls_under_way(pool: EnginePool) -> None:
    async def main() -> list[str]:
        places, group = places_of(pool), pool.group("A")
        place = places.all[0]
        await places.switch(place, "A")
        engine = place.engine
        assert engine is not None
        group.begin(engine)
        switch = places.switch(place, "B")
        for _ in range(10):
            await asyncio.sleep(0)
        seen = [engine.health.state, *(e.name for e in group.ready)]  # it works on, but is given nothing more
        group.end(engine)
        await switch
        return [*seen, engine.health.state, place.model]

    assert pool.thread.run(main(), timeout_s=20) == ["ready", "closed", "B"]


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders of models, with the stand-in for vLLM in the engines' way; `hang` and `raise` name its behaviours."""
    fake_vllm.install(tmp_path / "packages")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))
    monkeypatch.setenv("HALO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HALO_VLLM_PYTHON", raising=False)
    for name in "abc":
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    return tmp_path


@pytest.fixture
def processes(weights: Path) -> Iterator[EnginePool]:
    """Two models on one place, each a program of its own."""
    pool = EnginePool(
        PoolConfig(engines=tuple(VLLMSpec(model=name, path=str(weights / name)) for name in "abc"), places=1)
    )
    yield pool
    pool.close()


def children() -> set[int]:
    """Live processes below this one."""
    found = psutil.Process(os.getpid()).children(recursive=True)
    return {process.pid for process in found if not gone(process.pid)}


def test_never_more_programs_than_places(processes: EnginePool) -> None:
    before = children()
    pids: list[int] = []
    for model in "aba":
        processes.thread.run(processes.start(model), timeout_s=60)
        engine = places_of(processes).all[0].engine
        pids.append(engine.pid)  # type: ignore[union-attr]
        assert all(gone(pid) for pid in pids[:-1])
    places = places_of(processes)
    assert places.all[0].loads == ["a", "b", "a"] and places.switches == 2
    assert places.load_s["b"] > 0 and places.all[0].switch_s > places.load_s["b"]
    processes.close()
    assert children() <= before


def test_where_the_new_model_does_not_come_up_the_old_one_is_loaded_again(processes: EnginePool, weights: Path) -> None:
    processes.thread.run(processes.start("a"), timeout_s=60)
    (weights / "b" / "config.json").unlink()
    told: list[object] = []
    processes.group("b").on_change.append(told.append)
    with pytest.raises(EngineStartError, match=r"no config\.json"):
        processes.thread.run(processes.start("b"), timeout_s=60)
    place = places_of(processes).all[0]
    assert place.model == "a" and place.loads == ["a", "a"] and not place.loading
    assert [type(error) for error in told] == [EngineStartError]
    assert place.engine is not None
    processes.thread.run(place.engine.complete(hello("a")), timeout_s=20)


def test_closing_during_a_switch_leaves_nothing_behind(processes: EnginePool, monkeypatch: pytest.MonkeyPatch) -> None:
    before = children()
    processes.thread.run(processes.start("a"), timeout_s=60)
    old = places_of(processes).all[0].engine
    monkeypatch.setenv("FAKE_VLLM", "hang")  # b never comes up

    async def begin() -> None:
        switch = places_of(processes).switch(places_of(processes).all[0], "b")
        while places_of(processes).all[0].engine in (None, old):
            await asyncio.sleep(0.01)
        while places_of(processes).all[0].engine.pid is None:  # type: ignore[union-attr]
            await asyncio.sleep(0.01)
        assert not switch.done()

    processes.thread.run(begin(), timeout_s=30)
    assert len(children() - before) >= 1
    processes.close()
    assert children() <= before


def test_closing_while_the_old_model_is_stopped_leaves_nothing_behind(processes: EnginePool) -> None:
    before = children()
    processes.thread.run(processes.start("a"), timeout_s=60)

    async def begin() -> None:
        places_of(processes).switch(places_of(processes).all[0], "b")
        await asyncio.sleep(0.01)

    processes.thread.run(begin(), timeout_s=30)
    processes.close()
    assert children() <= before


def test_each_place_has_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = VLLMSpec(model="m", path="some/model")

    def share(hardware: Machine, places: int) -> list[str]:
        monkeypatch.setattr("halo_core.pool.layout.machine", lambda: hardware)
        engines = [build_placed_engine(spec, index, places) for index in range(places)]
        assert [engine.name for engine in engines] == [f"m#{index}" for index in range(places)]
        return [str(engine.placement) for engine in engines]  # type: ignore[attr-defined]

    cores = Machine(((0, 1, 2, 3), (4, 5, 6, 7)), (), 64.0, "cpu", True)
    assert share(cores, 2) == ["core 0,1,2,3", "core 4,5,6,7"]
    assert share(cores, 3) == ["core 0,1", "core 2,3", "core 4,5"]
    gpus = Machine(((0, 1, 2, 3),), (GPU(0, "H", 1), GPU(1, "H", 1)), 64.0, "cpu", True)
    assert share(gpus, 2) == ["GPU 0", "GPU 1"]


def test_a_model_is_measured_on_all_places_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("halo_core.pool.layout.machine", lambda: Machine(((0, 1, 2, 3, 4),), (), 64.0, "cpu", True))
    config = PoolConfig(engines=(VLLMSpec(model="a"), SimulatedSpec(model="b")), places=2)
    spread = over_places(config)
    assert spread.places is None and [getattr(spec, "layout", "") for spec in spread.engines] == ["2x2", ""]
    assert over_places(spread) is spread
    placed = [build_placed_engine(VLLMSpec(model="a"), index, 2) for index in range(2)]
    assert curve_key(placed).layout == "2x2"


def test_more_places_than_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("halo_core.pool.machine.machine", lambda: Machine(((0, 1),), (), 8.0, "cpu", True))
    with pytest.raises(ConfigError, match="places = 3, but this process may use 2 CPU cores"):
        EnginePool(PoolConfig(engines=(VLLMSpec(model="m"),), places=3))


@pytest.mark.parametrize(
    ("engines", "message"),
    [
        ((EndpointSpec(model="m", url="http://localhost:1"),), "servers are not loaded"),
        ((), "servers are not loaded"),
        ((VLLMSpec(model="m", layout="2x1"),), "leave out layout = '2x1' of 'm'"),
        ((SimulatedSpec(model="m", count=2),), "leave out count of 'm'"),
        ((SimulatedSpec(model="m"), VLLMSpec(model="m")), "m is named twice"),
    ],
)
def test_places_that_cannot_be(engines: tuple[VLLMSpec, ...], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PoolConfig(engines=engines, places=2)


def test_places_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "halo.toml"
    text = "places = 2\n[[engines]]\nkind = 'vllm'\nmodel = 'a'\n[[engines]]\nkind = 'endpoint'\nmodel = 'b'\nurl = 'http://h'\n"
    file.write_text(text)
    assert PoolConfig.from_file(file).places == 2
    file.write_text(text.replace("model = 'a'", "model = 'a'\nlayout = '1x1'"))
    with pytest.raises(ConfigError, match=r"halo\.toml: .*leave out layout"):
        PoolConfig.from_file(file)
    file.write_text("places = 0\n")
    with pytest.raises(ConfigError, match=r"halo\.toml: places: "):
        PoolConfig.from_file(file)


def test_servers_beside_places_are_left_alone() -> None:
    server = EndpointSpec(model="s", url="http://127.0.0.1:9")
    pool = EnginePool(PoolConfig(engines=(SimulatedSpec(model="A"), server), places=1))
    assert pool.placed("A") is not None and pool.placed("s") is None
    with pytest.raises(EngineStartError):
        pool.thread.run(pool.start("s"), timeout_s=20)
    pool.close()
