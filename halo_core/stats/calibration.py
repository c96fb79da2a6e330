"""What the calibration of a group of engines measured, and where it is remembered."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from halo_core.stats.curve import EngineCurve
from halo_core.stats.fit import Probe, Residual
from halo_core.stats.remembered import read_remembered, write_remembered

logger = logging.getLogger(__name__)


class CurveKey(BaseModel):
    """What decides how fast the engines of a group are; a curve holds for nothing else."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    """The model's folder or hub name; for servers that others run, what they serve and where."""
    layout: str
    """`2x1` for two engines on one core (or GPU) each, which run at the same time."""
    dtype: str = ""
    machine: str = ""
    engine: str = ""
    """Program and version."""
    settings: str = ""
    """What else the engines were told that changes their speed."""

    def differences(self, other: CurveKey) -> str:
        """In words, what this key has that the other has not."""
        ours, theirs = self.model_dump(), other.model_dump()
        return "; ".join(f"{name} {ours[name]!r}, not {theirs[name]!r}" for name in ours if ours[name] != theirs[name])


class CalibrationRecord(BaseModel):
    """A fitted curve with what it was fitted to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: CurveKey
    slots: int
    """Calls that each engine decodes at once."""
    kv_tokens: int
    """Tokens of KV that each engine holds; 0 when unknown."""
    block_size: int
    curve: EngineCurve
    residuals: tuple[Residual, ...]
    probes: tuple[Probe, ...]
    measured_at: str
    """UTC, ISO 8601."""
    took_s: float
    """Seconds that the probes took."""


def key_file(folder: Path, key: CurveKey) -> Path:
    """Where the record for `key` is kept: what it is of can be read off the name's beginning."""
    text = "\n".join((key.dtype, key.machine, key.engine, key.settings))
    return folder / f"{_of(key)}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"


def _of(key: CurveKey) -> str:
    """The part of a file's name that all records of one model and layout share."""
    return hashlib.sha256(f"{key.model}\n{key.layout}".encode()).hexdigest()[:12]


def read(file: Path) -> CalibrationRecord | None:
    """A remembered record; None where there is none and, with a warning, where the file cannot be used."""
    cure = "it counts as not measured; `halo calibrate --again` writes it anew"
    return read_remembered(file, CalibrationRecord, "curve", cure)


def write(file: Path, record: CalibrationRecord) -> bool:
    """Remember a record, whole or not at all; False, with a warning, where the folder does not let us."""
    return write_remembered(file, record, "curve")


def find(folder: Path, key: CurveKey) -> CalibrationRecord | None:
    """The record for exactly this key; one of other hardware, versions or settings is not used, which a warning says.

    None where there is none.
    """
    own = key_file(folder, key)
    record = read(own)
    if record is not None and record.key == key:
        return record
    others = [file for file in sorted(folder.glob(f"{_of(key)}-*.json")) if file != own]
    for file in [own] if record is not None else others:
        foreign = record or read(file)
        if foreign is not None:
            logger.warning(
                "the curve of %s in %s is not used, it was measured for other engines: %s; `halo calibrate` measures "
                "these",
                key.model,
                file,
                foreign.key.differences(key),
            )
            break
    return None
