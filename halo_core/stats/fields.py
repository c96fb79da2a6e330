"""The parts of a row by which rows can be alike: paths, each with a short text that is equal for equal values."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

MAX_FIELDS = 32
MAX_DEPTH = 3


def row_fields(row: Any) -> dict[str, str]:
    """Dotted path -> digest of each value inside a row of plain data; empty for a row that has no parts."""
    found: dict[str, str] = {}
    _walk(row, "", found, 0)
    return found


def _walk(value: Any, path: str, found: dict[str, str], depth: int) -> None:
    if isinstance(value, Mapping) and depth < MAX_DEPTH:
        for key, inner in value.items():
            _walk(inner, f"{path}.{key}" if path else str(key), found, depth + 1)
    elif path and len(found) < MAX_FIELDS and isinstance(value, str | int | float | bool | list | tuple):
        text = repr(value).encode("utf-8", "surrogatepass")
        found[path] = blake2b(text, digest_size=8).hexdigest()
