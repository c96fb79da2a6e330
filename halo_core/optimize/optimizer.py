"""The logical optimiser: rules applied in order until none of them finds anything more, and what each did."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from halo_core.optimize.rules.drop_dead import drop_dead
from halo_core.optimize.rules.factor_prefixes import factor_prefixes
from halo_core.optimize.rules.fold_constant_tools import fold_constant_tools
from halo_core.optimize.rules.merge_equal import merge_equal
from halo_core.optimize.rules.rule import Rule, rule_name
from halo_core.plan import Plan

RULES: tuple[Rule, ...] = (
    merge_equal,
    fold_constant_tools,
    drop_dead,
    factor_prefixes,
)
"""The pipeline. As they stand here, rules only add facts: every operator of the plan is one that will run."""

MOST_ROUNDS = 8
"""Rounds through the rules after which the plan is taken as it is."""


@dataclass(slots=True, frozen=True)
class Step:
    """One thing that a rule found or changed."""

    rule: str
    what: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.what}"


@dataclass(slots=True, frozen=True)
class Optimized:
    """A plan after the rules, and how it came to be."""

    plan: Plan
    trace: tuple[Step, ...]
    settled: bool
    """Whether the last round changed nothing; False where `MOST_ROUNDS` ended it."""


def optimize(plan: Plan, rules: Sequence[Rule] = RULES) -> Optimized:
    """Apply the rules in order, again and again until none changes the plan, at most `MOST_ROUNDS` times."""
    trace: list[Step] = []
    for _ in range(MOST_ROUNDS):
        before = plan
        for rule in rules:
            made = rule(plan)
            trace += [Step(rule_name(rule), what) for what in _changes(plan, made)]
            plan = made
        if plan == before:
            return Optimized(plan, tuple(trace), True)
    return Optimized(plan, tuple(trace), False)


def _changes(plan: Plan, made: Plan) -> Iterator[str]:
    """What a rule did, read from the plans before and after it."""
    if made is plan:
        return
    left = {operator.name for operator in made.operators}
    yield from (str(fact) for fact in made.facts if fact not in plan.facts)
    yield from (f"{o.name}: taken out of this plan, not out of the run" for o in plan.operators if o.name not in left)
