"""Numbers for values: equal exactly when code that reads the values cannot tell them apart."""

from __future__ import annotations

import struct
from collections import OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from pathlib import PurePosixPath
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from halo_core.plan.value import Absent, ValueNumbers, row_number, state_value

scalars = st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from([0.0, -0.0, 1.0, float("nan")])
scalars |= st.sampled_from(["", "1", "a", "\ud800", b"1", b"a"])
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.sampled_from(["a", "b", 1, 1.5, None]), inner, max_size=3)
    ),
    max_leaves=6,
)


def same(a: Any, b: Any) -> bool:
    """Type, content and order, spelled out."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return same(list(a.items()), list(b.items()))
    return bool(a == b)


@given(values, values)
def test_numbers_are_equal_exactly_when_values_are(a: Any, b: Any) -> None:
    numbers = ValueNumbers()
    assert numbers.number(a) == numbers.number(a)
    assert (numbers.number(a) == numbers.number(b)) == same(a, b)


@given(st.dictionaries(st.sampled_from("abc"), values), st.randoms())
def test_a_state_has_no_order(state: dict[str, Any], random: Any) -> None:
    numbers = ValueNumbers()
    items = list(state.items())
    random.shuffle(items)
    assert numbers.state(state) == numbers.state(dict(items))


class Colour(Enum):
    RED = 1
    CRIMSON = 1
    BLUE = 2


class Model(BaseModel):
    model_config = ConfigDict(extra="allow")
    x: Any = None


class SubModel(Model):
    pass


@dataclass
class Record:
    x: Any


@dataclass(slots=True, frozen=True)
class Slotted:
    x: Any


Point = namedtuple("Point", "x")
Other = namedtuple("Other", "x")


def local_class() -> type:
    @dataclass
    class Local:
        x: int = 0

    return Local


LOCAL, LOCAL_AGAIN = local_class(), local_class()
ZONE = datetime(2020, 1, 1, tzinfo=UTC)

EQUAL = [
    (Model(x=[1]), Model(x=[1])),
    (Record({"a": 1}), Record({"a": 1})),
    (Slotted(1), Slotted(1)),
    (Point(1), Point(1)),
    (Colour.RED, Colour.CRIMSON),
    (ZONE, datetime(2020, 1, 1, tzinfo=UTC)),
    (Decimal("1.0"), Decimal("1.0")),
    (UUID(int=1), UUID(int=1)),
    (PurePosixPath("a/b"), PurePosixPath("a") / "b"),
    (frozenset({1}), frozenset({1})),
    (OrderedDict(a=1), OrderedDict(a=1)),
    (2**80, 2**80),
    (["x"] * 2, ["x", "x"]),
]

DIFFERENT = [
    (Model(x=1), Model(x=2)),
    (Model(x=1), SubModel(x=1)),
    (Model(x=1), Model(x=1, y=2)),
    (Model(), Model(x=None)),  # model_dump(exclude_unset=True) tells them apart
    (Record(1), Record(1.0)),
    (Record(1), Slotted(1)),
    (Point(1), Other(1)),
    (Point(1), (1,)),
    (LOCAL(), LOCAL_AGAIN()),
    (Colour.RED, Colour.BLUE),
    (Colour.RED, 1),
    (ZONE, ZONE.replace(tzinfo=None)),
    (Decimal("1.0"), Decimal("1.00")),
    (bytearray(b"a"), b"a"),
    ({1}, frozenset({1})),
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    (OrderedDict(a=1), {"a": 1}),
    (["ab", "c"], ["a", "bc"]),
    ([[1], 2], [[1, 2]]),
    (Absent.MISSING, None),
]


@pytest.mark.parametrize(("a", "b"), EQUAL)
def test_equal(a: Any, b: Any) -> None:
    numbers = ValueNumbers()
    assert numbers.number(a) == numbers.number(b)
    assert numbers.number([a]) == numbers.number([b])


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_different(a: Any, b: Any) -> None:
    numbers = ValueNumbers()
    assert numbers.number(a) != numbers.number(b)
    assert numbers.number({"k": a}) != numbers.number({"k": b})


class StrangeText(str):
    __slots__ = ()


def endless() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def deep() -> list[Any]:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [object(), lambda: 0, StrangeText("a"), defaultdict(int), endless(), deep(), [{"x": object()}], iter(())],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_canonical_form_equals_nothing(value: Any) -> None:
    numbers = ValueNumbers()
    assert numbers.number(value) != numbers.number(value)
    assert numbers.state({"k": value}) != numbers.state({"k": value})


def test_unique_numbers_are_not_given_twice() -> None:
    numbers = ValueNumbers()
    assert [numbers.number(v) for v in ("a", object(), "b", object(), "a")] == [0, 1, 2, 3, 0]


def test_what_a_row_brings() -> None:
    assert state_value({"x": 1}, "x") == 1
    assert state_value({"x": 1}, "y") is Absent.MISSING
    assert state_value(Model(x=1), "x") == 1
    assert state_value(Model(x=1, y=2), "y") == 2
    assert state_value(Record(1), "x") == 1
    for row in (Record(1), Model(x=1), "bare", ["bare"]):
        assert state_value(row, "z") is row


def test_a_whole_row() -> None:
    numbers = ValueNumbers()
    assert row_number(numbers, {"a": 1, "b": 2}) == row_number(numbers, {"b": 2, "a": 1})
    assert row_number(numbers, {"a": 1}) != row_number(numbers, {"a": 1, "b": None})
    assert row_number(numbers, {1: "a"}) == row_number(numbers, {1: "a"})
    assert row_number(numbers, "bare") == row_number(numbers, "bare")
