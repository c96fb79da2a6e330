"""What the catalog lets a batch decide before its first row: what to serve first, and which models to load when."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from halo_core.errors import HaloError
from halo_core.optimize.fewest_loads import fewest_loads
from halo_core.optimize.planning import plan_batch
from halo_core.optimize.problem import Worker
from halo_core.optimize.rank import operator_ranks
from halo_core.optimize.switching import Phase, SwitchPlan
from halo_core.pool.calibrate import remembered
from halo_core.pool.layout import over_places
from halo_core.pool.pool import EnginePool
from halo_core.stats import CalibrationRecord, Catalog, EngineCurve

logger = logging.getLogger(__name__)

PLAN_BUDGET_S = 1.0


def ranks(catalog: Catalog | None, pool: EnginePool) -> dict[str, float]:
    """Operator -> how much of its row is still to come: by the engines' curve, where they were measured."""
    if catalog is None:
        return {}
    try:
        curves = [pool.group(step.model).curve for step in catalog.steps]
    except HaloError:
        curves = []
    return operator_ranks(catalog, next((curve for curve in curves if curve is not None), None))


def switch_plan(catalog: Catalog | None, pool: EnginePool, rows: int, distinct: Callable[[], int]) -> SwitchPlan | None:
    """Which place loads which model when, for a pool whose models take turns; None where too little is known."""
    places = pool.places
    if places is None or catalog is None or not {step.model for step in catalog.steps} <= places.specs.keys():
        return None
    specs = {spec.model: spec for spec in over_places(pool.config).engines}
    curves: dict[str, EngineCurve] = {}
    records: list[CalibrationRecord] = []
    for model in {step.model for step in catalog.steps}:
        record = remembered([specs[model]])
        if record is None:
            logger.info("which models to load when is not planned: %r was never measured (halo calibrate)", model)
            return None
        load_s = places.load_s.get(model, record.curve.load_s)
        curves[model] = record.curve.model_copy(update={"load_s": load_s})
        records.append(record)
    loaded = [place.model for place in places.all]
    plan = fewest_loads(catalog, rows, loaded, {model: curve.load_s for model, curve in curves.items()})
    if plan is None:  # too many orders to try: what is shortest has few loads too
        slots, kv_tokens = min(r.slots for r in records), min(r.kv_tokens for r in records)
        workers = [Worker(f"place {i}", curves, model, slots, kv_tokens) for i, model in enumerate(loaded)]
        plan = plan_batch(catalog, rows, distinct(), workers, budget_s=PLAN_BUDGET_S).switch_plan()
    logger.info("models are loaded by plan: %s", "; ".join(_order(phases) for phases in plan.places))
    return plan


def _order(phases: Sequence[Phase]) -> str:
    return " -> ".join(phase.model for phase in phases)
