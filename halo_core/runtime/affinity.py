"""Prefix affinity: which engines serve which group of calls.

Calls with the same static prefix (an agent's role, say) are a group. Each group gets a home, largest first to the
engine with the least work (longest processing time first, Graham 1969), and a further home only where the work that
moves there outweighs computing the prefix once more. So no engine computes every role, and none idles while others
queue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from halo_core.runtime.flight import Flight
from halo_core.runtime.prefix import CHUNK_TOKENS, Chain
from halo_core.runtime.station import Station

MIN_SHARED_CHUNKS = 3
"""A shared prefix below this (about 200 tokens) is cheaper to compute twice than to plan for."""
CAUTION = 3.0
"""An engine that has work computes another prefix only for so many times its cost: later calls even out queues too."""
MAX_GROUPS = 4096


@dataclass(slots=True)
class _Group:
    prefix: Chain
    waiting: int = 0
    """Its calls that wait to be sent."""
    ready: float = 0.0
    """Their work in prompt-token equivalents, without the prefix."""
    homes: list[str] = field(default_factory=list)
    """Names of engines."""

    def extra(self, station: Station) -> float:
        """Prompt tokens that `station` would have to compute before it can serve the group."""
        return (len(self.prefix) - station.sent_depth(self.prefix)) * CHUNK_TOKENS


def static_prefix(flight: Flight) -> Chain:
    """The chunks that other rows are expected to share."""
    return flight.chain[: flight.static_chunks]


def group_of(flight: Flight) -> bytes | None:
    """The group of a call; None when it has no static prefix worth caring for."""
    prefix = static_prefix(flight)
    return prefix[-1] if len(prefix) >= MIN_SHARED_CHUNKS else None


class Affinity:
    """The groups of one dispatcher and their homes. Runs on the pool's loop only."""

    def __init__(self) -> None:
        self._groups: dict[bytes, _Group] = {}
        self._stale = False

    def add(self, flight: Flight) -> None:
        """`flight` waits to be sent."""
        key = group_of(flight)
        if key is None:
            return
        group = self._groups.get(key)
        if group is None:
            self._prune()
            group = self._groups[key] = _Group(static_prefix(flight))
        group.waiting += 1
        group.ready += _own_units(flight, group)
        self._stale = True

    def remove(self, flight: Flight) -> None:
        """`flight` waits no longer."""
        key = group_of(flight)
        if key is not None and (group := self._groups.get(key)) is not None:
            group.waiting -= 1
            group.ready = group.ready - _own_units(flight, group) if group.waiting else 0.0

    def homes(self, flight: Flight, stations: Sequence[Station]) -> list[Station]:
        """Of `stations` those that should serve `flight`; all of them where it does not matter."""
        key = group_of(flight)
        group = self._groups.get(key) if key is not None else None
        if group is None:
            return list(stations)
        return [station for station in stations if station.engine.name in group.homes] or list(stations)

    def touch(self) -> None:
        """An engine's load has changed so much that groups may have to move."""
        self._stale = True

    def place(self, stations: Sequence[Station]) -> None:
        """Give every waiting group a home, and a further one where that pays."""
        if not self._stale or len(stations) < 2:
            return
        self._stale = False
        waiting = sorted((g for g in self._groups.values() if g.waiting), key=lambda g: -g.ready)
        for group in waiting:  # homes that hold nothing yet were only a plan, made with less to go by
            group.homes = [s.engine.name for s in stations if group.extra(s) < MIN_SHARED_CHUNKS * CHUNK_TOKENS]
        loads = self._loads(waiting, stations)
        for group in waiting:
            if not group.homes:
                home = min(stations, key=lambda s: loads[s.engine.name] + group.extra(s))
                group.homes = [home.engine.name]
                loads[home.engine.name] += group.ready + group.extra(home)
        while self._spread(waiting, stations):
            pass

    def _spread(self, waiting: Sequence[_Group], stations: Sequence[Station]) -> bool:
        """Give one group a further home if that shortens the longest queue by more than the prefix costs."""
        loads = self._loads(waiting, stations)
        poorest = min(stations, key=lambda s: loads[s.engine.name])
        best: tuple[float, _Group] | None = None
        for group in waiting:
            if poorest.engine.name in group.homes:
                continue
            extra = group.extra(poorest)
            surplus = min(loads[name] for name in group.homes) - loads[poorest.engine.name]
            # Warming an idle engine costs nobody anything.
            price = extra * (CAUTION if loads[poorest.engine.name] > 0 else 1.0)
            gain = min((surplus - extra) / 2, group.ready) - price
            if gain > 0 and (best is None or gain > best[0]):
                best = gain, group
        if best is None:
            return False
        best[1].homes.append(poorest.engine.name)
        return True

    def _loads(self, waiting: Sequence[_Group], stations: Sequence[Station]) -> dict[str, float]:
        """Work per engine when every waiting group is shared evenly among its homes, narrow groups first."""
        loads = {station.engine.name: station.outlook for station in stations}
        for group in sorted(waiting, key=lambda g: len(g.homes)):
            names = sorted(group.homes, key=loads.__getitem__)
            _fill(loads, names, group.ready)
        return loads

    def _prune(self) -> None:
        if len(self._groups) >= MAX_GROUPS:
            self._groups = {key: group for key, group in self._groups.items() if group.waiting}


def _own_units(flight: Flight, group: _Group) -> float:
    return flight.uncached_units(len(group.prefix)) + flight.answer_units


def _fill(loads: dict[str, float], names: Sequence[str], work: float) -> None:
    """Add `work` to the least loaded of `names` (sorted by load) until they are level."""
    for i, name in enumerate(names):
        level = loads[names[i + 1]] if i + 1 < len(names) else float("inf")
        room = (level - loads[name]) * (i + 1)
        if work <= room:
            share = work / (i + 1)
            for filled in names[: i + 1]:
                loads[filled] += share
            return
        for filled in names[: i + 1]:
            loads[filled] = level
        work -= room
