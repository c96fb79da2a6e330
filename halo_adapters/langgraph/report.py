"""EXPLAIN and EXPLAIN ANALYZE of a graph: the plan's tree with numbers in columns to its left, and its surroundings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from halo_adapters.langgraph import intercept
from halo_adapters.langgraph.inventory import inventory, models
from halo_adapters.langgraph.lift import lift, nested
from halo_adapters.langgraph.lift_models import ModelUse
from halo_core.errors import HaloError, LiftError, UnknownModelError
from halo_core.plan import LLMOperator, OpaqueStep, Operator, Plan, consolidate, to_text
from halo_core.pool import Usage, get_pool
from halo_core.pool.engine import Engine
from halo_core.runtime import BatchStats, OperatorStats, get_executor

if TYPE_CHECKING:
    from halo_adapters.langgraph.app import App
    from halo_adapters.langgraph.batching import BatchReport

_MARK = re.compile(r"  \[\0(.*)\0\]$")

Cells = Sequence[int | str]


@dataclass(slots=True)
class Tree:
    """A plan's text, or any lines, with cells for some of its operators."""

    lines: list[str]
    cells: Mapping[str, Cells] = field(default_factory=dict)
    """Operator -> its row of the columns."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """Operator -> what to add at the end of its line."""


def plan_tree(plan: Plan, cells: Mapping[str, Cells], notes: Mapping[str, str] | None = None) -> Tree:
    """The plan's text with a place for cells on each operator's line."""
    return Tree(to_text(plan, lambda name: f"\0{name}\0").split("\n"), cells, notes or {})


def render(headers: Sequence[str], trees: Iterable[Tree]) -> list[str]:
    """The trees one below the other, all in the same columns; the headers stand on the first line."""
    trees = list(trees)
    rows = [[_cell(value) for value in cells] for tree in trees for cells in tree.cells.values()]
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    lines: list[str] = []
    for tree in trees:
        for line in tree.lines:
            marked = _MARK.search(line)
            name = marked.group(1) if marked else ""
            cells = tree.cells.get(name, ()) if marked else ()
            left = headers if not lines else [_cell(value) for value in cells] or [""] * len(headers)
            text = line[: marked.start()] if marked else line
            note = f"  [{tree.notes[name]}]" if tree.notes.get(name) else ""
            columns = "  ".join(value.rjust(width) for value, width in zip(left, widths, strict=True))
            lines.append(f"{columns} │ {text}{note}".rstrip())
    return lines


def table(headers: Sequence[str], rows: Sequence[Cells]) -> list[str]:
    """Lines of aligned columns: texts to the left, numbers to the right."""
    shown = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headers, *shown, strict=True)]
    right = [all(isinstance(row[i], int) for row in rows) for i in range(len(headers))]

    def line(values: Sequence[str]) -> str:
        aligned = (v.rjust(w) if r else v.ljust(w) for v, w, r in zip(values, widths, right, strict=True))
        return "  ".join(aligned).rstrip()

    return [line(headers), *(line(row) for row in shown)]


def _cell(value: int | str) -> str:
    return value if isinstance(value, str) else f"{value:,}" if value else "-"


# -- EXPLAIN -------------------------------------------------------------------------------------------------------


def explain(handle: App, app: Any, rows: Sequence[Any] | None) -> str:
    """The plan, which models go where and who executes the graph; with `rows`, also what they would share.

    A graph that cannot be lifted is explained without a plan.
    """
    lines: list[str] = []
    try:
        plan = handle.plan(app)
    except LiftError as error:
        lines.append(f"no plan: {error}")
    else:
        lines += _with_rows(plan, rows) if rows is not None else [str(plan)]
        for where, graph in nested(app):
            lines += ["", f"inside {where!r}:", _inner(graph)]
    why = handle.why_not_native(app)
    lines += ["", "runs on: " + ("Halo's native executor" if why is None else f"LangGraph's own executor ({why})")]
    return "\n".join([*lines, *_models(app)])


def _inner(graph: Any) -> str:
    try:
        return str(lift(graph))
    except LiftError as error:
        return f"no plan: {error}"


def _with_rows(plan: Plan, rows: Sequence[Any]) -> list[str]:
    # What calls share inside opaque steps does not depend on the steps' purity: equal calls are one call.
    shared = consolidate(plan, rows, assume_pure=True)
    cells: dict[str, Cells] = {}
    notes: dict[str, str] = {}
    calls = distinct_calls = 0
    for count in shared.counts():
        each = _calls(plan[count.operator])
        calls += count.instances * each
        distinct_calls += count.classes * each
        cells[count.operator] = (count.instances, count.classes, count.instances * each, count.classes * each)
        notes[count.operator] = count.unmerged if each else ""
    again = ", each loop and fan-out counted once" if _repeats(plan) else ""
    return [
        *render(("rows", "distinct", "calls", "to make"), [plan_tree(plan, cells, notes)]),
        "",
        f"rows: {len(rows):,}, {_distinct(rows):,} of them distinct",
        f"calls: about {calls:,} planned, {distinct_calls:,} to make (an estimate: the models found in the code are "
        f"called once each{again})",
        *_prefixes(plan, len(rows)),
    ]


def _calls(operator: Operator) -> int:
    """Model calls of one instance, as far as the code tells."""
    if isinstance(operator, OpaqueStep):
        return len(operator.advised_calls)
    return 1 if isinstance(operator, LLMOperator) else 0


def _prefixes(plan: Plan, rows: int) -> list[str]:
    """The beginnings of prompts that are known before anything runs, each with the calls that share it."""
    nodes: dict[str, list[str]] = {}
    for operator in plan.operators:
        for call in (operator,) if isinstance(operator, LLMOperator) else getattr(operator, "advised_calls", ()):
            if call.prompt is not None and (prefix := call.prompt.static_prefix()):
                nodes.setdefault("\n".join(map(str, prefix)), []).append(operator.name)
    if not nodes:
        return []
    lines = [
        (len(text), rows * len(names), ", ".join(dict.fromkeys(names)), text if len(text) <= 60 else f"{text[:60]}…")
        for text, names in nodes.items()
    ]
    headers = ("characters", "calls", "nodes", "prefix")
    return ["prefixes known in advance:", *("  " + line.replace("\n", " ") for line in table(headers, lines))]


def _repeats(plan: Plan) -> bool:
    return any(operator.kind == "loop" for operator in plan.operators) or any(edge.fan_out for edge in plan.edges)


def _distinct(rows: Sequence[Any]) -> int:
    from halo_adapters.langgraph.session import row_content

    return len({row_content(row) for row in rows})


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
        (use.name or "(named at run time)", use.kind, ", ".join(users[key]), destination(use))
        for key, use in uses.items()
    ]
    return ["models:", *("  " + line for line in table(("name", "class", "nodes", "goes to"), rows))]


def destination(use: ModelUse) -> str:
    """Where the calls of a model go, in words; asks the pool without adding anything to it."""
    if use.model is None:
        sdk = "routed with install(openai_sdk=True)" if use.client else "decided when it is made"
        return sdk
    routes = intercept.ROUTES
    if routes and not any(route.matches(use.model, cls) for route in routes for cls in type(use.model).__mro__):
        return f"left alone: no route for {use.kind}"
    if not use.name:
        return "decided at run time"
    pool = get_pool()
    try:
        served = pool.resolve(use.name)
    except UnknownModelError as error:
        return f"left alone: {error}"
    if served is not None:
        return f"pool: {served}"
    if use.base_url and pool.config.adopt:
        return f"its own server, as an engine of the pool: {use.base_url}"
    return f"left alone: no engine serves it (pool: {', '.join(pool.models) or 'empty'})"


# -- EXPLAIN ANALYZE -----------------------------------------------------------------------------------------------

_HEADERS = ("calls", "run", "shared", "replayed", "failed", "computed", "cached", "generated", "avoided")


def explain_analyze(report: BatchReport) -> str:
    """The plan with what happened, per operator and in total, and what the engines have done.

    Columns: calls that the app made; how many of them were run, shared with an equal one, taken from the journal, or
    failed (cancelled ones included); prompt tokens that were computed and that came from prefix caches, tokens
    generated, and prompt and generated tokens that sharing and replaying avoided.
    """
    stats: BatchStats = report.stats
    cells = {name: _counts(operator) for name, operator in sorted(stats.operators.items())}
    trees = _trees(report, cells)
    total = Tree(["", "total  [\0total\0]"], {"total": _counts(stats.total)})
    return "\n".join([*render(_HEADERS, [*trees, total]), "", *_rows(report), *_surroundings(report)])


def _counts(stats: OperatorStats) -> Cells:
    return (
        stats.planned,
        stats.executed,
        stats.shared,
        stats.replayed,
        stats.failed + stats.cancelled,
        stats.computed_tokens,
        stats.cached_tokens,
        stats.generated_tokens,
        stats.avoided_prompt_tokens + stats.avoided_generated_tokens,
    )


def _trees(report: BatchReport, cells: Mapping[str, Cells]) -> list[Tree]:
    """The plan's tree, those of graphs inside it, and the calls of nodes that stand in none of them."""
    left = dict(cells)
    trees: list[Tree] = []
    for title, plan in _plans(report):
        own = {name: left.pop(name) for name in [o.name for o in plan.operators] if name in left}
        trees += ([Tree(["", title])] if title else []) + [plan_tree(plan, own)]
    if left:
        head = ["", "outside the plan:"] if trees else [f"batch {report.batch.name!r}, without a plan"]
        trees.append(Tree([*head, *(f"   {name}  [\0{name}\0]" for name in left)], left))
    return trees or [Tree([f"batch {report.batch.name!r}: no model calls"])]


