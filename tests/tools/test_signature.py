"""Which arguments make two calls equal."""

from __future__ import annotations

import datetime
import decimal
import enum
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from halo_core.tools.signature import bound_arguments, signature_of


class Colour(enum.Enum):
    RED = "red"


class Person(BaseModel):
    name: str


@dataclass
class Point:
    x: int


PLAIN: list[Any] = [
    1, 1.0, True, "1", b"1", None, [1], (1,), {1}, {"1": 1}, {1: 1}, decimal.Decimal(1), Colour.RED, "red",
    Path("1"), Person(name="a"), {"name": "a"}, Point(1), {"x": 1}, datetime.date(2026, 1, 1), "2026-01-01", 1j,
    datetime.datetime(2026, 1, 1),
]  # fmt: skip


def test_values_that_a_tool_can_tell_apart_differ() -> None:
    assert len({signature_of(value) for value in PLAIN}) == len(PLAIN) and None not in map(signature_of, PLAIN)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
def test_equal_values_are_equal(value: Any) -> None:
    import copy

    assert signature_of(value) == signature_of(copy.deepcopy(value)) is not None


@given(st.dictionaries(st.text(), st.integers(), min_size=2))
def test_the_order_of_a_dict_does_not_matter(value: dict[str, int]) -> None:
    assert signature_of(value) == signature_of(dict(reversed(value.items())))


def test_what_has_no_canonical_text_is_never_equal() -> None:
    assert signature_of([object()]) is None and signature_of({"f": open}) is None
    endless: list[Any] = []
    endless.append(endless)
    assert signature_of(endless) is None


def test_arguments_are_compared_by_name_with_their_defaults() -> None:
    def look(a: int, b: int = 2, *rest: int, c: int = 3) -> None: ...

    assert bound_arguments(look, [1], {}) == bound_arguments(look, [], {"a": 1, "c": 3, "b": 2})
    with pytest.raises(TypeError, match="missing a required argument: 'a'"):
        bound_arguments(look, [], {})
