"""The runtime: admission, single-flight, dispatch, journal and results. Knows no framework."""

from halo_core.runtime.batch import Batch, Run
from halo_core.runtime.executor import Executor, get_executor
from halo_core.runtime.flight import How
from halo_core.runtime.journal import Journal, RowResult
from halo_core.runtime.stats import BatchStats, OperatorStats

__all__ = ["Batch", "BatchStats", "Executor", "How", "Journal", "OperatorStats", "RowResult", "Run", "get_executor"]
