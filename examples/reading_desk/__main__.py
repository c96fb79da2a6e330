"""`make demo`: 24 rows through the reading desk on a vLLM pool, then the same on plain LangGraph, and a report."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

import halo_adapters.langgraph as halo
from benchmarks.balanced import BalancedChatOpenAI
from examples.reading_desk.app import build, chat_model
from halo_core.cli.progress import Progress
from halo_core.pool import EnginePool, PoolConfig
from halo_core.runtime import BatchOptions, get_executor

HERE = Path(__file__).parent
ANSWERS = Path(".halo") / "reading_desk_answers.jsonl"
SERVED = "smollm2"
console = Console()


def start_engines() -> EnginePool:
    """Start the pool; the first time on a machine layout and speed of the engines are measured: a few minutes."""
    pool = halo.configure(PoolConfig.from_file(HERE / "halo.toml"))
    with console.status("starting vLLM (on first use also measuring the engines on this machine)"):
        pool.thread.run(pool.start(SERVED))
    engines = pool.group(SERVED).engines
    console.log(f"{len(engines)} engines: " + ", ".join(f"{e.name} ({e.capacity.slots} slots)" for e in engines))
    return pool


async def run_halo(rows: list[Any]) -> tuple[list[Any], float, Any]:
    """The app with `backend="halo"`, row by row as they finish."""
    app: Any = build(chat_model()).compile(backend="halo", name="reading_desk")  # type: ignore[call-arg]
    outs: list[Any] = [None] * len(rows)
    began = time.perf_counter()
    with Progress(len(rows)) as progress:
        options = BatchOptions(on_change=progress.changed)
        async for i, out in app.abatch_as_completed(rows, return_exceptions=True, halo_options=options):
            outs[i] = out
            progress.row(failed=isinstance(out, BaseException))
    return outs, time.perf_counter() - began, app


async def run_plain(rows: list[Any], urls: list[str]) -> tuple[list[Any], float]:
    """The same graph on plain LangGraph, over the same engines, each call to the engine with the shortest queue."""
    llm = BalancedChatOpenAI.over(urls, temperature=0, max_tokens=40, api_key="unused", model=SERVED)  # type: ignore[arg-type]
    app = build(llm).compile()
    began = time.perf_counter()
    outs = await app.abatch(rows, return_exceptions=True)
    return outs, time.perf_counter() - began


def main() -> None:
    """Run both and report."""
    logging.basicConfig(
        level=logging.INFO, format="%(message)s", handlers=[RichHandler(console=console, show_path=False)]
    )
    for noisy in ("httpx", "httpx2", "openai"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    rows = [json.loads(line) for line in (HERE / "rows.jsonl").read_text("utf-8").splitlines()]
    halo.install()
    pool = start_engines()
    executor = get_executor()
    executor.reset_caches()
    console.rule("Halo")
    outs, halo_s, app = asyncio.run(run_halo(rows))
    analysis = app.last_run.explain_analyze()
    total = app.last_run.stats.total
    executor.reset_caches()
    console.rule("plain LangGraph, same engines")
    with console.status("running the same rows on plain LangGraph"):
        plain, plain_s = asyncio.run(run_plain(rows, [e.base_url for e in pool.group(SERVED).engines]))  # type: ignore[attr-defined]
    console.log(f"plain LangGraph took {plain_s:.1f} s")
    report(rows, outs, plain, halo_s, plain_s, total, analysis)
    pool.close()
    failed = sum(isinstance(out, BaseException) for out in outs)
    if failed:
        raise SystemExit(f"{failed} rows failed")


def report(
    rows: list[Any], outs: list[Any], plain: list[Any], halo_s: float, plain_s: float, total: Any, analysis: str
) -> None:
    """What came out, and what it cost."""
    console.rule("report")
    answers = Table(title="answers (first 6 rows)", show_lines=True)
    for column in ("row", "passage", "question", "note"):
        answers.add_column(column, overflow="fold")
    for i, (row, out) in enumerate(zip(rows[:6], outs, strict=False)):
        note = repr(out) if isinstance(out, BaseException) else out["note"]
        answers.add_row(str(i), row["passage"][:40] + "…", row["question"], note)
    console.print(answers)
    ANSWERS.parent.mkdir(exist_ok=True)
    with ANSWERS.open("w", encoding="utf-8") as file:
        for out in outs:
            file.write(json.dumps({"error": repr(out)} if isinstance(out, BaseException) else out) + "\n")
    console.rule("explain analyze")
    console.print(analysis, markup=False, highlight=False, soft_wrap=True)
    same = sum(a == b for a, b in zip(outs, plain, strict=True))
    figures = Table(title="24 rows, 4 model calls each" if len(rows) == 24 else f"{len(rows)} rows")
    figures.add_column("")
    figures.add_column("value", justify="right")
    for name, value in (
        ("calls planned", total.planned),
        ("calls executed", total.executed),
        ("calls shared", total.shared),
        ("prompt tokens computed", total.computed_tokens),
        ("prompt tokens from cache", total.cached_tokens),
        ("tokens generated", total.generated_tokens),
        ("time, Halo", f"{halo_s:.1f} s"),
        ("time, plain LangGraph on the same engines", f"{plain_s:.1f} s"),
        ("ratio", f"{plain_s / halo_s:.2f}x"),
        ("rows with equal answers", f"{same} of {len(rows)}"),
    ):
        figures.add_row(name, str(value))
    console.print(figures)
    console.print(f"all answers: {ANSWERS}")


if __name__ == "__main__":
    main()