def _plans(report: BatchReport) -> list[tuple[str, Plan]]:
    try:
        inner = [(f"inside {where!r}:", lift(inside)) for where, inside in nested(report.graph)]
        return [("", report.app.plan(report.graph)), *inner]
    except HaloError:
        return []  # what happened is told without the tree


def _rows(report: BatchReport) -> list[str]:
    stats: BatchStats = report.stats
    replayed = f", {stats.rows_replayed:,} more from the journal" if stats.rows_replayed else ""
    lines = [
        f"rows: {stats.rows_done:,} done, {stats.rows_failed:,} failed{replayed}",
        f"wall time: {stats.wall_s:.2f} s" + (f", {stats.rows_done / stats.wall_s:.1f} rows/s" if stats.wall_s else ""),
        f"outside Halo: {_count(stats.outside, 'call')}" + (":" if stats.outside_reasons else ""),
    ]
    reasons = sorted(stats.outside_reasons.items(), key=lambda item: (-item[1], item[0]))
    lines += [f"  {count:,}  {reason}" for reason, count in reasons]
    lines += [f"trouble: {error}" for error in report.batch.errors]
    return lines


def _surroundings(report: BatchReport) -> list[str]:
    executor = get_executor()
    count, usage = executor.warmups()
    return [_warmups(count, usage), *_engines(executor.pool.engines())]


def _warmups(count: int, usage: Usage) -> str:
    tokens = f" ({usage.computed_tokens:,} prompt tokens computed, {usage.cached_tokens:,} cached)" if count else ""
    return f"prefixes warmed since the pool started: {count:,}{tokens}"


def _engines(engines: Sequence[Engine]) -> list[str]:
    rows = [
        (
            engine.name,
            engine.model,
            engine.health.state,
            engine.counters.calls,
            engine.counters.prompt_tokens - engine.counters.cached_tokens,
            engine.counters.cached_tokens,
            engine.counters.generated_tokens,
            engine.counters.restarts,
        )
        for engine in engines
    ]
    if not rows:
        return ["engines: none"]
    headers = ("name", "model", "state", "calls", "computed", "cached", "generated", "restarts")
    return ["engines since the pool started:", *("  " + line for line in table(headers, rows))]


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" + ("" if n == 1 else "s")
