"""When a team's run ends: its termination conditions and its bound on turns. Conditions are read, never asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from autogen_agentchat import conditions as c
from autogen_agentchat.base import AndTerminationCondition, OrTerminationCondition

from halo_adapters.autogen.lift_code import described
from halo_core.lift import fields


@dataclass(frozen=True, slots=True)
class Ends:
    """When a run ends. `turns` counts turns of speaking (supersteps of a `GraphFlow`) for a task of one message."""

    text: str = "never"
    turns: int | None = None
    """Most turns; None = unknown."""
    early: bool = False
    """Whether the run may end before that."""
    told: bool = True
    """Whether the messages alone decide it, so that equal runs end equally."""

    def or_when(self, text: str) -> Ends:
        """The same with one more way to end, which the team itself knows."""
        return replace(self, text=text if self.text == "never" else f"{text} or {self.text}")


def ends_of(condition: Any, max_turns: int | None, *, task_counts: bool = True, single: bool = True) -> Ends:
    """When a team with this termination condition and bound ends.

    `task_counts`: the team counts the task among the messages that its conditions see. `single`: each turn brings one
    message, so that a bound on messages is one on turns; else the run may end before.
    """
    found = _read(condition, int(task_counts), single) if condition is not None else None
    if max_turns is None:
        return found or Ends()
    limit = f"after {max_turns} turn" + ("" if max_turns == 1 else "s")
    if found is None:
        return Ends(limit, max_turns)
    turns = min(max_turns, found.turns) if found.turns is not None else max_turns
    return replace(found, text=f"{found.text} or {limit}", turns=turns)


def _read(condition: Any, task: int, single: bool) -> Ends:
    kind, own = type(condition), fields(condition)
    if kind in (OrTerminationCondition, AndTerminationCondition):
        parts = [_read(part, task, single) for part in own["_conditions"]]
        return _any(parts) if kind is OrTerminationCondition else _all(parts)
    if kind is c.MaxMessageTermination:
        events = bool(own["_include_agent_event"])
        what = "messages and events" if events else "messages"
        turns = max(1, own["_max_messages"] - task)
        return Ends(f"at {own['_max_messages']} {what}", turns, early=events or not single)
    says = _SAYS.get(kind)
    if says is None:
        return Ends(f"when {kind.__name__} says so", early=True, told=False)
    return Ends(says(own), early=True, told=kind not in _UNTOLD)


def _any(parts: Sequence[Ends]) -> Ends:
    bounds = [part.turns for part in parts if part.turns is not None]
    return Ends(
        " or ".join(part.text for part in parts),
        min(bounds, default=None),
        any(part.early for part in parts),
        all(part.told for part in parts),
    )


def _all(parts: Sequence[Ends]) -> Ends:
    bounds = [part.turns for part in parts if part.turns is not None]
    return Ends(
        f"({' and '.join(part.text for part in parts)})",
        max(bounds) if bounds and len(bounds) == len(parts) else None,
        any(part.early for part in parts),
        all(part.told for part in parts),
    )


def _tokens(own: Mapping[str, Any]) -> str:
    kinds = {"_max_total_token": "tokens", "_max_prompt_token": "prompt tokens", "_max_completion_token": "new tokens"}
    return "at " + " or ".join(f"{own[key]} {what}" for key, what in kinds.items() if own[key] is not None)


def _mention(own: Mapping[str, Any]) -> str:
    by = f" by {', '.join(own['_sources'])}" if own["_sources"] is not None else ""
    return f"when '{own['_termination_text']}' is said{by}"


_SAYS: dict[type, Callable[[Mapping[str, Any]], str]] = {
    c.TextMentionTermination: _mention,
    c.StopMessageTermination: lambda own: "on a stop message",
    c.TokenUsageTermination: _tokens,
    c.HandoffTermination: lambda own: f"on a handoff to {own['_target']}",
    c.TimeoutTermination: lambda own: f"after {own['_timeout_seconds']:g} s",
    c.ExternalTermination: lambda own: "when told from outside",
    c.SourceMatchTermination: lambda own: f"when {' or '.join(own['_sources'])} has spoken",
    c.TextMessageTermination: lambda own: "on a text message" + (f" of {own['_source']}" if own["_source"] else ""),
    c.FunctionCallTermination: lambda own: f"when {own['_function_name']} has run",
    c.FunctionalTermination: lambda own: f"when {described(own['_func'])} says so",
}
_UNTOLD = frozenset({c.TimeoutTermination, c.ExternalTermination, c.FunctionalTermination})
