"""The protocol that every engine implements: the unit of scale of the pool."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from halo_core.pool.call import Completion, LLMCall, Usage


@dataclass(slots=True, frozen=True)
class Capacity:
    """What one engine can hold at a time."""

    slots: int
    """Calls that it decodes at once; the pool keeps little more than this in flight."""
    kv_tokens: int = 0
    """Tokens of KV cache; 0 when unknown."""
    block_size: int = 16
    """Tokens per KV block; prefixes are shared in whole blocks."""
    max_model_len: int = 0
    """Longest prompt plus answer, in tokens; 0 when unknown."""


@dataclass(slots=True, frozen=True)
class Health:
    """The engine's state now."""

    state: Literal["new", "starting", "ready", "dead", "closed"]
    detail: str = ""


@dataclass(slots=True, frozen=True)
class CacheEvent:
    """A change of an engine's prefix cache."""

    kind: Literal["stored", "removed", "cleared"]
    block_hashes: tuple[int | bytes, ...] = ()
    parent_hash: int | bytes | None = None
    token_ids: tuple[int, ...] = ()
    """Tokens of the stored blocks, concatenated; empty for other kinds."""


class Sharing(Protocol):
    """An engine's end of the block store that it shares with the other engines of its host."""

    @property
    def cap_tokens(self) -> int:
        """KV of so many tokens fits into the store."""

    def counters(self) -> Mapping[str, int]:
        """What it has loaded and saved so far, see `halo_core.kv.COUNTERS`."""


@dataclass(slots=True)
class EngineCounters:
    """What an engine has done since it was created; the engine updates them itself."""

    calls: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    moved_tokens: int = 0
    restarts: int = 0
    extra: dict[str, float] = field(default_factory=dict)

    def count(self, usage: Usage) -> None:
        """A call was answered."""
        self.calls += 1
        self.prompt_tokens += usage.prompt_tokens
        self.cached_tokens += usage.cached_tokens
        self.generated_tokens += usage.generated_tokens
        self.moved_tokens += usage.moved_tokens


class Engine(Protocol):
    """One place that answers calls for one model. All methods run on the pool's event loop.

    Cancelling the task that awaits `complete`, or closing the iterator of `stream`, cancels the call in the engine.
    `complete` and `stream` raise `EngineDiedError` when the engine is gone (the pool sends the call again elsewhere),
    `PromptTooLongError` and `EngineError` when this one call is at fault.
    """

    name: str
    model: str
    counters: EngineCounters

    @property
    def capacity(self) -> Capacity:
        """What the engine can hold; final only once `start` has returned."""

    @property
    def health(self) -> Health:
        """The state as last seen, without asking the engine."""

    async def start(self) -> None:
        """Bring the engine up; idempotent. Raises `EngineStartError`."""

    async def complete(self, call: LLMCall) -> Completion:
        """Answer `call` (whose `stream` is False)."""

    def stream(self, call: LLMCall) -> AsyncIterator[bytes]:
        """Answer `call` (whose `stream` is True) as raw `chat.completion.chunk` JSON objects; the last has usage."""

    def cache_events(self) -> AsyncIterator[CacheEvent]:
        """Changes of the prefix cache from now on; ends at once where the engine sends none."""

    async def count_tokens(self, body: Mapping[str, Any]) -> int | None:
        """Tokens of a request's prompt by the model's own template and tokenizer; None where it cannot tell."""

    @property
    def sharing(self) -> Sharing | None:
        """How it shares KV with the other engines of its host; None where it does not."""

    async def check(self) -> Health:
        """Ask the engine how it is."""

    async def reset_cache(self) -> None:
        """Forget all cached prefixes (benchmarks start cold)."""

    async def close(self) -> None:
        """Stop the engine and free what it holds; idempotent."""
