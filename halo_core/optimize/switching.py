"""Which model each place of a machine has loaded, and for how long: the part of a schedule that loads engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True, frozen=True)
class Phase:
    """A place serves one model until so many calls have been answered."""

    model: str
    operators: frozenset[str]
    """Names of the operators whose calls are counted; all of them call `model`."""
    calls: int
    """Calls that the rows make of them in this phase: shared and replayed ones count, as do those that fail."""


@dataclass(slots=True, frozen=True)
class SwitchPlan:
    """Per place the phases in order; places beyond the last one have no plan."""

    places: Sequence[Sequence[Phase]]
    load_s: Mapping[str, float] = field(default_factory=dict)
    """Model -> seconds of loading it, where they were measured before."""

    @property
    def models(self) -> frozenset[str]:
        """All models of the plan."""
        return frozenset(phase.model for phases in self.places for phase in phases)
