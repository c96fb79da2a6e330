"""AutoGen's side of the command line."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from autogen_agentchat.base import ChatAgent, TaskResult, Team
from autogen_agentchat.teams import GraphFlow

from halo_adapters.autogen import drive, intercept
from halo_adapters.autogen.clone import clone
from halo_adapters.autogen.lift import lift
from halo_adapters.autogen.report import explain, explain_analyze
from halo_adapters.autogen.runs import TeamRows, outcome
from halo_adapters.autogen.tasks import result_to_json, task_content, task_of
from halo_adapters.autogen.template import DriverChoice, Template, fingerprint
from halo_core.plan import Plan
from halo_core.runtime import Batch, BatchOptions, Journal
from halo_core.runtime.loops import iterate_async


@dataclass(slots=True)
class Prepared:
    """A team or an agent that is to be run under Halo."""

    app: Any
    merge: bool
    driver: DriverChoice = "auto"
    last: Batch | None = None


class AutoGenAdapter:
    """Runs teams and agents; a row is an object whose `task` is a text or a list of messages."""

    name = "autogen"
    title = "AutoGen"

    def accepts(self, target: Any) -> bool:
        return isinstance(target, Team | ChatAgent)

    def prepare(self, target: Any, *, merge: bool = True) -> Prepared:
        intercept.install()
        return Prepared(target, merge)

    def run(
        self,
        app: Prepared,
        rows: Sequence[Any],
        *,
        journal: Journal | None = None,
        on_change: Callable[[Batch], None] | None = None,
        keys: Sequence[str] | None = None,
        concurrency: int | None = None,
    ) -> Iterator[tuple[int, Any]]:
        template = Template(app.app, app.driver)

        async def results() -> AsyncGenerator[tuple[int, Any], None]:
            await template.prepare()
            options = BatchOptions(journal, on_change, keys)
            batch = TeamRows(template, rows, limit=concurrency, merge=app.merge, options=options)
            app.last = batch.batch
            async with aclosing(batch.rows.as_completed(batch.work)) as ended:
                async for i, result in ended:
                    run = outcome(i, rows[i], result)
                    yield i, run.result if run.error is None else run.error

        yield from iterate_async(results)

    def run_plain(
        self, app: Prepared, row: Any, *, on_change: Callable[[Batch], None] | None = None, key: str | None = None
    ) -> Any:
        plain = Prepared(app.app, merge=False, driver="autogen")
        [(_, result)] = self.run(plain, [row], on_change=on_change, keys=None if key is None else [key])
        return result

    def encode(self, result: TaskResult) -> Any:
        return result_to_json(result)

    def comparable(self, app: Prepared, encoded: Any) -> dict[str, Any]:
        if not isinstance(encoded, Mapping) or not isinstance(encoded.get("messages"), list):
            return {"(result)": _comparable(encoded, {})}
        messages = encoded["messages"]
        if not isinstance(app.app, GraphFlow):
            return {"stop_reason": encoded.get("stop_reason"), "messages": _comparable(messages, {})}
        # Who of several speakers at a time is heard first is chance in AutoGen itself.
        speakers = dict.fromkeys(str(message.get("source")) for message in messages)
        return {"stop_reason": encoded.get("stop_reason")} | {
            f"messages of {name}": _comparable([m for m in messages if str(m.get("source")) == name], {})
            for name in speakers
        }

    def row_content(self, row: Any) -> str:
        return task_content(row)

    def plan(self, app: Prepared) -> Plan | None:
        return lift(app.app)

    def plan_rows(self, rows: Sequence[Any]) -> Sequence[Any]:
        return [{"task": task_content(task_of(row))} for row in rows]

    def explain(self, app: Prepared, rows: Sequence[Any] | None, cost_per_gpu_hour: float | None = None) -> str:
        tasks = [task_of(row) for row in rows] if rows is not None else None
        return explain(app.app, tasks, why_not_native=_why_not_native, cost_per_gpu_hour=cost_per_gpu_hour)

    def explain_analyze(self, app: Prepared) -> str:
        return explain_analyze(app.last, app.app) if app.last is not None else ""

    def fingerprint(self, app: Prepared) -> str:
        return fingerprint(app.app)

    def install(self, *, openai_sdk: bool) -> None:
        intercept.install(everywhere=True)


def _why_not_native(app: Any) -> str | None:
    """Why a copy of this team would run on AutoGen's runtime; an agent by itself needs none."""
    return drive.why_not_native(clone(app)) if isinstance(app, Team) else None


_MESSAGE = frozenset({"source", "type", "id"})
_CALL = frozenset({"id", "arguments", "name"})
_ANSWER = frozenset({"call_id", "content", "name"})
"""Fields by which a message, a tool call and its result are known in JSON data."""


def _comparable(value: Any, numbers: dict[str, str]) -> Any:
    """JSON data of messages without times, their ids numbered in the order in which they come."""
    if isinstance(value, list):
        return [_comparable(inner, numbers) for inner in value]
    if not isinstance(value, Mapping):
        return value
    keys = value.keys()
    message = keys >= _MESSAGE
    ids = {"id", "full_message_id"} if message else {"id", "call_id"} if keys == _CALL or keys >= _ANSWER else set()
    return {
        name: numbers.setdefault(inner, f"id {len(numbers) + 1}")
        if name in ids and isinstance(inner, str)
        else _comparable(inner, numbers)
        for name, inner in sorted(value.items())
        if not (message and name == "created_at")
    }


ADAPTER = AutoGenAdapter()
