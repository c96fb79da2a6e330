"""LangGraph's side of the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from langchain_core.load.dump import dumpd
from langgraph.graph.state import StateGraph
from langgraph.pregel import Pregel
from pydantic_core import to_jsonable_python

from halo_adapters.langgraph import patch, session
from halo_adapters.langgraph.app import App
from halo_adapters.langgraph.compiled import accelerate
from halo_core.plan import Plan
from halo_core.runtime import Batch, BatchOptions, Journal
from halo_core.runtime.loops import iterate_async


class LangGraphAdapter:
    """Runs StateGraph builders, compiled graphs, agents and entrypoints."""

    name = "langgraph"
    title = "LangGraph"

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

    def run_plain(
        self, app: Any, row: Any, *, on_change: Callable[[Batch], None] | None = None, key: str | None = None
    ) -> Any:
        with _on_pregel(app):
            [(_, result)] = self.run(app, [row], on_change=on_change, keys=None if key is None else [key])
        return result

    def encode(self, result: Any) -> Any:
        return to_jsonable_python(result, fallback=dumpd)

    def comparable(self, app: Any, encoded: Any) -> dict[str, Any]:
        state = encoded if isinstance(encoded, dict) else {"(result)": encoded}
        ids = set(_ids(state))
        return {str(key): _Comparable(ids).value(value) for key, value in state.items()}

    def row_content(self, row: Any) -> str:
        return session.row_content(row)

    def plan(self, app: Any) -> Plan | None:
        found: Plan = app.halo.plan(app)
        return found

    def plan_rows(self, rows: Sequence[Any]) -> Sequence[Any]:
        return rows

    def explain(self, app: Any, rows: Sequence[Any] | None, cost_per_gpu_hour: float | None = None) -> str:
        return str(app.explain(rows, cost_per_gpu_hour=cost_per_gpu_hour))

    def explain_analyze(self, app: Any) -> str:
        return str(app.last_run.explain_analyze()) if app.last_run is not None else ""

    def fingerprint(self, app: Any) -> str:
        # A graph that cannot be lifted runs all the same.
        return app.halo.fingerprint(app) or f"langgraph:{app.halo.name}:not lifted"

    def install(self, *, openai_sdk: bool) -> None:
        patch.install(default="halo", openai_sdk=openai_sdk)


def has_async_nodes(app: Any) -> bool:
    """Whether a node can only be run from a loop."""
    return any(
        getattr(node.bound, "func", node) is None or getattr(node.bound, "coroutine", None) is not None
        for node in app.nodes.values()
    )


@contextmanager
def _on_pregel(app: Any) -> Iterator[None]:
    """Within the block, the graph and the graphs inside it run on LangGraph's own executor, and no call is shared."""
    found = [app, *(inner for _, inner in app.get_subgraphs(recurse=True))]
    before = [(graph, graph.halo) for graph in found if isinstance(getattr(graph, "halo", None), App)]
    try:
        for graph, halo in before:
            graph.halo = App(graph, native=False, merge=False, name=halo.name)
        yield
    finally:
        for graph, halo in before:
            graph.halo = halo


# -- what two runs of the same graph may differ in ---------------------------------------------------------------------

_METADATA = ("id", "system_fingerprint", "created", "token_usage", "service_tier")
"""Of `response_metadata`: the answer's own id and time, and how much of its prompt a cache held."""


def _is_message(value: Any) -> bool:
    """Whether this is a LangChain message as JSON data."""
    return isinstance(value, Mapping) and {"content", "additional_kwargs", "response_metadata", "id"} <= value.keys()


def _ids(value: Any) -> Iterator[str]:
    """Ids of messages and tool calls: made anew in every run, by LangGraph or the engine."""
    if isinstance(value, Mapping):
        if _is_message(value):
            named = [value["id"], value.get("tool_call_id")]
            named += [call.get("id") for call in (*value.get("tool_calls", ()), *value.get("invalid_tool_calls", ()))]
            yield from (each for each in named if isinstance(each, str))
        for inner in value.values():
            yield from _ids(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _ids(inner)


class _Comparable:
    """One state key's value, its ids numbered in the order in which they come: what refers to what is kept."""

    def __init__(self, ids: set[str]) -> None:
        self._ids = ids
        self._numbers: dict[str, str] = {}

    def value(self, value: Any) -> Any:
        """`value` without what differs from run to run."""
        if isinstance(value, str):
            return self._numbers.setdefault(value, f"id {len(self._numbers) + 1}") if value in self._ids else value
        if isinstance(value, list):
            return [self.value(inner) for inner in value]
        if not isinstance(value, Mapping):
            return value
        if _is_message(value):
            value = dict(value)
            value["response_metadata"] = {k: v for k, v in value["response_metadata"].items() if k not in _METADATA}
            if isinstance(usage := value.get("usage_metadata"), Mapping):  # the details tell what a cache held
                value["usage_metadata"] = {k: v for k, v in usage.items() if not k.endswith("_details")}
        return {key: self.value(inner) for key, inner in sorted(value.items())}


ADAPTER = LangGraphAdapter()
