"""Watching a batch's first rows, for the catalog. Runs on the pool's loop only, but for `note`."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

from halo_core.optimize.prefix_lint import Sample
from halo_core.pool.call import Usage
from halo_core.pool.loop import now_s
from halo_core.runtime.flight import How, Waiter
from halo_core.runtime.prefix import prompt_text, static_chars
from halo_core.runtime.stats import BatchStats
from halo_core.stats import ROWS_READ, ROWS_TIMED, Observed, ObservedCall, ObservedRow, ToolTimes

if TYPE_CHECKING:
    from halo_core.runtime.batch import Run

_ANSWERED = (How.EXECUTED, How.SHARED, How.REPLAYED)


class Watch:
    """The rows of one batch that are noted call by call."""

    def __init__(self) -> None:
        self._rows: list[ObservedRow] = []
        self._begun: list[ObservedRow] = []
        self.contents: list[str] = []
        """Of every row, equal for equal rows."""
        self.waited_for_engines = False
        """Whether engines were started while it ran: its time then tells nothing of their speed."""
        self._lock = threading.Lock()

    def note(self, key: str) -> ObservedRow | None:
        """What to write down of a row that begins; None where enough rows are watched. Works from any thread."""
        content = key.rpartition(":")[0]
        with self._lock:
            self.contents.append(content)
            if len(self._begun) >= ROWS_TIMED:
                return None
            row = ObservedRow(content, 0.0, read=len(self._begun) < ROWS_READ)
            self._begun.append(row)
            return row

    @property
    def fields(self) -> list[Mapping[str, str]]:
        """Of the first rows, see `halo_core.stats.row_fields`."""
        return [row.fields for row in self._begun]

    def prompts(self) -> list[Sample]:
        """The prompts that were kept, by operator and row."""
        return [
            Sample(call.operator, number, call.prompt)
            for number, row in enumerate(self._rows)
            for call in row.calls
            if call.prompt
        ]

    def answered(self, row: ObservedRow, waiter: Waiter, how: How, usage: Usage, answered_s: float) -> None:
        """A call of a noted row has got its answer, or none, at `answered_s` of the pool loop's time."""
        if how not in _ANSWERED:
            return
        call = waiter.call
        row.calls.append(
            ObservedCall(
                call.origin.operator,
                call.model,
                waiter.asked_s,
                answered_s,
                how is How.EXECUTED,
                usage.prompt_tokens,
                usage.cached_tokens,
                usage.generated_tokens,
                prompt_text(call.body) if row.read else "",
                static_chars(call.body) if row.read else 0,
                waiter.tools_s,
            )
        )

    def ended(self, run: Run, failed: bool) -> None:
        """A noted row is over; one that failed may have made only some of its calls."""
        row = run.noted
        if row is None or failed:
            return
        row.begun_s = run.begun_s or min((call.asked_s for call in row.calls), default=now_s())
        row.ended_s = now_s()
        row.tools_s = run.tools_so_far()
        self._rows.append(row)

    def observed(self, stats: BatchStats) -> Observed:
        """Everything that was seen."""
        return Observed(
            self._rows,
            0.0 if self.waited_for_engines else stats.wall_s,
            len(self.contents),
            len(set(self.contents)),
            {name: operator.executed for name, operator in stats.operators.items()},
            {name: operator.planned for name, operator in stats.operators.items()},
            {
                name: ToolTimes(tool.planned, tool.executed, tool.busy_s, tool.queued_s)
                for name, tool in stats.tools.items()
            },
        )
