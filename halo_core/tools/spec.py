"""What a tool declares of itself: its effect on the world, what makes two calls equal, how many run at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from halo_core.errors import HaloError
from halo_core.plan import Effect

SPEC = "__halo_tool__"
"""Attribute of a function or tool object that holds its `ToolSpec`."""


class ToolDeclarationError(HaloError):
    """A tool's declaration contradicts itself or names something unknown."""


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool as the runtime sees it. The default is a tool that nobody has declared: it may change anything."""

    name: str
    effect: Effect = Effect.WRITE
    key: Callable[..., Any] | None = None
    """Maps a call's arguments to what makes two calls equal; None = all arguments."""
    sources: tuple[str, ...] = ()
    """What it reads or writes (a database, a host); () = unknown: a write then ends the sharing of all reads."""
    backend: str = ""
    """Whose limit it counts against; empty = its own name."""
    max_inflight: int | None = None
    """Most calls of its backend at a time, over all rows; None = no limit."""
    retries: int = 0
    """Further attempts after a failure."""
    timeout_s: float | None = None
    """Seconds that one attempt may take; None = no limit."""

    @property
    def shares(self) -> bool:
        """Whether equal calls of a batch may be one."""
        return self.effect is not Effect.WRITE


_HINTS = frozenset({"effect", "key", "source", "sources", "backend", "max_inflight", "retries", "timeout_s"})


def declare(name: str, hints: Mapping[str, Any]) -> ToolSpec:
    """The spec that `hints` describe (the arguments of `halo_core.tool`, or `metadata["halo"]` of a LangChain tool).

    Raises `ToolDeclarationError` for unknown names and values that make no sense.
    """
    unknown = sorted(set(hints) - _HINTS)
    if unknown:
        raise ToolDeclarationError(
            f"tool {name!r}: unknown declaration {', '.join(unknown)}; known: {', '.join(sorted(_HINTS))}"
        )
    effect = hints.get("effect")
    try:
        known = Effect.WRITE if effect is None else Effect(effect)
    except ValueError:
        raise ToolDeclarationError(
            f"tool {name!r}: effect is {effect!r}; give one of {', '.join(e.value for e in Effect)}"
        ) from None
    key = hints.get("key")
    if key is not None and not callable(key):
        raise ToolDeclarationError(f"tool {name!r}: key is {key!r}; give a function of the tool's arguments")
    sources = hints.get("sources", hints.get("source", ()))
    sources = (sources,) if isinstance(sources, str) else tuple(sources or ())
    if not all(isinstance(source, str) and source for source in sources):
        raise ToolDeclarationError(f"tool {name!r}: sources are {sources!r}; give names of what it reads or writes")
    if known is Effect.PURE and sources:
        raise ToolDeclarationError(f"tool {name!r} is pure, so it has no source; declare effect='read' instead")
    return ToolSpec(
        name,
        known,
        key=key,
        sources=sources,
        backend=str(hints.get("backend", "")),
        max_inflight=_count(name, "max_inflight", hints.get("max_inflight"), 1),
        retries=_count(name, "retries", hints.get("retries", 0), 0) or 0,
        timeout_s=_seconds(name, hints.get("timeout_s")),
    )


def spec_of(function: Any) -> ToolSpec | None:
    """The declaration of a function or tool, None where there is none."""
    spec = getattr(function, SPEC, None)
    return spec if isinstance(spec, ToolSpec) else None


def _seconds(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ToolDeclarationError(f"tool {name!r}: timeout_s is {value!r}; give seconds above 0")
    return float(value)


def _count(name: str, what: str, value: Any, least: int) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ToolDeclarationError(f"tool {name!r}: {what} is {value!r}; give a whole number, {least} or more")
    return value
