"""`halo run --verify K`: K rows again on the plain framework, and whatever comes out otherwise than in Halo's batch.

The reference is the framework's own executor, a row at a time, every model and tool call made for itself. Its calls go
to the pool's engines, where the app's calls go under Halo.
"""

from __future__ import annotations

import copy
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from pydantic_core import to_jsonable_python

from halo_core.cli.adapter import Adapter
from halo_core.cli.console import say
from halo_core.cli.job import Job, RowError, line_of
from halo_core.cli.rows import Rows
from halo_core.errors import HaloError
from halo_core.plan import Effect, LLMOperator, OpaqueStep
from halo_core.pool import VLLMSpec, get_pool
from halo_core.pool.config import EngineSpec, SimulatedSpec
from halo_core.runtime import SESSION, Batch, ToolCall, row_keys
from halo_core.runtime.tool_desk import OBSERVERS
from halo_core.tools import signature_of

OUTCOME = "(outcome)"
"""In place of a state key: one of the two failed, or they failed differently."""
EFFECTS = "(side effects)"
"""In place of a state key: the writes that tools were asked for."""
NOTHING = "(nothing)"
"""In place of a value that only the other one has."""

BEFORE, AFTER = 30, 90
"""Characters of a long value that are shown around the place where it differs."""
WHOLE = 200
"""Characters of a value that is shown as it is."""


def picked(rows: int, k: int) -> list[int]:
    """The positions of `k` of `rows` rows: the first, the last, and evenly between; all where `k` is as many."""
    if k >= rows:
        return list(range(rows))
    return [0] if k == 1 else [round(i * (rows - 1) / (k - 1)) for i in range(k)]


# -- side effects ------------------------------------------------------------------------------------------------------

Writes = Counter[str]
"""How often each write was asked for: the tool with its arguments."""


class WouldWriteError(HaloError):
    """A tool that may write was called where nothing may be written again."""


@dataclass(slots=True, frozen=True)
class _Write:
    batch: int
    run: str
    tool: str
    arguments: Any


class Watch:
    """Within the block, remembers the writes that tools are asked for in runs of Halo; refuses them where told to."""

    def __init__(self, *, refuse: bool = False) -> None:
        self.refused: list[str] = []
        """Tools that were not called."""
        self._refuse = refuse
        self._writes: list[_Write] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        OBSERVERS.append(self._asked)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        OBSERVERS.remove(self._asked)

    def _asked(self, call: ToolCall) -> None:
        run = SESSION.get()
        if call.effect is not Effect.WRITE or run is None:
            return
        if self._refuse:
            self.refused.append(call.tool)
            raise WouldWriteError(f"{call.tool} may write, and would do so a second time: --allow-writes lets it")
        try:
            arguments: Any = _said(call)
        except Exception:  # whatever the app's objects raise: the call itself goes on
            arguments = {}
        write = _Write(run.batch.number, run.key, call.tool, arguments)
        with self._lock:
            self._writes.append(write)

    def of(self, batch: Batch | None, key: str, comparable: Callable[[Any], Any]) -> Writes:
        """The writes of one row."""
        return Counter(
            f"{write.tool}({_text(comparable(write.arguments))})"
            for write in self._writes
            if batch is not None and (write.batch, write.run) == (batch.number, key)
        )

    def elsewhere(self, batch: Batch | None) -> int:
        """Writes in batches that the app's own code opened inside its rows."""
        return sum(batch is None or write.batch != batch.number for write in self._writes)


_CONTEXT = frozenset({"config", "runtime", "run_manager", "store", "tool_call_id"})
"""What frameworks hand to tools beside their arguments; a text or number of such a name is an argument all the same."""


def _said(call: ToolCall) -> dict[str, Any]:
    """What a tool is asked, as JSON data."""
    told: dict[str, Any] = {}
    for name, value in call.arguments.items():
        if name == "args" and isinstance(value, tuple):
            told[name] = [_sayable(inner) for inner in value]
        elif name == "kwargs" and isinstance(value, Mapping):
            told[name] = {key: _sayable(inner) for key, inner in value.items() if not _is_context(key, inner)}
        else:
            told[name] = _sayable(value)
    return told


