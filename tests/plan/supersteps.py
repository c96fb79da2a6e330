"""A tiny superstep machine in LangGraph's manner, to learn what operators of a plan really see."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from halo_core.plan import Edge, Effect, Join, LLMOperator, OpaqueStep, Operator, Plan, Route, ToolOperator

STEPS = 9
"""Supersteps after which a row is cut off."""
OUTPUTS = 3
"""Number of different outputs that an operator can have: few, so that different inputs often give equal outputs."""


def digest(*parts: Any) -> int:
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=4).digest())


@dataclass(slots=True)
class RowRun:
    """What happened in one row: what each operator saw at each of its runs, what it last wrote and decided."""

    seen: dict[str, list[Any]] = field(default_factory=dict)
    updates: dict[str, dict[str, Any]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    """In the end."""


def run(plan: Plan, row: dict[str, Any], chance: Callable[[], int]) -> RowRun:
    """Run one row; `chance` supplies what is not a function of the inputs (samples, the outside world)."""
    machine = _Machine(plan, row, chance)
    machine.run()
    return machine.result


class _Machine:
    def __init__(self, plan: Plan, row: dict[str, Any], chance: Callable[[], int]) -> None:
        self.plan = plan
        self.chance = chance
        self.result = RowRun()
        self.row = row
        self.reducers = {key.name: key.reducer for key in plan.state}
        self.state = self.result.state = {
            key.name: row[key.name] if key.reducer is None else (row[key.name],)
            for key in plan.state
            if key.input and key.name in row
        }
        self.wrote_outside = False
        self.arrived: dict[str, set[str]] = {}

    def run(self) -> None:
        active: list[tuple[str, Any]] = []
        for name in self.plan.entry:
            active += self._arrive(name, "START", None)
        for _ in range(STEPS):
            if not active:
                return
            snapshot = dict(self.state)
            tasks = sorted(set(active), key=repr)
            updates = [self._execute(name, payload, snapshot) for name, payload in tasks]
            for update in updates:
                for key, value in update.items():
                    self.state[key] = value if self.reducers[key] is None else (*self.state.get(key, ()), value)
            active = [
                found for (name, _), update in zip(tasks, updates, strict=True) for found in self._follow(name, update)
            ]

    def _inputs(self, operator: Operator, payload: Any, state: dict[str, Any]) -> Any:
        if operator.inputs is None:
            return (sorted(state.items()), sorted(self.row.items()), payload)
        return ([(key, state.get(key)) for key in operator.inputs], payload)

    def _execute(self, name: str, payload: Any, state: dict[str, Any]) -> dict[str, Any]:
        operator = self.plan[name]
        inputs = self._inputs(operator, payload, state)
        self.result.seen.setdefault(name, []).append(inputs)
        basis = (name, inputs, self.chance() if self._varies(operator) else 0)
        keys = [key.name for key in self.plan.state] if operator.writes is None else operator.writes
        update = {key: digest(basis, key) % OUTPUTS for key in keys}
        if isinstance(operator, OpaqueStep):  # a node may leave keys of its own alone
            update = {key: value for key, value in update.items() if digest(basis, key, "leave") % 3}
        if isinstance(operator, ToolOperator | OpaqueStep):
            self.wrote_outside |= operator.effect is Effect.WRITE
        self.result.updates[name] = update
        self.result.branches[name] = str(digest(basis, "branch") % 4)
        return update

    def _varies(self, operator: Operator) -> bool:
        if isinstance(operator, LLMOperator):
            return not operator.sampling.deterministic
        if isinstance(operator, Route):
            return not operator.deterministic
        if isinstance(operator, ToolOperator | OpaqueStep):
            return operator.effect is Effect.WRITE or (operator.effect is Effect.READ and self.wrote_outside)
        return False

    def _follow(self, name: str, update: dict[str, Any]) -> Iterable[tuple[str, Any]]:
        branch = int(self.result.branches[name])
        for i, edge in enumerate(e for e in self.plan.edges if e.source == name):
            if self._taken(edge, branch >> (i % 2) & 1):
                payload = tuple(sorted(update.items())) if edge.fan_out else None
                yield from self._arrive(edge.target, name, payload)

    def _taken(self, edge: Edge, coin: int) -> bool:
        if edge.guard is not None:
            return edge.guard.label == "xy"[coin]
        return bool(coin) if edge.may else True

    def _arrive(self, name: str, source: str, payload: Any) -> Iterable[tuple[str, Any]]:
        """Routes and joins act between the steps; all others wait for the next."""
        operator = self.plan[name]
        if isinstance(operator, Join):
            arrived = self.arrived.setdefault(name, set())
            arrived.add(source)
            if not arrived.issuperset(e.source for e in self.plan.edges if e.target == name):
                return
            arrived.clear()
        elif not isinstance(operator, Route):
            yield name, payload
            return
        self._execute(name, payload, dict(self.state))
        yield from self._follow(name, {})
