"""How much KV the rows under way keep for their next turns, so that no conversation is evicted before it goes on."""

from __future__ import annotations

from halo_core.stats import Catalog, StepProfile

HEADROOM = 0.9
"""Share of an engine's KV that rows are planned to fill: lengths are means."""
UNBOUNDED = 1_000_000


def row_kv_tokens(catalog: Catalog) -> float:
    """Tokens of KV that one row keeps at its fullest: conversations that a later step goes on with, and those steps.

    Steps of one depth are taken to run at a time. Calls that nothing goes on from can wait for each other, so they do
    not count, and neither does what all rows share.
    """
    depth: dict[str, int] = {}
    for step in catalog.steps:
        depth[step.name] = 1 + max((depth.get(name, 0) for name in step.after), default=0)
    kept_until = {step.continues: depth[step.name] for step in catalog.steps if step.continues in depth}

    def held(step: StepProfile, level: int) -> bool:
        if depth[step.name] == level:
            return step.name in kept_until or bool(step.continues)
        return depth[step.name] < level < kept_until.get(step.name, 0)

    levels = range(1, max(depth.values(), default=0) + 1)
    return max((sum(_own_tokens(s) for s in catalog.steps if held(s, level)) for level in levels), default=0.0)


def rows_at_a_time(catalog: Catalog, kv_tokens: float) -> int:
    """Rows whose conversations fit into so many tokens on all engines together, at least one."""
    each = row_kv_tokens(catalog)
    return max(1, int(HEADROOM * kv_tokens / each)) if each else UNBOUNDED


def _own_tokens(step: StepProfile) -> float:
    shared = sum(part.tokens for part in step.parts if part.scope == "app")
    return step.frequency * max(step.prompt_tokens.mean - shared + step.answer_tokens.mean, 0.0)
