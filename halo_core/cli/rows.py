"""Rows as JSON lines: read and checked before anything starts, results written whole at the end."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halo_core.errors import ConfigError

SHOWN = 3
"""Bad lines, and failed rows, that a message describes; the rest is counted."""


@dataclass(slots=True, frozen=True)
class Rows:
    """The rows of one file."""

    path: Path
    values: list[dict[str, Any]]
    lines: list[int]
    """Line number of each row, from 1."""

    def __len__(self) -> int:
        return len(self.values)

    def place(self, position: int) -> str:
        """Where a row stands, for messages."""
        return f"row {position} ({self.path.name}, line {self.lines[position]})"


def read_rows(path: Path) -> Rows:
    """The rows of a file with one JSON object a line; empty lines are skipped.

    Raises `ConfigError` that names the file and the line of everything that is not a row.
    """
    values: list[dict[str, Any]] = []
    lines: list[int] = []
    bad: list[str] = []
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                try:
                    value = _parse(raw, first=number == 1)
                except ValueError as error:
                    bad.append(f"line {number}: {error}")
                    continue
                if value is not None:
                    values.append(value)
                    lines.append(number)
    except OSError as error:
        raise ConfigError(f"cannot read the rows of {path}: {error.strerror or error}") from error
    if bad:
        more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        raise ConfigError(f"{path}, {'; '.join(bad[:SHOWN])}{more}. Each line must be one JSON object; nothing was run")
    return Rows(path, values, lines)


def _parse(raw: bytes, *, first: bool) -> dict[str, Any] | None:
    try:
        text = raw.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start + 1}") from None
    if not text.strip():
        return None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"a JSON {_KINDS.get(type(value), type(value).__name__)}, not an object")
    return value


_KINDS = {list: "array", str: "string", int: "number", float: "number", bool: "boolean", type(None): "null"}


def to_line(value: Any) -> str:
    """`value` as one line of JSON. Raises `TypeError` or `ValueError` for what JSON cannot say."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # lone surrogates exist in JSON only as escapes
        text = json.dumps(value)
    return text


def check_output(path: Path, *others: Path) -> None:
    """See before the work that its results can be written. Raises `ConfigError`."""
    folder = path.absolute().parent
    if not folder.is_dir():
        raise ConfigError(f"cannot write {path}: there is no folder {folder}; make it first")
    if path.is_dir():
        raise ConfigError(f"cannot write {path}: it is a folder; name a file")
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"cannot write {path}: the folder {folder} is not writable")
    for other in others:
        if path.resolve() == other.resolve():
            raise ConfigError(f"{other} would be overwritten by the output: name different files")


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write all lines or none: a reader sees the old file or the whole new one. Raises `ConfigError`."""
    temporary: str | None = None
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.absolute().parent)
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            for line in lines:
                file.write(line)
                file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, _mode(path))
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)
        raise ConfigError(f"cannot write {path}: {error.strerror or error}") from error


def _mode(path: Path) -> int:
    """Permissions of the file that is replaced, else those that the user's mask gives a new one."""
    try:
        return path.stat().st_mode & 0o777
    except OSError:
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask
