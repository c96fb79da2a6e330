"""Lifting: an AutoGen team as a plan, read from its attributes (AutoGen 0.7.5 is its last feature release).

Nothing of the user's runs: no selector function, no condition, no tool. What only running tells stays open: opaque
steps, `may` edges, loops. Operators are named as attribution names the callers: by agent, and by the team's manager.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from autogen_agentchat.base import ChatAgent, Team
from autogen_agentchat.teams import (
    BaseGroupChat,
    GraphFlow,
    MagenticOneGroupChat,
    RoundRobinGroupChat,
    SelectorGroupChat,
    Swarm,
)

from halo_adapters.autogen.lift_agents import agent_step, parts
from halo_adapters.autogen.lift_digest import fingerprint
from halo_adapters.autogen.lift_graph import graph_flow
from halo_adapters.autogen.lift_routers import magentic, selector
from halo_adapters.autogen.lift_teams import round_robin, swarm
from halo_adapters.autogen.lift_wiring import Wiring
from halo_core.errors import HaloError, LiftError
from halo_core.lift import barriers, fields
from halo_core.plan import Plan, StateKey

STATE = (StateKey(name="task"), StateKey(name="messages", reducer="autogen.broadcast"))
"""The row's task, and what the team has said: every participant hears everything, in order."""

_KINDS: tuple[tuple[type[BaseGroupChat], Callable[[Any], Wiring]], ...] = (
    (RoundRobinGroupChat, round_robin),
    (GraphFlow, graph_flow),
    (SelectorGroupChat, selector),
    (Swarm, swarm),
    (MagenticOneGroupChat, magentic),
)


def lift(team: Team | ChatAgent, *, name: str | None = None) -> Plan:
    """The plan of a team, or of a single agent: one step. Rows are `{"task": text}`.

    Raises `LiftError`, naming the team or agent, where there is no well-formed plan.
    """
    title = name or _name(team)
    try:
        plan = _lift(team, title)
        return plan.model_copy(update={"fingerprint": fingerprint(team)})
    except LiftError:
        raise
    except Exception as error:  # whatever a team holds, it must still be able to run
        what = str(error) if isinstance(error, HaloError) else f"{type(error).__name__}: {error}"
        raise LiftError(f"{title!r} has no plan ({what}); it runs as before, without one") from error


def _lift(team: Team | ChatAgent, title: str) -> Plan:
    if isinstance(team, ChatAgent):
        step = agent_step(team, _name(team))
        return Plan(name=title, operators=(step,), entry=(step.name,), exits=(step.name,), state=STATE)  # type: ignore[arg-type]
    wiring = _wire(team, title)
    plan = Plan(
        name=title,
        operators=tuple(wiring.operators),
        edges=tuple(wiring.edges),
        entry=tuple(wiring.entry),
        exits=tuple(dict.fromkeys(wiring.exits)),
        state=(*STATE, *wiring.state),
    )
    return plan.model_copy(update={"barriers": barriers(plan)}) if isinstance(team, GraphFlow) else plan


def _wire(team: Any, title: str) -> Wiring:
    for kind, wire in _KINDS:
        if isinstance(team, kind):
            same = type(team)._create_group_chat_manager_factory is kind._create_group_chat_manager_factory
            if same and type(team)._create_participant_factory is BaseGroupChat._create_participant_factory:
                return wire(team)
    raise LiftError(
        f"team {title!r} is a {type(team).__qualname__}, whose manager nobody but itself knows; it runs as before, "
        "without a plan"
    )


def nested(team: Team | ChatAgent) -> list[tuple[str, Team]]:
    """The teams inside the team's participants and their tools, each once, with where they are (`outer/inner`).

    Raises `LiftError` where an agent is not as AutoGen makes them.
    """
    try:
        return _nested(team)
    except Exception as error:  # as in `lift`
        raise LiftError(f"{_name(team)!r} cannot be looked into ({type(error).__name__}: {error})") from error


def _nested(team: Team | ChatAgent) -> list[tuple[str, Team]]:
    seen = {id(team)}
    found: list[tuple[str, Team]] = []
    pending: list[tuple[str, Any]] = [("" if isinstance(team, Team) else _name(team), team)]
    while pending:
        path, holder = pending.pop()
        if isinstance(holder, Team) and holder is not team:
            found.append((path, holder))
        inside = [(f"{path}/{name}".strip("/"), part) for name, part in parts(holder) if id(part) not in seen]
        seen.update(id(part) for _, part in inside)
        pending += reversed(inside)
    return found


def _name(team: object) -> str:
    return str(fields(team).get("_name") or type(team).__name__)
