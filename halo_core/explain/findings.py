"""What the rules and the prefix lint tell of a plan, before anything runs."""

from __future__ import annotations

from collections.abc import Sequence

from halo_core.explain.tables import table
from halo_core.optimize.optimizer import optimize
from halo_core.optimize.prefix_lint import Finding, Sample, lint_plan, lint_samples
from halo_core.plan import Plan
from halo_core.pool import EnginePool
from halo_core.runtime import Batch
from halo_core.stats import by_step, decoded_reuse


def findings(plan: Plan) -> list[str]:
    """The sections `rules:` and `prefix lint:` as lines of text, without those that are empty."""
    trace = [(step.rule, step.what) for step in optimize(plan).trace]
    rules = ["rules:", *("  " + line for line in table(("rule", "found"), trace))] if trace else []
    return [*rules, *_lint(lint_plan(plan))]


def observed_findings(samples: Sequence[Sample]) -> list[str]:
    """What the lint finds in prompts that were really sent, as lines of text."""
    return _lint(lint_samples(samples))


def reuse_findings(batch: Batch, pool: EnginePool) -> list[str]:
    """How much of their own answers agents found in the caches when they went on, as lines of text."""
    catalog = batch.learnt or batch.known
    if batch.watch is None or catalog is None:
        return []
    continues = {step.name: step.continues for step in catalog.steps if step.continues}
    rows = [(row, by_step(row)) for row in batch.watch.observed(batch.stats).rows if row.calls]
    block_tokens = max((engine.capacity.block_size for engine in pool.engines()), default=16)
    found = decoded_reuse(rows, continues, block_tokens)
    return ["agents' own answers in their next turns:", *(f"  {reuse}" for reuse in found)] if found else []


def _lint(found: Sequence[Finding]) -> list[str]:
    lines = [f"  {finding}" for finding in found]
    return ["prefix lint (prompts are never changed by Halo):", *lines] if lines else []
