"""Edges, exits, barriers and state keys: what connects the operators of a plan."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from halo_core.plan.frozen import Frozen

START = "__start__"
"""Stands for the beginning of a row in graphs and texts; no operator may have this name."""
END = "__end__"
"""Stands for the end of a row in graphs and texts; no operator may have this name."""


class Guard(Frozen):
    """An edge is taken only when `branch` (a route, or a step that decides by itself) answers `label`."""

    branch: str
    label: str


class Edge(Frozen):
    """`target` may start when `source` is done."""

    source: str
    target: str
    guard: Guard | None = None
    kind: Literal["data", "control"] = "data"
    """`control` only orders; `data` also lets the target see what the source wrote."""
    may: bool = False
    """Nobody knows before running whether it is taken (unresolved branch, `Command(goto)`, `Send`)."""
    fan_out: bool = False
    """The target runs once per item that the source sends (`Send`), with the item as its input."""

    @property
    def certain(self) -> bool:
        """Whether the target surely runs, once, after the source has run."""
        return self.guard is None and not self.may and not self.fan_out


class Exit(Frozen):
    """The row may end after `source`."""

    source: str
    guard: Guard | None = None
    may: bool = False


def _as_exit(value: object) -> object:
    return Exit(source=value) if isinstance(value, str) else value


AnyExit = Annotated[Exit, BeforeValidator(_as_exit)]
"""An exit; a bare operator name stands for an unguarded one."""


class Barrier(Frozen):
    """None of `before` starts until all of `after` that run at all are done: a fact of the framework."""

    after: tuple[str, ...] = Field(min_length=1)
    before: tuple[str, ...] = Field(min_length=1)
    reason: str = "superstep"


class StateKey(Frozen):
    """One key of the state that a row carries through the plan."""

    name: str = Field(min_length=1)
    reducer: str | None = None
    """How several writes become one value, as an import path; None = the last write wins."""
    commutative: bool = False
    """Whether the order of the writes leaves the reduced value the same."""
    input: bool = True
    """Whether a row may bring a first value."""
