"""What is read of a function without running it: what it uses and what it returns."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Any

import pytest
from langgraph.graph import END
from langgraph.types import Command, Send

from halo_adapters.langgraph.lift_code import only_computes, reachable
from halo_adapters.langgraph.lift_returns import Returns, returns

SETTINGS = {"prompt": "be brief"}
WORDS = "be brief"


def compiled(source: str) -> Callable[..., Any]:
    """The function `f` of a source text that lies in no file."""
    names: dict[str, Any] = {}
    exec(compile(textwrap.dedent(source), "<nowhere>", "exec"), names)
    function: Callable[..., Any] = names["f"]
    return function


class Colours:
    """Holds a setting."""

    PLAIN = "grey"


def test_reachable_follows_classes_and_imports() -> None:
    def f() -> Any:
        from textwrap import dedent

        return Colours.PLAIN, dedent

    assert dict(reachable(f)) == {"global 'Colours.PLAIN'": "grey", "import 'dedent'": textwrap.dedent}
    assert dict(reachable(f, globals_too=False)) == {}


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
