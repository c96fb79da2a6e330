"""Remembered curves: found again for the same engines only, and never trusted when they cannot be read."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from halo_core.stats import CalibrationRecord, CurveKey, DecodePoint, EngineCurve, Probe, Residual
from halo_core.stats.calibration import find, key_file, read, write

KEY = CurveKey(
    model="/models/small", layout="2x1", dtype="float32", machine="a CPU, 2 cores", engine="vllm 1", settings="32 slots"
)
CURVE = EngineCurve(
    prefill_step_s=0.02, prefill_token_s=0.004, attention_pair_s=1e-6, decode=(DecodePoint(batch=1, step_s=0.03),)
)
RECORD = CalibrationRecord(
    key=KEY,
    slots=32,
    kv_tokens=4096,
    block_size=32,
    curve=CURVE,
    residuals=(Residual(kind="decode", probes=1, median=0.01, worst=0.02),),
    probes=(Probe("decode", 0.5, decode_steps=16, batch=1, context_tokens=33.0, engine="small#0"),),
    measured_at="2026-01-01T00:00:00Z",
    took_s=41.5,
)


def test_what_is_written_is_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "curves"
    assert find(folder, KEY) is None
    assert write(key_file(folder, KEY), RECORD)
    assert find(folder, KEY) == RECORD
    assert find(folder, KEY.model_copy(update={"model": "/models/large"})) is None
    assert find(folder, KEY.model_copy(update={"layout": "1x2"})) is None
    assert [file.name for file in folder.iterdir()] == [key_file(folder, KEY).name], "no temporary file is left"
    assert caplog.text == ""


@pytest.mark.parametrize("field", ["dtype", "machine", "engine", "settings"])
def test_a_foreign_record_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture, field: str) -> None:
    other = KEY.model_copy(update={field: "something else"})
    write(key_file(tmp_path, other), RECORD.model_copy(update={"key": other}))
    assert find(tmp_path, KEY) is None
    said = " ".join(caplog.text.split())
    assert "is not used, it was measured for other engines" in said
    assert f"{field} 'something else', not" in said
    assert "halo calibrate" in said
    write(key_file(tmp_path, KEY), RECORD)
    caplog.clear()
    assert find(tmp_path, KEY) == RECORD
    assert caplog.text == "", "with a record of its own, nobody needs the other"


def test_a_record_that_was_copied_to_another_machines_name_is_foreign(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    here = KEY.model_copy(update={"machine": "another CPU"})
    write(key_file(tmp_path, here), RECORD)
    assert find(tmp_path, here) is None
    assert "machine 'a CPU, 2 cores', not 'another CPU'" in caplog.text


@pytest.mark.parametrize("content", ["", "{", '{"curve": 3}', "[]", "\x00\xff"])
def test_a_corrupt_record_counts_as_none(tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str) -> None:
    file = key_file(tmp_path, KEY)
    file.write_text(content)
    with caplog.at_level(logging.WARNING):
        assert find(tmp_path, KEY) is None
        assert read(file) is None
    assert str(file) in caplog.text
    assert "halo calibrate --again" in caplog.text


def test_a_folder_that_cannot_be_written_to(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "curves").write_text("a file in the folder's place")
    assert not write(key_file(tmp_path / "curves", KEY), RECORD)
    assert "cannot be remembered" in caplog.text
