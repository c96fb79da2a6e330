"""One call of a tool, as the batch sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from halo_core.plan import Effect

SHOWN = 300
"""Characters of a call's arguments in an error."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a tool, and what decides how it is made."""

    tool: str
    effect: Effect = Effect.WRITE
    signature: str | None = None
    """Equal for equal calls; None = never shared. Of a write it only tells the journal which call this is."""
    sources: tuple[str, ...] = ()
    """What it reads or writes; () for a write = anything."""
    backend: str = ""
    max_inflight: int | None = None
    retries: int = 0
    timeout_s: float | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """What it is asked, for those who watch."""
    identity: Any = None
    """Tells tools of one name apart, hashable: only calls of the same tool are equal."""

    def __str__(self) -> str:
        asked = self.signature or "arguments that have no text"
        return f"tool {self.tool!r} called with {asked if len(asked) <= SHOWN else f'{asked[:SHOWN]}...'}"
