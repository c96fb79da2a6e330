"""What the rules and the prefix lint tell of a plan, before anything runs."""

from __future__ import annotations

from collections.abc import Sequence

from halo_core.explain.tables import table
from halo_core.optimize.optimizer import optimize
from halo_core.optimize.prefix_lint import Finding, Sample, lint_plan, lint_samples
from halo_core.plan import Plan


def findings(plan: Plan) -> list[str]:
    """The sections `rules:` and `prefix lint:` as lines of text, without those that are empty."""
    trace = [(step.rule, step.what) for step in optimize(plan).trace]
    rules = ["rules:", *("  " + line for line in table(("rule", "found"), trace))] if trace else []
    return [*rules, *_lint(lint_plan(plan))]


def observed_findings(samples: Sequence[Sample]) -> list[str]:
    """What the lint finds in prompts that were really sent, as lines of text."""
    return _lint(lint_samples(samples))


def _lint(found: Sequence[Finding]) -> list[str]:
    lines = [f"  {finding}" for finding in found]
    return ["prefix lint (prompts are never changed by Halo):", *lines] if lines else []
