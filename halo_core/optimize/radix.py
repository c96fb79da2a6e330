"""Which prompt prefixes an engine holds: a radix tree of segments, bounded in tokens, least recently used out first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from halo_core.optimize.problem import Segment

BLOCK_TOKENS = 16
"""Tokens of a KV block: a prefix is found in whole blocks only (vLLM's default)."""

Path = tuple[int, ...]
"""A prefix as the numbers of its nodes in a `PrefixTable`, from the beginning."""


class PrefixTable:
    """Numbers for all prefixes of a problem: one node per model and path of segments."""

    def __init__(self, block_tokens: int = BLOCK_TOKENS) -> None:
        self._block_tokens = block_tokens
        self._nodes: dict[tuple[str | int, Segment], int] = {}
        self.parent: list[int] = []
        """Node -> the node above it; -1 for the first segment of a path."""
        self.tokens: list[int] = []
        """Node -> tokens of its segment."""
        self.depth_tokens: list[int] = []
        """Node -> tokens from the beginning up to and with its segment."""
        self.hit_tokens: list[int] = []
        """Node -> those of them that are found where the node is held, whole blocks."""

    def path(self, model: str, segments: Sequence[Segment]) -> Path:
        """The nodes of a prefix, new ones where nobody had it before."""
        nodes: list[int] = []
        above: str | int = model
        for segment in segments:
            node = self._nodes.setdefault((above, segment), len(self.tokens))
            if node == len(self.tokens):
                depth = segment[1] + (self.depth_tokens[nodes[-1]] if nodes else 0)
                self.parent.append(nodes[-1] if nodes else -1)
                self.tokens.append(segment[1])
                self.depth_tokens.append(depth)
                self.hit_tokens.append(depth // self._block_tokens * self._block_tokens)
            nodes.append(node)
            above = node
        return tuple(nodes)


class RadixTree:
    """The nodes that one worker holds; whoever holds a node holds those above it.

    Nodes are kept in the order of their last use, a node behind all nodes below it: the first one is always a leaf, the
    one least recently used, so that eviction takes from the front.
    """

    __slots__ = ("_held", "_kv_tokens", "_table", "_tokens")

    def __init__(self, table: PrefixTable, kv_tokens: int = 0) -> None:
        """kv_tokens: capacity; 0 for no limit."""
        self._table = table
        self._kv_tokens = kv_tokens
        self._held: OrderedDict[int, None] = OrderedDict()
        self._tokens = 0

    def __contains__(self, node: int) -> bool:
        return node in self._held

    @property
    def tokens(self) -> int:
        """Tokens of all held segments."""
        return self._tokens

    @property
    def state(self) -> tuple[int, ...]:
        """The held nodes, least recently used first: two trees with equal states act alike."""
        return tuple(self._held)

    def hit_tokens(self, path: Path) -> int:
        """Tokens of the path's longest held prefix, in whole blocks."""
        held = self._held
        for node in reversed(path):
            if node in held:
                return self._table.hit_tokens[node]
        return 0

    def insert(self, path: Path, beside_tokens: float = 0.0) -> None:
        """Use a path: it is held from now on, while `beside_tokens` of its calls' own take their room.

        Whole segments go, the least recently used leaf first. The path itself stays, but for the segments at its end
        that do not fit even alone.
        """
        held, tokens = self._held, self._table.tokens
        for node in reversed(path):
            if node in held:
                held.move_to_end(node)
            else:
                held[node] = None
                self._tokens += tokens[node]
        if self._kv_tokens:
            while held and self._tokens > self._kv_tokens - beside_tokens:
                self._tokens -= tokens[held.popitem(last=False)[0]]

    def clear(self) -> None:
        """Forget everything, as an engine does that loads another model."""
        self._held.clear()
        self._tokens = 0

    def copy(self) -> RadixTree:
        """A tree that goes its own way from here."""
        other = RadixTree(self._table, self._kv_tokens)
        other._held = self._held.copy()
        other._tokens = self._tokens
        return other
