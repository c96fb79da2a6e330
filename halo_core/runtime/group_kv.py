"""The KV of a group's engines as their dispatcher knows it: what is stored, what calls leave there, what goes."""

from __future__ import annotations

from collections.abc import Callable

from halo_core.kv import ALL, BlockIndex, Keep, PromptBlocks, moving_pays
from halo_core.pool.call import Completion
from halo_core.pool.engine import Engine
from halo_core.pool.pool import EngineGroup, EnginePool
from halo_core.runtime.evidence import Evidence
from halo_core.runtime.flight import Flight
from halo_core.runtime.prefix import CHUNK_TOKENS, PrefixIndex
from halo_core.runtime.station import Station

UNKNOWN_KV_TOKENS = 200_000
"""Taken for an engine or a store of which is not known how many tokens it holds."""


class GroupKV:
    """Of the engines of one dispatcher. Runs on the pool's loop only."""

    def __init__(self, pool: EnginePool, group: EngineGroup) -> None:
        self._pool = pool
        self._group = group
        self._stored: PrefixIndex | None = None
        """What the host's block store holds, where the engines share one."""
        self._blocks = PromptBlocks()
        self._evidence = Evidence()

    @property
    def shared(self) -> bool:
        """Whether some of its engines have been seen to share a store."""
        return self._stored is not None

    @property
    def forced(self) -> bool:
        """Whether all KV is to move that can, for comparing."""
        return self._pool.kv_moves == "always"

    def stored_by(self, engine: Engine) -> PrefixIndex | None:
        """What is known of the store that `engine` shares, the same for all engines; None where it shares none."""
        if engine.sharing is None or self._pool.kv_moves == "never" or not moving_pays(self._group.curve):
            return None
        if self._stored is None:
            self._stored = PrefixIndex(int((engine.sharing.cap_tokens or UNKNOWN_KV_TOKENS) / CHUNK_TOKENS))
        return self._stored

    def forget(self) -> None:
        """The store is empty."""
        if self._stored is not None:
            self._stored.clear()
        self._evidence = Evidence()

    def see(self, flight: Flight) -> None:
        """A call of which the catalog knows nothing shows what is shared."""
        if flight.keep is None and flight.shown is None:
            flight.shown = self._evidence.keep(flight)

    def keep(self, flight: Flight, tight: Callable[[], bool]) -> Keep:
        """What is saved of the call's KV.

        What the catalog says; of an app that it does not know what is shared, and all where engines may have to evict
        (`tight`).
        """
        if self.forced:
            return ALL
        if flight.keep is not None:
            return flight.keep
        return ALL if flight.shown is None or tight() else flight.shown

    def saved(self, flight: Flight, station: Station, keep: Keep) -> None:
        """The call was answered, and what was to be kept of it is in the store."""
        if station.stored is not None:
            chunks = len(flight.chain) if keep.tokens < 0 else int(keep.tokens / CHUNK_TOKENS)
            station.stored.insert(flight.chain[:chunks])

    def learn(self, flight: Flight, station: Station, completion: Completion) -> None:
        """How the engines name the blocks of this prompt."""
        chunk_tokens = completion.usage.prompt_tokens * CHUNK_TOKENS / max(flight.prompt_units, 1.0)
        self._blocks.learn(flight.chain, chunk_tokens, completion.blocks, station.engine.capacity.block_size)

    async def listen(self, station: Station, blocks: BlockIndex) -> None:
        """Correct what is believed of an engine's cache by what it says itself, until it ends."""
        try:
            async for event in station.engine.cache_events():
                if event.kind == "stored":
                    blocks.stored(event.block_hashes)
                    station.held.add(self._blocks.chunks(event.block_hashes))
                elif event.kind == "removed":
                    blocks.removed(event.block_hashes)
                    gone = self._blocks.chunks(event.block_hashes)
                    station.held.discard(gone)
                    station.sent.discard(gone)
                else:
                    if blocks.resyncs:  # the first says that the subscription stands
                        station.forget()
                    blocks.cleared()
        finally:
            station.blocks = None
