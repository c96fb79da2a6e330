"""W5 and W6 on Halo, on the best plain LangGraph (B0), by hand (B7) and against the oracle, all on the same engines."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import engines as shared
from benchmarks.balanced import BalancedChatOpenAI
from benchmarks.measure import RunRecord, ratio, report, write
from benchmarks.trials import Trials, bar, console, show, systems_of
from benchmarks.workloads import tool_server, tpch, w5, w6
from benchmarks.workloads.shape import Models, Row, Step, Workload, build, by_hand
from benchmarks.workloads.toolbox import Toolbox

WORKLOADS = {"W5": w5.workload, "W6": w6.workload}
SYSTEMS = ("B0", "B7", "oracle")
SWEEP = (None, 16, 32, 64, 128)


@dataclass
class Bench(Trials):
    """A workload on each system, and the answers of the first trial of each."""

    workload: Workload = field(default=None)  # type: ignore[assignment]
    tokens: int = 24
    answers: dict[str, list[Mapping[str, str]]] = field(default_factory=dict)

    def settings(self, step: Step) -> dict[str, Any]:
        """Of a step's chat model: fixed lengths, so that every system generates the same number of tokens."""
        return {
            "temperature": 0,
            "max_tokens": self.tokens,
            "extra_body": {"ignore_eos": True},
            "max_retries": 0,
            "api_key": "unused",
        }

    def halo(self, rows: list[Row]) -> RunRecord:
        """The app with `backend="halo"`; three names of models, all served by the engines' one."""
        from langchain_openai import ChatOpenAI

        import halo_adapters.langgraph as halo

        halo.install()
        app: Any = build(
            self.workload, lambda step: ChatOpenAI(model=f"model-{step.model.lower()}", **self.settings(step))
        ).compile(backend="halo", name=self.workload.name)  # type: ignore[call-arg]
        record = RunRecord("halo", 0)
        with self.counted(record):
            outs = asyncio.run(app.abatch(rows))
        stats = app.last_run.stats
        record.calls_executed, record.calls_shared = stats.total.executed, stats.total.shared
        record.extra = {"tools_executed": stats.tool_total.executed, "tools_shared": stats.tool_total.shared}
        self.answers.setdefault("halo", list(map(self.workload.answers, outs)))
        return record

    def balanced(self) -> Models:
        """The baselines' models: shortest queue over the engines, the same clients for all three names."""
        urls, clients = shared.base_urls(self.pool), dict[int, Any]()

        def model(step: Step) -> Any:
            settings = {**self.settings(step), "model": shared.MODEL}
            if settings["max_tokens"] not in clients:
                clients[settings["max_tokens"]] = BalancedChatOpenAI.over(urls, **settings)
            return clients[settings["max_tokens"]]

        return model

    def b0(self, rows: list[Row], concurrency: int | None) -> RunRecord:
        """The app on plain LangGraph."""
        app: Any = build(self.workload, self.balanced()).compile()
        record = RunRecord("B0", 0, extra={"max_concurrency": concurrency})
        with self.counted(record):
            outs = asyncio.run(app.abatch(rows, {"max_concurrency": concurrency} if concurrency else None))
        record.calls_executed = self.workload.calls * len(rows)
        if len(rows) >= len(self.answers.get("B0", ())):
            self.answers["B0"] = list(map(self.workload.answers, outs))
        return record

    def b7(self, rows: list[Row]) -> RunRecord:
        """The hand-written asyncio program."""
        record = RunRecord("B7", 0)
        with self.counted(record):
            outs = asyncio.run(by_hand(self.workload, rows, self.balanced()))
        record.calls_executed = self.workload.calls * len(rows)
        self.answers.setdefault("B7", list(outs))
        return record

    def prepare(self, rows: list[Row], variant: bool, against: list[str], known: str) -> None:
        """Find B0's bound at a quarter of the rows; record the oracle's calls; both uncounted."""
        quarter = rows[: max(len(rows) // 4, 2)]
        self.b0(quarter[:2], None)  # warm up clients and engines
        if "B0" in against:
            bounds = [bound for bound in SWEEP if bound is None or bound < len(quarter)]
            self.find_bound(variant, "B0", bounds, partial(self.b0, quarter), len(quarter), known)
        if "oracle" in against:
            self.prepare_oracle(variant, lambda: self.halo(rows), True)
        self.answers.clear()

    def one(self, name: str, rows: list[Row], variant: bool) -> RunRecord:
        """One run of a system."""
        if name == "halo":
            return self.halo(rows)
        if name == "B0":
            return self.b0(rows, self.best_concurrency[variant])
        return self.b7(rows) if name == "B7" else self.oracle(variant)

    def equal_rows(self) -> dict[str, int]:
        """Rows in which a baseline's answers are Halo's, by baseline."""
        ours = self.answers.get("halo", [])
        return {
            name: sum(a == b for a, b in zip(ours, theirs, strict=True))
            for name, theirs in self.answers.items()
            if name != "halo" and len(theirs) == len(ours)
        }


def main(
    name: Annotated[str, typer.Argument(metavar="W", help="W5 or W6.")],
    rows_: Annotated[int, typer.Option("--rows", help="Rows of the batch.")] = 32,
    against: Annotated[str, typer.Option(help="Systems beside Halo: B0, B7, oracle.")] = "B0,B7,oracle",
    trials: Annotated[int, typer.Option(help="Trials of each system, interleaved.")] = 3,
    json_: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens that every call generates.")] = 24,
    distinct: Annotated[str, typer.Option(help="paper (its share of distinct rows), all, or both.")] = "both",
    latency_scale: Annotated[float, typer.Option(help="Factor on the HTTP tools' latency.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Of the rows.")] = 0,
    layout: Annotated[str, typer.Option(help="Engine layout, ENGINESxCORES or auto (calibrated).")] = "2x1",
    dtype: Annotated[str, typer.Option(help="Engine data type; answers are comparable in float32.")] = "float32",
    max_concurrency: Annotated[
        str, typer.Option(help="B0's setting, `none` or a number, from an earlier sweep; swept when not given.")
    ] = "",
) -> None:
    """A workload of the paper: Halo against plain LangGraph, a hand-written program and the oracle, cold."""
    if name not in WORKLOADS:
        raise typer.BadParameter(f"unknown workload {name!r}; known: {', '.join(WORKLOADS)}")
    systems = systems_of(against, SYSTEMS)
    variants = {"paper": [False], "all": [True], "both": [False, True]}.get(distinct)
    if variants is None:
        raise typer.BadParameter("--distinct takes paper, all or both")
    pool = shared.start(layout, dtype)
    documents: dict[str, Any] = {}
    with ExitStack() as stack:
        database = str(tpch.database())
        tools = Toolbox(database, stack.enter_context(tool_server.running(database, latency_scale)))
        stack.callback(tools.close)
        bench = Bench(pool, workload=WORKLOADS[name](tools), tokens=tokens)
        for variant in variants:
            rows = bench.workload.rows(rows_, variant, seed)
            bench.prepare(rows, variant, systems, max_concurrency)
            records = bench.run(["halo", *systems], trials, partial(bench.one, rows=rows, variant=variant))
            documents["all" if variant else "paper"] = document = _document(
                bench, records, variant, rows=rows_, layout=layout, dtype=dtype, trials=trials, latency=latency_scale
            )
            different = len({row["input"] for row in rows})
            document["distinct_rows"] = different
            console.log(f"{different} of {rows_} rows distinct; rows equal to Halo's: {document['equal_rows']}")
            show(document)
    if json_ is not None:
        write(documents if len(documents) > 1 else next(iter(documents.values())), json_)
    pool.close()


def _document(
    bench: Bench,
    records: list[RunRecord],
    variant: bool,
    *,
    rows: int,
    layout: str,
    dtype: str,
    trials: int,
    latency: float,
) -> dict[str, Any]:
    ratios = {
        "B0/halo": ratio(records, "B0", "halo"),
        "B7/halo": ratio(records, "B7", "halo"),
        "halo/oracle": ratio(records, "halo", "oracle"),
    }
    bounds: dict[str, dict[str, float]] = {
        "B0/halo": {"at_least": 1.0 if variant else 1.1},
        "B7/halo": {"at_least": 1.0},
        "halo/oracle": {"at_most": 1.15},
    }
    bars = {name: bar(value["median"], **bounds[name]) for name, value in ratios.items() if value is not None}
    return report(
        f"{bench.workload.name}, " + ("every row distinct" if variant else "the paper's share of distinct rows"),
        rows,
        f"{len(bench.pool.group(shared.MODEL).engines)} engines ({layout}), dtype {dtype}",
        records,
        ratios,
        tokens=bench.tokens,
        trials=trials,
        latency_scale=latency,
        model_calls_per_row=bench.workload.calls,
        tool_calls_per_row=bench.workload.tool_calls,
        equal_rows=bench.equal_rows(),
        bars=bars,
    )


def _named(name: str) -> Callable[..., None]:
    """`main` for one workload, with its options."""

    @functools.wraps(main)
    def run(**options: Any) -> None:
        main(name, **options)

    whole = inspect.signature(main, eval_str=True)
    run.__signature__ = whole.replace(  # type: ignore[attr-defined]
        parameters=[parameter for key, parameter in whole.parameters.items() if key != "name"]
    )
    return run


run_w5 = _named("W5")
run_w6 = _named("W6")


if __name__ == "__main__":
    typer.run(main)
