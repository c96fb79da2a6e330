"""What is read of objects and functions without running them: attributes, names, digests."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pydantic
import pytest

from halo_core.lift import (
    CLIENTS,
    NOTHING,
    closure,
    code_digest,
    fields,
    global_paths,
    is_a,
    is_library,
    lookup,
    package_of,
    references,
    static_attribute,
)

WORDS = "be brief"


def compiled(source: str, line: int = 1) -> Callable[..., Any]:
    """The function `f` of a source text that lies in no file."""
    names: dict[str, Any] = {}
    exec(compile("\n" * (line - 1) + textwrap.dedent(source), "<nowhere>", "exec"), names)
    function: Callable[..., Any] = names["f"]
    return function


# -- attributes ---------------------------------------------------------------------------------------------------


class Loud:
    """Complains when code of its own is run."""

    __slots__ = ("quiet", "unset")

    def __init__(self) -> None:
        self.quiet = 1

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"asked for {name}")

    @property
    def loud(self) -> Any:
        raise AssertionError("ran a property")

    @property
    def __class__(self) -> Any:
        raise AssertionError("asked for its class")


class Named(Loud):
    """Has slots and a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.name = "n"


class Open(pydantic.BaseModel, extra="allow"):
    """Takes fields that it does not declare."""

    given: int = 0
    _kept: int = 2


def test_fields_run_no_code() -> None:
    assert fields(Loud()) == {"quiet": 1}
    assert fields(Named()) == {"quiet": 1, "name": "n"}
    assert fields(7) == {}
    assert static_attribute(Loud(), "loud") is NOTHING
    assert is_a(Loud(), Loud)


def test_fields_of_a_pydantic_object() -> None:
    assert fields(Open(other=3)) == {"given": 0, "other": 3, "_kept": 2}  # type: ignore[call-arg]
    assert fields(Open()) == fields(Open(given=0))


# -- names --------------------------------------------------------------------------------------------------------


class Colours:
    """Holds a setting."""

    PLAIN = "grey"


def test_references() -> None:
    kept = object()

    def f(a: Any, b: Any = 2, *, c: Any = "three") -> Any:
        return kept, WORDS, textwrap.dedent, a, b, c

    own = {"closure 'kept'": kept, "default 'b'": 2, "default 'c'": "three"}
    assert dict(references(f)) == {**own, "global 'WORDS'": WORDS, "global 'textwrap.dedent'": textwrap.dedent}
    assert dict(references(f, globals_too=False)) == own


def test_references_follow_attributes_through_the_types_that_are_asked_for() -> None:
    def f() -> Any:
        return Colours.PLAIN

    assert dict(references(f)) == {"global 'Colours'": Colours}
    assert dict(references(f, through=ModuleType | type)) == {"global 'Colours.PLAIN'": "grey"}


def test_names_that_have_no_value() -> None:
    def f() -> Any:
        return later, nowhere  # type: ignore[name-defined] # noqa: F821

    assert closure(f) == {} and lookup(f, "later") is NOTHING
    assert dict(references(f)) == {}
    later = 1
    assert closure(f) == {"later": 1}
    assert lookup(f, "len") is len


def test_global_paths_reach_into_inner_functions() -> None:
    def f() -> Any:
        return [textwrap.dedent(word) for word in WORDS], lambda: Colours.PLAIN

    assert set(global_paths(f.__code__)) == {("textwrap", "dedent"), ("WORDS",), ("Colours", "PLAIN")}


# -- digests ------------------------------------------------------------------------------------------------------


def test_digest_follows_the_code_and_not_the_place() -> None:
    one = compiled("def f(x):\n    return x in {'a', 'b', 'c'}")
    moved = compiled("def f(x):\n    # moved\n    return x in {'a', 'b', 'c'}", line=40)
    changed = compiled("def f(x):\n    return x in {'a', 'b', 'd'}")
    assert code_digest(one.__code__) == code_digest(moved.__code__)
    assert code_digest(one.__code__) != code_digest(changed.__code__)


def test_digest_covers_inner_functions() -> None:
    one = compiled("def f(x):\n    return [y + 1 for y in x]")
    two = compiled("def f(x):\n    return [y + 2 for y in x]")
    assert code_digest(one.__code__) != code_digest(two.__code__)


# -- whose code it is ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "library"),
    [
        (test_references, False),
        (Loud, False),
        (textwrap.dedent, True),
        (pydantic.BaseModel, True),  # a client's
        (pytest.fixture, True),  # installed
    ],
)
def test_libraries(value: Any, library: bool) -> None:
    assert is_library(value, CLIENTS) is library


def test_what_is_known_and_what_is_at_home() -> None:
    here = frozenset({package_of(Loud)})
    assert is_library(Loud, here) and is_library(Loud, here, home=here)
    there = frozenset({package_of(pytest.fixture)})
    assert not is_library(pytest.fixture, CLIENTS, home=there)


def test_package() -> None:
    assert package_of(pydantic.BaseModel) == package_of(pydantic.create_model) == "pydantic"
    assert package_of([].append) == ""  # says nothing of itself
