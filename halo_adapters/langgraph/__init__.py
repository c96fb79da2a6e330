"""LangGraph under Halo: `install()`, then `builder.compile(backend="halo")`.

Importing this module patches nothing.
"""

from halo_adapters.langgraph.builder import StateGraph
from halo_adapters.langgraph.compiled import accelerate
from halo_adapters.langgraph.patch import backend, install, uninstall
from halo_core.pool import PoolConfig, configure

__all__ = ["PoolConfig", "StateGraph", "accelerate", "backend", "configure", "install", "uninstall"]
