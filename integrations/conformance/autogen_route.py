"""Takes every call of AutoGen's model clients to the loopback engine, which has the client's own method run."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from contextvars import ContextVar, copy_context
from typing import Any

from autogen_core import MessageHandlerContext
from autogen_core.models import ChatCompletionClient

from halo_core.pool import CallOrigin, LLMCall
from halo_core.runtime import SESSION, Run, ambient_run, get_executor
from integrations.conformance.loopback import Deposit, LoopbackEngine, Tell

_INSIDE: ContextVar[bool] = ContextVar("loopback_inside", default=False)
"""True in the work of a call, so that a client that delegates to another (or to its base) is routed once."""


Work = Callable[[], AsyncIterator[Any]]
"""Gives the result, or the chunks of it."""


class OnCallersLoop(Deposit):
    """Work that the caller's own loop does, in a task of its own: clients may be bound to that loop."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self._work = work
        self._loop = asyncio.get_running_loop()
        self._context = copy_context()
        self._context.run(_INSIDE.set, True)
        self._task: asyncio.Task[None] | None = None

    def start(self, tell: Tell) -> None:
        """Ask the loop to begin. Raises `RuntimeError` when it is closed."""
        self._loop.call_soon_threadsafe(self._begin, tell)

    def stop(self) -> None:
        """Cancel the work, as a server does when its client hangs up."""
        with suppress(RuntimeError):  # the loop is closed, and has ended its tasks itself
            self._loop.call_soon_threadsafe(self._cancel)

    def _begin(self, tell: Tell) -> None:
        self._task = self._loop.create_task(self._produce(tell), context=self._context)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _produce(self, tell: Tell) -> None:
        try:
            async for item in self._work():
                self.keep(item, tell)
        except BaseException as error:  # a cancellation too: the client's own, by the caller's token
            self.fail(error, tell)
        self.end(tell)


def install(engine: LoopbackEngine) -> None:
    """Route `create` and `create_stream` of every client class, those that exist and those to come."""

    def wrap_new(cls: type[ChatCompletionClient], **kwargs: Any) -> None:
        super(ChatCompletionClient, cls).__init_subclass__(**kwargs)
        route(cls, engine)

    ChatCompletionClient.__init_subclass__ = classmethod(wrap_new)  # type: ignore[assignment, arg-type]
    for cls in _subclasses(ChatCompletionClient):
        route(cls, engine)


def _subclasses(cls: type[Any]) -> Iterator[type[Any]]:
    for subclass in cls.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def route(cls: type, engine: LoopbackEngine) -> None:
    """Take the calls of the methods that `cls` itself defines to the engine."""
    for name, wrapper in (("create", _create), ("create_stream", _create_stream)):
        method = cls.__dict__.get(name)
        if inspect.isfunction(method) and not getattr(method, "__isabstractmethod__", False):
            setattr(cls, name, wrapper(method, engine))


def _create(original: Callable[..., Any], engine: LoopbackEngine) -> Callable[..., Any]:
    @functools.wraps(original)
    async def create(self: ChatCompletionClient, *args: Any, **kwargs: Any) -> Any:
        if _INSIDE.get():
            return await original(self, *args, **kwargs)

        async def work() -> AsyncIterator[Any]:
            yield await original(self, *args, **kwargs)

        with _call(engine, self, work) as (run, deposit, call):
            return deposit.collect((await get_executor().call(run, call)).raw)

    return create


def _create_stream(original: Callable[..., Any], engine: LoopbackEngine) -> Callable[..., Any]:
    async def routed(client: ChatCompletionClient, chunks: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
        with _call(engine, client, lambda: chunks, stream=True) as (run, deposit, call):
            async with aclosing(get_executor().stream(run, call)) as answers:
                async for raw in answers:
                    yield deposit.collect(raw)

    @functools.wraps(original)
    def create_stream(self: ChatCompletionClient, *args: Any, **kwargs: Any) -> Any:
        if _INSIDE.get():
            return original(self, *args, **kwargs)
        token = _INSIDE.set(True)  # it may be a plain function that hands out another client's generator
        try:
            chunks = original(self, *args, **kwargs)
        finally:
            _INSIDE.reset(token)
        return routed(self, chunks)

    return create_stream


@contextmanager
def _call(
    engine: LoopbackEngine, client: ChatCompletionClient, work: Work, *, stream: bool = False
) -> Iterator[tuple[Run, OnCallersLoop, LLMCall]]:
    """The run that makes a call, in the ambient batch where there is none, and the call that stands for `work`."""
    deposit = OnCallersLoop(work)
    with _run(client) as run, engine.deposit(deposit, _origin(run, client), stream=stream) as call:
        yield run, deposit, call


@contextmanager
def _run(client: ChatCompletionClient) -> Iterator[Run]:
    run = SESSION.get()
    if run is not None:
        yield run
    else:
        with ambient_run(type(client).__name__) as run:
            yield run


def _origin(run: Run, client: ChatCompletionClient) -> CallOrigin:
    try:
        agent = MessageHandlerContext.agent_id()
    except RuntimeError:  # a bare agent, or a test that calls its client itself
        return CallOrigin(run=run.key, operator=type(client).__name__)
    return CallOrigin(run=run.key, operator=agent.type.removesuffix(f"_{agent.key}"), team=agent.key)
