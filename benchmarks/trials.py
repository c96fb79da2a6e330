"""Trials of several systems on the same engines: cold, counted, interleaved, with the oracle beside them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import engines as shared
from benchmarks import oracle
from benchmarks.measure import RunRecord, measured
from halo_core.pool import Completion, EnginePool, LLMCall
from halo_core.runtime import get_executor

console = Console(stderr=True)


@dataclass
class Trials:
    """The engines, and what was learnt about the baselines of each variant (rows repeated or not) beforehand."""

    pool: EnginePool
    executor: Any = field(default_factory=get_executor)
    best_concurrency: dict[bool, int | None] = field(default_factory=dict)
    calls: dict[bool, list[LLMCall]] = field(default_factory=dict)
    division: dict[bool, oracle.Division] = field(default_factory=dict)
    tried: dict[bool, RunRecord] = field(default_factory=dict)
    """The oracle's run with its faster division; where there is one trial, that is it."""
    cold: bool = True
    """Whether every run starts with empty prefix caches."""

    def run(self, order: Sequence[str], trials: int, one: Callable[[str], RunRecord]) -> list[RunRecord]:
        """Every system once per trial, each trial beginning with another one."""
        records: list[RunRecord] = []
        for trial in range(trials):
            for name in rotated(order, trial):
                record = one(name)
                record.trial = trial
                records.append(record)
                console.log(f"{name} trial {trial}: {record.wall_s:.2f} s, {record.calls_executed} calls")
        return records

    @contextmanager
    def counted(self, record: RunRecord, model: str = shared.MODEL) -> Iterator[None]:
        """Cold caches before, the counters of the model's engines around, the clock inside."""
        if self.cold:
            self.executor.reset_caches()
        before = shared.totals(self.pool, model)
        with measured(record):
            yield
        used = shared.totals(self.pool, model) - before
        record.prompt_tokens_computed = used.prompt - used.cached
        record.prompt_tokens_cached = used.cached
        record.prompt_tokens_moved = used.moved
        record.generated_tokens = used.generated
        record.engine_steps = used.steps
        record.preemptions = used.preemptions

    # -- baselines -----------------------------------------------------------------------------------------------

    def sweep(
        self, repeated: bool, name: str, bounds: Sequence[int | None], one: Callable[[int | None], RunRecord], rows: int
    ) -> None:
        """Run a baseline once with each bound on its concurrency and remember the fastest."""
        found = {bound: one(bound).wall_s for bound in bounds}
        self.best_concurrency[repeated] = min(found, key=found.__getitem__)
        console.log(f"{name} sweep at {rows} rows: {found} -> {self.best_concurrency[repeated]}")

    def find_bound(
        self,
        repeated: bool,
        name: str,
        bounds: Sequence[int | None],
        one: Callable[[int | None], RunRecord],
        rows: int,
        known: str,
    ) -> None:
        """Take a bound as known ("none" or a number, of an earlier sweep), else sweep where there is choice."""
        if known:
            self.best_concurrency[repeated] = None if known == "none" else int(known)
        elif len(bounds) == 1:
            self.best_concurrency[repeated] = bounds[0]
        else:
            self.sweep(repeated, name, bounds, one, rows)

    def prepare_oracle(self, repeated: bool, run: Callable[[], object], wanted: bool) -> None:
        """If the oracle is `wanted`, record the calls of a run (uncounted) and find its faster division of them."""
        if wanted:
            with self.recorded() as calls:
                run()
            self.calls[repeated] = calls
            timed = {d.__name__: (self.oracle(repeated, d), d) for d in (oracle.spread, oracle.packed)}
            best = min(timed, key=lambda name: timed[name][0].wall_s)
            self.division[repeated] = timed[best][1]
            self.tried[repeated] = timed[best][0]
            console.log(f"oracle: { {name: round(value[0].wall_s, 2) for name, value in timed.items()} } -> {best}")

    def oracle(self, repeated: bool, division: oracle.Division | None = None) -> RunRecord:
        """The recorded calls, straight into the engines."""
        record = RunRecord("oracle", 0)
        chosen = division or self.division[repeated]
        with self.counted(record):
            record.calls_executed = oracle.run(self.pool, shared.MODEL, self.calls[repeated], chosen)
        return record

    @contextmanager
    def ceilinged(self, record: RunRecord) -> Iterator[None]:
        """Add what one engine with an endless cache would have computed of the calls, where engines name blocks."""
        with self._noted() as asked:
            yield
        answered = [one.completion for one in asked if one.completion is not None]
        if answered and all(completion.blocks for completion in answered):
            size = self.pool.group(shared.MODEL).engines[0].capacity.block_size
            record.extra["endless_cache_tokens"] = endless_cache_tokens(answered, size)

    @contextmanager
    def recorded(self) -> Iterator[list[LLMCall]]:
        """The calls that reach the engines inside the block; filled in at its end."""
        calls: list[LLMCall] = []
        with self._noted() as asked:
            yield calls
        calls += [one.call for one in asked]

    @contextmanager
    def _noted(self) -> Iterator[list[Asked]]:
        """What engines are asked inside the block, in this order, without warm-ups, which are Halo's own. Nests."""
        asked: list[Asked] = []
        before = {engine: engine.complete for engine in self.pool.group(shared.MODEL).engines}
        for engine, complete in before.items():
            engine.complete = _noting(complete, asked)  # type: ignore[method-assign]
        try:
            yield asked
        finally:
            for engine, complete in before.items():
                engine.complete = complete  # type: ignore[method-assign]


