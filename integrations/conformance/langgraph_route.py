"""Takes every model call of LangChain's chat models to the loopback engine, which runs the fake's own method."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from langchain_core.language_models.chat_models import BaseChatModel

from halo_adapters.langgraph.intercept import INSIDE, Route
from halo_adapters.langgraph.session import origin_of
from halo_core.pool import LLMCall
from halo_core.runtime import Run, get_executor
from integrations.conformance.loopback import SLOTS, Deposit, LoopbackEngine, Tell


class InThread(Deposit):
    """Work that is done in a thread of its own, as in another process."""

    _threads = ThreadPoolExecutor(SLOTS, thread_name_prefix="loopback")

    def __init__(self, work: Callable[[], Iterator[Any]]) -> None:
        super().__init__()
        self._work = work

    def start(self, tell: Tell) -> None:
        """Submit the work."""
        # A new context: the work must not find itself inside the caller's run, as it would not in another process.
        self._threads.submit(contextvars.Context().run, self._produce, tell)

    def _produce(self, tell: Tell) -> None:
        INSIDE.set(True)
        try:
            for item in self._work():
                self.keep(item, tell)
        except BaseException as error:
            self.fail(error, tell)
        self.end(tell)


class LoopbackRoute(Route):
    """Takes every call of every chat model to the loopback engine."""

    def __init__(self, engine: LoopbackEngine) -> None:
        self._engine = engine

    def matches(self, model: BaseChatModel, owner: type[BaseChatModel]) -> bool:
        """All of them."""
        return True

    def generate(self, run: Run, model: Any, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """In place of `_generate`."""
        with self._deposit(run, lambda: iter([original(*args, **kwargs)])) as (deposit, call):
            return deposit.collect(get_executor().call_blocking(run, call).raw)

    async def agenerate(self, run: Run, model: Any, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """In place of `_agenerate`."""
        with self._deposit(run, lambda: iter([asyncio.run(original(*args, **kwargs))])) as (deposit, call):
            return deposit.collect((await get_executor().call(run, call)).raw)

    def stream(self, run: Run, model: Any, original: Callable[..., Any], args: Any, kwargs: Any) -> Iterator[Any]:
        """In place of `_stream`."""
        with self._deposit(run, lambda: original(*args, **kwargs), stream=True) as (deposit, call):
            for raw in get_executor().stream_blocking(run, call):
                yield deposit.collect(raw)

    async def astream(
        self, run: Run, model: Any, original: Callable[..., Any], args: Any, kwargs: Any
    ) -> AsyncIterator[Any]:
        """In place of `_astream`."""
        with self._deposit(run, lambda: _blocking(original(*args, **kwargs)), stream=True) as (deposit, call):
            async for raw in get_executor().stream(run, call):
                yield deposit.collect(raw)

    @contextmanager
    def _deposit(
        self, run: Run, work: Callable[[], Iterator[Any]], *, stream: bool = False
    ) -> Iterator[tuple[InThread, LLMCall]]:
        deposit = InThread(work)
        with self._engine.deposit(deposit, origin_of(run), stream=stream) as call:
            yield deposit, call


def _blocking(chunks: AsyncIterator[Any]) -> Iterator[Any]:
    """The chunks of an asynchronous stream, from a loop of its own."""
    with asyncio.Runner() as runner:
        while True:
            try:
                yield runner.run(anext(chunks))  # type: ignore[arg-type]
            except StopAsyncIteration:
                return
