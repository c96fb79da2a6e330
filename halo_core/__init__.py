"""Halo: batch query processing for agent workflows.

`halo_core` imports no agent framework and no engine.
"""

from halo_core.errors import HaloError

__all__ = ["HaloError", "__version__"]

__version__ = "0.1.0"