@dataclass(slots=True)
class Asked:
    """A call that an engine was asked, and what it answered."""

    call: LLMCall
    completion: Completion | None = None
    """None until it is answered, or where it never was."""


def endless_cache_tokens(answered: Sequence[Completion], block_size: int) -> int:
    """Prompt tokens that one engine computes which forgets nothing, asked one call after the other in this order."""
    seen: set[bytes] = set()
    computed = 0
    for completion in answered:
        prompt = completion.usage.prompt_tokens
        known = 0
        for block in completion.blocks[: (prompt - 1) // block_size]:
            if block not in seen:
                break
            known += block_size
        computed += prompt - known
        seen.update(completion.blocks)
    return computed


def _noting(complete: Callable[[LLMCall], Any], asked: list[Asked]) -> Callable[[LLMCall], Any]:
    async def noted(call: LLMCall) -> Completion:
        one = Asked(call)
        if call.body.get("max_tokens") != 1:
            asked.append(one)
        one.completion = completion = await complete(call)
        return completion

    return noted


def rotated(order: Sequence[str], trial: int) -> list[str]:
    """The systems of a trial: whoever comes first comes last in the next."""
    first = trial % len(order)
    return [*order[first:], *order[:first]]


# -- options -----------------------------------------------------------------------------------------------------------


def systems_of(against: str, known: Sequence[str]) -> list[str]:
    """The systems named in `--against`."""
    systems = [name.strip() for name in against.split(",") if name.strip()]
    unknown = set(systems) - set(known)
    if unknown:
        raise typer.BadParameter(f"unknown system {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    return systems


def variants_of(repeats: str) -> list[bool]:
    """The variants named in `--repeats`: True where each distinct row comes twice."""
    variants = {"half": [True], "none": [False], "both": [True, False]}.get(repeats)
    if variants is None:
        raise typer.BadParameter("--repeats takes half, none or both")
    return variants


def command_for(main: Callable[..., None], **given: Any) -> Callable[..., None]:
    """`main` as a command of its own with these arguments given."""

    @functools.wraps(main)
    def run(**options: Any) -> None:
        main(**given, **options)

    whole = inspect.signature(main, eval_str=True)
    left = [parameter for name, parameter in whole.parameters.items() if name not in given]
    run.__signature__ = whole.replace(parameters=left)  # type: ignore[attr-defined]
    return run


# -- the report --------------------------------------------------------------------------------------------------------


def show(document: dict[str, Any]) -> None:
    """A benchmark's document as a table."""
    table = Table(title=f"{document['workload']}: {document['rows']} rows, {document['layout']}")
    for column in ("system", "trial", "wall s", "CPU s", "calls", "shared", "computed", "cached", "generated"):
        table.add_column(column, justify="right")
    for run in document["runs"]:
        table.add_row(
            run["system"],
            str(run["trial"]),
            f"{run['wall_s']:.2f}",
            f"{run['orchestrator_cpu_s']:.2f}",
            str(run["calls_executed"]),
            str(run["calls_shared"]),
            str(run["prompt_tokens_computed"]),
            str(run["prompt_tokens_cached"]),
            str(run["generated_tokens"]),
        )
    out = Console()
    out.print(table)
    show_figures(document, out)


def show_figures(document: dict[str, Any], out: Console) -> None:
    """A line per ratio, and a line per bar where the document has any."""
    for name, value in document["ratios"].items():
        out.print(f"{name}: median {value['median']:.2f} (range {value['min']:.2f} to {value['max']:.2f})")
    for name, found in document.get("bars", {}).items():
        side, bound = ("at most", found["at_most"]) if "at_most" in found else ("at least", found["at_least"])
        out.print(f"{name}: {found['value']:.2f}, bar {side} {bound:.2f}: {'held' if found['held'] else 'missed'}")


def bar(value: float, *, at_least: float | None = None, at_most: float | None = None) -> dict[str, Any]:
    """A figure beside what was promised of it."""
    if at_most is not None:
        return {"value": value, "at_most": at_most, "held": value <= at_most}
    return {"value": value, "at_least": at_least, "held": at_least is None or value >= at_least}
