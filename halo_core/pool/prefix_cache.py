"""The prefix cache of a simulated engine: KV blocks known by content, counted by holders, evicted oldest first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b

from halo_core.pool.engine import CacheEvent
from halo_core.pool.simulated_model import CHARS_PER_TOKEN, tokenize


def block_hashes(text: str, block_size: int, parent: bytes = b"") -> list[bytes]:
    """Hash of each whole block of a text's tokens; it covers everything before the block, back through `parent`."""
    size = block_size * CHARS_PER_TOKEN
    data = text.encode("utf-8", "surrogatepass")
    if len(data) == len(text):
        pieces = [data[i : i + size] for i in range(0, len(data) - size + 1, size)]
    else:  # blocks are cut between characters, not inside them
        pieces = [text[i : i + size].encode("utf-8", "surrogatepass") for i in range(0, len(text) - size + 1, size)]
    hashes: list[bytes] = []
    for piece in pieces:
        parent = blake2b(parent + piece, digest_size=16).digest()
        hashes.append(parent)
    return hashes


class PrefixCache:
    """`blocks` blocks. A block is *anonymous* while it is being filled; `publish` makes its content known to others.

    Differs from vLLM's in two ways: blocks without known content are taken before any cached one is evicted, and two
    requests that fill the same block at the same time end up sharing it.
    """

    def __init__(self, blocks: int, block_size: int) -> None:
        self.blocks = blocks
        self.block_size = block_size
        self.on_event: Callable[[CacheEvent], None] | None = None
        """Who is told of changes; telling costs a tokenisation."""
        self._holders: dict[bytes, int] = {}
        """Number of requests that hold each known block."""
        self._idle: OrderedDict[bytes, None] = OrderedDict()
        """Known blocks that nobody holds, least recently used first."""
        self._anonymous = 0

    @property
    def available(self) -> int:
        """Blocks that can be taken now, evicting if need be."""
        return self.blocks - self._anonymous - len(self._holders) + len(self._idle)

    @property
    def known(self) -> int:
        """Blocks whose content is known."""
        return len(self._holders)

    def match(self, hashes: Sequence[bytes]) -> int:
        """How many of the leading blocks are known."""
        holders = self._holders
        for count, block in enumerate(hashes):
            if block not in holders:
                return count
        return len(hashes)

    def hold(self, hashes: Sequence[bytes]) -> None:
        """Keep known blocks from being evicted, until `release`."""
        for block in hashes:
            if self._holders[block] == 0:
                del self._idle[block]
            self._holders[block] += 1

    def take(self, count: int) -> bool:
        """Take anonymous blocks, evicting the least recently used known ones; False where too few are left."""
        if count > self.available:
            return False
        free = self.blocks - self._anonymous - len(self._holders)
        if count > free:
            evicted = [self._idle.popitem(last=False)[0] for _ in range(count - free)]
            for block in evicted:
                del self._holders[block]
            if self.on_event is not None:
                self.on_event(CacheEvent("removed", tuple(evicted)))
        self._anonymous += count
        return True

    def publish(self, hashes: Sequence[bytes], parent: bytes | None, text: str) -> None:
        """Make the content of as many anonymous blocks known; who took them holds them now, until `release`.

        `text` is the blocks' text, `parent` the hash of the block before them.
        """
        known = self.match(hashes)
        self.hold(hashes[:known])
        fresh = hashes[known:]
        for block in fresh:
            self._holders[block] = 1
        self._anonymous -= len(hashes)
        if fresh and self.on_event is not None:
            tokens = tokenize(text)[known * self.block_size : len(hashes) * self.block_size]
            self.on_event(CacheEvent("stored", tuple(fresh), hashes[known - 1] if known else parent, tuple(tokens)))

    def release(self, hashes: Sequence[bytes], anonymous: int) -> None:
        """Give blocks back; the last block of a prefix is evicted before its first."""
        self._anonymous -= anonymous
        for block in reversed(hashes):
            self._holders[block] -= 1
            if self._holders[block] == 0:
                self._idle[block] = None

    def clear(self) -> bool:
        """Forget everything; False (and nothing) while blocks are held."""
        if self._anonymous or len(self._idle) != len(self._holders):
            return False
        if self._holders and self.on_event is not None:
            self.on_event(CacheEvent("cleared"))
        self._holders.clear()
        self._idle.clear()
        return True


class SimulatedStore:
    """The block store that simulated engines of one host share; blocks that were used longest ago make room."""

    def __init__(self, blocks: int = 1 << 60, block_size: int = 16) -> None:
        self._blocks = blocks
        self._block_size = block_size
        self._held: OrderedDict[bytes, None] = OrderedDict()

    @property
    def cap_tokens(self) -> int:
        """KV of so many tokens fits in."""
        return self._blocks * self._block_size

    def counters(self) -> Mapping[str, int]:
        """Nothing is counted here: calls say what was moved for them."""
        return {}

    def depth(self, hashes: Sequence[bytes]) -> int:
        """How many of the leading blocks are there; they count as used now."""
        for count, block in enumerate(hashes):
            if block not in self._held:
                return count
            self._held.move_to_end(block)
        return len(hashes)

    def save(self, hashes: Sequence[bytes]) -> None:
        """Keep blocks."""
        for block in hashes:
            self._held[block] = None
        while len(self._held) > self._blocks:
            self._held.popitem(last=False)

    def clear(self) -> None:
        """Forget everything."""
        self._held.clear()
