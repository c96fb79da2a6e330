"""What orchestration itself costs: 4 LLM nodes a row against an engine that answers at once.

Each system runs in a process of its own. The figure is this process's CPU seconds per call (engines excluded: the
simulated one is counted in, the stub server is another process) and its peak memory over the import baseline.
"""

from __future__ import annotations

import asyncio
import json
import operator
from pathlib import Path
from typing import Annotated, Any, TypedDict

import psutil
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.measure import RunRecord, measured, ratio, report, write
from benchmarks.processes import spawn, stub_server

CALLS_PER_ROW = 4


class Row(TypedDict, total=False):
    """A question and the log of four answers."""

    question: str
    log: Annotated[list[str], operator.add]


def build(llm: Any) -> Any:
    """A chain of four async nodes with a reducer, one model call each."""
    from langgraph.graph import END, START, StateGraph

    def node(n: int) -> Any:
        async def ask(state: Row) -> Row:
            answer = await llm.ainvoke([("system", f"You are step {n}."), ("user", state["question"])])
            return {"log": [str(answer.content)]}

        return ask

    builder: Any = StateGraph(Row)
    for n in range(CALLS_PER_ROW):
        builder.add_node(f"step{n}", node(n))
        builder.add_edge(f"step{n - 1}" if n else START, f"step{n}")
    builder.add_edge(f"step{CALLS_PER_ROW - 1}", END)
    return builder


def child(system: str, rows: int, url: str, concurrency: int) -> dict[str, Any]:
    """Run one system in this process."""
    from langchain_openai import ChatOpenAI

    batch = [{"question": f"question number {i}"} for i in range(rows)]
    llm = ChatOpenAI(model="m", api_key="unused", base_url=url or None, temperature=0, max_tokens=16, max_retries=0)  # type: ignore[arg-type]
    record = RunRecord(system, 0)
    app: Any
    config: Any = None
    if system.startswith("halo"):
        import halo_adapters.langgraph as halo
        from halo_core.pool import SimulatedSpec

        halo.configure(halo.PoolConfig(models={"*": "sim"}, engines=(SimulatedSpec(model="sim", slots=256),)))
        app = halo.accelerate(build(llm).compile(), native=system == "halo")
    else:
        app = build(llm).compile()
        config = {"max_concurrency": concurrency}

    async def run() -> tuple[float, list[Any]]:
        await app.abatch(batch[:20], config)  # imports and caches; on one loop, which ChatOpenAI's client is bound to
        baseline = psutil.Process().memory_info().rss / 2**20
        with measured(record):
            return baseline, await app.abatch(batch, config)

    baseline, outs = asyncio.run(run())
    if len(outs) != rows or any(len(out["log"]) != CALLS_PER_ROW for out in outs):
        raise RuntimeError(f"{system} lost answers")
    record.calls_executed = rows * CALLS_PER_ROW
    if system.startswith("halo"):
        total = app.last_run.stats.total
        record.calls_executed, record.calls_shared = total.executed, total.shared
    record.extra = {
        "rows": rows,
        "cpu_ms_per_call": 1000 * record.orchestrator_cpu_s / (rows * CALLS_PER_ROW),
        "rss_over_import_mb": record.peak_rss_mb - baseline,
    }
    return vars(record)


def main(
    rows: Annotated[int, typer.Option(help="Rows for Halo.")] = 10_000,
    baseline_rows: Annotated[int, typer.Option(help="Rows for the others (their cost per call does not fall).")] = 1000,
    trials: Annotated[int, typer.Option(help="Trials of each system, interleaved.")] = 3,
    json_: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    child_: Annotated[str, typer.Option("--child", hidden=True)] = "",
    url: Annotated[str, typer.Option(hidden=True)] = "",
    out: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Orchestrator CPU per call and memory, with an engine that answers at once."""
    if child_ and out is not None:
        out.write_text(json.dumps(child(child_, rows, url, 256)), "utf-8")
        return
    records: list[RunRecord] = []
    with stub_server("m") as url:
        for trial in range(trials):
            for system, count in (
                ("halo", rows),
                ("halo on Pregel", baseline_rows),
                ("LangGraph + ChatOpenAI", baseline_rows),
            ):
                server = "" if system.startswith("halo") else url
                records.append(spawn("benchmarks.overhead", "--child", system, "--rows", str(count), "--url", server))
                records[-1].trial = trial
    table = Table(title=f"Orchestration cost, {CALLS_PER_ROW} calls a row")
    for column in ("system", "trial", "rows", "CPU ms per call", "wall s", "MB over imports"):
        table.add_column(column, justify="right")
    for r in records:
        e = r.extra
        table.add_row(
            r.system,
            str(r.trial),
            str(e["rows"]),
            f"{e['cpu_ms_per_call']:.3f}",
            f"{r.wall_s:.2f}",
            f"{e['rss_over_import_mb']:.0f}",
        )
    Console().print(table)
    per_call = [RunRecord(r.system, r.trial, wall_s=r.extra["cpu_ms_per_call"]) for r in records]
    ratios = {"LangGraph/halo CPU per call": ratio(per_call, "LangGraph + ChatOpenAI", "halo")}
    write(report("overhead", rows, "simulated, zero latency", records, ratios, trials=trials), json_)


if __name__ == "__main__":
    typer.run(main)
