"""Equality mode on every workload: Halo's batch, then each row alone on plain LangGraph, every state key compared."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer
from langchain_openai import ChatOpenAI

from benchmarks import engines as shared
from benchmarks.measure import machine, versions, write
from benchmarks.trials import console
from benchmarks.workloads.catalog import NAMES, opened
from benchmarks.workloads.shape import Step, Workload, build
from halo_adapters.langgraph.cli import ADAPTER
from halo_core.cli.verify import Difference, verify_rows


def differences(workload: Workload, count: int, tokens: int, *, sync: bool = False) -> list[Difference]:
    """Where plain runs of `count` rows come out otherwise than Halo's batch of them, on the pool as it is configured.

    Temperature 0, and answers end where the model ends them, after `tokens` at the latest.
    """

    def model(step: Step) -> ChatOpenAI:
        name = f"model-{step.model.lower()}"
        return ChatOpenAI(model=name, api_key="unused", temperature=0, max_tokens=tokens, max_retries=0)  # type: ignore[arg-type, call-arg]

    app: Any = ADAPTER.prepare(build(workload, model, sync=sync))
    rows = workload.rows(count, False, 0)
    outs = app.batch(rows) if sync else asyncio.run(app.abatch(rows))
    return verify_rows(ADAPTER, app, rows, outs, range(len(rows)))


def main(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Workloads; all by default.")] = None,
    rows: Annotated[int, typer.Option(help="Rows of each.")] = 4,
    tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 16,
    scale: Annotated[float, typer.Option(help="Factor on the primitives' prompts.")] = 0.1,
    latency_scale: Annotated[float, typer.Option(help="Factor on the HTTP tools' latency.")] = 0.02,
    layout: Annotated[str, typer.Option(help="Engine layout, ENGINESxCORES or auto (calibrated).")] = "2x1",
    moves: Annotated[str, typer.Option(help="Whether KV moves between the engines: auto, always, never.")] = "auto",
    json_: Annotated[Path | None, typer.Option("--json", help="Write what was found here.")] = None,
) -> None:
    """Rows of every workload on Halo and on plain LangGraph, float32, natural ends; exits 1 if any differs."""
    if unknown := [name for name in names or () if name not in NAMES]:
        raise typer.BadParameter(f"unknown workload {', '.join(unknown)}; known: {', '.join(NAMES)}")
    if moves not in ("auto", "always", "never"):
        raise typer.BadParameter("--moves takes auto, always or never")
    pool = shared.start(layout, "float32")
    pool.kv_moves = moves  # type: ignore[assignment]
    document: dict[str, Any] = {
        "layout": layout,
        "dtype": "float32",
        "moves": moves,
        "machine": machine(),
        "versions": versions(),
    }
    found: dict[str, Any] = {}
    for name in names or NAMES:
        with opened(name, latency_scale=latency_scale, scale=scale) as workload:
            wrong = differences(workload, rows, tokens)
        equal = rows - len({difference.position for difference in wrong})
        found[name] = {"rows": rows, "equal": equal}
        console.log(f"{name}: {equal} of {rows} rows equal in every state key")
        for difference in wrong:
            ours, plain = difference.excerpts
            console.log(f"  row {difference.position}, {difference.key}{difference.path}: {ours} / plain: {plain}")
        write({**document, "workloads": found}, json_)
    pool.close()
    if any(each["equal"] < each["rows"] for each in found.values()):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
