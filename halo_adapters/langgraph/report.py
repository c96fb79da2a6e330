"""EXPLAIN and EXPLAIN ANALYZE of a graph: its plan, the models in it, who executes it, and what happened."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from halo_adapters.langgraph import intercept
from halo_adapters.langgraph.inventory import inventory, models
from halo_adapters.langgraph.lift import lift, nested
from halo_adapters.langgraph.lift_models import ModelUse
from halo_adapters.langgraph.session import row_content
from halo_core.errors import HaloError, LiftError
from halo_core.explain import analyze, destination, findings, forecast, table
from halo_core.plan import Plan
from halo_core.simulate import RowSet

if TYPE_CHECKING:
    from halo_adapters.langgraph.app import App
    from halo_adapters.langgraph.batching import BatchReport


def explain(handle: App, app: Any, rows: Sequence[Any] | None, cost_per_gpu_hour: float | None = None) -> str:
    """The plan, which models go where and who executes the graph; with `rows`, also what they would share and take.

    A graph that cannot be lifted is explained without a plan.
    """
    lines: list[str] = []
    try:
        plan = handle.plan(app)
    except LiftError as error:
        lines.append(f"no plan: {error}")
    else:
        if rows is None:
            lines += [str(plan), *findings(plan)]
        else:
            lines += _forecast(handle, app, plan, rows, cost_per_gpu_hour)
        for where, graph in nested(app):
            lines += ["", f"inside {where!r}:", _inner(graph)]
    why = handle.why_not_native(app)
    lines += _overlap(handle, app)
    lines += ["", "runs on: " + ("Halo's native executor" if why is None else f"LangGraph's own executor ({why})")]
    return "\n".join([*lines, *_models(app)])


def _forecast(handle: App, app: Any, plan: Plan, rows: Sequence[Any], cost_per_gpu_hour: float | None) -> list[str]:
    rowset = RowSet.of(rows, row_content)
    return forecast(plan, rows, rowset, app=handle.fingerprint(app), cost_per_gpu_hour=cost_per_gpu_hour)


def _overlap(handle: App, app: Any) -> list[str]:
    """For each node that a barrier holds back whether it waits, and why; and whose lookups begin early."""
    try:
        barriers = handle.plan(app).barriers
    except LiftError:
        return []
    native = handle.native_for(app, None, {})
    starts = handle.starts(app)
    lines: list[str] = []
    for name in dict.fromkeys(name for barrier in barriers for name in barrier.before):
        if native is None or not starts:
            reason = "overlap=False" if native is not None else "only Halo's native executor can relax it"
        elif name not in starts:
            reason = "only running tells whether it runs, and when"
        else:
            reason = native.candidates.why_not.get(name) or ("" if starts[name].without else "it reads from all before")
        without = ", ".join(starts[name].without) if not reason else ""
        lines.append(f"  {name}: " + (f"stays: {reason}" if reason else f"relaxed: does not wait for {without}"))
    looks = [candidate.node.name for candidate in native.candidates.nodes if candidate.looks] if native else []
    return [
        *(["", "barriers:", *lines] if lines else []),
        *(["", f"lookups in these begin as soon as what they need is known: {', '.join(looks)}"] if looks else []),
    ]


def _inner(graph: Any) -> str:
    try:
        return str(lift(graph))
    except LiftError as error:
        return f"no plan: {error}"


def _models(app: Any) -> list[str]:
    users: dict[tuple[str, str, str], list[str]] = {}
    uses: dict[tuple[str, str, str], ModelUse] = {}
    for node, use in models(inventory(app)):
        key = (use.name, use.kind, use.base_url or "")
        uses.setdefault(key, use)
        if node not in users.setdefault(key, []):
            users[key].append(node)
    if not uses:
        return ["models: none found in the code; calls are routed as they are made"]
    rows = [
        (use.name or "(named at run time)", use.kind, ", ".join(users[key]), where_to(use)) for key, use in uses.items()
    ]
    return ["models:", *("  " + line for line in table(("name", "class", "nodes", "goes to"), rows))]


def where_to(use: ModelUse) -> str:
    """Where the calls of a model go, in words; asks the pool without adding anything to it."""
    if use.model is None:
        sdk = "routed with install(openai_sdk=True)" if use.client else "decided when it is made"
        return sdk
    routes = intercept.ROUTES
    if routes and not any(route.matches(use.model, cls) for route in routes for cls in type(use.model).__mro__):
        return f"left alone: no route for {use.kind}"
    return destination(use.name, use.base_url)


def explain_analyze(report: BatchReport) -> str:
    """The plan with what happened, see `halo_core.explain.analyze`; without the tree where it cannot be lifted."""
    return analyze(report.batch, _plans(report))


def _plans(report: BatchReport) -> list[tuple[str, Plan]]:
    try:
        inner = [(f"inside {where!r}:", lift(inside)) for where, inside in nested(report.graph)]
        return [("", report.app.plan(report.graph)), *inner]
    except HaloError:
        return []  # what happened is told without the tree
