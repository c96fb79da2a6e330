"""Where the calls of a model go, in words."""

from __future__ import annotations

from halo_core.errors import UnknownModelError
from halo_core.pool import get_pool


def destination(name: str, base_url: str | None) -> str:
    """Where calls for the model `name`, on the app's own server `base_url`, go; adds nothing to the pool."""
    if not name:
        return "decided at run time"
    pool = get_pool()
    try:
        served = pool.resolve(name)
    except UnknownModelError as error:
        return f"left alone: {error}"
    if served is not None:
        return f"pool: {served}"
    if base_url and pool.config.adopt:
        return f"its own server, as an engine of the pool: {base_url}"
    return f"left alone: no engine serves it (pool: {', '.join(pool.models) or 'empty'})"
