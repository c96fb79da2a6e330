"""What orchestration itself costs with AutoGen teams, against a model that answers at once.

Two teams: three agents twice round (6 calls a run), and a diamond of four (4 calls a run). Each system runs in a
process of its own. The figure is this process's CPU seconds per run: Halo's simulated engine is counted in; the client
of plain AutoGen does nothing but return an answer, which is the cheapest that a client can be.

    halo                     arun_batch with Halo's client on a simulated engine
    halo driver              arun_batch with the client that does nothing: Halo's share without calls
    AutoGen                  asyncio.gather over fresh teams with the client that does nothing
    AutoGen, relaxed gc      the same with the thresholds of the cyclic collector that Halo uses during a batch
    AutoGen + OpenAI client  the same with AutoGen's OpenAI client against a stub server in another process
"""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.base import TaskResult, Team
from autogen_agentchat.teams import DiGraphBuilder, GraphFlow, RoundRobinGroupChat
from autogen_core.models import ChatCompletionClient, CreateResult, LLMMessage, ModelInfo, RequestUsage
from rich.console import Console
from rich.table import Table

from benchmarks.measure import RunRecord, measured, ratio, report, write
from benchmarks.processes import spawn, stub_server
from benchmarks.trials import bar, rotated, show_figures

HALO, DRIVER, AUTOGEN = "halo", "halo driver", "AutoGen"
RELAXED, OPENAI = "AutoGen, relaxed gc", "AutoGen + OpenAI client"
SYSTEMS = (HALO, DRIVER, AUTOGEN, RELAXED, OPENAI)
WARM_UP = 20
MAX_TOKENS = 16
CPU_BAR = 0.25
"""Halo's CPU per run over AutoGen's."""
MEMORY_BAR_MB = 30.0
"""Halo may grow by at most this over its state after the warm-up, at 1,000 rows."""
INFO: ModelInfo = {
    "vision": False,
    "function_calling": True,
    "json_output": True,
    "family": "unknown",
    "structured_output": True,
}


# -- the teams ---------------------------------------------------------------------------------------------------------


def _agent(name: str, client: ChatCompletionClient) -> AssistantAgent:
    return AssistantAgent(name, client, system_message=f"You are {name}.")


def round_robin(client: ChatCompletionClient) -> Team:
    """Three agents, twice round."""
    return RoundRobinGroupChat([_agent(f"speaker{n}", client) for n in range(3)], max_turns=6)


def diamond(client: ChatCompletionClient) -> Team:
    """a, then b and d side by side, then e."""
    a, b, d, e = (_agent(name, client) for name in "abde")
    builder = DiGraphBuilder()
    for agent in (a, b, d, e):
        builder.add_node(agent)
    builder.add_edge(a, b).add_edge(a, d).add_edge(b, e).add_edge(d, e)
    return GraphFlow([a, b, d, e], graph=builder.build())


WORKLOADS: dict[str, tuple[Callable[[ChatCompletionClient], Team], int]] = {
    "round robin": (round_robin, 6),
    "diamond": (diamond, 4),
}
"""Name -> the team over a client, and its calls per run."""


class AtOnce(ChatCompletionClient):
    """Returns one and the same text, as long as the simulated engine's and the stub server's answers."""

    ANSWER = "0123456789abcdef" * 4

    def __init__(self) -> None:
        self.calls = 0

    async def create(self, messages: Sequence[LLMMessage], **options: Any) -> CreateResult:
        """An answer without waiting for anything."""
        self.calls += 1
        return CreateResult(finish_reason="stop", content=self.ANSWER, usage=RequestUsage(16, 16), cached=False)

    async def create_stream(
        self, messages: Sequence[LLMMessage], **options: Any
    ) -> AsyncGenerator[str | CreateResult, None]:
        """The answer in one piece."""
        yield await self.create(messages)

    async def close(self) -> None:
        """There is nothing to close."""

    def actual_usage(self) -> RequestUsage:
        """Nothing is counted."""
        return RequestUsage(0, 0)

    def total_usage(self) -> RequestUsage:
        """Nothing is counted."""
        return RequestUsage(0, 0)

    def count_tokens(self, messages: Sequence[LLMMessage], **options: Any) -> int:
        """Nothing is counted."""
        return 0

    def remaining_tokens(self, messages: Sequence[LLMMessage], **options: Any) -> int:
        """There is always room."""
        return 4096

    @property
    def model_info(self) -> ModelInfo:
        """A plain chat model."""
        return INFO

    @property
    def capabilities(self) -> ModelInfo:
        """Deprecated in AutoGen: see `model_info`."""
        return INFO


