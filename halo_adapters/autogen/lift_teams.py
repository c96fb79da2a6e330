"""The teams whose next speaker follows from the last turn: round robin and swarm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autogen_agentchat.agents import AssistantAgent, MessageFilterAgent, SocietyOfMindAgent

from halo_adapters.autogen.lift_wiring import Wiring
from halo_core.lift import fields


def round_robin(team: Any) -> Wiring:
    """Participants one after the other; a loop unless the bound ends the run within the first round."""
    w = Wiring(team)
    turns, early = w.ends.turns, w.ends.early
    speaking = w.names[:turns] if turns is not None else w.names
    w.add(speaking)
    w.entry = [speaking[0]]
    once = turns is not None and turns <= len(speaking)
    last = None if turns is None else speaking[(turns - 1) % len(speaking)]
    for name, following in zip(speaking, [*speaking[1:], speaking[0]], strict=True):
        if once and name == last:
            w.finish(name)
            continue
        w.link(name, following, may=early or name == last)
        if early or name == last:
            w.leave(name, may=early)
    w.close(None if turns is None or once else -(-turns // len(speaking)))
    return w


def swarm(team: Any) -> Wiring:
    """The first participant speaks until someone hands over; who has the word keeps it until handing it on."""
    w = Wiring(team)
    handoffs = {name: _handoffs(w.agents[name]) for name in w.names}
    speaking, pending = [], [w.names[0]]
    while pending:
        name = pending.pop(0)
        if name not in speaking:
            speaking.append(name)
            targets = handoffs[name]
            pending += w.names if targets is None else [t for t in targets if t in w.agents]
    w.entry = [w.names[0]]
    w.add(sorted(speaking, key=w.names.index))
    cut = w.ends.early or w.ends.turns is not None
    for name in speaking:
        targets = handoffs[name]
        if w.ends.turns != 1:
            _hand_over(w, name, targets, cut)
        if cut:
            w.leave(name, may=w.ends.early and w.ends.turns != 1)
    w.close(w.ends.turns)
    return w


def _hand_over(w: Wiring, name: str, targets: Sequence[str] | None, cut: bool) -> None:
    """Edges along the handoffs, and back to itself without one; a custom agent may hand over to anyone."""
    if targets is None:
        for target in w.names:
            w.link(name, target, may=True)
        return
    if not targets:
        w.link(name, name, may=cut)
        return
    for target in targets:
        if target in w.agents:
            w.link(name, target, f"handoff to {target}")
        else:  # a termination condition ends the run here; without one it fails
            w.leave(name, may=False, label=f"handoff to {target}")
    w.link(name, name, "no handoff")


def _handoffs(agent: Any) -> list[str] | None:
    """Whom the agent can hand over to; None where only running tells."""
    if type(agent) is MessageFilterAgent:
        return _handoffs(fields(agent)["_wrapped_agent"])
    if type(agent) is not AssistantAgent:
        return [] if type(agent) is SocietyOfMindAgent else None
    return list(dict.fromkeys(str(handoff.target) for handoff in fields(agent)["_handoffs"].values()))
