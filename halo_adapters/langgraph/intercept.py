"""Interception of model calls at the provider contract methods of concrete chat-model classes.

`BaseChatModel` calls `_generate`, `_agenerate`, `_stream` or `_astream` of the provider's class for every model call,
below callbacks, tracing, caches, rate limiters and output parsing, so all of that stays LangChain's own. The methods
are wrapped on first use of a class and do nothing special unless a Halo run is active in the current context.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from typing import Any

from langchain_core.language_models.chat_models import BaseChatModel

from halo_adapters.hooks import Hooks
from halo_adapters.langgraph import tools
from halo_core.runtime import SESSION, Run, not_ahead, on_event_loop

logger = logging.getLogger(__name__)

CONTRACT = ("_generate", "_agenerate", "_stream", "_astream")
ENTRY = ("generate", "agenerate", "stream", "astream")


class Route:
    """One way to answer model calls from the pool. Subclass, and append an instance to `ROUTES`.

    `original` is the wrapped contract method, bound to the model; `args` and `kwargs` are what LangChain passed to it
    (`messages, stop, run_manager, **kwargs`).
    """

    def matches(self, model: BaseChatModel, owner: type[BaseChatModel]) -> bool:
        """Whether this route stands in for the contract methods that `owner` defines, for `model`."""
        raise NotImplementedError

    def refuses(self, model: BaseChatModel, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        """Why this very call is left alone, None where it is routed."""
        return None

    def generate(self, run: Run, model: Any, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """In place of `_generate`."""
        raise NotImplementedError

    async def agenerate(self, run: Run, model: Any, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """In place of `_agenerate`."""
        raise NotImplementedError

    def stream(self, run: Run, model: Any, original: Callable[..., Any], args: Any, kwargs: Any) -> Iterator[Any]:
        """In place of `_stream`."""
        raise NotImplementedError

    def astream(self, run: Run, model: Any, original: Callable[..., Any], args: Any, kwargs: Any) -> AsyncIterator[Any]:
        """In place of `_astream`."""
        raise NotImplementedError


class _Original(Route):
    """The route of calls that are left alone: the model's own method, marked as seen."""

    def generate(self, run: Run, model: Any, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        return original(*args, **kwargs)

    async def agenerate(self, run: Run, model: Any, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        return await original(*args, **kwargs)

    def stream(self, run: Run, model: Any, original: Callable[..., Any], args: Any, kwargs: Any) -> Iterator[Any]:
        return iter(original(*args, **kwargs))

    def astream(self, run: Run, model: Any, original: Callable[..., Any], args: Any, kwargs: Any) -> AsyncIterator[Any]:
        return aiter(original(*args, **kwargs))


_ORIGINAL = _Original()

ROUTES: list[Route] = []
"""Tried in order; the first that matches decides."""

INSIDE: ContextVar[bool] = ContextVar("halo_inside", default=False)
"""True while a routed call is under way, so that a contract method that calls another is not routed twice."""


def _route(
    model: BaseChatModel, owner: type[BaseChatModel], method: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Route, Run] | None:
    """The route for this call and the run that makes it, or None where the original method is to be called."""
    if INSIDE.get():
        return None
    not_ahead()
    run = SESSION.get()
    if run is None:
        _count_outside(model, owner, method)
        return None
    for route in ROUTES:
        if not route.matches(model, owner):
            continue
        reason = route.refuses(model, method, args, kwargs)
        if reason is None and method in ("_generate", "_stream") and on_event_loop():
            reason = "a synchronous model call on an event-loop thread (it would block the loop)"
        if reason is None:
            return route, run
        leave_alone(run, model, reason)
        return _ORIGINAL, run
    if not any(route.matches(model, cls) for route in ROUTES for cls in _owners(type(model), method)):
        leave_alone(run, model, f"no route for {type(model).__name__}")
        return _ORIGINAL, run
    return None


def _owners(cls: type, method: str) -> Iterator[type[BaseChatModel]]:
    for base in cls.__mro__:
        if base is not BaseChatModel and issubclass(base, BaseChatModel) and method in base.__dict__:
            yield base


def leave_alone(run: Run, model: BaseChatModel, reason: str) -> None:
    """Count a call that is not routed; the reason is logged once a batch."""
    if reason not in run.batch.stats.outside_reasons:
        logger.info("model call of %s left alone: %s", type(model).__name__, reason)
    run.batch.stats.leave_alone(reason)


def _count_outside(model: BaseChatModel, owner: type[BaseChatModel], method: str) -> None:
    """A call without a run, while runs are active, comes from a thread or process that the app made by itself."""
    if next(_owners(type(model), method), None) is not owner:
        return
    executor = get_executor_if_any()
    if executor is not None and executor.admission.active and executor.last_batch is not None:
        executor.last_batch.stats.leave_alone("made outside any run (a thread that does not copy contexts)")


def get_executor_if_any() -> Any:
    """The executor if one was made already; a call outside any run must not start a pool."""
    from halo_core.runtime import executor

    return executor._executor


def _wrap(owner: type[BaseChatModel], name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    wrapped: Any
    if name == "_generate":

        @functools.wraps(original)
        def generate(self: BaseChatModel, *args: Any, **kwargs: Any) -> Any:
            routed = _route(self, owner, name, args, kwargs)
            if routed is None:
                return original(self, *args, **kwargs)
            token = INSIDE.set(True)
            try:
                return routed[0].generate(routed[1], self, functools.partial(original, self), args, kwargs)
            finally:
                INSIDE.reset(token)

        wrapped = generate
    elif name == "_agenerate":

        @functools.wraps(original)
        async def agenerate(self: BaseChatModel, *args: Any, **kwargs: Any) -> Any:
            routed = _route(self, owner, name, args, kwargs)
            if routed is None:
                return await original(self, *args, **kwargs)
            token = INSIDE.set(True)
            try:
                return await routed[0].agenerate(routed[1], self, functools.partial(original, self), args, kwargs)
            finally:
                INSIDE.reset(token)

        wrapped = agenerate
    elif name == "_stream":

        @functools.wraps(original)
        def stream(self: BaseChatModel, *args: Any, **kwargs: Any) -> Iterator[Any]:
            routed = _route(self, owner, name, args, kwargs)
            if routed is None:
                yield from original(self, *args, **kwargs)
                return
            inner = routed[0].stream(routed[1], self, functools.partial(original, self), args, kwargs)
            while True:
                token = INSIDE.set(True)  # around each step: a generator shares its consumer's context
                try:
                    chunk = next(inner)
                except StopIteration:
                    return
                finally:
                    INSIDE.reset(token)
                yield chunk

        wrapped = stream
    else:

        @functools.wraps(original)
        async def astream(self: BaseChatModel, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            routed = _route(self, owner, name, args, kwargs)
            if routed is None:
                async for chunk in original(self, *args, **kwargs):
                    yield chunk
                return
            inner = routed[0].astream(routed[1], self, functools.partial(original, self), args, kwargs)
            while True:
                token = INSIDE.set(True)
                try:
                    chunk = await anext(inner)
                except StopAsyncIteration:
                    return
                finally:
                    INSIDE.reset(token)
                yield chunk

        wrapped = astream
    wrapped.__halo__ = True
    # LangChain inspects the signature at every call; without this it would unwrap and rebuild it each time.
    wrapped.__signature__ = inspect.signature(original)
    wrapper: Callable[..., Any] = wrapped
    return wrapper


_HOOKS = Hooks(BaseChatModel, ENTRY, CONTRACT, _wrap)
"""Classes of models are wrapped on their first use."""


def install() -> None:
    """Have every chat-model class wrapped on its first use; idempotent. Nothing is routed outside Halo runs."""
    tools.install()
    _HOOKS.install(_entry)
    from halo_adapters.langgraph.openai_route import OpenAIRoute

    if not any(isinstance(route, OpenAIRoute) for route in ROUTES):
        ROUTES.append(OpenAIRoute())


def uninstall() -> None:
    """Take every wrapper off again."""
    tools.uninstall()
    _HOOKS.uninstall()


def _entry(entry: Any) -> Any:
    # `generate` and friends are not hot enough for the check to matter; generators must stay generators.
    if inspect.isasyncgenfunction(entry):

        @functools.wraps(entry)
        async def astream(self: BaseChatModel, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            _HOOKS.ensure(type(self))
            async for chunk in entry(self, *args, **kwargs):
                yield chunk

        return astream
    if inspect.isgeneratorfunction(entry):

        @functools.wraps(entry)
        def stream(self: BaseChatModel, *args: Any, **kwargs: Any) -> Iterator[Any]:
            _HOOKS.ensure(type(self))
            yield from entry(self, *args, **kwargs)

        return stream

    @functools.wraps(entry)
    def call(self: BaseChatModel, *args: Any, **kwargs: Any) -> Any:  # `agenerate` returns its coroutine unchanged
        _HOOKS.ensure(type(self))
        return entry(self, *args, **kwargs)

    return call
