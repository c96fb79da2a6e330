"""An engine that answers a call by running the very method that the application's model would have run.

The suites' models are fakes: what they answer is a Python object that no engine could know. So a call carries a
ticket, the method runs on the engine's side in a thread of its own, and the ticket fetches the object (or the error)
back. Calls take the whole way through Halo all the same: run, queue, dispatch, engine, and home to the caller's loop.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from langchain_core.language_models.chat_models import BaseChatModel

from halo_adapters.langgraph.intercept import INSIDE, Route
from halo_adapters.langgraph.session import origin_of
from halo_core.pool import Completion, LLMCall
from halo_core.pool.engine import CacheEvent, Capacity, EngineCounters, Health
from halo_core.runtime import Run, get_executor

MODEL = "loopback"
_SLOTS = 64
_DONE = b"{}"


@dataclass(slots=True)
class Deposit:
    """What one call stands for: the work, and the objects that it gave so far."""

    work: Callable[[], Iterator[Any]]
    """Yields the result, or the chunks of it."""
    items: list[Any] = field(default_factory=list)

    def produce(self, tell: Callable[[bytes], None]) -> None:
        """Do the work; `tell` gets the number of each object, and of the error that ended it if there was one."""
        INSIDE.set(True)
        try:
            for item in self.work():
                self._keep(item, tell)
        except BaseException as error:  # whatever it is belongs to the caller
            self._keep(_Raised(error), tell)
        tell(_DONE)

    def _keep(self, item: Any, tell: Callable[[bytes], None]) -> None:
        self.items.append(item)
        tell(str(len(self.items) - 1).encode())

    def collect(self, raw: bytes) -> Any:
        """The object behind an answer. Raises what the work raised."""
        item = self.items[int(raw)]
        if isinstance(item, _Raised):
            raise item.error
        return item


class LoopbackEngine:
    """Implements `halo_core.pool.engine.Engine`; `deposit` is the caller's side."""

    def __init__(self) -> None:
        self.name = self.model = MODEL
        self.counters = EngineCounters()
        self._tickets = itertools.count(1)
        self._deposits: dict[int, Deposit] = {}
        self._threads = ThreadPoolExecutor(_SLOTS, thread_name_prefix="loopback")
        self._state: Any = "new"

    @contextmanager
    def deposit(
        self, run: Run, work: Callable[[], Iterator[Any]], *, stream: bool = False
    ) -> Iterator[tuple[Deposit, LLMCall]]:
        """The call that stands for `work`, as long as its caller is interested.

        Nothing is kept beyond that: a forgotten error holds frames, and the suites look for objects that outlive a run.
        """
        ticket = next(self._tickets)
        deposit = self._deposits[ticket] = Deposit(work)
        try:
            yield deposit, LLMCall(MODEL, {"loopback": ticket}, stream=stream, origin=origin_of(run))
        finally:
            del self._deposits[ticket]

    @property
    def capacity(self) -> Capacity:
        """As many calls as threads."""
        return Capacity(_SLOTS)

    @property
    def health(self) -> Health:
        """Never dies."""
        return Health(self._state)

    async def start(self) -> None:
        """Nothing to bring up."""
        self._state = "ready"

    async def complete(self, call: LLMCall) -> Completion:
        """Run the deposited work to its only object."""
        numbers = [number async for number in self.stream(call)]
        return Completion(numbers[0], engine=self.name)

    async def stream(self, call: LLMCall) -> AsyncIterator[bytes]:
        """Run the deposited work; each chunk is the number of one of its objects."""
        self.counters.calls += 1
        deposit = self._deposits[call.body["loopback"]]
        loop = asyncio.get_running_loop()
        told: asyncio.Queue[bytes] = asyncio.Queue()

        def tell(number: bytes) -> None:
            loop.call_soon_threadsafe(told.put_nowait, number)

        # A new context: the work must not find itself inside the caller's run, as it would not in another process.
        self._threads.submit(contextvars.Context().run, deposit.produce, tell)
        while (number := await told.get()) != _DONE:
            yield number

    async def cache_events(self) -> AsyncIterator[CacheEvent]:
        """None: there is no cache."""
        return
        yield

    async def check(self) -> Health:
        """As `health`."""
        return self.health

    async def reset_cache(self) -> None:
        """There is no cache."""

    async def close(self) -> None:
        """Let the threads end."""
        self._state = "closed"
        self._threads.shutdown(wait=False, cancel_futures=True)


class _Raised:
    """An error, told from a result."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class LoopbackRoute(Route):
    """Takes every call of every chat model to the loopback engine."""

    def __init__(self, engine: LoopbackEngine) -> None:
        self._engine = engine

    def matches(self, model: BaseChatModel, owner: type[BaseChatModel]) -> bool:
        """All of them."""
        return True

    def generate(self, run: Run, model: Any, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """In place of `_generate`."""
        with self._engine.deposit(run, lambda: iter([original(*args, **kwargs)])) as (deposit, call):
            return deposit.collect(get_executor().call_blocking(run, call).raw)

    async def agenerate(self, run: Run, model: Any, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """In place of `_agenerate`."""
        with self._engine.deposit(run, lambda: iter([asyncio.run(original(*args, **kwargs))])) as (deposit, call):
            return deposit.collect((await get_executor().call(run, call)).raw)

    def stream(self, run: Run, model: Any, original: Callable[..., Any], args: Any, kwargs: Any) -> Iterator[Any]:
        """In place of `_stream`."""
        with self._engine.deposit(run, lambda: original(*args, **kwargs), stream=True) as (deposit, call):
            for raw in get_executor().stream_blocking(run, call):
                yield deposit.collect(raw)

    async def astream(
        self, run: Run, model: Any, original: Callable[..., Any], args: Any, kwargs: Any
    ) -> AsyncIterator[Any]:
        """In place of `_astream`."""
        with self._engine.deposit(run, lambda: _blocking(original(*args, **kwargs)), stream=True) as (deposit, call):
            async for raw in get_executor().stream(run, call):
                yield deposit.collect(raw)


def _blocking(chunks: AsyncIterator[Any]) -> Iterator[Any]:
    """The chunks of an asynchronous stream, from a loop of its own."""
    with asyncio.Runner() as runner:
        while True:
            try:
                yield runner.run(anext(chunks))  # type: ignore[arg-type]
            except StopAsyncIteration:
                return
