"""What was measured: engines (calibrated curves) and operators (the catalog)."""

from halo_core.stats.calibration import CalibrationRecord, CurveKey
from halo_core.stats.catalog import (
    Catalog,
    SharedPart,
    StepProfile,
    ToolProfile,
    catalog_file,
    read_catalog,
    step_name,
    write_catalog,
)
from halo_core.stats.curve import DecodePoint, EngineCurve, attention_pairs
from halo_core.stats.distribution import Distribution
from halo_core.stats.fields import row_fields
from halo_core.stats.fit import Probe, Residual, fit, residuals
from halo_core.stats.learn import by_step, learn
from halo_core.stats.observed import ROWS_READ, ROWS_TIMED, Observed, ObservedCall, ObservedRow, ToolTimes
from halo_core.stats.query_price import QUERIES_KEPT, KnownQuery, QueryPrice, QueryTime, growth_of, price_of
from halo_core.stats.reuse import Reuse, decoded_reuse

__all__ = [
    "QUERIES_KEPT",
    "ROWS_READ",
    "ROWS_TIMED",
    "CalibrationRecord",
    "Catalog",
    "CurveKey",
    "DecodePoint",
    "Distribution",
    "EngineCurve",
    "KnownQuery",
    "Observed",
    "ObservedCall",
    "ObservedRow",
    "Probe",
    "QueryPrice",
    "QueryTime",
    "Residual",
    "Reuse",
    "SharedPart",
    "StepProfile",
    "ToolProfile",
    "ToolTimes",
    "attention_pairs",
    "by_step",
    "catalog_file",
    "decoded_reuse",
    "fit",
    "growth_of",
    "learn",
    "price_of",
    "read_catalog",
    "residuals",
    "row_fields",
    "step_name",
    "write_catalog",
]
