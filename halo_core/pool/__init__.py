"""The pool: engines behind one small protocol, and the process-wide pool that owns them. Knows no workflow."""

from halo_core.pool.call import CallOrigin, Completion, LLMCall, Usage
from halo_core.pool.config import EndpointSpec, PoolConfig, SimulatedSpec, VLLMSpec, parse_models
from halo_core.pool.engine import CacheEvent, Capacity, Engine, EngineCounters, Health
from halo_core.pool.places import Place, Places
from halo_core.pool.pool import EnginePool, configure, get_pool

__all__ = [
    "CacheEvent",
    "CallOrigin",
    "Capacity",
    "Completion",
    "EndpointSpec",
    "Engine",
    "EngineCounters",
    "EnginePool",
    "Health",
    "LLMCall",
    "Place",
    "Places",
    "PoolConfig",
    "SimulatedSpec",
    "Usage",
    "VLLMSpec",
    "configure",
    "get_pool",
    "parse_models",
]
