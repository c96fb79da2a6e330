"""What a run came to: the table at its end."""

from __future__ import annotations

from rich.table import Table

from halo_core.runtime import BatchStats


def run_table(*, rows: int, done: int, failed: int, replayed: int, stats: BatchStats, wall_s: float) -> Table:
    """Rows, calls, tokens and time of one `halo run`."""
    total = stats.total
    table = Table(title="halo run", show_header=False, title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")
    table.add_row("rows", f"{rows:,}", f"{done:,} done, {failed:,} failed")
    if replayed:
        table.add_row("  taken from the journal", f"{replayed:,}", "finished by an earlier run")
    table.add_section()
    table.add_row("calls planned", f"{total.planned:,}", "what the app asked for")
    table.add_row("  executed", f"{total.executed:,}", "")
    table.add_row("  shared", f"{total.shared:,}", "answered by an equal call of this run")
    table.add_row("  replayed", f"{total.replayed:,}", "answered from the journal")
    if total.failed or total.cancelled:
        table.add_row("  failed", f"{total.failed + total.cancelled:,}", "")
    if stats.outside:
        table.add_row("calls left alone", f"{stats.outside:,}", reasons(stats))
    tools = stats.tool_total
    if tools.planned:
        table.add_row("tool calls", f"{tools.planned:,}", f"{tools.executed:,} executed, {tools.shared:,} shared")
    table.add_section()
    table.add_row("prompt tokens computed", f"{total.computed_tokens:,}", "")
    table.add_row("prompt tokens cached", f"{total.cached_tokens:,}", "in the engines' prefix caches")
    table.add_row("tokens generated", f"{total.generated_tokens:,}", "")
    table.add_row("wall clock", f"{wall_s:,.1f} s", "")
    return table


def reasons(stats: BatchStats) -> str:
    """Why calls were left alone, the most frequent reason first."""
    ordered = sorted(list(stats.outside_reasons.items()), key=lambda item: -item[1])
    return "; ".join(f"{reason} ({count:,})" for reason, count in ordered)
