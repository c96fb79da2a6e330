"""What lifting a team collects: operators, edges, exits; and how a turn may be left.

A run may end after any turn. Where only running tells whether it does, the ways out of the turn are `may` edges and
exits; where not even equal messages make equal ends (a function of the user's, a clock), a route stands after the turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autogen_agentchat.agents import AssistantAgent, MessageFilterAgent, SocietyOfMindAgent

from halo_adapters.autogen.lift_agents import KEYS, agent_step
from halo_adapters.autogen.lift_ends import ends_of
from halo_core.lift import fields
from halo_core.plan import Edge, Exit, Guard, Loop, Operator, Route, Source, StateKey, close_loops

_ONE_MESSAGE = (AssistantAgent, SocietyOfMindAgent, MessageFilterAgent)
"""Participants whose turn is one message to the others."""


class Wiring:
    """One team's operators and edges, as plain lists in a deterministic order."""

    def __init__(self, team: Any, *, relayed: bool = True) -> None:
        """`relayed`: the team hands the task on to its participants and conditions, as all but Magentic-One do."""
        self.relayed = relayed
        self.own = fields(team)
        self.manager = str(self.own["_group_chat_manager_name"])
        self.names = [str(name) for name in self.own["_participant_names"]]
        self.agents = dict(zip(self.names, self.own["_participants"], strict=True))
        single = all(isinstance(agent, _ONE_MESSAGE) for agent in self.agents.values())
        self.ends = ends_of(
            self.own["_termination_condition"], self.own["_max_turns"], task_counts=relayed, single=single
        )
        self.operators: list[Operator] = []
        self.edges: list[Edge] = []
        self.entry: list[str] = []
        self.exits: list[Exit] = []
        self.state: list[StateKey] = []

    def add(self, names: Sequence[str]) -> None:
        """The steps of these participants."""
        self.operators += [agent_step(self.agents[name], name, told_task=self.relayed) for name in names]

    def after(self, name: str) -> str:
        """The operator that the ways out of a turn leave from: the step itself, or a route, see above."""
        if self.ends.told:
            return name
        route = self.unique(f"after:{name}")
        if all(operator.name != route for operator in self.operators):
            source = Source(framework="autogen", hints={"asks": self.ends.text})
            self.operators.append(Route(name=route, reads=KEYS, source=source))
            self.edges.append(Edge(source=name, target=route))
        return route

    def unique(self, wanted: str) -> str:
        """A name for a route that no participant has."""
        while wanted in self.agents or wanted == self.manager:
            wanted += "'"
        return wanted

    def link(self, name: str, target: str, label: str | None = None, *, may: bool = False) -> None:
        """An edge out of a turn; `label` where the step itself decides."""
        source = self.after(name)
        guard = Guard(branch=source, label=label) if label is not None else None
        self.edges.append(Edge(source=source, target=target, guard=guard, may=may))

    def leave(self, name: str, *, may: bool, label: str | None = None) -> None:
        """The run may end after this turn."""
        source = self.after(name)
        guard = Guard(branch=source, label=label) if label is not None else None
        self.exits.append(Exit(source=source, guard=guard, may=may))

    def finish(self, name: str) -> None:
        """The run surely ends after this turn."""
        self.exits.append(Exit(source=name))

    def close(self, bound: int | None) -> None:
        """One loop over each cycle, with its bound on turns; how the run ends is told beside the first operator."""
        operators = close_loops(self.operators, self.edges)
        spoken = {operator.name for operator in operators}
        silent = [name for name in self.names if name not in spoken]
        hints = {"ends": self.ends.text} | ({"never speak": ", ".join(silent)} if silent else {})
        first = operators[0]
        source = first.source.model_copy(update={"hints": {**first.source.hints, **hints}})
        self.operators = [
            first.model_copy(update={"source": source}),
            *(o.model_copy(update={"bound": bound}) if isinstance(o, Loop) else o for o in operators[1:]),
        ]
