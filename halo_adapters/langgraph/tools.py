"""Tools of LangChain as tools of a batch: `_run` and `_arun`, below callbacks, validation and the shaping of results.

A tool says what it does by `metadata={"halo": {"effect": "read", ...}}` or by a function under `halo_core.tool`. One
that says nothing is taken to write: it is never shared, and it ends the sharing of what was read before.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from langchain_core.tools import BaseTool

from halo_adapters.hooks import Hooks
from halo_core.runtime import SESSION, Run, ToolCall
from halo_core.tools import ToolSpec, declare, identity_of, identity_of_object, signature_of, spec_of, tool_call

_INJECTED = frozenset({"run_manager", "store", "tool_call_id"})
"""Arguments that LangChain puts in: they tell callers apart, not questions. State and config may be what is read."""

_OF_THE_RUN = ("InjectedState", "InjectedStore", "InjectedToolCallId", "ToolRuntime")
"""Annotations of arguments that LangGraph puts in."""

_LANGGRAPHS = ("__", "checkpoint_")
"""Beginnings of the keys that LangGraph puts into every config; they differ from task to task."""

_INSIDE: ContextVar[BaseTool | None] = ContextVar("halo_tool", default=None)
"""The tool whose method is under way, so that an `_arun` that calls `_run` is one call."""


def tool_spec(tool: Any) -> ToolSpec | None:
    """What a tool declares, or a default where it declares nothing; None where its function declares it by itself.

    Raises `ToolDeclarationError` for a declaration that makes no sense.
    """
    if any(spec_of(getattr(tool, name, None)) is not None for name in ("func", "coroutine")):
        return None
    metadata = getattr(tool, "metadata", None)
    hints = metadata.get("halo") if isinstance(metadata, Mapping) else None
    return declare(str(tool.name), hints if isinstance(hints, Mapping) else {})


def install() -> None:
    """Have the classes of tools wrapped on their first use; idempotent. Outside Halo runs nothing changes."""
    HOOKS.install(_entry)


def uninstall() -> None:
    """Take every wrapper off again."""
    HOOKS.uninstall()


def _entry(entry: Any) -> Any:
    @functools.wraps(entry)
    def call(self: BaseTool, *args: Any, **kwargs: Any) -> Any:  # `arun` returns its coroutine unchanged
        HOOKS.ensure(type(self))
        return entry(self, *args, **kwargs)

    return call


def _wrap(owner: type, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    wrapped: Any
    if inspect.iscoroutinefunction(method):

        @functools.wraps(method)
        async def wrapped(self: BaseTool, *args: Any, **kwargs: Any) -> Any:
            asked = _asked(self, method, args, kwargs)
            if asked is None:
                return await method(self, *args, **kwargs)
            run, call = asked
            with _inside(self):
                return await run.batch.desk.acall(call, lambda: method(self, *args, **kwargs))

    else:

        @functools.wraps(method)
        def wrapped(self: BaseTool, *args: Any, **kwargs: Any) -> Any:
            asked = _asked(self, method, args, kwargs)
            if asked is None:
                return method(self, *args, **kwargs)
            run, call = asked
            with _inside(self):
                return run.batch.desk.call(call, lambda: method(self, *args, **kwargs))

    wrapped.__halo__ = True
    wrapped.__signature__ = inspect.signature(method)  # LangChain inspects it at every call
    result: Callable[..., Any] = wrapped
    return result


HOOKS = Hooks(BaseTool, ("run", "arun"), ("_run", "_arun"), _wrap)
"""Classes of tools are wrapped on their first use."""


@contextmanager
def _inside(tool: BaseTool) -> Iterator[None]:
    token = _INSIDE.set(tool)
    try:
        yield
    finally:
        _INSIDE.reset(token)


def _asked(
    tool: BaseTool, method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Run, ToolCall] | None:
    """The run that calls the tool and what it asks; None where the method is simply to be called."""
    run = SESSION.get()
    if run is None or _INSIDE.get() is tool:
        return None
    spec = tool_spec(tool)
    if spec is None:
        return None
    told = {"args": args, "kwargs": kwargs}
    if spec.key is not None and spec.shares:
        own = {name: value for name, value in kwargs.items() if name not in {*_INJECTED, "config", "runtime"}}
        return run, tool_call(spec, signature_of(spec.key(*args, **own)), told, _identity(tool))
    if not spec.shares:
        # The row's state has other message ids when the row is resumed: what it is asked to write has not.
        own = {name: value for name, value in kwargs.items() if name not in _handed(tool)}
        return run, tool_call(spec, signature_of([list(args), own]), {"args": args, "kwargs": own})
    given = dict(_seen(tool, name, value) for name, value in kwargs.items() if name not in _INJECTED)
    return run, tool_call(spec, signature_of([list(args), given]), told, _identity(tool))


def _identity(tool: BaseTool) -> Any:
    """Tells tools of one name apart: by their functions, else by their class and fields, else by the object."""
    functions = tuple(identity_of(own) for name in ("func", "coroutine") if (own := getattr(tool, name, None)))
    if functions:
        return functions
    return identity_of_object(tool, ("callbacks", "metadata", "tags"))


def _seen(tool: BaseTool, name: str, value: Any) -> tuple[str, Any]:
    """An argument as far as the tool's result can depend on it."""
    if type(value).__name__ == "ToolRuntime":
        return name, [value.state, value.context, _configurable(value.config)]
    if name == "config":
        return name, _configurable(value) if _takes_config(tool) else None
    return name, value


def _configurable(config: Any) -> Any:
    """What an app put into its config, without what LangGraph did."""
    own = config.get("configurable") if isinstance(config, Mapping) else None
    return {key: value for key, value in (own or {}).items() if not str(key).startswith(_LANGGRAPHS)}


def _takes_config(tool: Any) -> bool:
    """Whether the tool's own code is handed the config; LangChain's wrappers around functions always are."""
    return any(map(_asks_for_config, _bodies(tool)))


def _handed(tool: Any) -> set[str]:
    """The arguments that frameworks put in, not who asks."""
    schema = [tool.args_schema] if isinstance(tool.args_schema, type) else []
    return {*_INJECTED, "config", "runtime"}.union(*map(_from_state, [*_bodies(tool), *schema]))


def _bodies(tool: Any) -> list[Callable[..., Any]]:
    """The tool's own code."""
    given = [body for name in ("func", "coroutine") if (body := getattr(tool, name, None)) is not None]
    return given or [type(tool)._run, type(tool)._arun]


@functools.lru_cache(maxsize=1024)
def _from_state(code: Any) -> frozenset[str]:
    """The arguments that are annotated as taken from the graph's state, store or run."""
    try:
        hints = typing.get_type_hints(code, include_extras=True)
    except Exception:  # names that only a type checker sees
        hints = getattr(code, "__annotations__", {})
    return frozenset(name for name, hint in hints.items() if any(word in str(hint) for word in _OF_THE_RUN))


@functools.lru_cache(maxsize=1024)
def _asks_for_config(body: Callable[..., Any]) -> bool:
    return any("RunnableConfig" in str(p.annotation) for p in inspect.signature(body).parameters.values())
