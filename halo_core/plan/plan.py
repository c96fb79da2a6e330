"""The plan: an agent workflow as operators, edges and facts, checked when it is made."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from pydantic import model_validator

from halo_core.errors import PlanError
from halo_core.plan import document, mermaid, text, validate
from halo_core.plan.edges import AnyExit, Barrier, Edge, StateKey
from halo_core.plan.facts import Fact
from halo_core.plan.frozen import Frozen
from halo_core.plan.graph import build_graph, generations
from halo_core.plan.operators import Keys, Operator

if TYPE_CHECKING:
    from halo_core.plan.graph import Graph


class Plan(Frozen):
    """One workflow, for any number of rows. Raises PlanError, naming the operator, when it is not well formed."""

    name: str
    operators: tuple[Operator, ...]
    edges: tuple[Edge, ...] = ()
    entry: tuple[str, ...]
    """Operators that start with the row."""
    exits: tuple[AnyExit, ...]
    """Where a row may end; a bare operator name stands for an unguarded exit."""
    barriers: tuple[Barrier, ...] = ()
    state: tuple[StateKey, ...] = ()
    output: Keys | None = None
    """State keys that the caller gets in the end; None = all of them."""
    facts: tuple[Fact, ...] = ()
    """What the optimiser's rules found; no executor acts on them."""
    fingerprint: str = ""
    """Digest of the source that was lifted; empty when unknown."""

    @model_validator(mode="after")
    def _check(self) -> Plan:
        validate.check(self)
        return self

    @cached_property
    def _by_name(self) -> dict[str, Operator]:
        return {operator.name: operator for operator in self.operators}

    def __getitem__(self, name: str) -> Operator:
        """The operator of that name; raises PlanError when there is none."""
        try:
            return self._by_name[name]
        except KeyError:
            known = ", ".join(self._by_name)
            raise PlanError(f"plan {self.name!r} has no operator {name!r}; it has {known}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def graph(self) -> Graph:
        """A fresh networkx graph of the operators without loops (see `build_graph`)."""
        return build_graph(self.operators, self.edges)

    def generations(self) -> tuple[tuple[str, ...], ...]:
        """Operators by topological generation; the members of a loop stand in one generation together."""
        return generations(self)

    def to_json(self, indent: int | None = None) -> str:
        """The plan as a versioned JSON document."""
        return document.to_json(self, indent)

    @classmethod
    def from_json(cls, data: str | bytes) -> Plan:
        """Read what `to_json` wrote; raises PlanError for another version or a malformed document."""
        return document.from_json(cls, data)

    def to_mermaid(self) -> str:
        """The plan as a Mermaid flowchart."""
        return mermaid.to_mermaid(self)

    def __str__(self) -> str:
        return text.to_text(self)
