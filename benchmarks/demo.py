"""The demo app on Halo, on the best plain LangGraph, and against the oracle, all on the same engines.

B0 is the same graph under `abatch` with async nodes, the shortest-queue client over both engines, and the best
`max_concurrency` of a sweep at a quarter of the rows. The oracle knows all calls beforehand (see `oracle.py`).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import engines as shared
from benchmarks import oracle
from benchmarks.balanced import BalancedChatOpenAI
from benchmarks.measure import RunRecord, measured, ratio, report, write
from examples.reading_desk.app import build, chat_model
from halo_core.pool import Completion, EnginePool, LLMCall
from halo_core.runtime import get_executor

PASSAGES = Path(__file__).parent.parent / "examples" / "reading_desk" / "passages.jsonl"
SWEEP = (None, 16, 32, 64, 128)
console = Console(stderr=True)


def rows(count: int, repeated: bool) -> list[dict[str, str]]:
    """`count` rows; with `repeated`, each distinct row stands there twice, the second time in another order."""
    distinct = [json.loads(line) for line in PASSAGES.read_text("utf-8").splitlines()]
    need = (count + 1) // 2 if repeated else count
    if need > len(distinct):
        more = (
            "Answer for a reader of twelve.",
            "Answer for a lawyer.",
            "Answer for a translator.",
            "Answer at length.",
        )
        distinct += [{**row, "question": f"{row['question']} {hint}"} for hint in more for row in distinct]
    if need > len(distinct):
        raise typer.BadParameter(f"the demo has {len(distinct)} different rows; --rows {count} needs {need}")
    chosen = distinct[:need]
    if repeated:
        again = chosen[1::2] + chosen[0::2]
        chosen = (chosen + again)[:count]
    return chosen


@dataclass
class Bench:
    """The engines, the app's settings and what was learnt about the baselines."""

    pool: EnginePool
    tokens: int
    executor: Any = field(default_factory=get_executor)
    best_concurrency: dict[bool, int | None] = field(default_factory=dict)
    calls: dict[bool, list[LLMCall]] = field(default_factory=dict)
    division: dict[bool, oracle.Division] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """Of the chat model: fixed lengths, so that every system generates the same number of tokens."""
        return {"max_tokens": self.tokens, "extra_body": {"ignore_eos": True}, "max_retries": 0}

    def halo(self, batch: list[Any]) -> RunRecord:
        """The app with `backend="halo"`."""
        import halo_adapters.langgraph as halo

        halo.install()
        app = build(chat_model(**self.settings())).compile(backend="halo", name="reading_desk")  # type: ignore[call-arg]
        record = RunRecord("halo", 0)
        with self._counted(record):
            asyncio.run(app.abatch(batch))
        total = app.last_run.stats.total  # type: ignore[attr-defined]
        record.calls_executed, record.calls_shared = total.executed, total.shared
        return record

    def b0(self, batch: list[Any], concurrency: int | None) -> RunRecord:
        """The app on plain LangGraph."""
        settings = {**self.settings(), "model": shared.MODEL}
        llm = BalancedChatOpenAI.over(
            shared.base_urls(self.pool),
            temperature=0,
            api_key="unused",
            **settings,  # type: ignore[arg-type]
        )
        app = build(llm).compile()
        record = RunRecord("B0", 0, extra={"max_concurrency": concurrency})
        with self._counted(record):
            asyncio.run(app.abatch(batch, {"max_concurrency": concurrency} if concurrency else None))
        record.calls_executed = 4 * len(batch)
        return record

    def oracle(self, repeated: bool, division: oracle.Division | None = None) -> RunRecord:
        """The recorded calls, straight into the engines."""
        record = RunRecord("oracle", 0)
        chosen = division or self.division[repeated]
        with self._counted(record):
            record.calls_executed = oracle.run(self.pool, shared.MODEL, self.calls[repeated], chosen)
        return record

    @contextmanager
    def _counted(self, record: RunRecord) -> Iterator[None]:
        """Cold caches before, the engines' own counters around, the clock inside."""
        self.executor.reset_caches()
        before = shared.totals(self.pool)
        with measured(record):
            yield
        used = shared.totals(self.pool) - before
        record.prompt_tokens_computed = used.prompt - used.cached
        record.prompt_tokens_cached = used.cached
        record.generated_tokens = used.generated

    # -- what must be known before the trials ---------------------------------------------------------------------

    def prepare(self, batch: list[Any], repeated: bool, against: list[str], known: str) -> None:
        """Sweep B0's setting at a quarter of the rows; record the oracle's calls; both uncounted.

        `known` is what an earlier sweep found ("none" or a number), empty to sweep now.
        """
        quarter = batch[: max(len(batch) // 4, 1)]
        self.b0(quarter[:2], None)  # warm up clients and engines
        if known:
            self.best_concurrency[repeated] = None if known == "none" else int(known)
        elif "B0" in against:
            found = {c: self.b0(quarter, c).wall_s for c in SWEEP}
            self.best_concurrency[repeated] = min(found, key=found.__getitem__)
            console.log(f"B0 sweep at {len(quarter)} rows: {found} -> {self.best_concurrency[repeated]}")
        with self._recorded() as calls:
            self.halo(batch)
        self.calls[repeated] = calls
        if "oracle" in against:
            timed = {d.__name__: (self.oracle(repeated, d).wall_s, d) for d in (oracle.spread, oracle.packed)}
            best = min(timed, key=lambda name: timed[name][0])
            self.division[repeated] = timed[best][1]
            console.log(f"oracle: { {name: round(value[0], 2) for name, value in timed.items()} } -> {best}")

    @contextmanager
    def _recorded(self) -> Iterator[list[LLMCall]]:
        calls: list[LLMCall] = []
        engines: list[Any] = list(self.pool.group(shared.MODEL).engines)
        for engine in engines:
            engine.complete = _recording(engine.complete, calls)
        try:
            yield calls
        finally:
            for engine in engines:
                del engine.complete


def _recording(complete: Callable[[LLMCall], Any], calls: list[LLMCall]) -> Callable[[LLMCall], Any]:
    async def recorded(call: LLMCall) -> Completion:
        if call.body.get("max_tokens") != 1:  # warm-ups are Halo's own
            calls.append(call)
        completion: Completion = await complete(call)
        return completion

    return recorded


def main(
    rows_: Annotated[int, typer.Option("--rows", help="Rows of the batch.")] = 48,
    against: Annotated[str, typer.Option(help="Systems beside Halo: B0, oracle.")] = "B0,oracle",
    trials: Annotated[int, typer.Option(help="Trials of each system, interleaved.")] = 3,
    json_: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens that every call generates.")] = 32,
    layout: Annotated[str, typer.Option(help="Engine layout, ENGINESxCORES or auto (calibrated).")] = "auto",
    dtype: Annotated[str, typer.Option(help="Engine data type.")] = "auto",
    max_concurrency: Annotated[
        str, typer.Option(help="B0's setting, `none` or a number, from an earlier sweep; swept when not given.")
    ] = "",
    repeats: Annotated[str, typer.Option(help="Which variants: half, none, or both.")] = "both",
) -> None:
    """Halo against the best plain LangGraph and the oracle, cold, on the demo app."""
    systems = [name.strip() for name in against.split(",") if name.strip()]
    unknown = set(systems) - {"B0", "oracle"}
    if unknown:
        raise typer.BadParameter(f"unknown system {', '.join(sorted(unknown))}; known: B0, oracle")
    variants = {"half": [True], "none": [False], "both": [True, False]}.get(repeats)
    if variants is None:
        raise typer.BadParameter("--repeats takes half, none or both")
    pool = shared.start(layout, dtype)
    bench = Bench(pool, tokens)
    documents: dict[str, Any] = {}
    for repeated in variants:
        batch = rows(rows_, repeated)
        bench.prepare(batch, repeated, systems, max_concurrency)
        records: list[RunRecord] = []
        order = ["halo", *systems]
        for trial in range(trials):
            for name in order[trial % len(order) :] + order[: trial % len(order)]:
                if name == "halo":
                    record = bench.halo(batch)
                elif name == "B0":
                    record = bench.b0(batch, bench.best_concurrency[repeated])
                else:
                    record = bench.oracle(repeated)
                record.trial = trial
                records.append(record)
                console.log(f"{name} trial {trial}: {record.wall_s:.2f} s, {record.calls_executed} calls")
        label = "demo, half of the rows repeated" if repeated else "demo, no repeats"
        documents["half" if repeated else "none"] = report(
            label,
            rows_,
            f"{len(pool.group(shared.MODEL).engines)} engines ({layout}), dtype {dtype}",
            records,
            {
                "B0/halo": ratio(records, "B0", "halo"),
                "halo/oracle": ratio(records, "halo", "oracle"),
                "B0/oracle": ratio(records, "B0", "oracle"),
            },
            tokens=tokens,
            trials=trials,
        )
        _show(documents["half" if repeated else "none"])
    if json_ is not None:
        write(documents if len(documents) > 1 else next(iter(documents.values())), json_)
    pool.close()


def _show(document: dict[str, Any]) -> None:
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
    for name, value in document["ratios"].items():
        out.print(f"{name}: median {value['median']:.2f} (range {value['min']:.2f} to {value['max']:.2f})")


if __name__ == "__main__":
    typer.run(main)
