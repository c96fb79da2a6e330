"""Calibrating: the simulated engine's known speeds are found, remembered, and looked up before anyone waits."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from halo_core.errors import ConfigError, EngineDiedError, EngineError
from halo_core.pool import (
    EndpointSpec,
    EnginePool,
    LLMCall,
    PoolConfig,
    SimulatedSpec,
    VLLMSpec,
)
from halo_core.pool import calibrate as calibrate_module
from halo_core.pool.calibrate import calibrate, calibrate_again, curve_key, curve_of, curves_folder, remembered
from halo_core.pool.clock import VirtualClock
from halo_core.pool.endpoint import EndpointEngine
from halo_core.pool.engine import EngineCounters
from halo_core.pool.kv_speed import copy_bytes_per_s, kv_bytes_per_token
from halo_core.pool.simulated import SimulatedEngine
from halo_core.pool.vllm import VLLMEngine
from halo_core.pool.vllm_command import VLLMSettings
from halo_core.stats import CalibrationRecord, DecodePoint, EngineCurve
from halo_core.stats.calibration import find, key_file, write
from halo_core.stats.fit import relative_error
from tests.conftest import MODEL

PREFILL_TOKENS_PER_S = 250.0


def step_s(batch: int) -> float:
    """A decode step that is not linear in its batch."""
    return 0.025 + 0.002 * batch + (0.01 if batch > 8 else 0.0)


def simulated(clock: VirtualClock, count: int = 2, **options: Any) -> list[SimulatedEngine]:
    told = {"slots": 32, "prefill_tokens_per_s": PREFILL_TOKENS_PER_S, "decode_step_s": step_s, **options}
    return [SimulatedEngine(f"sim#{index}", "sim", clock=clock, **told) for index in range(count)]


# -- the measurement -----------------------------------------------------------------------------------------------


async def test_the_speeds_of_simulated_engines_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = VirtualClock()
    engines = simulated(clock)
    record = await calibrate(engines, now=clock.now)
    curve = record.curve
    assert curve.prefill_token_s == pytest.approx(1 / PREFILL_TOKENS_PER_S, rel=0.03)
    assert curve.prefill_s(500) == pytest.approx(500 / PREFILL_TOKENS_PER_S, rel=0.03)
    assert curve.prefill_s(100, 2000) == pytest.approx(100 / PREFILL_TOKENS_PER_S, rel=0.03)
    assert [point.batch for point in curve.decode] == [1, 2, 4, 8, 16, 32]
    for point in curve.decode:
        assert point.step_s == pytest.approx(step_s(point.batch), rel=0.03), point
    assert curve.decode_context_token_s * 1000 < 0.001
    assert curve.request_s < 0.002
    assert max(residual.median for residual in record.residuals) < 0.02
    assert record.took_s < 60
    assert (record.slots, record.block_size) == (32, 16)
    assert {probe.engine for probe in record.probes} == {"sim#0", "sim#1"}
    assert {residual.kind for residual in record.residuals} == {"request", "prefill", "cached", "decode"}


async def test_a_whole_curve_is_found() -> None:
    clock = VirtualClock()
    true = EngineCurve(
        prefill_step_s=0.02,
        prefill_token_s=0.004,
        attention_pair_s=2e-6,
        decode=tuple(DecodePoint(batch=batch, step_s=step_s(batch)) for batch in (1, 2, 4, 8, 16, 32)),
        decode_context_token_s=8e-6,
        request_s=0.004,
    )
    record = await calibrate(simulated(clock, curve=true), now=clock.now)
    found = record.curve
    for tokens, context in ((50, 0), (600, 0), (100, 500)):
        assert found.prefill_s(tokens, context) == pytest.approx(true.prefill_s(tokens, context), rel=0.03)
    for batch in (1, 3, 8, 32):
        for context in (50, 500):
            assert found.decode_s(1, batch, context) == pytest.approx(true.decode_s(1, batch, context), rel=0.03)
    assert found.request_s == pytest.approx(true.request_s, rel=0.1)
    assert found.prefill_step_s == pytest.approx(true.prefill_step_s, rel=0.1)
    assert max(residual.worst for residual in record.residuals) < 0.03


async def test_the_engines_are_as_new_afterwards() -> None:
    clock = VirtualClock()
    engines = simulated(clock)
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
    await engines[0].complete(LLMCall("sim", body))
    await calibrate(engines, now=clock.now)
    assert engines[0].counters.calls == 1
    assert engines[1].counters == EngineCounters()
    usage = (
        await engines[1].complete(LLMCall("sim", {**body, "messages": [{"role": "user", "content": "x " * 300}]}))
    ).usage
    assert usage.cached_tokens == 0


async def test_what_disturbs_a_probe_is_repeated() -> None:
    clock = VirtualClock()

    def stumbling(batch: int) -> float:
        return step_s(batch) * (1.8 if clock.now() % 11 < 2 else 1.0)

    record = await calibrate(simulated(clock, decode_step_s=stumbling), now=clock.now)
    for point in record.curve.decode:
        assert point.step_s == pytest.approx(step_s(point.batch), rel=0.05), point
    assert record.took_s < 60


async def test_slow_engines_are_measured_with_fewer_batches() -> None:
    clock = VirtualClock()
    slow = simulated(clock, count=1, prefill_tokens_per_s=20.0, decode_step_s=lambda batch: 1.0 + 0.1 * batch)
    record = await calibrate(slow, now=clock.now)
    assert 1 <= len(record.curve.decode) < 6
    assert record.curve.decode_step_s(1) == pytest.approx(1.1, rel=0.05)
    assert record.took_s < 150


async def test_short_contexts_and_engines_without_a_cache() -> None:
    clock = VirtualClock()
    record = await calibrate(simulated(clock, max_model_len=200), now=clock.now)
    assert record.curve.decode_step_s(4) == pytest.approx(step_s(4), rel=0.05)
    record = await calibrate(simulated(clock, kv_tokens=0), now=clock.now)
    assert "cached" not in {residual.kind for residual in record.residuals}
    assert record.curve.decode_step_s(4) == pytest.approx(step_s(4), rel=0.05)


async def test_nothing_to_measure() -> None:
    with pytest.raises(ConfigError, match="without taking any time"):
        await calibrate([SimulatedEngine("sim#0", "sim", clock="zero")], now=lambda: 0.0)
    with pytest.raises(ConfigError, match="no engine"):
        await calibrate([])


async def test_an_engine_that_fails_is_not_measured() -> None:
    clock = VirtualClock()
    engines = simulated(clock)
    engines[1].fail_after = 9
    with pytest.raises(EngineDiedError):
        await calibrate(engines, now=clock.now)
    assert engines[0].counters == EngineCounters()


# -- the host and the model ----------------------------------------------------------------------------------------


def test_kv_is_copied_at_some_speed() -> None:
    assert 1e8 < copy_bytes_per_s() < 1e12


@pytest.mark.parametrize(
    ("config", "dtype", "expected"),
    [
        ({"num_key_value_heads": 3, "head_dim": 64}, "float32", 2 * 30 * 3 * 64 * 4),
        ({"num_key_value_heads": 3, "hidden_size": 576, "dtype": "bfloat16"}, "auto", 2 * 30 * 3 * 64 * 2),
        ({"hidden_size": 576, "torch_dtype": "float16"}, "auto", 2 * 30 * 9 * 64 * 2),
        ({"text_config": {"head_dim": 64}}, "bfloat16", 2 * 30 * 9 * 64 * 2),
        ({"kv_lora_rank": 512, "head_dim": 64}, "bfloat16", 0),
        ({"head_dim": 64}, "auto", 0),
    ],
)
def test_the_size_of_kv(tmp_path: Path, config: dict[str, Any], dtype: str, expected: int) -> None:
    whole = {"num_hidden_layers": 30, "num_attention_heads": 9, **config}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    assert kv_bytes_per_token(str(tmp_path), dtype) == expected
    assert kv_bytes_per_token(str(tmp_path), dtype, ("--kv-cache-dtype", "fp8")) == 0
    (tmp_path / "config.json").write_text("{")
    assert kv_bytes_per_token(str(tmp_path), dtype) == 0
    assert kv_bytes_per_token("no/such-model", dtype) == 0


# -- the memory ----------------------------------------------------------------------------------------------------


class Fake(VLLMEngine):
    """A vLLM engine that comes up at once; `calibrate` is replaced where it is used."""

    async def start(self) -> None:
        from halo_core.pool.engine import Health

        self._health = Health("ready")

    async def reset_cache(self) -> None:
        pass


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CalibrationRecord:
    """A record, with an empty cache folder."""
    monkeypatch.setenv("HALO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HALO_CALIBRATE", raising=False)
    clock = VirtualClock()

    async def measure() -> CalibrationRecord:
        return await calibrate(simulated(clock, count=1, slots=2), now=clock.now)

    return asyncio.run(measure())


@pytest.fixture
def measured(record: CalibrationRecord, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The calibrations that were made: how many engines each of them measured."""
    made: list[int] = []

    async def instead(engines: Any) -> CalibrationRecord:
        made.append(len(engines))
        return record.model_copy(update={"key": curve_key(engines)})

    monkeypatch.setattr(calibrate_module, "calibrate", instead)
    return made


