"""EXPLAIN and EXPLAIN ANALYZE of a team: its plan, the models in it, who executes it, and what happened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from autogen_agentchat.base import ChatAgent, Team

from halo_adapters.autogen.lift import lift, nested
from halo_adapters.autogen.lift_agents import uses
from halo_adapters.autogen.lift_models import ModelUse
from halo_adapters.autogen.tasks import Task, task_content
from halo_adapters.autogen.template import lifted_fingerprint
from halo_core.errors import LiftError
from halo_core.explain import analyze, destination, findings, forecast, table
from halo_core.lift import fields
from halo_core.plan import Plan
from halo_core.runtime import Batch
from halo_core.simulate import RowSet


def explain(
    team: Team | ChatAgent,
    tasks: Sequence[Task] | None = None,
    *,
    why_not_native: Callable[[Any], str | None] | None = None,
    cost_per_gpu_hour: float | None = None,
) -> str:
    """The plan, which models go where and who executes the team; with `tasks`, also what they would share and take.

    A team that cannot be lifted is explained without a plan. `why_not_native` tells why AutoGen's own runtime must run
    a team, or None where Halo does; without it nothing is said of that.
    """
    lines: list[str] = []
    try:
        plan, inside = lift(team), nested(team)
    except LiftError as error:
        lines.append(f"no plan: {error}")
    else:
        contents = [task_content(task) for task in tasks or ()]
        rows = [{"task": content} for content in contents]
        if tasks is None:
            lines += [str(plan), *findings(plan)]
        else:
            app = lifted_fingerprint(team)
            lines += forecast(plan, rows, RowSet(contents), app=app, cost_per_gpu_hour=cost_per_gpu_hour)
        for where, inner in inside:
            lines += ["", f"inside {where!r}:", _inner(inner)]
    lines.append("")
    if why_not_native is not None:
        why = why_not_native(team)
        lines.append("runs on: " + ("Halo's native driver" if why is None else f"AutoGen's own runtime ({why})"))
    return "\n".join([*lines, *_models(team)])


def explain_analyze(batch: Batch, team: Team | ChatAgent) -> str:
    """The plan with what happened, see `halo_core.explain.analyze`; without the tree where it cannot be lifted."""
    return analyze(batch, _plans(team))


def _plans(team: Team | ChatAgent) -> list[tuple[str, Plan]]:
    try:
        return [("", lift(team)), *((f"inside {where!r}:", lift(inner)) for where, inner in nested(team))]
    except LiftError:
        return []  # what happened is told without the tree


def _inner(team: Team) -> str:
    try:
        return str(lift(team))
    except LiftError as error:
        return f"no plan: {error}"


def _models(team: Team | ChatAgent) -> list[str]:
    users: dict[tuple[str, str, str], list[str]] = {}
    found: dict[tuple[str, str, str], ModelUse] = {}
    for who, use in _uses(team):
        key = (use.name, use.kind, use.base_url or "")
        found.setdefault(key, use)
        if who not in users.setdefault(key, []):
            users[key].append(who)
    if not found:
        return ["models: none found in the agents; calls are routed as they are made"]
    rows = [
        (use.name or "(named at run time)", use.kind, ", ".join(users[key]), destination(use.name, use.base_url))
        for key, use in found.items()
    ]
    return ["models:", *("  " + line for line in table(("name", "class", "agents", "goes to"), rows))]


def _uses(team: Team | ChatAgent) -> list[tuple[str, ModelUse]]:
    try:
        return list(uses(team, "" if isinstance(team, Team) else str(fields(team).get("_name") or "")))
    except Exception:  # what is not as AutoGen makes it has no plan either, and the reason stands there
        return []