# -- one system, in this process ---------------------------------------------------------------------------------------


def client_of(system: str, url: str) -> ChatCompletionClient:
    """The model client of a system."""
    if system == HALO:
        from halo_adapters.autogen import HaloChatCompletionClient, PoolConfig, configure
        from halo_core.pool import SimulatedSpec

        configure(PoolConfig(models={"*": "sim"}, engines=(SimulatedSpec(model="sim", slots=256),)))
        return HaloChatCompletionClient(model="m", temperature=0, max_tokens=MAX_TOKENS, model_info=INFO)
    if system == OPENAI:
        from autogen_ext.models.openai import OpenAIChatCompletionClient

        return OpenAIChatCompletionClient(
            model="m",
            api_key="unused",
            base_url=url,
            temperature=0,
            max_tokens=MAX_TOKENS,
            max_retries=0,
            model_info=INFO,
        )
    return AtOnce()


async def run_halo(team: Team, tasks: list[str]) -> tuple[list[TaskResult], int, int]:
    """(results, calls executed, calls shared) of a batch on Halo."""
    from halo_adapters.autogen import arun_batch

    batch = await arun_batch(team, tasks)
    total = batch.stats.total
    return [run.unwrap() for run in batch], total.executed, total.shared


async def run_autogen(make: Callable[[], Team], tasks: list[str]) -> list[TaskResult]:
    """Every task on a team of its own, all at once."""
    return await asyncio.gather(*(make().run(task=task) for task in tasks))


def child(system: str, workload: str, rows: int, url: str) -> RunRecord:
    """Run one system on one workload in this process."""
    build, calls = WORKLOADS[workload]
    client = client_of(system, url)
    tasks = [f"question number {i}" for i in range(rows)]
    record = RunRecord(system, 0, calls_executed=rows * calls)
    if system == RELAXED:
        gc.set_threshold(50_000, 50, 100)

    async def run() -> tuple[float, list[TaskResult]]:
        # Imports and caches first; on one loop, which the SDK's connections are bound to.
        if system in (HALO, DRIVER):
            await run_halo(build(client), tasks[:WARM_UP])
        else:
            await run_autogen(lambda: build(client), tasks[:WARM_UP])
        before_mb = psutil.Process().memory_info().rss / 2**20
        with measured(record):
            if system not in (HALO, DRIVER):
                return before_mb, await run_autogen(lambda: build(client), tasks)
            results, executed, shared = await run_halo(build(client), tasks)
        if system == HALO:
            record.calls_executed, record.calls_shared = executed, shared
        return before_mb, results

    before_mb, results = asyncio.run(run())
    check(system, workload, results, tasks)
    record.extra = {
        "workload": workload,
        "rows": rows,
        "cpu_ms_per_run": 1000 * record.orchestrator_cpu_s / rows,
        "cpu_ms_per_call": 1000 * record.orchestrator_cpu_s / (rows * calls),
        "rss_over_import_mb": record.peak_rss_mb - before_mb,
        "messages_per_run": len(results[0].messages),
    }
    return record


def check(system: str, workload: str, results: list[TaskResult], tasks: list[str]) -> None:
    """Every run has its own task and an answer per call. Raises RuntimeError."""
    calls = WORKLOADS[workload][1]
    for result, task in zip(results, tasks, strict=True):
        said = [message.to_model_text() for message in result.messages]  # type: ignore[union-attr]
        if len(said) != 1 + calls or said[0] != task or not all(said):
            raise RuntimeError(f"{system} lost answers ({workload}): {said}")


