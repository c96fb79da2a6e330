"""Several apps in one submission: which of their operators are one call per row when they are given the same rows."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from halo_core.errors import PlanError
from halo_core.optimize.equal import call_of
from halo_core.plan import Effect, Plan, effect_of
from halo_core.plan.dataflow import Dataflow


@dataclass(slots=True, frozen=True)
class CommonCall:
    """Operators of different apps that make one call per row."""

    operators: tuple[tuple[str, str], ...]
    """(app, operator), one for each app."""

    def __str__(self) -> str:
        names = list(dict.fromkeys(operator for _, operator in self.operators))
        if len(names) == 1:
            who = f"{names[0]} in {_listed([app for app, _ in self.operators])}"
        else:
            who = _listed([f"{operator} in {app}" for app, operator in self.operators])
        return f"{who} is one call per row"


@dataclass(slots=True, frozen=True)
class Submission:
    """Plans that are given the same rows together."""

    plans: tuple[Plan, ...]
    common: tuple[CommonCall, ...]

    def __str__(self) -> str:
        names = ", ".join(plan.name for plan in self.plans)
        return "\n".join([f"submission of {names}, where they run in one batch:", *(f"  {c}" for c in self.common)])


def combine(plans: Sequence[Plan]) -> Submission:
    """Find the equal operators of different plans. Raises PlanError where two plans have one name.

    Operators are one where they make the same call (see `call_of`), run once per row, and read nothing but what the
    row brings: what another operator wrote may have passed through code that the plan does not know. A read counts
    only where no plan writes to the world. The n-th such call of one plan stands for the n-th of another, because
    within one row a repeated call is a new one. The runtime merges equal calls of one batch by fingerprint, whatever
    app they come from; apps that run as batches of their own share no calls.
    """
    names = [plan.name for plan in plans]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise PlanError(f"two plans of the submission are named {twice!r}; lift one with another `name=`")
    writes = any(effect_of(operator) is Effect.WRITE for plan in plans for operator in plan.operators)
    users: dict[Hashable, list[tuple[str, str]]] = {}
    for plan in plans:
        repeated: dict[Hashable, int] = {}
        for name, call in _calls(plan, writes):
            repeated[call] = repeated.get(call, 0) + 1
            users.setdefault((call, repeated[call]), []).append((plan.name, name))
    return Submission(tuple(plans), tuple(CommonCall(tuple(of)) for of in users.values() if len(of) > 1))


def _calls(plan: Plan, writes: bool) -> list[tuple[str, Hashable]]:
    """The operators of the plan whose call the row alone decides, and that call."""
    flow = Dataflow(plan)
    found: list[tuple[str, Hashable]] = []
    for name in flow.order:
        operator, span, inputs = plan[name], flow.spans[name], flow.inputs[name]
        call = call_of(operator)
        settled = not inputs.row and not inputs.written and span.first == span.last and name not in flow.unmerged
        if call is None or not settled or (writes and effect_of(operator) is Effect.READ):
            continue
        found.append((name, call))
    return found


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"
