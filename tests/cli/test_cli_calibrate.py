"""`halo calibrate`: measured once, shown again, measured anew when asked; and what doctor says of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from halo_core.pool import calibrate as calibrate_module
from halo_core.pool.calibrate import curve_key
from halo_core.stats import CalibrationRecord, DecodePoint, EngineCurve, Probe, Residual
from tests.cli.conftest import Halo, Project
from tests.cli.gated_stub import GatedStub

CURVE = EngineCurve(
    prefill_step_s=0.02,
    prefill_token_s=0.004,
    attention_pair_s=1e-6,
    decode=(DecodePoint(batch=1, step_s=0.025), DecodePoint(batch=16, step_s=0.08)),
    decode_context_token_s=1e-5,
    request_s=0.003,
    load_s=31.0,
    kv_copy_bytes_per_s=4e9,
    kv_bytes_per_token=46080,
)


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The engines that were measured, in an instant; wide lines, and a cache of the test's own."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("HALO_CACHE", str(tmp_path / "cache"))
    made: list[str] = []

    async def calibrate(engines: Any) -> CalibrationRecord:
        made.extend(engine.name for engine in engines)
        return CalibrationRecord(
            key=curve_key(engines),
            slots=16,
            kv_tokens=4096,
            block_size=32,
            curve=CURVE,
            residuals=(Residual(kind="decode", probes=2, median=0.021, worst=0.08),),
            probes=(Probe("decode", 0.4, decode_steps=16, batch=1, context_tokens=40.0, engine=engines[0].name),),
            measured_at="2026-01-01T00:00:00Z",
            took_s=44.0,
        )

    monkeypatch.setattr(calibrate_module, "calibrate", calibrate)
    return made


def lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_servers_are_measured_once_and_shown_again(project: Project, halo: Halo, measured: list[str]) -> None:
    with GatedStub().threaded() as stub:
        project.endpoint(stub.url)
        assert "off curve small not measured: halo calibrate does it (about a minute)" in lines(halo("doctor").out)

        first = halo("calibrate")
        assert first.code == 0, first.err
        assert measured == [f"small@{stub.url}"]
        said = lines(first.out)
        assert "batch 1 25.0 40 35.0" in said
        assert "batch 16 80.0 200 240.0" in said
        assert any(line.startswith("256 tokens 1.080 237") for line in said), first.out
        assert "load 31 s" in said
        assert "KV copy 4.0 GB/s through shared memory: 11.5 ms for 1,000 tokens (46.1 kB each)" in said
        assert "decode: off by 2.1% (median), 8.0% (worst of 2)" in said
        (kept,) = (line.removeprefix("kept in ") for line in said if line.startswith("kept in"))
        assert Path(kept).is_file()

    # The server has gone: what is remembered needs none.
    assert halo("calibrate").out == first.out
    as_json = json.loads(halo("calibrate", "--json", "--model", "small").out)
    assert [(entry["model"], entry["file"]) for entry in as_json] == [("small", kept)]
    assert EngineCurve.model_validate(as_json[0]["curve"]) == CURVE
    assert as_json[0]["probes"][0]["decode_steps"] == 16
    assert len(measured) == 1
    assert any(line.startswith("ok curve small measured 2026-01-01") for line in lines(halo("doctor").out))

    gone = halo("calibrate", "--again")
    assert gone.code == 2
    assert "Start the server, or correct its URL" in gone.err


def test_again(project: Project, halo: Halo, measured: list[str]) -> None:
    with GatedStub().threaded() as stub:
        project.endpoint(stub.url)
        assert halo("calibrate").code == 0
        assert halo("calibrate", "--again").code == 0
    assert len(measured) == 2


def test_a_record_that_cannot_be_read_is_measured_again(project: Project, halo: Halo, measured: list[str]) -> None:
    with GatedStub().threaded() as stub:
        project.endpoint(stub.url)
        halo("calibrate")
        (file,) = (project.path / "cache" / "curves").glob("*.json")
        file.write_text("{")
        assert halo("calibrate").code == 0
        assert len(measured) == 2
        assert json.loads(file.read_text())["slots"] == 16


@pytest.mark.parametrize(
    ("text", "arguments", "said"),
    [
        ("", (), "halo.toml has no [[engines]]"),
        ('[[engines]]\nkind = "simulated"\nmodel = "small"\n', (), "simulated without latency"),
        ('[[engines]]\nkind = "simulated"\nmodel = "small"\n', ("--model", "large"), "served: small"),
        ("engines = 3", (), "halo.toml"),
    ],
)
def test_what_cannot_be_measured(
    project: Project, halo: Halo, measured: list[str], text: str, arguments: tuple[str, ...], said: str
) -> None:
    project.write("halo.toml", text)
    result = halo("calibrate", *arguments)
    assert result.code == 2
    assert said in result.err
    assert measured == []


def test_without_a_configuration(project: Project, halo: Halo) -> None:
    (project.path / "halo.toml").unlink()
    result = halo("calibrate")
    assert result.code == 2
    assert "no halo.toml in this folder" in result.err
    assert "--config FILE" in result.err


def test_simulated_engines_with_latency(project: Project, halo: Halo, measured: list[str]) -> None:
    project.write("halo.toml", '[[engines]]\nkind = "simulated"\nmodel = "small"\ncount = 2\nzero_latency = false\n')
    result = halo("calibrate")
    assert result.code == 0, result.err
    assert measured == ["small#0", "small#1"]
