"""Files of measurements: written whole or not at all, and never trusted blindly when they are read again."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=BaseModel)


def read_remembered(file: Path, model: type[M], noun: str, cure: str) -> M | None:
    """What was measured before; None where there is no file and, with a warning, where it cannot be used."""
    try:
        return model.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        logger.warning("the remembered %s %s cannot be used, so %s: %s", noun, file, cure, error)
        return None


def now_utc() -> str:
    """The time of a measurement, UTC, ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def write_remembered(file: Path, measured: BaseModel, noun: str, *, private: bool = False) -> bool:
    """Remember a measurement; a folder that cannot be written to costs only the next one, and a warning.

    `private`: only the user may read it.
    """
    temporary = file.with_suffix(f".tmp{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        temporary.touch(mode=0o600 if private else 0o666)
        temporary.write_text(measured.model_dump_json(indent=1) + "\n", "utf-8")
        temporary.replace(file)
    except OSError as error:
        logger.warning("the %s cannot be remembered in %s: %s", noun, file, error)
        return False
    return True
