"""What is read of a function without running it: its names, its returns, its digest."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Any

import pytest
from langgraph.graph import END
from langgraph.types import Command, Send

from halo_adapters.langgraph.lift_code import NOTHING, code_digest, fields, only_computes, references, static_attribute
from halo_adapters.langgraph.lift_returns import Returns, returns

SETTINGS = {"prompt": "be brief"}
WORDS = "be brief"


def compiled(source: str, line: int = 1) -> Callable[..., Any]:
    """The function `f` of a source text that lies in no file."""
    names: dict[str, Any] = {}
    exec(compile("\n" * (line - 1) + textwrap.dedent(source), "<nowhere>", "exec"), names)
    function: Callable[..., Any] = names["f"]
    return function


class Loud:
    """Complains when code of its own is run."""

    __slots__ = ("quiet",)

    def __init__(self) -> None:
        self.quiet = 1

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"asked for {name}")

    @property
    def loud(self) -> Any:
        raise AssertionError("ran a property")


def test_fields_run_no_code() -> None:
    assert fields(Loud()) == {"quiet": 1}
    assert static_attribute(Loud(), "loud") is NOTHING


def test_references() -> None:
    kept = object()

    def f(a: Any, b: Any = 2, *, c: Any = "three") -> Any:
        return kept, WORDS, textwrap.dedent, a, b, c

    assert dict(references(f)) == {
        "closure 'kept'": kept,
        "default 'b'": 2,
        "default 'c'": "three",
        "global 'WORDS'": WORDS,
        "global 'textwrap.dedent'": textwrap.dedent,
    }


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


def test_only_computes() -> None:
    def pure(state: Any) -> Any:
        return len(state["x"]) if isinstance(state, dict) else WORDS

    def calls_pure(state: Any) -> Any:
        return pure(state)

    def looks_outside(state: Any) -> Any:
        return open(state["x"])

    def remembers(state: Any) -> Any:
        return SETTINGS

    assert only_computes(pure) and only_computes(calls_pure)
    assert not only_computes(looks_outside)
    assert not only_computes(remembers)
    assert not only_computes(len)


# -- returns ------------------------------------------------------------------------------------------------------


def keys(state: Any) -> Any:
    if state:
        return {"a": 1, "b": 2}
    update = {"c": 3}
    return update


def grown(state: Any) -> Any:
    update = {"c": 3}
    update["d"] = 4
    return update


def labels(state: Any) -> Any:
    if state == 1:
        return "left"
    return END if state else ["left", "right"]


def mixed(state: Any) -> Any:
    return Command(update={"a": 1}, goto="b") if state else [Send("c", state), Send(state, {})]


def nothing(state: Any) -> Any:
    if state:
        return None


def handed_on(state: Any) -> Any:
    return labels(state)


def parent(state: Any) -> Any:
    return Command(goto="elsewhere", graph=Command.PARENT)


def shadowed(state: Any) -> Any:
    WORDS = state
    return WORDS


def rebound(state: Any) -> Any:
    if not state:
        state = {"a": 1}
    return state


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (keys, Returns(keys={"a": None, "b": None, "c": None}, updates=2)),
        (grown, Returns(unknown=True)),
        (labels, Returns(labels={"left": None, END: None, "right": None})),
        (mixed, Returns(keys={"a": None}, updates=1, gotos={"b": None}, sends={"c": None}, unknown_send=True)),
        (nothing, Returns()),
        (handed_on, Returns(unknown=True)),
        (parent, Returns()),
        (shadowed, Returns(unknown=True)),
        (rebound, Returns(unknown=True)),
        (compiled("def f(x):\n    return 'a'"), Returns(unknown=True)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_returns(function: Any, expected: Returns) -> None:
    assert returns(function) == expected