def _is_context(name: str, value: Any) -> bool:
    return name == "tool_call_id" or (name in _CONTEXT and not isinstance(value, str | int | float))


def _sayable(value: Any) -> Any:
    """A value as JSON data; what has no text that is equal for equal values becomes the name of its type."""
    if signature_of(value) is None:
        return _nameless(value)
    return to_jsonable_python(value, bytes_mode="base64", inf_nan_mode="strings", fallback=_nameless)


def _nameless(value: Any) -> str:
    """In place of an object that has no text: itself it may be another in every run."""
    return f"<{type(value).__name__}>"


# -- differences -------------------------------------------------------------------------------------------------------


@dataclass(slots=True, frozen=True)
class Difference:
    """Where one row came out otherwise."""

    position: int
    key: str
    """The state key, or `OUTCOME`, or `EFFECTS`."""
    path: str
    """Of the first difference inside the key's value, such as `[3].content`."""
    halo: str
    """What Halo's batch has there, as JSON."""
    plain: str

    @property
    def excerpts(self) -> tuple[str, str]:
        """Both values, long ones cut around the first character that differs."""
        both = zip(self.halo, self.plain, strict=False)
        at = next((i for i, (one, other) in enumerate(both) if one != other), min(len(self.halo), len(self.plain)))
        return _cut(self.halo, at), _cut(self.plain, at)


def _cut(text: str, at: int) -> str:
    if len(text) <= WHOLE:
        return text
    start, end = max(0, at - BEFORE), at + AFTER
    return f"{'...' if start else ''}{text[start:end]}{'...' if end < len(text) else ''}"


@dataclass(slots=True)
class Outcome:
    """What became of one row in Halo's batch."""

    line: str
    """Of output."""
    error: RowError | None = None
    writes: Writes | None = None
    """None where nobody watched: an earlier run finished the row."""


@dataclass(slots=True)
class Checked:
    """One row that was looked at."""

    position: int
    differences: list[Difference] = field(default_factory=list)
    would_write: str = ""
    """The tool that kept the row from being run again."""


class _Missing:
    """In place of a value that is not there."""


_MISSING = _Missing()


def _text(value: Any) -> str:
    return NOTHING if value is _MISSING else json.dumps(value, sort_keys=True, ensure_ascii=False)


