"""The runtime: admission, single-flight, dispatch, journal, rows and results. Knows no framework."""

from halo_core.runtime.batch import Batch, Run, row_keys
from halo_core.runtime.current import LOOKING, SESSION, Look, NotYet, not_ahead
from halo_core.runtime.executor import Executor, get_executor
from halo_core.runtime.flight import How
from halo_core.runtime.journal import Journal, RowResult
from halo_core.runtime.loops import on_event_loop
from halo_core.runtime.rows import MISSING, BatchOptions, Rows
from halo_core.runtime.session import ambient_run, digest
from halo_core.runtime.stats import BatchStats, OperatorStats, Span, ToolStats
from halo_core.runtime.tool_call import ToolCall
from halo_core.runtime.tool_desk import ToolDesk

__all__ = [
    "LOOKING",
    "MISSING",
    "SESSION",
    "Batch",
    "BatchOptions",
    "BatchStats",
    "Executor",
    "How",
    "Journal",
    "Look",
    "NotYet",
    "OperatorStats",
    "RowResult",
    "Rows",
    "Run",
    "Span",
    "ToolCall",
    "ToolDesk",
    "ToolStats",
    "ambient_run",
    "digest",
    "get_executor",
    "not_ahead",
    "on_event_loop",
    "row_keys",
]
