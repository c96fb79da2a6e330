"""Calls and completions: the plain data that crosses from the runtime to an engine and back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json

# Fields of a request that change neither the prompt nor what is sampled from it.
_TRANSPORT_FIELDS = frozenset({"stream", "stream_options", "priority", "request_id", "user", "metadata", "store"})


@dataclass(slots=True, frozen=True)
class CallOrigin:
    """Who makes a call: enough to attribute cost and to find the operator of the plan."""

    run: str = ""
    """Identifies the run (row) inside its batch."""
    operator: str = ""
    """Name of the plan's operator (LangGraph node, AutoGen agent)."""
    step: int = 0
    """Superstep or turn within the run; 0 when unknown."""
    team: str = ""
    """Id of the team that the agent speaks in, where the framework has teams; unique per team object."""
    attempt: int = 1
    """1 for the first try of the operator, 2 and up for the framework's own retries."""


@dataclass(slots=True, frozen=True)
class LLMCall:
    """One chat completion, in the OpenAI `/v1/chat/completions` wire format.

    `body` is a complete request body without `model` and `stream`; it is never modified after construction.
    """

    model: str
    """Name of the served model (after the pool's name map)."""
    body: Mapping[str, Any]
    stream: bool = False
    origin: CallOrigin = field(default_factory=CallOrigin)
    priority: int = 0
    """Lower runs earlier, in the engine as in the pool."""
    share_tokens: int = 0
    """Leading tokens of the prompt whose KV the engine is to keep in the host's block store for other calls; -1: all,
    the answer's too. Engines that share no KV pass over it."""
    share_ends: bool = False
    """Whether what the store holds of its conversation behind those tokens can go when it is answered."""
    share_pin_s: float = 0.0
    """Seconds for which the store keeps those tokens before all that is not pinned."""
    share_loads: bool = True
    """Whether the engine may take its prefix from the store."""

    @property
    def deterministic(self) -> bool:
        """Whether equal calls give equal answers: temperature exactly 0, or a seed."""
        temperature = self.body.get("temperature")
        return (temperature is not None and temperature == 0) or self.body.get("seed") is not None

    def wire(self) -> dict[str, Any]:
        """The request body as an engine expects it."""
        body = {**self.body, "model": self.model}
        if self.stream:
            body["stream"] = True
            body.setdefault("stream_options", {"include_usage": True})
        else:
            body.pop("stream", None)
            body.pop("stream_options", None)
        return body

    def fingerprint(self) -> str:
        """Hex SHA-256 of everything that decides the answer; equal fingerprints mean interchangeable calls.

        Equality of the request implies equality of the token ids, because one served model has one chat template.
        """
        content = {k: v for k, v in self.body.items() if k not in _TRANSPORT_FIELDS and v is not None}
        text = json.dumps([self.model, self.stream, content], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(slots=True, frozen=True)
class Usage:
    """Tokens of one call."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens that the engine took from its prefix cache."""
    generated_tokens: int = 0
    moved_tokens: int = 0
    """Of the cached ones: those that the engine took from the host's block store."""

    @property
    def computed_tokens(self) -> int:
        """Prompt tokens that were really prefilled."""
        return self.prompt_tokens - self.cached_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.generated_tokens + other.generated_tokens,
            self.moved_tokens + other.moved_tokens,
        )

    @classmethod
    def from_wire(cls, usage: Mapping[str, Any] | None) -> Usage:
        """Read an OpenAI `usage` object; absent fields count as 0."""
        if not usage:
            return cls()
        details = usage.get("prompt_tokens_details") or {}
        return cls(
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            cached_tokens=int(details.get("cached_tokens") or 0),
            generated_tokens=int(usage.get("completion_tokens") or 0),
        )


@dataclass(slots=True, frozen=True)
class Completion:
    """One answer, kept as the bytes that the engine sent, so that every reader parses a fresh object."""

    raw: bytes
    """A `chat.completion` JSON object; for a streamed call, a JSON array of its `chat.completion.chunk` objects."""
    usage: Usage = field(default_factory=Usage)
    engine: str = ""
    """Name of the engine that computed it."""
    blocks: tuple[bytes, ...] = ()
    """The engine's hashes of the whole KV blocks of prompt and answer, where it says them."""

    def parse(self) -> Any:
        """A fresh Python object (a dict, or a list of chunk dicts for a streamed call)."""
        return from_json(self.raw)
