"""An engine that tests steer: it holds every call until the test lets it go, and records what it was sent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from halo_core.errors import EngineDiedError
from halo_core.pool import CacheEvent, Capacity, Completion, EngineCounters, Health, LLMCall, Usage


def answer(text: str, prompt_tokens: int = 10, cached_tokens: int = 0) -> Completion:
    """A chat completion that says `text`."""
    usage = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": 3,
        "total_tokens": prompt_tokens + 3,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }
    message = {"role": "assistant", "content": text}
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        "usage": usage,
    }
    return Completion(json.dumps(body).encode(), Usage.from_wire(usage), "scripted")


def text_of(completion: Completion) -> str:
    """What a completion says."""
    content: str = completion.parse()["choices"][0]["message"]["content"]
    return content


@dataclass(eq=False)
class ScriptedEngine:
    """Answers with the last message's content in upper case."""

    sharing = None

    name: str = "e0"
    model: str = "m"
    slots: int = 4
    held: bool = False
    """Whether calls wait for `release`."""
    fail: Callable[[LLMCall], BaseException | None] = lambda call: None
    counters: EngineCounters = field(default_factory=EngineCounters)
    seen: list[LLMCall] = field(default_factory=list)
    cancelled: int = 0
    peak: int = 0
    starts: int = 0
    state: Any = "new"
    _running: int = 0
    _gate: asyncio.Event = field(default_factory=asyncio.Event)
    _died: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def capacity(self) -> Capacity:
        return Capacity(self.slots)

    @property
    def health(self) -> Health:
        return Health(self.state)

    async def start(self) -> None:
        self.starts += 1
        self._died = asyncio.Event()
        self.state = "ready"

    def release(self) -> None:
        """Let all calls through from now on (on the pool's loop)."""
        self.held = False
        self._gate.set()

    def die(self) -> None:
        """All calls under way fail, as when the process is killed."""
        self.state = "dead"
        self._died.set()

    async def complete(self, call: LLMCall) -> Completion:
        self.seen.append(call)
        self._running += 1
        self.peak = max(self.peak, self._running)
        try:
            if self.held:
                gate = asyncio.ensure_future(self._gate.wait())
                died = asyncio.ensure_future(self._died.wait())
                try:
                    await asyncio.wait({gate, died}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    gate.cancel()
                    died.cancel()
                if self._died.is_set():
                    raise EngineDiedError("killed")
            else:
                await asyncio.sleep(0)
            error = self.fail(call)
            if error is not None:
                raise error
            return answer(str(call.body["messages"][-1]["content"]).upper())
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self._running -= 1

    async def stream(self, call: LLMCall) -> AsyncIterator[bytes]:
        completion = await self.complete(call)
        for letter in text_of(completion):
            yield json.dumps({"choices": [{"index": 0, "delta": {"content": letter}}]}).encode()
        yield json.dumps({"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 3}}).encode()

    async def cache_events(self) -> AsyncIterator[CacheEvent]:
        return
        yield

    async def check(self) -> Health:
        return self.health

    async def reset_cache(self) -> None:
        return None

    async def close(self) -> None:
        self.state = "closed"


def ask(text: str, **body: Any) -> LLMCall:
    """A deterministic call unless `body` says otherwise."""
    return LLMCall("m", {"messages": [{"role": "user", "content": text}], "temperature": 0, **body})
