"""What a database's queries take, by the database's own EXPLAIN: from its units to seconds.

History alone is wrong as soon as the data has grown. The planner of the database knows its tables, so the queries of
the last run are explained again, and what they took then grows with what it says of them.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

QUERIES_KEPT = 8
"""Queries of a database that are explained again: each is a round trip to it before a batch begins."""
LONGEST_BYTES = 4096
"""Of a query with its parameters that is kept."""
WORTH_SAYING = 0.1
"""Below this change history stands as it is: planners estimate, and machines drift."""


class KnownQuery(BaseModel):
    """A query that an app makes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    parameters: Any = None

    @classmethod
    def of(cls, text: str, parameters: Any) -> KnownQuery | None:
        """A copy of it; None where it is too long, or JSON cannot hold its parameters."""
        try:
            written = json.dumps(parameters)
        except (TypeError, ValueError):
            return None
        if len(text) + len(written) > LONGEST_BYTES:
            return None
        copied = json.loads(written)
        return cls(text=text, parameters=copied) if _same(copied, parameters) else None


@dataclass(slots=True, frozen=True)
class QueryTime:
    """A query that was run."""

    query: KnownQuery
    seconds: float
    units: float
    """What the database's EXPLAIN says of it, in units of its own (a cost, or rows)."""


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
    now: float | None = Field(default=None, gt=0)
    """How many times what it was measured to take a query takes now; None until the database was asked again."""

    def growth(self, units: float) -> float:
        """How many times longer its queries take where the kept ones come to `units` on average."""
        before_s = self.fixed_s + self.unit_s * self.units
        return (self.fixed_s + self.unit_s * units) / before_s if before_s > 0 else 1.0


def price_of(times: Sequence[QueryTime], empty_s: float) -> QueryPrice | None:
    """The price of a database's queries; None where EXPLAIN told nothing of any of them.

    `empty_s`: seconds of a query that reads nothing. What the queries took beyond that is taken to grow with their
    units; a line fitted through their times would follow what differs between queries, not what grows with the data.
    """
    usable = [time for time in times if time.units > 0]
    if not usable:
        return None
    mean, mean_s = statistics.fmean(t.units for t in usable), statistics.fmean(t.seconds for t in usable)
    fixed_s = min(empty_s, mean_s)
    return QueryPrice(
        fixed_s=fixed_s,
        unit_s=(mean_s - fixed_s) / mean,
        units=mean,
        queries=tuple(time.query for time in usable),
    )


def growth_of(price: QueryPrice, explain: Callable[[KnownQuery], float | None]) -> float | None:
    """How many times longer the queries take now, 1 where it is hardly worth saying; None where that is not known.

    `explain` gives a query's units now, or None.
    """
    units = []
    for query in price.queries:
        told = explain(query)
        if told is None:
            return None
        units.append(told)
    growth = price.growth(statistics.fmean(units))
    return growth if abs(growth - 1.0) >= WORTH_SAYING else 1.0


def _same(copied: Any, given: Any) -> bool:
    return bool(copied == (list(given) if isinstance(given, tuple) else given))
