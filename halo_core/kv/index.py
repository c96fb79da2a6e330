"""The prefix index: which engine holds which KV blocks, by what the engines themselves say of their caches.

Blocks go by the hashes that the engine gives them (block size, salts and adapters are in them), so nothing is hashed
here. A prompt's blocks are learnt from the engine's answer to it; what text they stand for is interpolated between the
prompt's begin and end, so where a shared text ends may be off by a block, which costs a block and never an answer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

MAX_BLOCKS = 1 << 16

BlockHash = int | bytes


class BlockIndex:
    """The blocks that one engine holds now, as its KV events say."""

    __slots__ = ("_held", "resyncs")

    def __init__(self) -> None:
        self._held: set[BlockHash] = set()
        self.resyncs = 0
        """How often all was forgotten: at a reset, a restart, or when events were lost."""

    def __len__(self) -> int:
        return len(self._held)

    def stored(self, hashes: Iterable[BlockHash]) -> None:
        """The engine has computed or loaded these."""
        self._held.update(hashes)

    def removed(self, hashes: Iterable[BlockHash]) -> None:
        """The engine has evicted these."""
        self._held.difference_update(hashes)

    def cleared(self) -> None:
        """Nothing is known any more; what is stored from now on is."""
        self._held.clear()
        self.resyncs += 1

    def depth(self, hashes: Sequence[BlockHash]) -> int:
        """How many leading blocks of a chain it holds."""
        for i, block in enumerate(hashes):
            if block not in self._held:
                return i
        return len(hashes)


class PromptBlocks:
    """Which block of the engines' KV each chunk of a prompt's text ends in. Bounded, least recently learnt first."""

    def __init__(self, capacity: int = MAX_BLOCKS) -> None:
        self._capacity = capacity
        self._block: OrderedDict[bytes, BlockHash] = OrderedDict()
        self._chunks: dict[BlockHash, list[bytes]] = {}

    def learn(self, chain: Sequence[bytes], chunk_tokens: float, hashes: Sequence[BlockHash], block_size: int) -> None:
        """A prompt's chunks, of about `chunk_tokens` tokens each, and its whole blocks of `block_size` tokens."""
        for i, chunk in enumerate(chain):
            block = int((i + 1) * chunk_tokens / block_size) - 1
            if chunk in self._block or not 0 <= block < len(hashes):
                continue
            self._block[chunk] = hashes[block]
            self._chunks.setdefault(hashes[block], []).append(chunk)
        while len(self._block) > self._capacity:
            chunk, forgotten = self._block.popitem(last=False)
            rest = self._chunks[forgotten]
            rest.remove(chunk)
            if not rest:
                del self._chunks[forgotten]

    def block(self, chunk: bytes) -> BlockHash | None:
        """The block that the chunk ends in; None where no prompt with it has been answered."""
        return self._block.get(chunk)

    def chunks(self, hashes: Iterable[BlockHash]) -> list[bytes]:
        """The chunks that end in these blocks."""
        return [chunk for block in hashes for chunk in self._chunks.get(block, ())]
