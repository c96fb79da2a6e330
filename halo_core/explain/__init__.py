"""EXPLAIN and EXPLAIN ANALYZE as text, whatever framework the plan comes from."""

from halo_core.explain.analyze import analyze
from halo_core.explain.comparison import Comparison, compare
from halo_core.explain.destination import destination
from halo_core.explain.findings import findings
from halo_core.explain.forecast import Forecast, forecast
from halo_core.explain.html import page
from halo_core.explain.prediction import Prediction, predict
from halo_core.explain.tables import Cells, Tree, plan_tree, render, table

__all__ = [
    "Cells",
    "Comparison",
    "Forecast",
    "Prediction",
    "Tree",
    "analyze",
    "compare",
    "destination",
    "findings",
    "forecast",
    "page",
    "plan_tree",
    "predict",
    "render",
    "table",
]
