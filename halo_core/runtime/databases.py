"""Databases whose queries are tools: what was measured of those, and what the database's own EXPLAIN says of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol
from weakref import WeakValueDictionary

from halo_core.stats import Catalog, KnownQuery, QueryPrice, QueryTime, growths, price_of


class Explaining(Protocol):
    """A database that tells what a query costs before it is run."""

    def timed(self) -> Sequence[QueryTime]:
        """Queries that it was asked lately."""

    def empty_s(self) -> float | None:
        """Seconds of a query that reads nothing; None where it does not answer."""

    def units(self, query: KnownQuery) -> float | None:
        """What its EXPLAIN says of a query now; None where it says nothing."""


DATABASES: WeakValueDictionary[str, Explaining] = WeakValueDictionary()
"""Tool -> the database that its calls ask, for those that are open."""


def price(tool: str) -> QueryPrice | None:
    """What a tool's queries take by EXPLAIN; None where it is no open database, or that tells nothing."""
    database = DATABASES.get(tool)
    empty_s = database.empty_s() if database is not None else None
    return price_of(database.timed(), empty_s) if database is not None and empty_s is not None else None


def repriced(catalog: Catalog) -> Catalog:
    """What is known of an app, with its databases as they are now; those that are not open are taken as they were."""
    prices = {name: tool.price for name, tool in catalog.tools.items() if tool.price is not None and name in DATABASES}
    return catalog.repriced(growths(prices, _units))


def _units(tool: str, query: KnownQuery) -> float | None:
    database = DATABASES.get(tool)
    return database.units(query) if database is not None else None
