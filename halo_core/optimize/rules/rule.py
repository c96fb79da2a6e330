"""What a rewrite rule is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

from halo_core.plan import Fact, Plan


class Rule(Protocol):
    """A pure function of a plan: the plan with what the rule found or changed, or the same plan where that is nothing.

    The executors run the user's own graph, never the rewritten plan: a rule tells EXPLAIN and the planner what is so.
    Applied to its own result a rule changes nothing. A rule with parameters is bound with `functools.partial`.
    """

    def __call__(self, plan: Plan, /) -> Plan:
        """The rewritten plan."""
        ...


def rule_name(rule: Rule | Callable[..., Plan]) -> str:
    """The name of the rule's function."""
    return rule_name(rule.func) if isinstance(rule, partial) else getattr(rule, "__name__", type(rule).__name__)


def add_facts(plan: Plan, found: Iterable[Fact]) -> Plan:
    """The plan with those facts that it does not hold yet; the same object where it holds all."""
    new = tuple(fact for fact in dict.fromkeys(found) if fact not in plan.facts)
    return plan.model_copy(update={"facts": (*plan.facts, *new)}) if new else plan
