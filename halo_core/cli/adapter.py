"""What the command line needs of a framework: one object per adapter, found through the entry points halo.adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import entry_points
from typing import Any, Protocol

from halo_core.errors import ConfigError
from halo_core.plan import Plan
from halo_core.runtime import Batch, Journal


class Adapter(Protocol):
    """One framework."""

    name: str
    title: str
    """The framework's name as it writes it."""

    def accepts(self, target: Any) -> bool:
        """Whether `target` (what `pkg.module:name` names) is an app of this framework."""

    def prepare(self, target: Any, *, merge: bool = True) -> Any:
        """The app, run under Halo from now on: compiled and accelerated where need be.

        Without `merge` every call is executed, also those that are equal to another.
        """

    def run(
        self,
        app: Any,
        rows: Sequence[Any],
        *,
        journal: Journal | None = None,
        on_change: Callable[[Batch], None] | None = None,
        keys: Sequence[str] | None = None,
        concurrency: int | None = None,
    ) -> Iterator[tuple[int, Any]]:
        """(position, result or exception) of each row as it finishes; an exception never ends the iteration."""

    def run_plain(
        self, app: Any, row: Any, *, on_change: Callable[[Batch], None] | None = None, key: str | None = None
    ) -> Any:
        """The result or exception of one row on the framework's own executor, by itself, each call a call of its own.

        The calls go to the pool's engines all the same.
        """

    def encode(self, result: Any) -> Any:
        """A result as plain JSON data."""

    def comparable(self, app: Any, encoded: Any) -> dict[str, Any]:
        """An encoded result by state key, without what differs from run to run in the framework itself (ids, times)."""

    def row_content(self, row: Any) -> str:
        """A short text, equal for equal rows across processes."""

    def plan(self, app: Any) -> Plan | None:
        """The lifted plan; None where the framework has no static structure."""

    def plan_rows(self, rows: Sequence[Any]) -> Sequence[Any]:
        """The rows as the plan's inputs: what its state begins with."""

    def explain(self, app: Any, rows: Sequence[Any] | None, cost_per_gpu_hour: float | None = None) -> str:
        """The plan as text, with what `rows` would share and, where that is known, take and cost."""

    def explain_analyze(self, app: Any) -> str:
        """The plan of the last run with what happened."""

    def fingerprint(self, app: Any) -> str:
        """Changes when the app changes; ties a journal to its program."""

    def install(self, *, openai_sdk: bool) -> None:
        """Make the framework run under Halo without a change to the user's code (`halo exec`)."""


def adapters() -> list[Adapter]:
    """The adapters whose framework is installed."""
    found: list[Adapter] = []
    for entry in entry_points(group="halo.adapters"):
        try:
            found.append(entry.load())
        except ImportError:
            continue  # the framework is not installed
    return found


def adapter_for(target: Any, name: str) -> Adapter:
    """The adapter of the framework that `target` belongs to. Raises `ConfigError` naming what was found."""
    known = adapters()
    for adapter in known:
        if adapter.accepts(target):
            return adapter
    raise ConfigError(
        f"{name} is a {type(target).__name__}, which no installed adapter runs "
        f"(adapters: {', '.join(a.name for a in known) or 'none; install halo-agents[langgraph] or [autogen]'})"
    )
