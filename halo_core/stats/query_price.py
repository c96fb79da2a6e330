"""What a database's queries take, by the database's own EXPLAIN: from its units to seconds.

History alone is wrong as soon as the data has grown. The planner of the database knows its tables, so the queries of
the last run are explained again, and what they took then grows with what it says of them.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

QUERIES_KEPT = 8
"""Queries of a database that are explained again: each is a round trip to it before a batch begins."""
WORTH_SAYING = 0.1
"""Below this change history stands as it is: planners estimate, and machines drift."""


@dataclass(slots=True, frozen=True)
class QueryTime:
    """A query that was run."""

    text: str
    parameters: Any
    seconds: float
    units: float
    """What the database's EXPLAIN says of it, in units of its own (a cost, or rows)."""


class KnownQuery(BaseModel):
    """A query that an app makes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    parameters: Any = None
    """As the app gave them; only what JSON can hold is remembered."""


class QueryPrice(BaseModel):
    """What a database's units take, and the queries that it was learnt from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fixed_s: float = Field(ge=0)
    """Seconds of a query that reads nothing."""
    unit_s: float = Field(ge=0)
    """Seconds of one unit."""
    units: float = Field(gt=0)
    """Of the kept queries, on average, when they were measured."""
    queries: tuple[KnownQuery, ...]
    now: float = Field(default=1.0, gt=0)
    """How many times what it was measured to take a query takes now; 1 until the database was asked again."""

    def growth(self, units: float) -> float:
        """How many times longer its queries take where the kept ones come to `units` on average."""
        before_s = self.fixed_s + self.unit_s * self.units
        return (self.fixed_s + self.unit_s * units) / before_s if before_s > 0 else 1.0


def price_of(times: Sequence[QueryTime], empty_s: float) -> QueryPrice | None:
    """The price of a database's queries; None where EXPLAIN or JSON told nothing of any of them.

    `empty_s`: seconds of a query that reads nothing. What the queries took beyond that is taken to grow with their
    units; a line fitted through their times would follow what differs between queries, not what grows with the data.
    """
    usable = [time for time in times if time.units > 0 and _is_json(time.parameters)]
    if not usable:
        return None
    mean, mean_s = statistics.fmean(t.units for t in usable), statistics.fmean(t.seconds for t in usable)
    fixed_s = min(empty_s, mean_s)
    kept = usable[:: -(-len(usable) // QUERIES_KEPT)]
    return QueryPrice(
        fixed_s=fixed_s,
        unit_s=(mean_s - fixed_s) / mean,
        units=statistics.fmean(time.units for time in kept),
        queries=tuple(KnownQuery(text=time.text, parameters=time.parameters) for time in kept),
    )


def growths(prices: Mapping[str, QueryPrice], explain: Callable[[str, KnownQuery], float | None]) -> dict[str, float]:
    """Tool -> how many times longer its queries take now; only those of which `explain` says that it is worth saying.

    `explain` gives a query's units now, or None where that database is not at hand.
    """
    found: dict[str, float] = {}
    for tool, price in prices.items():
        units = [explain(tool, query) for query in price.queries]
        told = [u for u in units if u is not None]
        if len(told) < len(units):
            continue
        growth = price.growth(statistics.fmean(told))
        if abs(growth - 1.0) >= WORTH_SAYING:
            found[tool] = growth
    return found


def _is_json(value: Any) -> bool:
    try:
        return bool(json.loads(json.dumps(value)) == (list(value) if isinstance(value, tuple) else value))
    except (TypeError, ValueError):
        return False
