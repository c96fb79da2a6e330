"""What is known of one engine: the prefixes that it was sent and holds, its work, and how fast it gets on."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import ceil

from halo_core.kv import BlockIndex
from halo_core.pool.engine import Engine
from halo_core.pool.loop import now_s
from halo_core.runtime.flight import Flight
from halo_core.runtime.prefix import CHUNK_TOKENS, Chain, PrefixIndex

SLOTS_PER_AHEAD = 8
"""At most one call for so many of an engine's slots waits in it: what is there is out of our order."""
STEPS_AHEAD = 2.0
"""Steps from a call's end until the next one is there: the one that is under way by then, and our own reaction."""
KV_FILL = 0.9
"""Share of an engine's KV that calls are given to fill: their lengths are estimates."""


class Pace:
    """How fast an engine works, learnt from what it finished, and so how far it must be with what it has not."""

    __slots__ = ("_begun", "_busy_s", "_done", "_since", "_total")

    def __init__(self) -> None:
        self._total = 0.0
        self._busy_s = 0.0
        self._begun: float | None = None
        self._since = 0.0
        self._done = 0.0

    def begin(self) -> None:
        """The engine gets work."""
        if self._begun is None:
            self._begun = self._since = now_s()
            self._done = 0.0

    def finish(self, units: float, idle: bool) -> None:
        """It has finished `units`; `idle`: it has nothing left."""
        now = now_s()
        self._total += units
        self._busy_s += now - self._since
        self._since = now
        self._done += units
        if idle:
            self._begun = None

    @property
    def units_per_s(self) -> float:
        """Its speed so far; 0 while nothing is finished."""
        return self._total / self._busy_s if self._busy_s > 0.0 else 0.0

    def progress(self) -> float:
        """Units that must be done of what it was given since it began, without those of finished calls."""
        if self._begun is None or self._busy_s <= 0.0:
            return 0.0
        now = now_s()
        rate = self._total / self._busy_s
        return max(rate * (now - self._begun) - self._done, 0.0)


@dataclass(slots=True, eq=False)
class Station:
    """What the dispatcher knows of one engine. Used on the pool's loop only."""

    engine: Engine
    sent: PrefixIndex
    """Prefixes of calls that were placed on it: where to place others."""
    held: PrefixIndex
    """Prefixes that it has or computes now: calls that are sent from now on find them."""
    computing: Counter[bytes] = field(default_factory=Counter)
    """Chunks of prompts that were placed on it and that it has not answered yet."""
    placed: list[Flight] = field(default_factory=list)
    """Calls that are about to be sent."""
    in_flight: set[Flight] = field(default_factory=set)
    unshared_tokens: float = 0.0
    """KV of those calls' prompts behind their last whole chunk, and of their expected answers."""
    stored: PrefixIndex | None = None
    """Prefixes that the host's block store holds, from which the engine takes them; None where it shares no KV."""
    blocks: BlockIndex | None = None
    """What the engine says that it holds, once it says so."""
    load_units: float = 0.0
    """Outstanding work in prompt-token equivalents."""
    warming: dict[Chain, list[Flight]] = field(default_factory=dict)
    """A prompt that is being computed for the store -> the calls that wait for it."""
    pace: Pace = field(default_factory=Pace)
    step_s: float | None = None
    """Seconds of one of its steps at most, from the time that calls take per token; None while nothing is known."""
    call_steps: float | None = None
    """Steps that its calls decode on average; None while nothing is known."""

    def sent_depth(self, chain: Chain) -> int:
        """Leading chunks that it need not compute if it is sent such a prompt: it was sent them, or can load them."""
        return self._or_stored(self.sent.depth(chain), chain)

    def held_depth(self, chain: Chain) -> int:
        """Leading chunks that are there already, in the engine or in the store."""
        return self._or_stored(self.held.depth(chain), chain)

    def _or_stored(self, own: int, chain: Chain) -> int:
        return max(own, self.stored.depth(chain)) if self.stored is not None and own < len(chain) else own

    def forget(self) -> None:
        """The engine's cache is empty."""
        self.sent.clear()
        self.held.clear()

    def begin(self, flight: Flight) -> None:
        """It is sent a call."""
        self.in_flight.add(flight)
        self.held.insert(flight.chain)
        self.pace.begin()

    def observe(self, tokens: int, seconds: float) -> None:
        """It has answered a call with `tokens` tokens after `seconds`."""
        steps = max(tokens, 1)
        self.step_s = smoothed(self.step_s, seconds / steps)
        self.call_steps = smoothed(self.call_steps, steps)

    @property
    def outlook(self) -> float:
        """Work that is left, in prompt-token equivalents, judged by the pace that the engine has shown."""
        return self.load_units - min(self.pace.progress(), 0.9 * self.load_units)

    @property
    def calls(self) -> int:
        """Calls that it works on, or that are about to be sent to it, or wait for a prefix on it."""
        return len(self.in_flight) + len(self.placed) + (sum(map(len, self.warming.values())) if self.warming else 0)

    @property
    def kv_tokens(self) -> float:
        """Tokens of KV that the calls it has will hold when they end, what they share counted once."""
        return len(self.computing) * CHUNK_TOKENS + self.unshared_tokens

    @property
    def kv_full(self) -> bool:
        """Whether another call would only queue in the engine, or drive one out that is computed again then."""
        kv_tokens = self.engine.capacity.kv_tokens
        return bool(kv_tokens and self.calls and self.kv_tokens >= KV_FILL * kv_tokens)

    @property
    def free(self) -> bool:
        """Whether the engine takes another call now."""
        most = self.engine.capacity.slots + self.ahead
        return self.engine.health.state == "ready" and self.calls < most and not self.kv_full

    @property
    def ahead(self) -> int:
        """Calls that are to wait in the engine, so that those that end do not leave its batch less than full.

        As many as end until the next ones can be there: the fewer, the longer its answers are.
        """
        slots = self.engine.capacity.slots
        most = slots // SLOTS_PER_AHEAD
        return most if self.call_steps is None else min(ceil(slots * STEPS_AHEAD / self.call_steps), most)


def smoothed(known: float | None, seen: float) -> float:
    """What is known after one more observation: older ones fade."""
    return seen if known is None else 0.8 * known + 0.2 * seen
