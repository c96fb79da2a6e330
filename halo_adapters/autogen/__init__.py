"""AutoGen under Halo: `HaloChatCompletionClient`, and `run_batch` for many tasks through one team.

Importing this module patches nothing.
"""

from halo_adapters.autogen.batch import arun_batch, run_batch
from halo_adapters.autogen.client import HaloChatCompletionClient
from halo_adapters.autogen.lift import lift
from halo_adapters.autogen.report import explain
from halo_adapters.autogen.runs import BatchResult, RunResult
from halo_core.pool import PoolConfig, configure

__all__ = [
    "BatchResult",
    "HaloChatCompletionClient",
    "PoolConfig",
    "RunResult",
    "arun_batch",
    "configure",
    "explain",
    "lift",
    "run_batch",
]
