"""Many rows through one graph: `batch`, `abatch` and their as-completed forms.

Rows are admitted depth-first instead of all at once, run in a session each, and never lose each other's results: one
row's exception is raised after the others have finished, with everything that they returned in the report.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from langchain_core.runnables.config import RunnableConfig, get_config_list

from halo_adapters.langgraph.session import row_content
from halo_core.runtime import SESSION, Batch, BatchOptions, Rows, get_executor
from halo_core.stats import row_fields

if TYPE_CHECKING:
    from halo_adapters.langgraph.app import App


@dataclass(slots=True)
class BatchReport:
    """What became of the rows of one batch, and what it cost."""

    batch: Batch
    app: App
    graph: Any
    """The compiled graph."""
    results: list[Any]
    """One entry per row, in input order: the result, the exception, or `MISSING` for a row that never ran."""

    @property
    def errors(self) -> dict[int, BaseException]:
        """Position -> exception of the rows that failed."""
        return {i: result for i, result in enumerate(self.results) if isinstance(result, BaseException)}

    @property
    def stats(self) -> Any:
        """Counts of calls and tokens, see `halo_core.runtime.BatchStats`."""
        return self.batch.stats

    def explain_analyze(self) -> str:
        """The plan with what really happened, per operator."""
        from halo_adapters.langgraph.report import explain_analyze

        return explain_analyze(self)


def _limit(configs: Sequence[RunnableConfig], app: App) -> int | None:
    """LangChain's `max_concurrency` and the app's window are upper bounds on rows under way."""
    bounds = [config.get("max_concurrency") for config in configs[:1]] + [app.window]
    return min((bound for bound in bounds if bound), default=None)


class _Invocations:
    """The rows of one batch with their configs, and the graph's invocation of each."""

    def __init__(self, graph: Any, inputs: Sequence[Any], config: Any, kwargs: dict[str, Any]) -> None:
        options: BatchOptions = kwargs.pop("halo_options", None) or BatchOptions()
        app: App = graph.halo
        self._graph = graph
        self._inputs = inputs
        self._kwargs = kwargs
        self._configs = get_config_list(config, len(inputs))
        within = SESSION.get()
        batch = get_executor().open_batch(
            app.name,
            journal=options.journal,
            merge=app.merge,
            on_change=options.on_change,
            app=app.fingerprint(graph),
            within=within,
        )
        limit = _limit(self._configs, app)
        self.rows = Rows(
            batch,
            len(inputs),
            lambda i: row_content(inputs[i], inner=within is not None),
            keys=options.keys,
            limit=limit,
            fields=self._fields,
        )
        self.report = BatchReport(batch, app, graph, self.rows.results)
        app.last_report = self.report

    def _fields(self, i: int) -> dict[str, str]:
        return row_fields(self._inputs[i])

    async def ainvoke(self, i: int) -> Any:
        return await self._graph.ainvoke(self._inputs[i], self._configs[i], **self._kwargs)

    def invoke(self, i: int) -> Any:
        return self._graph.invoke(self._inputs[i], self._configs[i], **self._kwargs)


async def abatch(graph: Any, inputs: list[Any], config: Any, return_exceptions: bool, kwargs: Any) -> list[Any]:
    """See `Runnable.abatch`."""
    if not inputs:
        return []
    invocations = _Invocations(graph, inputs, config, kwargs)
    await invocations.rows.gather(invocations.ainvoke)
    return _raise_or_return(invocations.report, return_exceptions)


async def abatch_as_completed(
    graph: Any, inputs: Sequence[Any], config: Any, return_exceptions: bool, kwargs: Any
) -> AsyncIterator[tuple[int, Any]]:
    """See `Runnable.abatch_as_completed`."""
    if not inputs:
        return
    invocations = _Invocations(graph, inputs, config, kwargs)
    async with aclosing(invocations.rows.as_completed(invocations.ainvoke)) as ended:
        async for i, result in ended:
            if isinstance(result, BaseException) and not return_exceptions:
                raise result
            yield i, result


def batch_as_completed(
    graph: Any, inputs: Sequence[Any], config: Any, return_exceptions: bool, kwargs: Any
) -> Iterator[tuple[int, Any]]:
    """See `Runnable.batch_as_completed`."""
    if not inputs:
        return
    invocations = _Invocations(graph, inputs, config, kwargs)
    with closing(invocations.rows.in_threads(invocations.invoke)) as ended:
        for i, result in ended:
            if isinstance(result, BaseException) and not return_exceptions:
                raise result
            yield i, result


def batch(graph: Any, inputs: list[Any], config: Any, return_exceptions: bool, kwargs: Any) -> list[Any]:
    """See `Runnable.batch`."""
    if not inputs:
        return []
    if len(inputs) == 1 and SESSION.get() is not None:
        return [graph.invoke(inputs[0], get_config_list(config, 1)[0], **kwargs)]
    invocations = _Invocations(graph, inputs, config, kwargs)
    for _ in invocations.rows.in_threads(invocations.invoke):
        pass
    return _raise_or_return(invocations.report, return_exceptions)


def _raise_or_return(report: BatchReport, return_exceptions: bool) -> list[Any]:
    """The results in input order, or the first failed row's exception."""
    errors = report.errors
    if errors and not return_exceptions:
        position, error = next(iter(errors.items()))
        error.add_note(
            f"Halo: raised by row {position}; {len(errors)} of {len(report.results)} rows failed. The other rows "
            "finished: their results are in app.last_run.results (or use return_exceptions=True)"
        )
        raise error
    return report.results
