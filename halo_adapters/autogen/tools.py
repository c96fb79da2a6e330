"""AutoGen's tools as tools of a batch: every tool's `run`, and `call_tool` of workbenches that are no list of tools.

A function under `halo_core.tool` says what it does. Any other tool may say it by an attribute `halo`, such as
`{"effect": "read"}`, and a workbench by one that has this for each of its tools' names. What says nothing is taken to
write. Tools that run a team or an agent are not calls of their own: what happens inside is seen there.

AutoGen runs a synchronous function in a thread that knows nothing of the run; here it gets the context of its caller.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from contextvars import ContextVar, copy_context
from typing import Any

from autogen_agentchat.base import Handoff
from autogen_agentchat.tools import AgentTool
from autogen_core.tools import BaseTool, FunctionTool, StaticWorkbench, ToolResult, Workbench

from halo_adapters.hooks import Hooks
from halo_core.runtime import SESSION, Run, ToolCall
from halo_core.tools import (
    Itself,
    ToolDeclarationError,
    declare,
    identity_of,
    identity_of_object,
    signature_of,
    spec_of,
    tool_call,
)

_RUNS_TEAMS: type = AgentTool.__bases__[0]
"""The common base of the tools that run an agent or a team."""
_HANDOFF = Handoff.__module__
"""Where the functions behind handoffs are made: they only return a text."""

_INSIDE: ContextVar[Any] = ContextVar("halo_autogen_tool", default=None)
"""The tool or workbench whose method is under way, so that one that calls its base class's is one call."""


class _ToldError(Exception):
    """A workbench told of a failure by its result; only between a call and whoever made it."""

    def __init__(self, result: ToolResult) -> None:
        super().__init__(result.to_text())
        self.result = result


def install() -> None:
    """Wrap the tools and workbenches whose classes exist by now; outside runs of Halo they do nothing special."""
    for hooks in (_TOOLS, _BENCHES):
        hooks.ensure_all()


def uninstall() -> None:
    """Take every wrapper off again."""
    for hooks in (_TOOLS, _BENCHES):
        hooks.uninstall()


# -- what is asked -----------------------------------------------------------------------------------------------------


def _spec(run: Run, name: str, hints: Any) -> Any:
    try:
        return declare(name, hints if isinstance(hints, Mapping) else {})
    except ToolDeclarationError as error:  # AutoGen would tell the model of it, and go on
        run.fail(error)
        raise


def _tool_call(run: Run, tool: Any, asked: Any) -> ToolCall:
    spec = _spec(run, tool.name, getattr(tool, "halo", None))
    if not spec.shares:
        return tool_call(spec, signature_of(asked), {"args": asked})
    equal = spec.key(asked) if spec.key is not None else asked
    function = getattr(tool, "_func", None)
    own = identity_of(function) if function is not None else identity_of_object(tool)
    return tool_call(spec, signature_of(equal), {"args": asked}, own)


