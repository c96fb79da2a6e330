"""Which engine was last sent which prompt prefix: the runtime's estimate of the engines' caches.

Prompts are compared as text in chunks, since the runtime does not tokenise; equal text gives equal tokens up to the
chunk before the first difference, so the estimate is safe for ordering and placement (it never changes an answer).
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

CHUNK_CHARS = 256
"""Characters per chunk, about 64 tokens of English."""
CHARS_PER_TOKEN = 4.0
CHUNK_TOKENS = CHUNK_CHARS / CHARS_PER_TOKEN

Chain = tuple[bytes, ...]
"""Rolling hashes of a prompt's chunks: entry i identifies everything up to the end of chunk i."""


def prompt_text(body: Mapping[str, Any]) -> str:
    """The prompt of a chat request as one string in the order in which templates render it (tools, then messages)."""
    parts: list[str] = []
    if tools := body.get("tools"):
        parts.append(json.dumps(tools, sort_keys=True))
    for message in body.get("messages", ()):
        content = message.get("content")
        parts.append(message.get("role", ""))
        parts.append(content if isinstance(content, str) else json.dumps(content, sort_keys=True, default=str))
        if calls := message.get("tool_calls"):
            parts.append(json.dumps([call.get("function") for call in calls], sort_keys=True, default=str))
    return "\x1e".join(parts)


def static_chars(body: Mapping[str, Any]) -> int:
    """How much of `prompt_text` is tools and leading system messages: what rows of one app share as a rule."""
    leading: list[Mapping[str, Any]] = []
    for message in body.get("messages", ()):
        if message.get("role") not in ("system", "developer"):
            break
        leading.append(message)
    if not leading and not body.get("tools"):
        return 0
    return len(prompt_text({"tools": body.get("tools"), "messages": leading}).encode("utf-8", "surrogatepass"))


def prefix_chain(text: str) -> Chain:
    """Rolling hashes of the whole chunks of `text`."""
    data = text.encode("utf-8", "surrogatepass")
    chain: list[bytes] = []
    previous = b""
    for start in range(0, len(data) - CHUNK_CHARS + 1, CHUNK_CHARS):
        previous = blake2b(data[start : start + CHUNK_CHARS], digest_size=12, key=previous).digest()
        chain.append(previous)
    return tuple(chain)


def common_depth(one: Chain, other: Chain) -> int:
    """Leading chunks that two chains share; chunks are rolling hashes, so the first difference is the last."""
    for i, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return i
    return min(len(one), len(other))


@dataclass(slots=True, frozen=True)
class Prompt:
    """What the runtime needs to know of a prompt."""

    chain: Chain
    static_chunks: int
    chars: int

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Prompt:
        """Read the prompt of a chat request."""
        text = prompt_text(body)
        if len(text) < CHUNK_CHARS:
            return cls((), 0, len(text))
        return cls(prefix_chain(text), static_chars(body) // CHUNK_CHARS, len(text))


class PrefixIndex:
    """The chunks that one engine is believed to hold, least recently used forgotten first."""

    __slots__ = ("_capacity", "_held")

    def __init__(self, capacity_chunks: int) -> None:
        self._capacity = max(capacity_chunks, 1)
        self._held: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def depth(self, chain: Chain) -> int:
        """How many leading chunks of `chain` the engine holds."""
        depth = 0
        for chunk in chain:
            if chunk not in self._held:
                break
            depth += 1
        return depth

    def insert(self, chain: Chain) -> None:
        """The engine was sent a prompt with this chain."""
        for chunk in reversed(chain):  # the head last, so that heads outlive tails
            self._held[chunk] = None
            self._held.move_to_end(chunk)
        while len(self._held) > self._capacity:
            self._held.popitem(last=False)

    def add(self, chunks: Iterable[bytes]) -> None:
        """The engine says that it holds these."""
        for chunk in chunks:
            self._held[chunk] = None

    def discard(self, chunks: Iterable[bytes]) -> None:
        """The engine says that it holds these no longer."""
        for chunk in chunks:
            self._held.pop(chunk, None)

    def clear(self) -> None:
        """The engine's cache was reset, or the engine was started again."""
        self._held.clear()
