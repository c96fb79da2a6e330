"""What is worth keeping of a call's KV when other engines, or the same one later, could use it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from halo_core.stats import Catalog, EngineCurve, StepProfile

SLACK_TOKENS = 32
"""Shared lengths are learnt from text: a prefix that ends just below a block's end is still saved whole."""


@dataclass(slots=True, frozen=True)
class Keep:
    """How much of a call's KV others will need."""

    tokens: int
    """Leading tokens of its prompt; -1: all, its answer's too."""
    last: bool = False
    """Whether nobody comes back to the conversation that it goes on with: what was kept of that can go."""
    pin_s: float = 0.0
    """Seconds for which the store keeps it before all else, since the plan says that somebody comes back."""


ALL = Keep(-1)
PIN_S = 600.0
"""A conversation's last turn drops its blocks; after so long its row has failed or was given up."""
PINNED = Keep(-1, pin_s=PIN_S)


def keeps(catalog: Catalog | None) -> Mapping[str, Keep]:
    """Operator -> what is to be kept of its calls; empty where nothing is known of the app."""
    if catalog is None:
        return {}
    continued = Counter(step.continues for step in catalog.steps if step.continues)
    by_operator: dict[str, list[StepProfile]] = {}
    for step in catalog.steps:
        by_operator.setdefault(step.operator, []).append(step)
    return {operator: _keep(steps, continued) for operator, steps in by_operator.items()}


def _keep(steps: list[StepProfile], continued: Counter[str]) -> Keep:
    if any(step.name in continued for step in steps):  # of a loop nobody knows which turn is the last
        return PINNED if all(step.name in continued for step in steps) else ALL
    shared = max(step.shared_tokens for step in steps)
    # Only who is the one to come back can say that nobody else will.
    last = all(step.continues and continued[step.continues] == 1 for step in steps)
    return Keep(shared + SLACK_TOKENS if shared else 0, last)


def moving_pays(curve: EngineCurve | None, tokens: int = 512) -> bool:
    """Whether taking the KV of a prefix from the store is cheaper than computing it, by what was measured.

    True where nothing was: shared memory is faster than any model that is worth batching.
    """
    if curve is None or (copy_s := curve.kv_copy_s(tokens)) is None:
        return True
    return copy_s < curve.prefill_s(tokens)
