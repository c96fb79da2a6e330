"""LangGraph's side of the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from langchain_core.load.dump import dumpd
from langgraph.graph.state import StateGraph
from langgraph.pregel import Pregel
from pydantic_core import to_jsonable_python

from halo_adapters.langgraph import patch, session
from halo_adapters.langgraph.compiled import accelerate
from halo_core.errors import LiftError
from halo_core.plan import Plan
from halo_core.runtime import Batch, BatchOptions, Journal
from halo_core.runtime.loops import iterate_async


class LangGraphAdapter:
    """Runs StateGraph builders, compiled graphs, agents and entrypoints."""

    name = "langgraph"

    def accepts(self, target: Any) -> bool:
        return isinstance(target, StateGraph | Pregel)

    def prepare(self, target: Any, *, merge: bool = True) -> Any:
        patch.install()
        app: Any = accelerate(target.compile() if isinstance(target, StateGraph) else target)
        if not merge:
            app.halo.merge = False
        return app

    def run(
        self,
        app: Any,
        rows: Sequence[Any],
        *,
        journal: Journal | None = None,
        on_change: Callable[[Batch], None] | None = None,
        keys: Sequence[str] | None = None,
        concurrency: int | None = None,
    ) -> Iterator[tuple[int, Any]]:
        config = {"max_concurrency": concurrency} if concurrency else None
        options = BatchOptions(journal, on_change, keys)
        if has_async_nodes(app):
            yield from iterate_async(
                lambda: app.abatch_as_completed(rows, config, return_exceptions=True, halo_options=options)
            )
        else:
            yield from app.batch_as_completed(rows, config, return_exceptions=True, halo_options=options)

    def encode(self, result: Any) -> Any:
        return to_jsonable_python(result, fallback=dumpd)

    def row_content(self, row: Any) -> str:
        return session.row_content(row)

    def plan(self, app: Any) -> Plan | None:
        found: Plan = app.halo.plan(app)
        return found

    def explain(self, app: Any, rows: Sequence[Any] | None) -> str:
        return str(app.explain(rows))

    def explain_analyze(self, app: Any) -> str:
        return str(app.last_run.explain_analyze()) if app.last_run is not None else ""

    def fingerprint(self, app: Any) -> str:
        try:
            return f"langgraph:{app.halo.name}:{app.halo.plan(app).fingerprint}"
        except LiftError:  # a graph that cannot be lifted runs all the same
            return f"langgraph:{app.halo.name}:not lifted"

    def install(self, *, openai_sdk: bool) -> None:
        patch.install(default="halo", openai_sdk=openai_sdk)


def has_async_nodes(app: Any) -> bool:
    """Whether a node can only be run from a loop."""
    return any(
        getattr(node.bound, "func", node) is None or getattr(node.bound, "coroutine", None) is not None
        for node in app.nodes.values()
    )


ADAPTER = LangGraphAdapter()
