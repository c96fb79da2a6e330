"""Databases whose queries are tools: what was measured of those, and what the database's own EXPLAIN says of them."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypeVar
from weakref import WeakSet

from halo_core.runtime.within import within
from halo_core.stats import QUERIES_KEPT, Catalog, KnownQuery, QueryPrice, QueryTime, growth_of, price_of

logger = logging.getLogger(__name__)

T = TypeVar("T")

QUERIES_TIMED = 32
"""The first reads that a batch makes of a database; it learns from some of them what EXPLAIN's units take."""
EXPLAIN_WITHIN_S = 2.0
"""A database that does not explain its queries within so long is not asked again: no batch is to wait for a price."""


class Explaining(Protocol):
    """A database that tells what a query costs before it is run."""

    def empty_s(self) -> float:
        """Seconds of a query that reads nothing."""

    def units(self, query: KnownQuery) -> float | None:
        """What its EXPLAIN says of a query now; None where it says nothing of such a text."""


class QueryLog:
    """The first reads that a batch makes of each database. Written from any thread."""

    def __init__(self) -> None:
        self._made: dict[str, list[tuple[KnownQuery, float]]] = defaultdict(list)

    def note(self, tool: str, text: str, parameters: Any, seconds: float) -> None:
        """A query was run; kept where it can be, and the first have not all been seen."""
        made = self._made[tool]
        if len(made) < QUERIES_TIMED and (query := KnownQuery.of(text, parameters)) is not None:
            made.append((query, seconds))

    def some(self, tool: str) -> list[tuple[KnownQuery, float]]:
        """As many of a tool's as are explained, from all of them."""
        made = self._made[tool]
        return made[:: -(-len(made) // QUERIES_KEPT) or 1]


_OPEN: defaultdict[str, WeakSet[Explaining]] = defaultdict(WeakSet)
"""Tool -> the databases that its calls ask, of those that are open."""


def opened(tool: str, database: Explaining) -> None:
    """Calls of `tool` ask this database from now on."""
    _OPEN[tool].add(database)


def closed(tool: str, database: Explaining) -> None:
    """It is to be asked nothing any more."""
    _OPEN[tool].discard(database)


def price(tool: str, log: QueryLog) -> QueryPrice | None:
    """What a tool's queries take by EXPLAIN; None where it is no open database, or that tells nothing."""
    made = log.some(tool)
    if not made:
        return None

    def ask(database: Explaining) -> QueryPrice | None:
        times = []
        for query, seconds in made:
            units = database.units(query)
            if units is not None:
                times.append(QueryTime(query, seconds, units))
        return price_of(times, database.empty_s()) if times else None

    return _asked(tool, ask)


def repriced(catalog: Catalog) -> Catalog:
    """What is known of an app, with its databases as they are now; those that do not tell are taken as they were."""
    growth = {}
    for name, tool in catalog.tools.items():
        if tool.price is not None:
            times = _asked(name, partial(_growth, tool.price))
            if times is not None:
                growth[name] = times
    return catalog.repriced(growth)


def _growth(price: QueryPrice, database: Explaining) -> float | None:
    return growth_of(price, database.units)


def _asked(tool: str, ask: Callable[[Explaining], T | None]) -> T | None:
    """What the tool's database answers, in a thread of its own; None where it does not, or two have the name."""
    databases = tuple(_OPEN.get(tool, ()))
    if len(databases) != 1:
        return None

    def answer() -> T | None:
        try:
            return ask(databases[0])
        except Exception as error:  # a table may be gone, or the server: then history has to do
            logger.debug("%s explains nothing: %s", tool, error)
            return None

    try:
        return within(EXPLAIN_WITHIN_S, answer, "halo-explain")
    except TimeoutError:
        logger.info("%s did not explain its queries within %g s: they are priced by history", tool, EXPLAIN_WITHIN_S)
        closed(tool, databases[0])
        return None