def vllm(**settings: Any) -> list[Fake]:
    told = VLLMSettings("some/model", dtype="float32", **settings)
    return [Fake(f"m#{index}", "m", told) for index in range(2)]


async def test_a_group_is_measured_once(measured: list[int], record: CalibrationRecord) -> None:
    assert await curve_of(vllm(), measure=True) == record.curve
    assert await curve_of(vllm(), measure=True) == record.curve
    assert measured == [2]
    assert await curve_of(vllm(), measure=False) == record.curve, "what is remembered is used in any case"


async def test_other_settings_are_measured_for_themselves(
    measured: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    await curve_of(vllm(), measure=True)
    assert caplog.text == ""
    await curve_of(vllm(max_num_seqs=8), measure=True)
    await curve_of(vllm(extra_args=("--quantization", "fp8")), measure=True)
    await curve_of(vllm()[:1], measure=True)
    assert measured == [2, 2, 2, 1]
    assert "is not used" in caplog.text


async def test_two_processes_at_once_measure_once(measured: list[int]) -> None:
    found = await asyncio.gather(curve_of(vllm(), measure=True), curve_of(vllm(), measure=True))
    assert found[0] == found[1] is not None
    assert measured == [2]


async def test_again_replaces_what_is_remembered(measured: list[int]) -> None:
    await curve_of(vllm(), measure=True)
    engines = vllm()
    assert (await calibrate_again(engines)).key == curve_key(engines)
    assert measured == [2, 2]
    assert len(list(curves_folder().glob("*.json"))) == 1


async def test_it_can_be_switched_off(measured: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    assert await curve_of(vllm(), measure=False) is None
    monkeypatch.setenv("HALO_CALIBRATE", "0")
    assert await curve_of(vllm(), measure=True) is None
    assert measured == []


async def test_servers_that_others_run_are_not_measured_unasked(measured: list[int], record: CalibrationRecord) -> None:
    theirs = [EndpointEngine("small@x", "small", "http://127.0.0.1:9/v1")]
    assert await curve_of(theirs, measure=True) is None
    assert measured == []
    await calibrate_again(theirs)
    assert await curve_of(theirs, measure=True) == record.curve
    assert await curve_of([SimulatedEngine("sim#0", "sim")], measure=True) is None


async def test_a_calibration_that_fails_is_a_warning(
    measured: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(error: Exception) -> Callable[..., Any]:
        async def calibrate(engines: Any) -> CalibrationRecord:
            raise error

        return calibrate

    for error, said in (
        (EngineError("the model is strange"), "the model is strange"),
        (ZeroDivisionError(), "ZeroDivisionError"),
        (TimeoutError(), "it took too long"),
    ):
        caplog.clear()
        monkeypatch.setattr(calibrate_module, "calibrate", failing(error))
        assert await curve_of(vllm(), measure=True) is None
        assert said in caplog.text
        assert "calibrate = false" in caplog.text


def test_remembered_needs_no_engine(measured: list[int], record: CalibrationRecord) -> None:
    spec = VLLMSpec(model="m", path="some/model", dtype="float32", layout="1x1")
    theirs = EndpointSpec(model="small", url="http://127.0.0.1:9/v1")
    assert remembered([spec]) is remembered([theirs]) is None
    key = curve_key(calibrate_module.make_engines("m", VLLMSettings("some/model", dtype="float32"), _one()))
    write(key_file(curves_folder(), key), record.model_copy(update={"key": key}))
    found = remembered([spec])
    assert found is not None and found.curve == record.curve
    assert remembered([SimulatedSpec(model="sim")]) is None


def _one() -> Any:
    from halo_core.pool.layout import Layout

    return Layout(engines=1, width=1)


# -- in the pool ---------------------------------------------------------------------------------------------------


def test_the_pool_measures_before_anyone_is_served(
    measured: list[int], record: CalibrationRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = EnginePool(PoolConfig())
    for engine in vllm():
        pool.add(engine)
    group = pool.group("m")
    seen: list[Any] = []

    async def instead(engines: Any) -> CalibrationRecord:
        seen.append((len(engines), group.ready, pool.hopeless(group)))
        waiting = asyncio.ensure_future(pool.start("m"))
        await asyncio.sleep(0)
        seen.append(waiting.done())
        return record.model_copy(update={"key": curve_key(engines)})

    monkeypatch.setattr(calibrate_module, "calibrate", instead)
    try:
        pool.thread.run(pool.start("m"))
        assert seen == [(2, [], False), False]
        assert group.curve == record.curve
        assert len(group.ready) == 2
    finally:
        pool.close()


def test_the_pool_comes_up_without_a_curve(
    measured: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def failing(engines: Any) -> CalibrationRecord:
        raise EngineError("out of order")

    monkeypatch.setattr(calibrate_module, "calibrate", failing)
    for configured in (True, False):
        pool = EnginePool(PoolConfig(calibrate=configured))
        for engine in vllm():
            pool.add(engine)
        pool.thread.run(pool.start("m"))
        assert pool.group("m").curve is None
        assert len(pool.group("m").ready) == 2
        pool.close()
    assert caplog.text.count("out of order") == 1


# -- the real engine -----------------------------------------------------------------------------------------------


@pytest.mark.engine
def test_the_curve_of_the_real_engines(real_pool: EnginePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = real_pool.group(MODEL)
    assert group.curve is None or isinstance(group.curve, EngineCurve)
    before = [engine.counters.calls for engine in group.engines]
    record = real_pool.thread.run(calibrate(group.engines))
    curve = record.curve
    assert curve.prefill_token_s > 0
    assert curve.request_s + curve.prefill_step_s > 0
    assert all(point.step_s > 0 for point in curve.decode)
    assert curve.decode[-1].batch == group.engines[0].capacity.slots
    assert curve.decode_s(1, 32) < 32 * curve.decode_s(1, 1), "batching pays"
    assert curve.load_s > 0
    assert curve.kv_bytes_per_token == 2 * 30 * 3 * 64 * 4
    assert curve.kv_copy_s(1000) is not None
    assert median(abs(relative_error(curve, probe)) for probe in record.probes) < 0.25, record.residuals
    assert [engine.counters.calls for engine in group.engines] == before
    monkeypatch.setenv("HALO_CACHE", str(tmp_path))
    assert write(key_file(curves_folder(), record.key), record)
    assert find(curves_folder(), curve_key(group.engines)) == record
