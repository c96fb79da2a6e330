"""`halo_core.tool`: says what a plain function does to the world, so that a batch may share or order its calls."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, ParamSpec, TypeVar, overload

from halo_core.plan import Effect
from halo_core.runtime import SESSION, ToolCall
from halo_core.tools.signature import bound_arguments, signature_of
from halo_core.tools.spec import SPEC, ToolDeclarationError, ToolSpec, declare, spec_of

P = ParamSpec("P")
T = TypeVar("T")
EffectName = Literal["pure", "read", "write"]


@overload
def tool(function: Callable[P, T], /) -> Callable[P, T]: ...


@overload
def tool(
    *,
    effect: EffectName | None = None,
    key: Callable[..., Any] | None = None,
    source: str | Sequence[str] | None = None,
    backend: str = "",
    max_inflight: int | None = None,
    retries: int = 0,
    timeout_s: float | None = None,
    name: str = "",
) -> Callable[[Callable[P, T]], Callable[P, T]]: ...


def tool(function: Any = None, /, *, name: str = "", **hints: Any) -> Any:
    """Declare a function, sync or async, that nodes and agents call.

    effect: "pure" (nothing but its arguments decides the result), "read" (looks at the world), "write" (changes it;
        what an undeclared tool is taken for). Equal pure and read calls of a batch are made once, writes never merged.
    key: maps the arguments to what makes two calls equal; by default all arguments, compared by value and type.
    source: what is read or written. A write ends the sharing of reads of the same source; one without a source, of all.
    backend, max_inflight: at most so many calls at a time of all tools of that backend, over all rows of the process.
    retries: further attempts after a failure; without it none, whatever the effect.
    timeout_s: what one attempt may take before it fails with TimeoutError; a thread that hangs is left behind.

    Outside a Halo run the function is called as it is. Raises `ToolDeclarationError`.
    """
    if function is not None:
        return _declared(function, declare(name or _name(function), hints))
    hints = {k: v for k, v in hints.items() if v not in (None, "")}
    return lambda decorated: _declared(decorated, declare(name or _name(decorated), hints))


def _call_of(spec: ToolSpec, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> ToolCall:
    """The call that `function(*args, **kwargs)` is, for the runtime. Raises TypeError for arguments it cannot have."""
    own = spec.key if spec.shares else None
    equal = own(*args, **kwargs) if own else bound_arguments(function, args, kwargs)
    if spec.effect is Effect.WRITE and equal and next(iter(equal)) == "self":
        del equal["self"]  # the journal knows a method's write by what it was asked: no object outlives its process
    return tool_call(spec, signature_of(equal), {"args": args, "kwargs": kwargs}, Itself(function))


class Itself:
    """Stands for an object, whatever its own idea of equality is."""

    __slots__ = ("_thing",)

    def __init__(self, thing: Any) -> None:
        self._thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Itself) and other._thing is self._thing

    def __hash__(self) -> int:
        return id(self._thing)


def identity_of(function: Any) -> Any:
    """Tells functions of one name apart, hashable; of methods the object counts by its fields, since it may be copied.

    An object whose fields have no text counts by its class alone.
    """
    owner = getattr(function, "__self__", None)
    if owner is None or not hasattr(function, "__func__"):
        return Itself(function)
    try:
        return function.__func__, type(owner), signature_of([vars(owner)])
    except TypeError:  # no fields
        return function.__func__, type(owner)


def identity_of_object(thing: Any, passing: Sequence[str] = ()) -> Any:
    """Tells tools of one name that are objects apart: by their class and fields but `passing`, else each is its own."""
    told = signature_of({k: v for k, v in vars(thing).items() if k not in passing and not isinstance(v, type)})
    return Itself(thing) if told is None else (type(thing), told)


def tool_call(spec: ToolSpec, signature: str | None, arguments: Mapping[str, Any], identity: Any = None) -> ToolCall:
    """The call of a declared tool with this signature; `identity` tells it from others of its name."""
    return ToolCall(
        spec.name,
        spec.effect,
        signature,
        spec.sources,
        spec.backend,
        spec.max_inflight,
        spec.retries,
        spec.timeout_s,
        arguments,
        identity,
    )


def _name(function: Any) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _declared(function: Any, spec: ToolSpec) -> Any:
    if not callable(function) or isinstance(function, type):
        raise ToolDeclarationError(f"halo_core.tool decorates functions, not {function!r}")
    if spec_of(function) is not None:
        raise ToolDeclarationError(f"{spec.name!r} is declared twice; keep one halo_core.tool")
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise ToolDeclarationError(f"{spec.name!r} is a generator; a tool returns its result at once")
    wrapped: Any
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def wrapped(*args: Any, **kwargs: Any) -> Any:
            run = SESSION.get()
            if run is None:
                return await function(*args, **kwargs)
            call = _call_of(spec, function, args, kwargs)
            return await run.batch.desk.acall(call, lambda: function(*args, **kwargs))

    else:

        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            run = SESSION.get()
            if run is None:
                return function(*args, **kwargs)
            call = _call_of(spec, function, args, kwargs)
            return run.batch.desk.call(call, lambda: function(*args, **kwargs))

    setattr(wrapped, SPEC, spec)
    return wrapped
