"""Numbers for values: two values get one number exactly when code that reads them cannot tell them apart.

The rule: same exact type and same content, with mappings and sets in the order in which they iterate (a prompt rendered
from a dict shows that order), floats by their digits, pydantic models and dataclasses by class and fields. Only the
state itself, whose keys are channels, is compared without order. A value of any other type, or one that contains
itself, is unique: it equals nothing, not even itself seen again.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from hashlib import blake2b
from pathlib import PurePath
from typing import Any
from uuid import UUID

from pydantic import BaseModel

_BY_REPR = frozenset({int, float, bool, complex, type(None), date, datetime, time, timedelta, timezone, Decimal})
_BY_REPR |= {Fraction, UUID}
_SCALARS = frozenset({int, bool, type(None)})


class Absent(Enum):
    """What stands in for a value that is not there."""

    MISSING = "missing"
    """The row or the update lacks the key."""
    SKIPPED = "skipped"
    """The operator did not run for the row."""


class _Unique(Exception):
    """The value has no canonical form."""


class ValueNumbers:
    """Dense numbers of the values seen so far; the numbers mean nothing outside this object."""

    __slots__ = ("_numbers", "_types", "_used")

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}
        self._types: dict[type, bytes] = {}
        self._used = 0

    def number(self, value: Any) -> int:
        """The value's number; a value without canonical form gets a new one each time."""
        kind = type(value)
        if kind is str:
            return self._intern(value)
        if kind in _SCALARS:
            return self._intern((kind, value))
        out: list[bytes] = []
        try:
            self._encode(value, out, set())
        except (_Unique, RecursionError):
            self._used += 1
            return self._used - 1
        return self._intern(blake2b(b"".join(out), digest_size=16).digest())

    def state(self, values: Mapping[str, Any], decision: Hashable = None) -> int:
        """The number of a whole state or update, whatever the order of its keys, and of what was decided with it."""
        return self._intern((decision, tuple(sorted((key, self.number(value)) for key, value in values.items()))))

    def _intern(self, key: Hashable) -> int:
        number = self._numbers.setdefault(key, self._used)
        if number == self._used:
            self._used += 1
        return number

    def _tag(self, kind: type) -> bytes:
        """A type by identity, not by name: local classes of one name differ."""
        tag = self._types.get(kind)
        if tag is None:
            tag = self._types[kind] = b"%x:" % len(self._types)
        return tag

    def _encode(self, value: Any, out: list[bytes], inside: set[int]) -> None:
        kind = type(value)
        if kind is str:
            data = value.encode("utf-8", "surrogatepass")
            out.append(b"s%x:" % len(data))
            out.append(data)
            return
        if kind in _BY_REPR:
            out.append(b"%b%b;" % (self._tag(kind), repr(value).encode()))
            return
        out.append(self._tag(kind))
        if kind is bytes or kind is bytearray:
            out.append(b"%x:%b" % (len(value), value))
        elif issubclass(kind, PurePath):
            self._encode(str(value), out, inside)
        elif issubclass(kind, Enum):
            self._encode(value.name, out, inside)
            self._nested(value, [value.value] if value.name is None else [], out, inside)
        elif kind in (list, tuple, set, frozenset) or (issubclass(kind, tuple) and _plain_named_tuple(kind)):
            self._nested(value, value, out, inside)
        elif kind is dict or kind is OrderedDict:
            self._nested(value, [part for item in value.items() for part in item], out, inside)
        elif issubclass(kind, BaseModel):
            parts = [value.__dict__, value.__pydantic_extra__, value.__pydantic_private__]
            self._nested(value, [*parts, sorted(value.__pydantic_fields_set__)], out, inside)
        elif dataclasses.is_dataclass(kind):
            fields = {f.name: getattr(value, f.name, Absent.MISSING) for f in dataclasses.fields(kind)}
            self._nested(value, [fields, getattr(value, "__dict__", None)], out, inside)
        else:
            raise _Unique

    def _nested(self, value: Any, parts: Any, out: list[bytes], inside: set[int]) -> None:
        if id(value) in inside:
            raise _Unique
        inside.add(id(value))
        out.append(b"%x[" % len(parts))
        for part in parts:
            kind = type(part)
            if kind is str:  # strings and numbers are most of what rows hold; this spares them the call
                data = part.encode("utf-8", "surrogatepass")
                out.append(b"s%x:" % len(data))
                out.append(data)
            elif kind in _BY_REPR:
                out.append(b"%b%b;" % (self._tag(kind), repr(part).encode()))
            else:
                self._encode(part, out, inside)
        inside.discard(id(value))


def _plain_named_tuple(kind: type) -> bool:
    return kind.__bases__ == (tuple,) and hasattr(kind, "_fields")


def state_value(row: Any, key: str) -> Any:
    """What a row brings for a state key: its field of that name, `MISSING` where a mapping lacks it.

    A row that is neither a mapping nor a record with that field stands for every key as a whole.
    """
    if isinstance(row, Mapping):
        return row.get(key, Absent.MISSING)
    if isinstance(row, BaseModel):
        extra = row.__pydantic_extra__ or {}
        return extra[key] if key in extra else row.__dict__.get(key, row)
    if dataclasses.is_dataclass(row) and any(field.name == key for field in dataclasses.fields(row)):
        return getattr(row, key, row)
    return row


def row_number(numbers: ValueNumbers, row: Any) -> int:
    """The number of a whole row."""
    if isinstance(row, Mapping) and all(type(key) is str for key in row):
        return numbers.state(row)
    return numbers.number(row)
