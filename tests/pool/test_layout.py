"""Layouts: candidates for a machine, where engines go, the calibration's choice, and what is remembered of it."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from halo_core.errors import ConfigError, EngineStartError
from halo_core.pool import layout as layout_module
from halo_core.pool.config import VLLMSpec
from halo_core.pool.layout import (
    Layout,
    build_vllm_engines,
    candidates,
    choose_layout,
    make_engines,
    vllm_version,
)
from halo_core.pool.machine import GPU, Machine, parse_gpus
from halo_core.pool.vllm import VLLMEngine
from halo_core.pool.vllm_command import VLLMSettings

TWO_CORES = Machine(((0, 1),), (), 16.0, "test CPU", True)
TWO_NODES = Machine(((0, 1, 2, 3), (8, 9, 10, 11)), (), 64.0, "test CPU", True)
FOUR_GPUS = Machine(((0,),), tuple(GPU(index, "H100", 81559) for index in range(4)), 64.0, "test CPU", True)


def names(layouts: Sequence[Layout]) -> list[str]:
    """As written."""
    return [str(layout) for layout in layouts]


def test_candidates() -> None:
    assert names(candidates(TWO_CORES)) == ["1x2", "2x1"]
    assert names(candidates(TWO_NODES)) == ["1x8", "2x4", "4x2", "8x1"]
    assert names(candidates(FOUR_GPUS)) == ["4x1"]
    assert names(candidates(Machine(((5,),), (), 4.0, "one core", False))) == ["1x1"]


def test_engines_stay_on_one_node_where_they_fit() -> None:
    assert [placement.cores for placement in Layout(engines=2, width=4).placements(TWO_NODES)] == [
        (0, 1, 2, 3),
        (8, 9, 10, 11),
    ]
    assert [placement.gpus for placement in Layout(engines=2, width=2).placements(FOUR_GPUS)] == [(0, 1), (2, 3)]


@pytest.mark.parametrize("text", ["2", "0x1", "2x", "axb", "2x1x1", ""])
def test_a_malformed_layout_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="ENGINESxCORES"):
        Layout.parse(text, TWO_CORES)


def test_a_layout_larger_than_the_machine_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs 4 CPU cores, but this process may use 2"):
        Layout.parse("2x2", TWO_CORES)
    assert str(Layout.parse(" 2X1 ", TWO_CORES)) == "2x1"


def test_gpus_are_those_that_are_visible() -> None:
    listing = "0, GPU-aaa, NVIDIA H100 80GB HBM3, 81559\n1, GPU-bbb, NVIDIA H100 80GB HBM3, 81559\n"
    assert [gpu.index for gpu in parse_gpus(listing, None)] == [0, 1]
    assert [gpu.index for gpu in parse_gpus(listing, "1")] == [1]
    assert [gpu.index for gpu in parse_gpus(listing, "GPU-bbb,0")] == [1, 0]
    assert parse_gpus(listing, "") == ()
    assert parse_gpus("No devices were found\n", None) == ()


class Rates:
    """Stands for engines whose start and speed the test decides."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rates: dict[str, float], broken: tuple[str, ...] = ()) -> None:
        self.started: list[str] = []
        self.closed: list[str] = []
        self.measured: list[str] = []

        def spelled(engine: VLLMEngine) -> str:
            return f"{2 // len(engine.placement.cores)}x{len(engine.placement.cores)}"

        async def start(engine: VLLMEngine) -> None:
            if spelled(engine) in broken:
                raise EngineStartError("out of memory")
            self.started.append(spelled(engine))

        async def close(engine: VLLMEngine) -> None:
            self.closed.append(spelled(engine))

        async def reset(engine: VLLMEngine) -> None:
            engine.counters.calls += 99

        async def rate(engines: Sequence[VLLMEngine]) -> float:
            self.measured.append(spelled(engines[0]))
            return rates[self.measured[-1]]

        monkeypatch.setattr(VLLMEngine, "start", start)
        monkeypatch.setattr(VLLMEngine, "close", close)
        monkeypatch.setattr(VLLMEngine, "reset_cache", reset)
        monkeypatch.setattr(layout_module, "_rate", rate)
        monkeypatch.setattr(layout_module, "machine", lambda: TWO_CORES)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VLLMSettings:
    """Settings for a model, with an empty cache folder."""
    monkeypatch.setenv("HALO_CACHE", str(tmp_path / "cache"))
    return VLLMSettings("some/model", dtype="float32")


def remembered(tmp_path: Path) -> list[Path]:
    """The files that calibrations left."""
    return list((tmp_path / "cache" / "layouts").glob("*.json"))


