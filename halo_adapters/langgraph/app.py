"""What Halo keeps about one compiled graph: its plan, its native executor, its options and its last report."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Executor as ThreadExecutor
from typing import TYPE_CHECKING, Any

from halo_adapters.langgraph import threads
from halo_core.errors import LiftError

if TYPE_CHECKING:
    from halo_adapters.langgraph.batching import BatchReport
    from halo_adapters.langgraph.native import NativeGraph
    from halo_core.plan import Plan, Start

logger = logging.getLogger(__name__)


class App:
    """A small handle: engines live in the process's pool, so that graphs can be copied per request."""

    def __init__(
        self,
        app: Any,
        *,
        native: bool = True,
        merge: bool = True,
        overlap: bool = True,
        window: int | None = None,
        name: str | None = None,
    ) -> None:
        """`native`: bypass Pregel where that is exact; `merge`: single-flight equal deterministic calls; `overlap`:
        start nodes before their superstep, and lookups before their node, where the plan proves that nobody can tell
        (native graphs only); `window`: upper bound of rows at a time; `name`: of the plan, by default the graph's."""
        self.name = name or app.get_name()
        self.merge = merge
        self.overlap = overlap
        self.window = window
        self.last_report: BatchReport | None = None
        self.threads: ThreadExecutor = threads.pool()
        self._native = native
        self._native_graph: NativeGraph | None = None
        self._reason: str | None = None
        self._judged = False
        self._judging = threading.Lock()
        self._plan: Plan | None = None
        threads.lift_thread_cap(app, self.threads)

    def __deepcopy__(self, memo: dict[int, Any]) -> App:
        return self.fresh()

    def fresh(self) -> App:
        """The same options for a copy of the graph, which may differ in what decides how it can run (checkpointer)."""
        other = copy.copy(self)
        other._native_graph, other._reason, other._judged, other._plan = None, None, False, None
        return other

    def native_for(self, app: Any, config: Any, kwargs: dict[str, Any]) -> NativeGraph | None:
        """The native executor, where this invocation may use it."""
        if not self._native:
            return None
        from halo_adapters.langgraph import native

        if not self._judged:
            with self._judging:  # the first rows of a synchronous batch come all at once
                self._judge(app)
        options = {name: value for name, value in kwargs.items() if name != "context"}
        if self._native_graph is None or native.ineligible_call(config, **options) is not None:
            return None
        return self._native_graph

    def _judge(self, app: Any) -> None:
        from halo_adapters.langgraph import native

        if self._judged:
            return
        self._reason = native.ineligible(app)
        if self._reason is None:
            self._native_graph = native.NativeGraph(app, self.threads, self.starts(app))
        logger.debug("%s runs on %s", self.name, self._reason or "the native executor")
        self._judged = True

    def why_not_native(self, app: Any) -> str | None:
        """Why this graph runs on LangGraph's own executor, None where it does not."""
        if not self._native:
            return "native=False"
        self.native_for(app, None, {})
        return self._reason

    def plan(self, app: Any) -> Plan:
        """The lifted plan, made once."""
        if self._plan is None:
            from halo_adapters.langgraph.lift import lift

            self._plan = lift(app, name=self.name)
        return self._plan

    def fingerprint(self, app: Any) -> str:
        """Changes when the app changes; ties journals and catalogs to it. Empty where the graph cannot be lifted."""
        try:
            return f"langgraph:{self.name}:{self.plan(app).fingerprint}"
        except LiftError:
            return ""

    def starts(self, app: Any) -> dict[str, Start]:
        """When the graph's nodes may start, as far as that is certain; empty without overlap or plan."""
        from halo_core.plan import starts

        if not self.overlap:
            return {}
        try:
            return starts(self.plan(app))
        except LiftError:
            return {}

    def explain(self, app: Any, rows: Sequence[Any] | None) -> str:
        """The plan as text, and what `rows` would share."""
        from halo_adapters.langgraph.report import explain

        return explain(self, app, rows)