# -- all of them -------------------------------------------------------------------------------------------------------


def main(
    rows: Annotated[int, typer.Option(help="Runs per system.")] = 1000,
    baseline_rows: Annotated[
        int, typer.Option(help="Runs for AutoGen's OpenAI client (its cost per call does not fall).")
    ] = 200,
    trials: Annotated[int, typer.Option(help="Trials of each system, interleaved.")] = 3,
    json_: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    child_: Annotated[str, typer.Option("--child", hidden=True)] = "",
    workload: Annotated[str, typer.Option(hidden=True)] = "",
    url: Annotated[str, typer.Option(hidden=True)] = "",
    out: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Orchestrator CPU and memory of AutoGen teams, with a model that answers at once."""
    if child_ and out is not None:
        out.write_text(json.dumps(vars(child(child_, workload, rows, url))), "utf-8")
        return
    records: list[RunRecord] = []
    with stub_server("m") as url:
        for trial in range(trials):
            for name in WORKLOADS:
                for system in rotated(SYSTEMS, trial):
                    record = _spawn(system, name, baseline_rows if system == OPENAI else rows, url)
                    record.trial = trial
                    records.append(record)
    document = report(
        "autogen-overhead",
        rows,
        "simulated, zero latency",
        records,
        ratios(records),
        trials=trials,
        baseline_rows=baseline_rows,
        bars=bars(records, rows),
    )
    show(document)
    write(document, json_)


def _spawn(system: str, workload: str, rows: int, url: str) -> RunRecord:
    options = {"--child": system, "--workload": workload, "--rows": str(rows), "--url": url}
    return spawn("benchmarks.autogen_overhead", *(word for option in options.items() for word in option))


def ratios(records: list[RunRecord]) -> dict[str, Any]:
    """CPU per run over Halo's, per workload, trial by trial."""
    found: dict[str, Any] = {}
    for workload in WORKLOADS:
        per_run = [
            RunRecord(r.system, r.trial, orchestrator_cpu_s=r.extra["cpu_ms_per_run"] / 1000)
            for r in records
            if r.extra["workload"] == workload
        ]
        for system in (AUTOGEN, RELAXED, OPENAI, DRIVER):
            found[f"{system}/halo CPU per run ({workload})"] = ratio(per_run, system, HALO, "orchestrator_cpu_s")
    return found


def bars(records: list[RunRecord], rows: int) -> dict[str, Any]:
    """What was promised, and whether it holds; memory only at the promised 1,000 rows."""
    found: dict[str, Any] = {}
    compared = ratios(records)
    for workload in WORKLOADS:
        times = compared[f"{AUTOGEN}/halo CPU per run ({workload})"]
        if times is not None:
            found[f"halo/AutoGen CPU per run ({workload})"] = bar(1 / times["median"], at_most=CPU_BAR)
        grown = [r.extra["rss_over_import_mb"] for r in records if (r.system, r.extra["workload"]) == (HALO, workload)]
        if grown and rows == 1000:
            found[f"halo MB over the warm-up ({workload})"] = bar(max(grown), at_most=MEMORY_BAR_MB)
    return found


def show(document: dict[str, Any]) -> None:
    """The document as a table."""
    table = Table(title="Orchestration cost of AutoGen teams")
    columns = ("workload", "system", "trial", "runs", "CPU ms per run", "per call", "wall s", "MB over warm-up")
    for column in columns:
        table.add_column(column, justify="right")
    for run in document["runs"]:
        e = run["extra"]
        table.add_row(
            e["workload"],
            run["system"],
            str(run["trial"]),
            str(e["rows"]),
            f"{e['cpu_ms_per_run']:.3f}",
            f"{e['cpu_ms_per_call']:.3f}",
            f"{run['wall_s']:.2f}",
            f"{e['rss_over_import_mb']:.0f}",
        )
    out = Console()
    out.print(table)
    show_figures(document, out)


if __name__ == "__main__":
    typer.run(main)
