"""Halo: batch query processing for agent workflows.

`halo_core` imports no agent framework and no engine.
"""

from typing import TYPE_CHECKING, Any

from halo_core.errors import HaloError

if TYPE_CHECKING:
    from halo_core.tools.decorator import tool
    from halo_core.tools.http import http
    from halo_core.tools.sql import sql

__all__ = ["HaloError", "__version__", "http", "sql", "tool"]

__version__ = "0.1.0"

_TOOLS = {"tool": "decorator", "http": "http", "sql": "sql"}


def __getattr__(name: str) -> Any:
    if name in _TOOLS:  # on first use: an app that declares no tools pays nothing for them
        from importlib import import_module

        return getattr(import_module(f"halo_core.tools.{_TOOLS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