def _bench_call(run: Run, bench: Any, method: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ToolCall:
    """The call that `method(bench, *args, **kwargs)` is."""
    given = inspect.signature(method).bind_partial(bench, *args, **kwargs).arguments
    name, arguments = str(given.get("name")), given.get("arguments") or {}
    hints = getattr(bench, "halo", None)
    spec = _spec(run, name, hints.get(name) if isinstance(hints, Mapping) else None)
    equal = spec.key(**arguments) if spec.key is not None and spec.shares else arguments
    return tool_call(spec, signature_of(equal), {"args": arguments}, Itself(bench))


@contextmanager
def _inside(thing: Any) -> Iterator[None]:
    token = _INSIDE.set(thing)
    try:
        yield
    finally:
        _INSIDE.reset(token)


# -- tools -------------------------------------------------------------------------------------------------------------


def _wrap_tool(owner: type, name: str, method: Any) -> Any:
    if issubclass(owner, _RUNS_TEAMS):
        return method

    if name == "run":

        async def run(self: Any, args: Any, cancellation_token: Any) -> Any:
            running = SESSION.get()
            if running is None:
                return await method(self, args, cancellation_token)
            around = _INSIDE.get() is self
            function = getattr(self, "_func", None) if isinstance(self, FunctionTool) else None
            if function is not None and not asyncio.iscoroutinefunction(function):
                known = copy.copy(self)
                known._func = functools.partial(copy_context().run, function)
            else:
                known = self
            declared = spec_of(function) is not None  # its wrapper, inside, asks the desk
            if around or declared or getattr(function, "__module__", None) == _HANDOFF:
                return await method(known, args, cancellation_token)
            call = _tool_call(running, self, args)

            async def make() -> Any:
                with _inside(known):
                    return await method(known, args, cancellation_token)

            return await running.batch.desk.acall(call, make)

        return _marked(run, method)

    async def run_stream(self: Any, args: Any, cancellation_token: Any) -> AsyncGenerator[Any, None]:
        running = SESSION.get()
        inner = functools.partial(method, self, args, cancellation_token)
        if running is not None and _INSIDE.get() is not self:
            inner = functools.partial(_streamed, running, _tool_call(running, self, args), self, inner)
        async with aclosing(inner()) as stream:
            async for item in stream:
                yield item

    return _marked(run_stream, method)


# -- workbenches -------------------------------------------------------------------------------------------------------


def _wrap_bench(owner: type, name: str, method: Any) -> Any:
    if issubclass(owner, StaticWorkbench):  # its tools are seen themselves
        return method

    if name == "call_tool":

        async def call_tool(self: Any, *args: Any, **kwargs: Any) -> Any:
            running = SESSION.get()
            if running is None or _INSIDE.get() is self:
                return await method(self, *args, **kwargs)

            async def make() -> Any:
                with _inside(self):
                    return _success(await method(self, *args, **kwargs))

            try:
                return await running.batch.desk.acall(_bench_call(running, self, method, args, kwargs), make)
            except _ToldError as told:
                return told.result

        return _marked(call_tool, method)

    async def call_tool_stream(self: Any, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        running = SESSION.get()
        inner = functools.partial(method, self, *args, **kwargs)
        if running is not None and _INSIDE.get() is not self:
            call = _bench_call(running, self, method, args, kwargs)
            inner = functools.partial(_streamed, running, call, self, inner)
        async with aclosing(inner()) as stream:
            try:
                async for item in stream:
                    yield item
            except _ToldError as told:
                yield told.result

    return _marked(call_tool_stream, method)


def _success(result: Any) -> Any:
    """What a workbench's tool gave. Raises `_ToldError` where that is the story of a failure."""
    if isinstance(result, ToolResult) and result.is_error:
        raise _ToldError(result)
    return result


# -- both --------------------------------------------------------------------------------------------------------------


def _marked(wrapper: Any, method: Any) -> Any:
    functools.update_wrapper(wrapper, method)
    wrapper.__halo__ = True
    return wrapper


async def _streamed(
    run: Run, call: ToolCall, thing: Any, begin: Callable[[], AsyncGenerator[Any, None]]
) -> AsyncGenerator[Any, None]:
    """The items of a call that streams; the last one is its result, and all there is of one that is not made again."""
    items: asyncio.Queue[tuple[Any] | None] = asyncio.Queue()

    async def make() -> Any:
        held: tuple[Any] | None = None  # the last item so far: only the end tells that it is the result
        try:
            with _inside(thing):
                async with aclosing(begin()) as stream:
                    async for item in stream:
                        if held is not None:
                            items.put_nowait(held)
                        held = (item,)
                    return _success(held[0]) if held is not None else None
        except _ToldError:
            raise
        except Exception:
            if held is not None:
                items.put_nowait(held)
            raise

    task = asyncio.create_task(run.batch.desk.acall(call, make))
    task.add_done_callback(lambda _: items.put_nowait(None))
    try:
        while (item := await items.get()) is not None:
            yield item[0]
        result = await task
        if result is not None:
            yield result
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


_TOOLS = Hooks(BaseTool, (), ("run", "run_stream"), _wrap_tool)
_BENCHES = Hooks(Workbench, (), ("call_tool", "call_tool_stream"), _wrap_bench)
