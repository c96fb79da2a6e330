"""A distribution as a mean and eleven quantiles: small enough to keep, good enough to draw from."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

_QUANTILES = 11


class Distribution(BaseModel):
    """Of a quantity that was observed `count` times."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int = Field(default=0, ge=0)
    mean: float = 0.0
    quantiles: tuple[float, ...] = ()
    """At 0, 10, ..., 100 %; empty where nothing was observed."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Distribution:
        """Of these values."""
        if not values:
            return cls()
        ordered = sorted(values)
        last = len(ordered) - 1
        quantiles = tuple(_between(ordered, i * last / (_QUANTILES - 1)) for i in range(_QUANTILES))
        return cls(count=len(values), mean=statistics.fmean(values), quantiles=quantiles)

    @property
    def median(self) -> float:
        """0 where nothing was observed."""
        return self.quantiles[_QUANTILES // 2] if self.quantiles else 0.0

    @property
    def largest(self) -> float:
        """0 where nothing was observed."""
        return self.quantiles[-1] if self.quantiles else 0.0

    def at(self, share: float) -> float:
        """The value below which `share` (0 to 1) of the observations lie; the mean where there are no quantiles."""
        if not self.quantiles:
            return self.mean
        return _between(self.quantiles, min(max(share, 0.0), 1.0) * (len(self.quantiles) - 1))

    def shifted(self, by: float) -> Distribution:
        """Of the same observations, each larger by `by`, and none below 0."""
        if not self.count:
            return self
        quantiles = tuple(max(value + by, 0.0) for value in self.quantiles)
        return Distribution(count=self.count, mean=max(self.mean + by, 0.0), quantiles=quantiles)

    def merged(self, other: Distribution) -> Distribution:
        """Of both sets of observations; the quantiles are averaged by count, an approximation."""
        if not other.count or not self.count:
            return self if not other.count else other
        total = self.count + other.count
        own, others = self.count / total, other.count / total
        quantiles = tuple(own * a + others * b for a, b in zip(self.quantiles, other.quantiles, strict=True))
        return Distribution(count=total, mean=own * self.mean + others * other.mean, quantiles=quantiles)


def _between(values: Sequence[float], position: float) -> float:
    low = int(position)
    if low + 1 >= len(values):
        return values[-1]
    return values[low] + (position - low) * (values[low + 1] - values[low])
