"""An engine that answers a call by having the very work done that the application's model would have done.

The suites' models are fakes: what they answer is a Python object that no engine could know. So a call carries a
ticket, the work is done at the engine's request, and the ticket fetches the object (or the error) back. Calls take the
whole way through Halo all the same: run, queue, dispatch, engine, and home to the caller's loop.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from halo_core.pool import CallOrigin, Completion, LLMCall
from halo_core.pool.engine import CacheEvent, Capacity, EngineCounters, Health

MODEL = "loopback"
SLOTS = 64
_DONE = b"{}"

Tell = Callable[[bytes], None]
"""Takes the number of each object that the work gave, from any thread."""


class Deposit:
    """What one call stands for: the work, and the objects that it gave so far. Subclasses know where it is done."""

    def __init__(self) -> None:
        self._items: list[Any] = []

    def start(self, tell: Tell) -> None:
        """Have the work begun, without waiting for it: `keep` each object, `fail` with an error, `end` always."""
        raise NotImplementedError

    def stop(self) -> None:
        """Nobody waits for the work any more; it may have ended."""

    def keep(self, item: Any, tell: Tell) -> None:
        """The work gave an object."""
        self._items.append(item)
        tell(str(len(self._items) - 1).encode())

    def fail(self, error: BaseException, tell: Tell) -> None:
        """The work raised; whatever it is belongs to the caller."""
        self.keep(_Raised(error), tell)

    def end(self, tell: Tell) -> None:
        """The work gives no more."""
        tell(_DONE)

    def collect(self, raw: bytes) -> Any:
        """The object behind an answer. Raises what the work raised."""
        item = self._items[int(raw)]
        if isinstance(item, _Raised):
            raise item.error
        return item


class LoopbackEngine:
    """Implements `halo_core.pool.engine.Engine`; `deposit` is the caller's side."""

    sharing = None

    def __init__(self) -> None:
        self.name = self.model = MODEL
        self.counters = EngineCounters()
        self._tickets = itertools.count(1)
        self._deposits: dict[int, Deposit] = {}
        self._state: Any = "new"

    @contextmanager
    def deposit(self, deposit: Deposit, origin: CallOrigin, *, stream: bool = False) -> Iterator[LLMCall]:
        """The call that stands for the deposit, as long as its caller is interested.

        Nothing is kept beyond that: a forgotten error holds frames, and the suites look for objects that outlive a run.
        """
        ticket = next(self._tickets)
        self._deposits[ticket] = deposit
        try:
            yield LLMCall(MODEL, {"loopback": ticket}, stream=stream, origin=origin)
        finally:
            del self._deposits[ticket]

    @property
    def capacity(self) -> Capacity:
        """As many calls as LangGraph's side has threads."""
        return Capacity(SLOTS)

    @property
    def health(self) -> Health:
        """Never dies."""
        return Health(self._state)

    async def start(self) -> None:
        """Nothing to bring up."""
        self._state = "ready"

    async def complete(self, call: LLMCall) -> Completion:
        """Have the deposited work done to its only object."""
        numbers = [number async for number in self.stream(call)]
        return Completion(numbers[0], engine=self.name)

    async def stream(self, call: LLMCall) -> AsyncIterator[bytes]:
        """Have the deposited work done; each chunk is the number of one of its objects."""
        self.counters.calls += 1
        deposit = self._deposits[call.body["loopback"]]
        loop = asyncio.get_running_loop()
        told: asyncio.Queue[bytes] = asyncio.Queue()

        def tell(number: bytes) -> None:
            loop.call_soon_threadsafe(told.put_nowait, number)

        deposit.start(tell)
        try:
            while (number := await told.get()) != _DONE:
                yield number
        finally:
            deposit.stop()

    async def cache_events(self) -> AsyncIterator[CacheEvent]:
        """None: there is no cache."""
        return
        yield

    async def check(self) -> Health:
        """As `health`."""
        return self.health

    async def reset_cache(self) -> None:
        """There is no cache."""

    async def count_tokens(self, body: Mapping[str, Any]) -> int | None:
        """Unknown: there is no tokenizer."""
        return None

    async def close(self) -> None:
        """Nothing to stop."""
        self._state = "closed"


class _Raised:
    """An error, told from a result."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
