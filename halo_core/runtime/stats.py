"""What happened in a batch: counted per operator and in total."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

from halo_core.pool.call import Usage
from halo_core.runtime.flight import How


class _Counts:
    """Numbers that can be added up field by field."""

    __slots__ = ()

    def add(self, other: Self) -> None:
        """Add another's numbers to these."""
        for name in self.__dataclass_fields__:  # type: ignore[attr-defined]
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(slots=True)
class OperatorStats(_Counts):
    """Calls and tokens of one operator."""

    executed: int = 0
    shared: int = 0
    replayed: int = 0
    failed: int = 0
    cancelled: int = 0
    prompt_tokens: int = 0
    """Of executed calls; `cached_tokens` of them came out of the engines' prefix caches."""
    cached_tokens: int = 0
    moved_tokens: int = 0
    """Of the cached ones: those that came out of the host's block store."""
    generated_tokens: int = 0
    avoided_prompt_tokens: int = 0
    """Prompt tokens of shared and replayed calls: what plain execution would have sent as well."""
    avoided_generated_tokens: int = 0

    @property
    def planned(self) -> int:
        """Calls that the app made."""
        return self.executed + self.shared + self.replayed + self.failed + self.cancelled

    @property
    def computed_tokens(self) -> int:
        """Prompt tokens that were really prefilled."""
        return self.prompt_tokens - self.cached_tokens

    def count(self, how: How, usage: Usage) -> None:
        """Add one call."""
        setattr(self, how.value, getattr(self, how.value) + 1)
        if how is How.EXECUTED:
            self.prompt_tokens += usage.prompt_tokens
            self.cached_tokens += usage.cached_tokens
            self.moved_tokens += usage.moved_tokens
            self.generated_tokens += usage.generated_tokens
        elif how in (How.SHARED, How.REPLAYED):
            self.avoided_prompt_tokens += usage.prompt_tokens
            self.avoided_generated_tokens += usage.generated_tokens


@dataclass(slots=True)
class ToolStats(_Counts):
    """Calls of one tool, by what became of them, and their seconds, summed over all rows."""

    executed: int = 0
    ahead: int = 0
    """Of those executed: begun before the step that asked for it, by looking ahead."""
    shared: int = 0
    """Answered by an equal call of the batch."""
    replayed: int = 0
    """Writes that an earlier run had made, answered from the journal."""
    failed: int = 0
    retried: int = 0
    """Attempts that failed and were followed by another."""
    cancelled: int = 0
    busy_s: float = 0.0
    queued_s: float = 0.0
    """Waiting for its backend to have room."""

    @property
    def planned(self) -> int:
        """Calls that the app made."""
        return self.executed + self.shared + self.replayed + self.failed + self.cancelled


@dataclass(slots=True)
class Span:
    """When an operator's executed calls were under way, in seconds since the batch was opened."""

    calls: int = 0
    first_s: float = 0.0
    """When the first was asked."""
    last_s: float = 0.0
    """When the last was answered."""
    total_s: float = 0.0
    """From asking to the answer, summed."""

    @property
    def mean_s(self) -> float:
        """From asking to the answer."""
        return self.total_s / self.calls if self.calls else 0.0

    def add(self, asked_s: float, answered_s: float) -> None:
        """A call was answered."""
        self.first_s = min(self.first_s, asked_s) if self.calls else asked_s
        self.last_s = max(self.last_s, answered_s)
        self.total_s += answered_s - asked_s
        self.calls += 1


@dataclass(slots=True)
class BatchStats:
    """Everything counted in one batch; wall-clock figures in seconds."""

    operators: dict[str, OperatorStats] = field(default_factory=dict)
    spans: dict[str, Span] = field(default_factory=dict)
    tools: dict[str, ToolStats] = field(default_factory=dict)
    rows: int = 0
    """Rows begun."""
    rows_done: int = 0
    rows_failed: int = 0
    rows_replayed: int = 0
    """Rows whose result the journal of an earlier run had."""
    outside: int = 0
    """Model calls that Halo saw but left alone."""
    outside_reasons: dict[str, int] = field(default_factory=dict)
    wall_s: float = 0.0

    def count(self, operator: str, how: How, usage: Usage) -> None:
        """Add one call of `operator`."""
        stats = self.operators.get(operator)
        if stats is None:
            stats = self.operators[operator] = OperatorStats()
        stats.count(how, usage)

    def span(self, operator: str) -> Span:
        """When the calls of `operator` were under way."""
        return self.spans.setdefault(operator, Span())

    def tool(self, name: str) -> ToolStats:
        """The numbers of a tool."""
        stats = self.tools.get(name)
        if stats is None:
            stats = self.tools[name] = ToolStats()
        return stats

    def leave_alone(self, reason: str) -> None:
        """Count a call that was not routed, and why."""
        self.outside += 1
        self.outside_reasons[reason] = self.outside_reasons.get(reason, 0) + 1

    @property
    def rows_active(self) -> int:
        """Rows that have begun and not ended, whether or not they were admitted yet."""
        return self.rows - self.rows_done - self.rows_failed

    @property
    def total(self) -> OperatorStats:
        """The sum over all operators, also while another thread still counts."""
        total = OperatorStats()
        for stats in list(self.operators.values()):
            total.add(stats)
        return total

    @property
    def tool_total(self) -> ToolStats:
        """The sum over all tools, also while another thread still counts."""
        total = ToolStats()
        for stats in list(self.tools.values()):
            total.add(stats)
        return total
