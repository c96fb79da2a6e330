"""When two calls of a tool are equal: a canonical text of their arguments, with types kept apart."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import inspect
import json
import uuid
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import PurePath
from typing import Any

from pydantic import BaseModel


class NoSignatureError(ValueError):
    """An argument has no canonical text (an open file, a connection, an arbitrary object)."""


def signature_of(values: Any) -> str | None:
    """A text that is equal exactly for equal values; None where a value has none, so that the call is never shared."""
    try:
        return json.dumps(_canonical(values), separators=(",", ":"))
    except (NoSignatureError, RecursionError):
        return None


def bound_arguments(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments by name, defaults filled in. Raises TypeError as the call itself would."""
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def _canonical(value: Any) -> Any:
    if value is None or (isinstance(value, bool | str) and not isinstance(value, enum.Enum)):
        return value
    kind = type(value)
    if kind in (int, float, decimal.Decimal, complex):
        return [kind.__name__, repr(value)]  # 1, 1.0 and True are equal in Python, but not to a tool
    if isinstance(value, enum.Enum):
        return ["enum", _name(kind), value.name]
    if kind in (bytes, bytearray):
        return ["bytes", value.hex()]
    if kind in (datetime.datetime, datetime.date, datetime.time, datetime.timedelta, uuid.UUID):
        return [kind.__name__, repr(value)]
    if isinstance(value, PurePath):
        return ["path", str(value)]
    if isinstance(value, BaseModel):
        return ["model", _name(kind), _canonical(dict(value))]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        named = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return ["dataclass", _name(kind), _canonical(named)]
    if kind is dict:
        return ["dict", sorted(([_canonical(k), _canonical(v)] for k, v in value.items()), key=json.dumps)]
    if kind in (list, tuple):
        return [kind.__name__, [_canonical(item) for item in value]]
    if isinstance(value, Set) and kind in (set, frozenset):
        return ["set", sorted((_canonical(item) for item in value), key=json.dumps)]
    raise NoSignatureError(f"{kind.__module__}.{kind.__qualname__}")


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
