"""What calls themselves show of whose KV others will need, for apps of which the catalog knows nothing yet."""

from __future__ import annotations

from collections import OrderedDict

from halo_core.kv import ALL, SLACK_TOKENS, Keep
from halo_core.runtime.flight import Flight
from halo_core.runtime.prefix import CHUNK_TOKENS, Chain, PrefixIndex

MAX_CHUNKS = 1 << 16
MAX_ROWS = 512


class Evidence:
    """The calls of one dispatcher so far. Runs on the pool's loop only."""

    def __init__(self) -> None:
        self._seen = PrefixIndex(MAX_CHUNKS)
        self._rows: OrderedDict[str, dict[str, Chain]] = OrderedDict()
        """Row -> operator -> the prompt of its last call."""
        self._continued: set[str] = set()
        """Operators whose conversations other calls have gone on with."""

    def keep(self, flight: Flight) -> Keep:
        """What others will need of the call's KV: what an earlier call's prompt began with as well, and the whole where
        calls of its operator were gone on with. What the first of several alike computes is saved by the second."""
        chain, origin = flight.chain, flight.call.origin
        shared = self._seen.depth(chain)
        self._seen.insert(chain)
        if origin.run:
            prompts = self._rows.setdefault(origin.run, {})
            self._rows.move_to_end(origin.run)
            if len(self._rows) > MAX_ROWS:
                self._rows.popitem(last=False)
            for operator, earlier in prompts.items():
                if 0 < len(earlier) < len(chain) and chain[: len(earlier)] == earlier:
                    self._continued.add(operator)
            prompts[origin.operator] = chain
        if origin.operator in self._continued:
            return ALL
        return Keep(int(shared * CHUNK_TOKENS) + SLACK_TOKENS if shared else 0)