def _first(halo: Any, plain: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """Path and values of the first difference; None for equal values. 1, 1.0 and true differ."""
    if isinstance(halo, dict) and isinstance(plain, dict):
        inner = [(f".{key}", halo.get(key, _MISSING), plain.get(key, _MISSING)) for key in sorted({*halo, *plain})]
    elif isinstance(halo, list) and isinstance(plain, list):
        count = max(len(halo), len(plain))
        one, other = ([*values, *[_MISSING] * (count - len(values))] for values in (halo, plain))
        inner = [(f"[{i}]", one[i], other[i]) for i in range(count)]
    else:
        return (path, halo, plain) if _text(halo) != _text(plain) else None
    return next((found for step, a, b in inner if (found := _first(a, b, path + step))), None)


def compare(position: int, halo: Mapping[str, Any], plain: Mapping[str, Any]) -> Iterator[Difference]:
    """A difference for each state key whose values are not equal."""
    for key in sorted({*halo, *plain}):
        found = _first(halo.get(key, _MISSING), plain.get(key, _MISSING))
        if found is not None:
            path, one, other = found
            yield Difference(position, key, path, _text(one), _text(other))


class Reference:
    """Runs rows of one app on the plain framework and compares."""

    def __init__(self, adapter: Adapter, app: Any, *, allow_writes: bool = False) -> None:
        self._adapter = adapter
        self._app = app
        self._allow_writes = allow_writes
        self._batch: Batch | None = None

    def arguments(self, arguments: Any) -> Any:
        """A tool's arguments without what differs from run to run."""
        return self._adapter.comparable(self._app, arguments)

    def check(self, position: int, row: Any, key: str, found: Outcome) -> Checked:
        """Run the row again; `found` is what Halo's batch made of it."""
        if found.writes and not self._allow_writes:
            return Checked(position, would_write=next(iter(found.writes)).partition("(")[0])
        with Watch(refuse=not self._allow_writes) as watch:
            result = self._adapter.run_plain(self._app, row, on_change=self._changed, key=key)
        if watch.refused:
            return Checked(position, would_write=watch.refused[0])
        line, error = line_of(self._adapter, position, result)
        checked = Checked(position)
        if found.error is None and error is None:
            one, other = (self._adapter.comparable(self._app, json.loads(each)) for each in (found.line, line))
            checked.differences += compare(position, one, other)
        elif found.error is None or error is None or found.error.kind != error.kind:
            checked.differences.append(Difference(position, OUTCOME, "", _told(found.error), _told(error)))
        if found.writes is not None:
            writes = watch.of(self._batch, key, self.arguments)
            if found.writes != writes:
                surplus, lack = found.writes - writes, writes - found.writes
                checked.differences.append(Difference(position, EFFECTS, "", _listed(surplus), _listed(lack)))
        return checked

    def _changed(self, batch: Batch) -> None:
        self._batch = batch


def _told(error: RowError | None) -> str:
    return "a result" if error is None else f"{error.kind}: {' '.join(error.message.split())}"


def _listed(writes: Writes) -> str:
    """Writes that only one of the two made."""
    return ", ".join(f"{n} x {write}" if n > 1 else write for write, n in writes.items()) or NOTHING


def verify_rows(
    adapter: Adapter,
    app: Any,
    rows: Sequence[Any],
    results: Sequence[Any],
    positions: Sequence[int],
    *,
    allow_writes: bool = False,
) -> list[Difference]:
    """Where plain runs of the rows at `positions` come out otherwise than Halo's `results` for `rows`.

    `app` is what `adapter.prepare` returned; an exception among the results stands for a failed row. Side effects are
    not compared, nobody watched them. Raises `WouldWriteError` for a row that calls a tool that may write, unless
    `allow_writes` says that it may do so again.
    """
    keys = row_keys(adapter.row_content(row) for row in rows)
    reference = Reference(adapter, app, allow_writes=allow_writes)
    differences = []
    for position in positions:
        found = Outcome(*line_of(adapter, position, results[position]))
        checked = reference.check(position, copy.deepcopy(rows[position]), keys[position], found)
        if checked.would_write:
            raise WouldWriteError(f"row {position} calls {checked.would_write}, which may write, a second time")
        differences += checked.differences
    return differences


# -- halo run ----------------------------------------------------------------------------------------------------------


class Verification:
    """The verification of a job: made before the job runs, done after its output is written."""

    def __init__(self, job: Job, count: int, *, allow_writes: bool) -> None:
        self.watch = Watch()
        """To be entered while the job runs."""
        self.positions = picked(len(job.rows), count)
        self.checked: list[Checked] = []
        self._job = job
        self._allow_writes = allow_writes
        self._rows = {position: copy.deepcopy(job.rows.values[position]) for position in self.positions}
        """As they were before the app had them in hand."""

    def run(self) -> Iterator[Checked]:
        """Each row of `positions` as it is checked."""
        job = self._job
        reference = Reference(job.adapter, job.app, allow_writes=self._allow_writes)
        for position in self.positions:
            key = job.keys[position]
            found = Outcome(job.lines[position], job.errors.get(position))
            if position not in job.known:
                found.writes = self.watch.of(job.progress.batch, key, reference.arguments)
            checked = reference.check(position, self._rows[position], key, found)
            self.checked.append(checked)
            yield checked

    @property
    def failed(self) -> bool:
        """Whether a row differs, or no row at all could be compared."""
        verified = [checked for checked in self.checked if not checked.would_write]
        return any(checked.differences for checked in verified) or (bool(self.positions) and not verified)

    # -- the report ----------------------------------------------------------------------------------------------

    def announce(self) -> None:
        """Say what is about to happen."""
        writes = "are made again" if self._allow_writes else "are not made"
        say(
            f"verifying: {len(self.positions)} of {len(self._job.rows)} rows run again on plain "
            f"{self._job.adapter.title}, one by one, with whatever their own code does; tool calls that may write "
            f"{writes}"
        )

    def report(self, *, quiet: bool) -> None:
        """Say how it ended; with `quiet` only what differs."""
        title, rows = self._job.adapter.title, self._job.rows
        skipped = [checked for checked in self.checked if checked.would_write]
        different = [checked for checked in self.checked if checked.differences]
        equal = len(self.checked) - len(skipped) - len(different)
        for checked in different:
            for difference in checked.differences:
                _tell(difference, rows, title)
        if different or not quiet:
            self._note_doubts(bool(different))
        if self.failed or not quiet:
            counts = [f"{equal} equal"]
            counts += [f"{len(different)} different"] if different else []
            counts += [f"{len(skipped)} not verified"] if skipped else []
            verified = f"verified {equal + len(different)} of {len(rows)} rows against plain {title}: "
            say(verified + ", ".join(counts), "bold red" if self.failed else "green")
            for checked in skipped:
                say(
                    f"  {rows.place(checked.position)}: not verified: would write again with the tool "
                    f"{checked.would_write!r}; --allow-writes lets it (a tool of which nothing is declared is taken to "
                    "write)"
                )

    def _note_doubts(self, different: bool) -> None:
        job = self._job
        for model, why in _inexact():
            say(f"note: {model}: {why}, so that equal requests may get different answers; verify in float32")
        if different and (names := _sampled(job)):
            say(f"note: {', '.join(names)} may sample (no temperature=0, no seed): such answers differ from run to run")
        if unwatched := sum(checked.position in job.known for checked in self.checked):
            say(f"note: side effects of {unwatched} rows are not compared: an earlier run finished them")
        if elsewhere := self.watch.elsewhere(job.progress.batch):
            say(f"note: {elsewhere} writes are not compared: they were made in batches that the app opened by itself")


def _tell(difference: Difference, rows: Rows, title: str) -> None:
    halo, plain = difference.excerpts
    where = f"{difference.key}, at {difference.path}" if difference.path else difference.key
    width = max(len("Halo"), len(title)) + 1
    say(f"different: {rows.place(difference.position)}, {where}", "red")
    say(f"  {'Halo:':{width}} {halo}")
    say(f"  {title + ':':{width}} {plain}")


def _inexact() -> Iterator[tuple[str, str]]:
    """Models that were asked and whose engines do not promise equal answers to equal requests, and why."""
    pool = get_pool()
    for model in pool.models:
        if not any(engine.counters.calls for engine in pool.group(model).engines):
            continue
        specs: list[EngineSpec | None] = [spec for spec in pool.config.engines if spec.model == model]
        for why in dict.fromkeys(map(_doubt, specs or [None])):
            if why:
                yield model, why


def _doubt(spec: EngineSpec | None) -> str:
    if isinstance(spec, SimulatedSpec):
        return ""
    if isinstance(spec, VLLMSpec):
        return "" if spec.dtype in ("float32", "float") else f"the engine runs with dtype={spec.dtype}"
    return "it is not known how the server computes"


def _sampled(job: Job) -> list[str]:
    """The operators whose calls may be sampled, as far as the plan knows."""
    try:
        plan = job.adapter.plan(job.app)
    except HaloError:
        return []
    return [
        operator.name
        for operator in (plan.operators if plan is not None else ())
        if (isinstance(operator, LLMOperator) and not operator.sampling.deterministic)
        or (isinstance(operator, OpaqueStep) and any(not c.sampling.deterministic for c in operator.advised_calls))
    ]
