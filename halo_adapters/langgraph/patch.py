"""`compile(backend=...)`: the one patch of LangGraph itself, applied by `install()` and by nothing else."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

from langgraph.graph.state import StateGraph
from langgraph.pregel import Pregel

from halo_adapters.langgraph import intercept, sdk_hook
from halo_adapters.langgraph.compiled import accelerate
from halo_core.errors import ConfigError

Backend = Callable[..., Any]
"""Takes a compiled graph (and options), returns the graph to be used."""

BACKENDS: dict[str, Backend] = {"halo": accelerate, "langgraph": lambda app: app}
"""Known values of `backend=`; other packages may add theirs."""

_default: ContextVar[str | None] = ContextVar("halo_backend", default=None)
_global_default: str | None = None
_original: Callable[..., Any] | None = None


def install(default: str | None = None, *, openai_sdk: bool = False) -> None:
    """Teach `StateGraph.compile` the keyword `backend`; idempotent.

    `default` is what `backend=None` means from now on (also settable as `HALO_LANGGRAPH_BACKEND`): "halo" reaches the
    graphs that other code compiles inside, such as `create_agent`. `openai_sdk` routes direct use of the OpenAI SDK
    inside a run as well. Raises `ConfigError` for an unknown backend or a LangGraph that does not fit.
    """
    global _original, _global_default
    default = default or os.environ.get("HALO_LANGGRAPH_BACKEND") or _global_default
    if default is not None:
        _lookup(default)
    _check_versions()
    if openai_sdk:
        sdk_hook.install(direct=True)
    intercept.install()
    _global_default = default
    if _original is not None:
        return
    original = StateGraph.compile

    @functools.wraps(original)
    def compile(self: Any, *args: Any, backend: str | Backend | None = None, **kwargs: Any) -> Any:
        chosen = backend if backend is not None else (_default.get() or _global_default)
        apply = _lookup(chosen) if chosen is not None else None  # before compiling: it changes the builder
        app = original(self, *args, **kwargs)
        return app if apply is None else apply(app)

    StateGraph.compile = compile  # type: ignore[method-assign]
    _original = original


def uninstall() -> None:
    """Take every patch off; graphs that were compiled meanwhile keep their backend but call their models themselves."""
    global _original, _global_default
    if _original is not None:
        StateGraph.compile = _original  # type: ignore[method-assign]
        _original = None
    _global_default = None
    sdk_hook.uninstall()
    intercept.uninstall()


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Within the block, `compile()` without `backend=` means `name`. Raises `ConfigError` for an unknown name."""
    _lookup(name)
    install()
    token = _default.set(name)
    try:
        yield
    finally:
        _default.reset(token)


def _lookup(chosen: str | Backend) -> Backend:
    if callable(chosen):
        return chosen
    try:
        return BACKENDS[chosen]
    except KeyError:
        raise ConfigError(f"unknown backend {chosen!r}; known: {', '.join(sorted(BACKENDS))}") from None


def _check_versions() -> None:
    """Refuse a LangGraph whose seams differ, instead of patching half of it."""
    for method in ("copy", "stream", "astream", "invoke", "ainvoke", "batch", "abatch"):
        if not callable(getattr(Pregel, method, None)):
            raise ConfigError(f"this LangGraph's Pregel has no {method}(): Halo works with langgraph 1.0 to 1.2")
    parameters = inspect.signature(_original or StateGraph.compile).parameters
    if "backend" in parameters and _original is None and not hasattr(StateGraph.compile, "__wrapped__"):
        raise ConfigError("this LangGraph's compile() has a backend= of its own: Halo would hide it")
