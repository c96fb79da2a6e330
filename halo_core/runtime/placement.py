"""Placement: on which engine a call is expected to end first.

While engines have room, calls are divided evenly, and a row whose conversation an engine holds stays there. Once calls
wait for engines anyway, uneven queues cost nothing and prefixes decide: a call goes where its conversation is, else
where its role is at home (see `affinity`), and among those where the sum of outstanding work and its own uncached
prompt is least.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable

from halo_core.runtime.affinity import MIN_SHARED_CHUNKS, Affinity
from halo_core.runtime.flight import Flight
from halo_core.runtime.prefix import CHUNK_TOKENS
from halo_core.runtime.station import Station

STICKINESS = 4.0
"""How much more a call's own uncached prompt counts than the queue: lost work stays lost, uneven queues even out."""
LOYALTY = 32.0
"""A conversation stays on its engine until that engine's queue is longer by so many times what moving would lose."""
SLACK = 4
"""Calls by which the queue of a conversation's engine may be longer than another's before it moves."""
PEER_SLACK = 1
"""The same where it is no conversation yet: calls that begin alike come at the same time."""
MAX_ROWS = 4096
"""Rows whose last engine is remembered."""

Own = dict[str, int]
"""Engine -> chunks of a prompt that it was sent before or can load, beyond what all rows share."""


class Placement:
    """Where the calls of one dispatcher go. Runs on the pool's loop only."""

    def __init__(self, cost: Callable[[Flight, Station], float]) -> None:
        self._cost = cost
        """Work of a call on an engine, in prompt-token equivalents."""
        self._affinity = Affinity()
        self._last: OrderedDict[str, str] = OrderedDict()
        """Row -> engine of its last call."""
        self._coming: Counter[str] = Counter()
        """Engine -> calls that wait to be sent of rows whose last call it served."""

    def add(self, flight: Flight) -> None:
        """`flight` waits to be sent."""
        flight.home = self._last.get(flight.call.origin.run, "") if flight.call.origin.run else ""
        self._coming[flight.home] += 1
        self._affinity.add(flight)

    def remove(self, flight: Flight) -> None:
        """`flight` waits no longer."""
        self._coming[flight.home] -= 1
        self._affinity.remove(flight)

    def sent(self, flight: Flight, station: Station) -> None:
        """`station` has the call now, and so its row."""
        run = flight.call.origin.run
        self._last[run] = station.engine.name
        self._last.move_to_end(run)
        if len(self._last) > MAX_ROWS:
            self._last.popitem(last=False)

    def touch(self) -> None:
        """An engine's load has changed so much that roles may have to move."""
        self._affinity.touch()

    def review(self, stations: list[Station]) -> None:
        """Give every role that waits its homes."""
        self._affinity.place(stations)

    def best(self, flight: Flight, stations: list[Station], *, crowded: bool) -> Station:
        """The engine that should serve `flight`; `crowded`: more calls are here than the engines decode at once."""
        own = {s.engine.name: s.sent_depth(flight.chain) - flight.static_chunks for s in stations}
        if crowded:
            candidates = _loyal(own, stations) or self._affinity.homes(flight, stations)
        else:
            candidates = self._with_room(flight, own, stations)
        if len(candidates) == 1:
            return candidates[0]
        return min(candidates, key=lambda s: s.outlook + STICKINESS * self._cost(flight, s))

    def _with_room(self, flight: Flight, own: Own, stations: list[Station]) -> list[Station]:
        level = self._level(flight, own, stations)
        home = [station for station in level if station.engine.name == flight.home]
        if home and max(own[s.engine.name] for s in level) - own[flight.home] < MIN_SHARED_CHUNKS:
            return home
        return _loyal(own, level) or home or level

    def _level(self, flight: Flight, own: Own, stations: list[Station]) -> list[Station]:
        """The engines that may take `flight` without one having to work much longer than another in the end.

        A conversation stays on the engine that holds it unless that has `SLACK` calls more than another. All else goes
        to the shortest queue: what calls share with all rows, or hardly at all, is no reason to let an engine idle; nor
        is much what it shares with calls under way. A queue counts the calls that its own rows make now.
        """
        queues = {s.engine.name: s.calls + self._coming[s.engine.name] for s in stations}
        if flight.home in queues:
            queues[flight.home] -= 1
        shortest = min(queues.values())
        least = max(min(own.values()), 0)

        def fits(station: Station) -> bool:
            name = station.engine.name
            if own[name] - least < MIN_SHARED_CHUNKS:
                return queues[name] == shortest
            last = flight.chain[flight.static_chunks + own[name] - 1]
            peers = not flight.home and station.computing[last] > 0
            return queues[name] - shortest <= (PEER_SLACK if peers else SLACK)

        return list(filter(fits, stations))


def _loyal(own: Own, stations: list[Station]) -> list[Station]:
    """The engines that were sent the most of the call's conversation, unless their queues are far longer."""
    most = max(own[station.engine.name] for station in stations)
    if most <= 0:
        return []
    lightest = min(station.outlook for station in stations)
    worth = LOYALTY * most * CHUNK_TOKENS
    return [s for s in stations if own[s.engine.name] == most and s.outlook - lightest < worth]
