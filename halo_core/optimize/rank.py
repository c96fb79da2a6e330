"""How much of a row is still to come behind each of its steps: the upward rank of HEFT (Topcuoglu et al. 2002)."""

from __future__ import annotations

from halo_core.stats import Catalog, EngineCurve, StepProfile


def step_s(step: StepProfile, curve: EngineCurve) -> float:
    """Seconds that a call of the step takes by itself, nothing of its prompt cached."""
    context = step.prompt_tokens.mean + step.answer_tokens.mean / 2
    return (
        curve.request_s + curve.prefill_s(step.prompt_tokens.mean) + curve.decode_s(step.answer_tokens.mean, 1, context)
    )


def upward_ranks(catalog: Catalog, curve: EngineCurve | None = None) -> dict[str, float]:
    """Step -> the longest way from its beginning to the row's end, tools included.

    In seconds; without a curve in tokens, of a prompt as of an answer, tools left out.
    """
    below: dict[str, list[StepProfile]] = {step.name: [] for step in catalog.steps}
    for step in catalog.steps:
        for name in step.after:
            below[name].append(step)
    ranks: dict[str, float] = {}
    for step in reversed(catalog.steps):
        own = step_s(step, curve) if curve is not None else step.prompt_tokens.mean + step.answer_tokens.mean
        # A step that a turn of a loop leads back to stands above it in the catalog's order: its rank is not known yet.
        ways = (
            ranks.get(after.name, 0.0) + (after.lead_s.mean if curve is not None else 0.0) for after in below[step.name]
        )
        ranks[step.name] = own + max(ways, default=0.0)
    return ranks


def operator_ranks(catalog: Catalog, curve: EngineCurve | None = None) -> dict[str, float]:
    """Operator -> the rank of its first call."""
    ranks = upward_ranks(catalog, curve)
    found: dict[str, float] = {}
    for step in catalog.steps:
        found[step.operator] = max(found.get(step.operator, 0.0), ranks[step.name])
    return found
