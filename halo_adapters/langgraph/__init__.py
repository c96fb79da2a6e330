"""LangGraph under Halo: `install()`, then `builder.compile(backend="halo")`.

Importing this module patches nothing.
"""

from halo_adapters.langgraph.builder import StateGraph
from halo_adapters.langgraph.compiled import accelerate
from halo_adapters.langgraph.patch import backend, install, uninstall
from halo_core.pool import PoolConfig, configure


def __getattr__(name: str) -> object:
    if name == "HaloChatModel":  # needs langchain-openai, which an app on another client may not have
        from halo_adapters.langgraph.chat_model import HaloChatModel

        return HaloChatModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["HaloChatModel", "PoolConfig", "StateGraph", "accelerate", "backend", "configure", "install", "uninstall"]
