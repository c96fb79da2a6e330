"""Compiled graphs that run under Halo: the same classes, with the ways in (`stream`, `batch`, ...) overridden.

The class of a compiled graph is swapped in place. Single inheritance is required: CPython refuses `__class__`
assignment across a second base. Everything that a graph does (invoke, events, the LangGraph server) ends in `stream` or
`astream`, so these are where a run begins.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, TypeVar

from langchain_core.runnables import RunnableConfig
from langgraph.graph.state import CompiledStateGraph
from langgraph.pregel import Pregel

from halo_adapters.langgraph import batching, intercept
from halo_adapters.langgraph.app import App
from halo_adapters.langgraph.session import row_content
from halo_core.runtime import SESSION, Run, get_executor, on_event_loop

G = TypeVar("G", bound=Pregel[Any, Any, Any, Any])


def _overrides(base: type[Pregel[Any, Any, Any, Any]]) -> type[Pregel[Any, Any, Any, Any]]:
    class Halo(base):  # type: ignore[misc, valid-type]
        halo: App

        def copy(self, update: dict[str, Any] | None = None) -> Any:
            copied = super().copy(update)  # calls __init__ with __dict__; drops keys that it does not know
            copied.halo = self.halo.fresh()
            return copied

        # -- one run -----------------------------------------------------------------------------------------

        def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
            run, mine = _enter_blocking(input)
            failed = True
            generator = super().stream(input, config, **kwargs)
            try:
                while True:
                    token = SESSION.set(run)  # around each step: a generator shares its consumer's context
                    try:
                        item = next(generator)
                    except StopIteration:
                        failed = False
                        return
                    finally:
                        SESSION.reset(token)
                    yield item
            finally:
                generator.close()
                if mine:
                    get_executor().end(run, failed=failed)

        async def astream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AsyncIterator[Any]:
            run, mine = await _enter(input)
            failed = True
            generator = super().astream(input, config, **kwargs)
            try:
                while True:
                    token = SESSION.set(run)
                    try:
                        item = await anext(generator)
                    except StopAsyncIteration:
                        failed = False
                        return
                    finally:
                        SESSION.reset(token)
                    yield item
            finally:
                await generator.aclose()
                if mine:
                    get_executor().end(run, failed=failed)

        def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
            native = self.halo.native_for(self, config, kwargs)
            if native is None:
                return super().invoke(input, config, **kwargs)
            run, mine = _enter_blocking(input)
            failed = True
            token = SESSION.set(run)
            try:
                result = native.invoke(input, config, context=kwargs.get("context"))
                failed = False
                return result
            finally:
                SESSION.reset(token)
                if mine:
                    get_executor().end(run, failed=failed)

        async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
            native = self.halo.native_for(self, config, kwargs)
            if native is None:
                return await super().ainvoke(input, config, **kwargs)
            run, mine = await _enter(input)
            failed = True
            token = SESSION.set(run)
            try:
                result = await native.ainvoke(input, config, context=kwargs.get("context"))
                failed = False
                return result
            finally:
                SESSION.reset(token)
                if mine:
                    get_executor().end(run, failed=failed)

        # -- many runs ---------------------------------------------------------------------------------------

        def batch(
            self,
            inputs: list[Any],
            config: RunnableConfig | list[RunnableConfig] | None = None,
            *,
            return_exceptions: bool = False,
            **kwargs: Any,
        ) -> list[Any]:
            return batching.batch(self, inputs, config, return_exceptions, kwargs)

        async def abatch(
            self,
            inputs: list[Any],
            config: RunnableConfig | list[RunnableConfig] | None = None,
            *,
            return_exceptions: bool = False,
            **kwargs: Any,
        ) -> list[Any]:
            return await batching.abatch(self, inputs, config, return_exceptions, kwargs)

        def batch_as_completed(
            self,
            inputs: Sequence[Any],
            config: RunnableConfig | Sequence[RunnableConfig] | None = None,
            *,
            return_exceptions: bool = False,
            **kwargs: Any,
        ) -> Iterator[tuple[int, Any]]:
            return batching.batch_as_completed(self, inputs, config, return_exceptions, kwargs)

        def abatch_as_completed(
            self,
            inputs: Sequence[Any],
            config: RunnableConfig | Sequence[RunnableConfig] | None = None,
            *,
            return_exceptions: bool = False,
            **kwargs: Any,
        ) -> AsyncIterator[tuple[int, Any]]:
            return batching.abatch_as_completed(self, inputs, config, return_exceptions, kwargs)

        # -- what Halo knows ---------------------------------------------------------------------------------

        def explain(self, rows: Sequence[Any] | None = None, *, cost_per_gpu_hour: float | None = None) -> str:
            """The plan as text; with `rows`, also what consolidating them would merge and what they would take."""
            return self.halo.explain(self, rows, cost_per_gpu_hour)

        @property
        def last_run(self) -> batching.BatchReport | None:
            """What happened in the last batch of this app, None before the first."""
            return self.halo.last_report

    # The graph's JSON form embeds the class path, and code compares it: the swap must not show there.
    Halo.__name__, Halo.__qualname__, Halo.__module__ = base.__name__, base.__qualname__, base.__module__
    return Halo


def _enter_blocking(row: Any) -> tuple[Run, bool]:
    """The run that the current code belongs to, or a new one in the ambient batch, admitted."""
    current = SESSION.get()
    if current is not None:
        return current, False
    executor = get_executor()
    run = executor.begin(executor.ambient(), row_content(row))
    if not on_event_loop():  # blocking a loop could block those whom we wait for
        try:
            executor.wait_admitted(run)
        except BaseException:
            executor.end(run, failed=True)
            raise
    return run, True


async def _enter(row: Any) -> tuple[Run, bool]:
    current = SESSION.get()
    if current is not None:
        return current, False
    executor = get_executor()
    run = executor.begin(executor.ambient(), row_content(row))
    try:
        await executor.admitted(run)
    except BaseException:
        executor.end(run, failed=True)
        raise
    return run, True


HaloCompiledStateGraph = _overrides(CompiledStateGraph)
HaloPregel = _overrides(Pregel)


def accelerate(app: G, **options: Any) -> G:
    """Run an already compiled graph, agent or `@entrypoint` under Halo; changes it in place and returns it.

    Options are those of `App`. Raises `TypeError` for anything that is not a compiled graph.
    """
    if isinstance(getattr(app, "halo", None), App):
        if options:
            app.halo = App(app, **options)  # type: ignore[attr-defined]
        return app
    if not isinstance(app, Pregel):
        raise TypeError(
            f"accelerate takes a compiled LangGraph graph, an agent or an @entrypoint, not {type(app).__name__}; "
            "a StateGraph must be compiled first (builder.compile(backend='halo') does both)"
        )
    intercept.install()
    changed: Any = app
    target = HaloCompiledStateGraph if isinstance(app, CompiledStateGraph) else HaloPregel
    if type(app) not in (CompiledStateGraph, Pregel):
        # A subclass of the user's own: put our overrides on top of it.
        target = _overrides(type(app))
    changed.__class__ = target
    changed.halo = App(app, **options)
    return app
