"""Learning the catalog from what a batch saw of its first rows."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from halo_core.stats.catalog import Catalog, LastRun, StepProfile, ToolProfile, step_name
from halo_core.stats.distribution import Distribution
from halo_core.stats.observed import Calls, Observed, ObservedCall, ObservedRow, ToolTimes
from halo_core.stats.prompts import Prompts
from halo_core.stats.remembered import now_utc


def learn(app: str, observed: Observed) -> Catalog | None:
    """The catalog of the app with fingerprint `app`; None where no row was seen to call a model."""
    rows = [(row, by_step(row)) for row in observed.rows if row.calls]
    if not rows:
        return None
    seen = Counter(name for _, calls in rows for name in calls)
    after = {name: _always_before(name, [calls for _, calls in rows]) for name in seen}
    prompts = Prompts([(row, {n: c for n, c in calls.items() if c.prompt}) for row, calls in rows])
    steps = []
    for name in _in_order(after):
        of_step = [(row, calls) for row, calls in rows if name in calls]
        first = of_step[0][1][name]
        before = _nearest(after[name], after)
        steps.append(
            StepProfile(
                operator=first.operator,
                turn=_turn(name, first.operator),
                model=first.model,
                frequency=seen[name] / len(rows),
                after=before,
                lead_s=Distribution.of(leads := [_lead_s(row, calls, name, before) for row, calls in of_step]),
                tools_s=_tools_s([calls[name].tools_s for _, calls in of_step], leads),
                prompt_tokens=Distribution.of([calls[name].prompt_tokens for _, calls in of_step]),
                answer_tokens=Distribution.of([calls[name].answer_tokens for _, calls in of_step]),
                parts=prompts.parts(name),
                system_tokens=prompts.system_tokens(name),
                continues=prompts.continues(name),
                distinct=_distinct(observed, first.operator, rows),
            )
        )
    ended = [row for row, _ in rows if row.ended_s]
    tails = [max(row.ended_s - max(c.answered_s for c in row.calls), 0.0) for row in ended]
    return Catalog(
        app=app,
        rows=len(rows),
        steps=tuple(steps),
        tools={name: _tool(times) for name, times in sorted(observed.tools.items())},
        tail_s=Distribution.of(tails),
        tail_tools_s=_tools_s([row.tools_s for row in ended], tails),
        last=_last(observed),
        learnt_at=now_utc(),
    )


def by_step(row: ObservedRow) -> dict[str, ObservedCall]:
    """The row's calls by step, in the order in which they were asked."""
    turns: Counter[str] = Counter()
    named: dict[str, ObservedCall] = {}
    for call in sorted(row.calls, key=lambda c: c.asked_s):
        named[step_name(call.operator, turns[call.operator])] = call
        turns[call.operator] += 1
    return named


def _turn(name: str, operator: str) -> int:
    return int(name.removeprefix(f"{operator}#")) - 1 if name != operator else 0


def _always_before(name: str, rows: Iterable[Calls]) -> set[str]:
    """Steps that were answered before `name` was asked, in every row that has it and them."""
    found: set[str] | None = None
    for calls in rows:
        if name not in calls:
            continue
        asked_s = calls[name].asked_s
        before = {other for other, call in calls.items() if call.answered_s <= asked_s and other != name}
        absent = set() if found is None else found - calls.keys()
        found = before if found is None else (found & before) | absent
    return found or set()


def _in_order(after: Mapping[str, set[str]]) -> list[str]:
    """The steps so that each comes behind those that it waits for."""
    ordered: list[str] = []
    left = dict(after)
    while left:
        ready = [name for name, before in left.items() if before.isdisjoint(left.keys())]
        for name in ready or [min(left, key=lambda n: len(left[n] & left.keys()))]:
            ordered.append(name)
            del left[name]
    return ordered


def _nearest(before: set[str], after: Mapping[str, set[str]]) -> tuple[str, ...]:
    """Those of `before` that no other of them comes after."""
    implied = set().union(*(after[name] for name in before)) if before else set()
    return tuple(sorted(before - implied)) or tuple(sorted(before))


def _lead_s(row: ObservedRow, calls: Calls, name: str, before: Sequence[str]) -> float:
    since = max((calls[other].answered_s for other in before if other in calls), default=row.begun_s)
    return max(calls[name].asked_s - since, 0.0)


def _tools_s(rows: Sequence[Mapping[str, float]], leads: Sequence[float]) -> dict[str, float]:
    """Seconds of the leads that passed in each tool: tools that ran at the same time share what passed."""
    found: dict[str, float] = defaultdict(float)
    for tools, lead_s in zip(rows, leads, strict=True):
        in_all = sum(tools.values())
        for tool, seconds in tools.items():
            found[tool] += seconds * min(lead_s / in_all, 1.0) / len(rows) if in_all else 0.0
    return {tool: seconds for tool, seconds in sorted(found.items()) if seconds > 0.0}


def _distinct(observed: Observed, operator: str, rows: Sequence[tuple[ObservedRow, Calls]]) -> float:
    """Calls computed for each different row, over how many such a row makes."""
    planned, executed = observed.planned.get(operator, 0), observed.executed.get(operator, 0)
    if not planned or not executed or not observed.distinct:
        return 1.0
    counts: dict[str, int] = defaultdict(int)
    for row, calls in rows:
        counts[row.content] = max(counts[row.content], sum(c.operator == operator for c in calls.values()))
    per_row = sum(counts.values()) / len(counts)
    return max(executed / (observed.distinct * max(per_row, 1e-9)), 1e-6)


def _last(observed: Observed) -> LastRun | None:
    """The run itself, where every row was noted and ended well."""
    rows = observed.rows
    if not observed.wall_s or len(rows) != observed.planned_rows:
        return None
    return LastRun(
        wall_s=observed.wall_s,
        contents=tuple(row.content for row in rows),
        fields=tuple(dict(row.fields) for row in rows),
    )


def _tool(times: ToolTimes) -> ToolProfile:
    return ToolProfile(
        calls=times.calls,
        executed=times.executed,
        mean_s=times.busy_s / max(times.executed, 1),
        queued_s=times.queued_s / max(times.calls, 1),
        price=times.price,
    )
