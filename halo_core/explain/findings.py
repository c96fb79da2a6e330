"""What the rules and the prefix lint tell of a plan, before anything runs."""

from __future__ import annotations

from halo_core.explain.tables import table
from halo_core.optimize.optimizer import optimize
from halo_core.optimize.prefix_lint import lint_plan
from halo_core.plan import Plan


def findings(plan: Plan) -> list[str]:
    """The sections `rules:` and `prefix lint:` as lines of text, without those that are empty."""
    trace = [(step.rule, step.what) for step in optimize(plan).trace]
    lint = [f"  {finding}" for finding in lint_plan(plan)]
    return [
        *(["rules:", *("  " + line for line in table(("rule", "found"), trace))] if trace else []),
        *(["prefix lint (prompts are never changed by Halo):", *lint] if lint else []),
    ]