async def test_the_last_candidate_stays_up_when_it_wins(
    settings: VLLMSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = Rates(monkeypatch, {"1x2": 400.0, "2x1": 700.0})
    chosen, running = await choose_layout("m", settings)
    assert str(chosen) == "2x1"
    assert len(running) == 2
    assert running[0].counters.calls == 0, "the calibration's own calls are not counted"
    assert rates.started == ["1x2", "2x1", "2x1"]
    assert rates.closed == ["1x2"]
    again, none = await choose_layout("m", settings)
    assert (str(again), none) == ("2x1", [])
    assert rates.measured == ["1x2", "2x1"], "the second time it is remembered"
    assert len(remembered(tmp_path)) == 1


async def test_an_earlier_candidate_may_win(settings: VLLMSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = Rates(monkeypatch, {"1x2": 800.0, "2x1": 700.0})
    chosen, running = await choose_layout("m", settings)
    assert (str(chosen), running) == ("1x2", [])
    assert rates.closed == ["1x2", "2x1", "2x1"]


async def test_a_layout_that_does_not_come_up_loses(settings: VLLMSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    Rates(monkeypatch, {"1x2": 1.0}, broken=("2x1",))
    chosen, _ = await choose_layout("m", settings)
    assert str(chosen) == "1x2"


async def test_no_layout_works(settings: VLLMSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Rates(monkeypatch, {}, broken=("1x2", "2x1"))
    with pytest.raises(EngineStartError, match=r"no layout of m works.*out of memory"):
        await choose_layout("m", settings)
    assert remembered(tmp_path) == []


@pytest.mark.parametrize("content", ["", "{", '{"model": 3}', "[]", "\x00\xff"])
async def test_a_corrupt_memory_is_measured_again_with_a_warning(
    settings: VLLMSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    content: str,
) -> None:
    rates = Rates(monkeypatch, {"1x2": 400.0, "2x1": 700.0})
    await choose_layout("m", settings)
    (file,) = remembered(tmp_path)
    file.write_text(content)
    with caplog.at_level(logging.WARNING):
        await choose_layout("m", settings)
    assert "measured again" in caplog.text
    assert len(rates.measured) == 4
    await choose_layout("m", settings)
    assert len(rates.measured) == 4


async def test_other_models_formats_and_machines_are_measured_for_themselves(
    settings: VLLMSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Rates(monkeypatch, {"1x2": 400.0, "2x1": 700.0})
    await choose_layout("m", settings)
    await choose_layout("m", VLLMSettings("some/model", dtype="bfloat16"))
    await choose_layout("m", VLLMSettings("other/model", dtype="float32"))
    other = Machine(((0, 1),), (), 16.0, "another CPU", True)
    monkeypatch.setattr(layout_module, "machine", lambda: other)
    await choose_layout("m", settings)
    assert len(remembered(tmp_path)) == 4


async def test_two_calibrations_at_once_measure_once(settings: VLLMSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = Rates(monkeypatch, {"1x2": 400.0, "2x1": 700.0})
    results = await asyncio.gather(choose_layout("m", settings), choose_layout("m", settings))
    assert [str(layout) for layout, _ in results] == ["2x1", "2x1"]
    assert rates.measured == ["1x2", "2x1"]


async def test_an_unwritable_cache_costs_only_the_memory(
    settings: VLLMSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Rates(monkeypatch, {"1x2": 400.0, "2x1": 700.0})
    (tmp_path / "cache").write_text("a file in the folder's place")
    chosen, _ = await choose_layout("m", settings)
    assert str(chosen) == "2x1"
    assert "cannot be remembered" in caplog.text


async def test_a_given_layout_is_not_measured(settings: VLLMSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = Rates(monkeypatch, {})
    engines = await build_vllm_engines(VLLMSpec(model="m", path="some/model", layout="2x1", max_num_seqs=8))
    assert [engine.name for engine in engines] == ["m#0", "m#1"]
    assert engines[0].capacity.slots == 8
    assert rates.measured == []


def test_engines_share_the_memory(settings: VLLMSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    class Memory:
        available = 4 * 2**30

    monkeypatch.setattr(layout_module, "machine", lambda: TWO_CORES)
    monkeypatch.setattr(layout_module.psutil, "virtual_memory", lambda: Memory)
    engines = make_engines("m", settings, Layout(engines=2, width=1))
    assert [engine.settings.kv_cache_gib for engine in engines] == [1.0, 1.0]


def test_another_interpreter_is_asked_for_its_own_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dist = tmp_path / "site" / "vllm-9.9.dist-info"
    dist.mkdir(parents=True)
    (dist / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 9.9\n")
    other = tmp_path / "python"
    other.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path / "site"} exec {sys.executable} "$@"\n')
    other.chmod(0o755)
    monkeypatch.setenv("HALO_VLLM_PYTHON", str(other))
    assert vllm_version(str(other)) == "vllm 9.9"
    assert vllm_version(sys.executable) != "vllm 9.9"
    assert vllm_version(str(tmp_path / "none")) == "unknown"
