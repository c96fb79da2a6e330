"""Where catalogs are kept, and how a batch adds to them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from halo_core.pool.vllm_command import cache_dir
from halo_core.runtime.databases import price, repriced
from halo_core.stats import Catalog, Observed, learn, read_catalog, write_catalog

if TYPE_CHECKING:
    from halo_core.runtime.batch import Batch

OFF = "off"


def catalog_folder() -> Path | None:
    """`$HALO_CATALOG`, else a folder in Halo's cache; None where the variable says `off`."""
    named = os.environ.get("HALO_CATALOG", "")
    if named == OFF:
        return None
    return Path(named).expanduser() if named else cache_dir() / "catalogs"


def known(app: str) -> Catalog | None:
    """What is known of the app with this fingerprint, its queries priced anew; None where nothing is."""
    found = measured(app)
    return None if found is None else repriced(found)


def measured(app: str) -> Catalog | None:
    """What was measured of the app with this fingerprint; None where nothing was."""
    folder = catalog_folder()
    return read_catalog(folder, app) if folder is not None and app else None


def remember(batch: Batch, observed: Observed) -> None:
    """Learn from a batch that has ended, and keep it with what was known."""
    folder = catalog_folder()
    if folder is not None:
        for tool, times in observed.tools.items():
            times.price = price(tool, batch.queries)
    found = learn(batch.app, observed)
    if found is None:
        return
    batch.learnt = found
    if folder is not None:
        before = read_catalog(folder, batch.app)
        write_catalog(folder, found if before is None else before.updated(found))
