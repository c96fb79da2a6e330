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


class LoopbackEngine:
    """Implements `halo_core.pool.engine.Engine`; `deposit` and `collect` are the caller's side."""

    def __init__(self) -> None:
        self.name = self.model = MODEL
        self.counters = EngineCounters()
        self._tickets = itertools.count(1)
        self._deposits: dict[int, Callable[[], Iterator[Any]]] = {}
        self._results: dict[int, Any] = {}
        self._threads = ThreadPoolExecutor(_SLOTS, thread_name_prefix="loopback")
        self._state: Any = "new"

    # -- the caller's side ---------------------------------------------------------------------------------------

    def deposit(self, work: Callable[[], Iterator[Any]], *, stream: bool, run: Run) -> LLMCall:
        """The call that stands for `work`, which yields the result, or the chunks of it."""
        ticket = next(self._tickets)
        self._deposits[ticket] = work
        return LLMCall(MODEL, {"loopback": ticket}, stream=stream, origin=origin_of(run))

    def collect(self, raw: bytes) -> Any:
        """The object behind an answer, once. Raises what the work raised."""
        result = self._results.pop(int(raw))
        if isinstance(result, _Raised):
            raise result.error
        return result

    # -- the engine's side ---------------------------------------------------------------------------------------

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
        """Run the deposited work to its only item."""
        async for raw in self.stream(call):
            return Completion(raw, engine=self.name)
        raise RuntimeError("deposited work of a plain call yielded nothing")

    async def stream(self, call: LLMCall) -> AsyncIterator[bytes]:
        """Run the deposited work item by item; each chunk is the number under which `collect` finds the object."""
        self.counters.calls += 1
        work = self._deposits.pop(call.body["loopback"])
        loop = asyncio.get_running_loop()
        items: asyncio.Queue[bytes] = asyncio.Queue()

        def put(item: Any) -> None:
            number = next(self._tickets)
            self._results[number] = item
            loop.call_soon_threadsafe(items.put_nowait, str(number).encode())

        def produce() -> None:
            INSIDE.set(True)
            try:
                for item in work():
                    put(item)
            except BaseException as error:  # whatever it is belongs to the caller
                put(_Raised(error))
            loop.call_soon_threadsafe(items.put_nowait, _DONE)

        # A new context: the work must not find itself inside the caller's run, as it would not in another process.
        self._threads.submit(contextvars.Context().run, produce)
        while (item := await items.get()) is not _DONE:
            yield item

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
        call = self._engine.deposit(lambda: iter([original(*args, **kwargs)]), stream=False, run=run)
        return self._engine.collect(get_executor().call_blocking(run, call).raw)

    async def agenerate(self, run: Run, model: Any, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """In place of `_agenerate`."""
        call = self._engine.deposit(lambda: iter([asyncio.run(original(*args, **kwargs))]), stream=False, run=run)
        return self._engine.collect((await get_executor().call(run, call)).raw)

    def stream(self, run: Run, model: Any, original: Callable[..., Any], args: Any, kwargs: Any) -> Iterator[Any]:
        """In place of `_stream`."""
        call = self._engine.deposit(lambda: original(*args, **kwargs), stream=True, run=run)
        for raw in get_executor().stream_blocking(run, call):
            yield self._engine.collect(raw)

    async def astream(
        self, run: Run, model: Any, original: Callable[..., Any], args: Any, kwargs: Any
    ) -> AsyncIterator[Any]:
        """In place of `_astream`."""
        call = self._engine.deposit(lambda: _blocking(original(*args, **kwargs)), stream=True, run=run)
        async for raw in get_executor().stream(run, call):
            yield self._engine.collect(raw)


def _blocking(chunks: AsyncIterator[Any]) -> Iterator[Any]:
    """The chunks of an asynchronous stream, from a loop of its own."""
    with asyncio.Runner() as runner:
        while True:
            try:
                yield runner.run(anext(chunks))  # type: ignore[arg-type]
            except StopAsyncIteration:
                return
