"""What a batch saw of its first rows: plain facts, from which the catalog is learnt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from halo_core.stats.query_price import QueryPrice

ROWS_TIMED = 64
"""Rows of a batch whose calls are noted one by one."""
ROWS_READ = 8
"""Of those: rows whose prompts are kept until the batch ends."""


@dataclass(slots=True)
class ObservedCall:
    """One model call of a row."""

    operator: str
    model: str
    asked_s: float
    """When the row asked, in seconds of the batch's clock."""
    answered_s: float
    executed: bool
    """Whether an engine computed it for this row; not where it was shared with another one, or replayed."""
    prompt_tokens: int
    cached_tokens: int
    answer_tokens: int
    prompt: str = ""
    """The whole prompt, in the order in which a chat template renders it; empty where it was not kept."""
    system_chars: int = 0
    """How much of `prompt` is tools and leading system messages."""
    tools_s: Mapping[str, float] = field(default_factory=dict)
    """Tool -> seconds that the row spent in its calls since it asked the last time."""


Calls = Mapping[str, ObservedCall]
"""Step name -> the call of one row."""


@dataclass(slots=True)
class ObservedRow:
    """One row: when it was let in, what it called, when it ended."""

    content: str
    """Equal for equal rows."""
    begun_s: float
    ended_s: float = 0.0
    calls: list[ObservedCall] = field(default_factory=list)
    read: bool = False
    """Whether its prompts are kept."""
    tools_s: Mapping[str, float] = field(default_factory=dict)
    """Tool -> seconds that it spent in its calls since it asked the last time."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Path in the row -> a short text that is equal for equal values; empty where the row has no parts."""


@dataclass(slots=True)
class Observed:
    """What a batch saw."""

    rows: list[ObservedRow] = field(default_factory=list)
    """The first `ROWS_TIMED` rows that ended well."""
    wall_s: float = 0.0
    """Of the whole batch."""
    planned_rows: int = 0
    """Rows of the whole batch."""
    distinct: int = 0
    """Different rows in the whole batch."""
    executed: dict[str, int] = field(default_factory=dict)
    """Operator -> calls that engines computed in the whole batch."""
    planned: dict[str, int] = field(default_factory=dict)
    """Operator -> calls that the app made in the whole batch."""
    tools: dict[str, ToolTimes] = field(default_factory=dict)


@dataclass(slots=True)
class ToolTimes:
    """One tool in the whole batch."""

    calls: int = 0
    executed: int = 0
    busy_s: float = 0.0
    """Seconds of the executed calls, summed."""
    queued_s: float = 0.0
    price: QueryPrice | None = None
