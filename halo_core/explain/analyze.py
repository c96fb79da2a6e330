"""EXPLAIN ANALYZE: a batch's plans with what really happened, and what the engines have done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from halo_core.explain.comparison import comparison
from halo_core.explain.findings import observed_findings, reuse_findings
from halo_core.explain.tables import Cells, Tree, plan_tree, render, table
from halo_core.plan import Plan
from halo_core.pool import Engine, Places, Usage
from halo_core.runtime import Batch, BatchStats, OperatorStats, get_executor

_HEADERS = ("calls", "run", "shared", "replayed", "failed", "computed", "cached", "moved", "generated", "avoided")


def analyze(batch: Batch, plans: Sequence[tuple[str, Plan]]) -> str:
    """The plans with what happened, per operator and in total, and what the engines have done.

    Columns: calls that the app made; how many of them were run, shared with an equal one, taken from the journal, or
    failed (cancelled ones included); prompt tokens that were computed, that came from prefix caches, and those of the
    latter that came from other engines or back from the host's block store; tokens generated, and prompt and generated
    tokens that sharing and replaying avoided.
    """
    stats = batch.stats
    cells = {name: _counts(operator) for name, operator in sorted(stats.operators.items())}
    trees = _trees(batch, plans, cells)
    total = Tree(["", "total  [\0total\0]"], {"total": _counts(stats.total)})
    lines = [*render(_HEADERS, [*trees, total]), "", *_tools(stats), *_rows(batch), *_surroundings()]
    if batch.watch is not None:
        pool = get_executor().pool
        lines += [*comparison(batch, pool), *reuse_findings(batch, pool)]
        lines += observed_findings(batch.watch.prompts())
    return "\n".join(lines)


def _tools(stats: BatchStats) -> list[str]:
    """The tools: calls that the app made, what became of them, and seconds over all rows."""
    if not stats.tools:
        return []
    headers = ("tool", "calls", "run", "shared", "failed", "retried", "busy s", "queued s")
    named = [*sorted(stats.tools.items()), *([("total", stats.tool_total)] if len(stats.tools) > 1 else [])]
    rows = [
        (
            name,
            tool.planned,
            tool.executed,
            tool.shared,
            tool.failed + tool.cancelled,
            tool.retried,
            f"{tool.busy_s:.2f}",
            f"{tool.queued_s:.2f}",
        )
        for name, tool in named
    ]
    return [*table(headers, rows), ""]


def _counts(stats: OperatorStats) -> Cells:
    return (
        stats.planned,
        stats.executed,
        stats.shared,
        stats.replayed,
        stats.failed + stats.cancelled,
        stats.computed_tokens,
        stats.cached_tokens,
        stats.moved_tokens,
        stats.generated_tokens,
        stats.avoided_prompt_tokens + stats.avoided_generated_tokens,
    )


def _trees(batch: Batch, plans: Sequence[tuple[str, Plan]], cells: Mapping[str, Cells]) -> list[Tree]:
    """The plan's tree, those of graphs inside it, and the calls of nodes that stand in none of them."""
    left = dict(cells)
    trees: list[Tree] = []
    for title, plan in plans:
        own = {name: left.pop(name) for name in [o.name for o in plan.operators] if name in left}
        trees += ([Tree(["", title])] if title else []) + [plan_tree(plan, own)]
    if left:
        head = ["", "outside the plan:"] if trees else [f"batch {batch.name!r}, without a plan"]
        trees.append(Tree([*head, *(f"   {name}  [\0{name}\0]" for name in left)], left))
    return trees or [Tree([f"batch {batch.name!r}: no model calls"])]


def _rows(batch: Batch) -> list[str]:
    stats = batch.stats
    replayed = f", {stats.rows_replayed:,} more from the journal" if stats.rows_replayed else ""
    lines = [
        f"rows: {stats.rows_done:,} done, {stats.rows_failed:,} failed{replayed}",
        f"wall time: {stats.wall_s:.2f} s" + (f", {stats.rows_done / stats.wall_s:.1f} rows/s" if stats.wall_s else ""),
        f"outside Halo: {_count(stats.outside, 'call')}" + (":" if stats.outside_reasons else ""),
    ]
    reasons = sorted(stats.outside_reasons.items(), key=lambda item: (-item[1], item[0]))
    lines += [f"  {count:,}  {reason}" for reason, count in reasons]
    lines += [f"trouble: {error}" for error in batch.errors]
    return lines


def _surroundings() -> list[str]:
    executor = get_executor()
    count, usage = executor.warmups()
    pool = executor.pool
    return [*_warmups(count, usage), *_engines(pool.engines()), *(_places(pool.places) if pool.places else [])]


def _warmups(count: int, usage: Usage) -> list[str]:
    if not count:
        return []
    tokens = f"{usage.computed_tokens:,} prompt tokens computed, {usage.cached_tokens:,} cached"
    return [f"prefixes warmed since the pool started: {count:,} ({tokens})"]


def _engines(engines: Sequence[Engine]) -> list[str]:
    rows = [
        (
            engine.name,
            engine.model,
            engine.health.state,
            engine.counters.calls,
            engine.counters.prompt_tokens - engine.counters.cached_tokens,
            engine.counters.cached_tokens,
            engine.counters.moved_tokens,
            engine.counters.generated_tokens,
            engine.counters.restarts,
        )
        for engine in engines
    ]
    if not rows:
        return ["engines: none"]
    headers = ("name", "model", "state", "calls", "computed", "cached", "moved", "generated", "restarts")
    lines = ["engines since the pool started:", *("  " + line for line in table(headers, rows)), *_store(engines)]
    preempted = sum(map(_preemptions, engines))
    if preempted:
        lines.append(f"{_count(preempted, 'preemption')}: calls that lost their KV to others while they ran")
    return lines


def _preemptions(engine: Engine) -> int:
    sharing = engine.sharing
    counted = sharing.counters().get("preemptions", 0) if sharing is not None else 0
    return counted + int(engine.counters.extra.get("preemptions", 0))


def _store(engines: Sequence[Engine]) -> list[str]:
    """What went through the host's block store."""
    total: Counter[str] = Counter()
    for engine in engines:
        if engine.sharing is not None:
            total.update(engine.sharing.counters())
    if not any(total.values()):
        return []
    loaded = f"{_mb(total['loaded_bytes'])} loaded in {total['load_us'] / 1e6:.2f} s"
    hidden = f" ({total['hidden_us'] / 1e6:.2f} s of it beside other calls' steps)" if total["hidden_us"] else ""
    lines = [f"KV store: {loaded}{hidden}, {_mb(total['saved_bytes'])} saved in {total['save_us'] / 1e6:.2f} s"]
    if total["failed_blocks"] or total["refused_blocks"]:
        lost = f"{_count(total['failed_blocks'], 'block')} gone when wanted, and computed again"
        lines.append(f"  {lost}; {_count(total['refused_blocks'], 'block')} not saved for lack of room")
    return lines


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


def _places(places: Places) -> list[str]:
    """What is loaded where, and what changing it took."""
    headers = ("place", "resident", "loads", "switches", "loading s")
    rows = [
        (str(p.index), p.loading or p.model or "-", len(p.loads), p.switches, f"{p.switch_s:.1f}") for p in places.all
    ]
    title = f"places: {len(rows)}, {_count(places.switches, 'switch', 'switches')} between {len(places.specs)} models:"
    return [title, *("  " + line for line in table(headers, rows))]


def _count(n: int, noun: str, plural: str = "") -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {plural or noun + 's'}"
