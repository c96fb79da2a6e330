"""Runs tasks through a team under Halo and on plain AutoGen, and prints what came out; for both AutoGen examples."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autogen_agentchat.base import TaskResult, Team
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

import halo_adapters.autogen as halo
from halo_core.cli.progress import Progress
from halo_core.pool import EnginePool, PoolConfig, SimulatedSpec
from halo_core.runtime import Batch, get_executor

CONFIG = Path(__file__).parent / "halo.toml"
SERVED = "smollm2"
SHOWN = 6
"""Tasks whose answers are printed."""

console = Console()


@dataclass(slots=True)
class Example:
    """What is to be run."""

    name: str
    team: Callable[[], Team]
    """Makes the team as the app has it, for Halo."""
    plain: Callable[[str], Team]
    """Makes it over one engine's address, for plain AutoGen."""
    tasks: Sequence[str]
    title: Callable[[str], str]
    """A short name of a task."""
    author: str
    """The agent whose last message is the answer."""
    side_by_side: frozenset[str] = frozenset()
    """Agents that speak at the same time: plain AutoGen has their messages in the order in which they happen to end."""


def run(example: Callable[[int | None], Example], arguments: Sequence[str] | None = None) -> None:
    """The command line of an example; exits 1 when a task has failed."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--rows", type=int, metavar="N", help="only the first N tasks")
    parser.add_argument("--plain", action="store_true", help="also on plain AutoGen over the same engines, to compare")
    parser.add_argument("--simulated", action="store_true", help="no model: an engine that answers with hashes")
    told = parser.parse_args(arguments)
    if told.plain and told.simulated:
        parser.error("--plain needs engines with an address, which a simulated one has not: leave one of them out")
    logging.basicConfig(
        level=logging.INFO, format="%(message)s", handlers=[RichHandler(console=console, show_path=False)]
    )
    for noisy in ("httpx", "httpx2", "openai", "autogen_core", "autogen_core.events"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    pool = start_engines(simulated=told.simulated)
    try:
        failed = compare(example(told.rows), pool, plain=told.plain)
    finally:
        pool.close()
    if failed:
        raise SystemExit(f"{failed} tasks failed")


def start_engines(*, simulated: bool) -> EnginePool:
    """Start the pool; the first time on a machine layout and speed of the engines are measured: a few minutes."""
    if simulated:
        return halo.configure(PoolConfig(models={"*": SERVED}, engines=(SimulatedSpec(model=SERVED),)))
    pool = halo.configure(PoolConfig.from_file(CONFIG))
    with console.status("starting vLLM (on first use also measuring the engines on this machine)"):
        pool.thread.run(pool.start(SERVED))
    engines = pool.group(SERVED).engines
    console.log(f"{len(engines)} engines: " + ", ".join(f"{e.name} ({e.capacity.slots} slots)" for e in engines))
    return pool


def compare(example: Example, pool: EnginePool, *, plain: bool) -> int:
    """Run under Halo, then perhaps on plain AutoGen, both from empty caches, and report; returns the failed tasks."""
    get_executor().reset_caches()
    console.rule("Halo")
    result, halo_s = on_halo(example.team(), example.tasks)
    analysis = result.explain_analyze()
    others, plain_s = None, 0.0
    if plain:
        get_executor().reset_caches()
        console.rule("plain AutoGen, same engines")
        urls: list[str] = [e.base_url for e in pool.group(SERVED).engines]  # type: ignore[attr-defined]
        with console.status("running the same tasks on plain AutoGen"):
            others, plain_s = on_autogen(example.plain, example.tasks, urls)
    report(example, result, halo_s, analysis, others, plain_s)
    return len(result.errors)


def on_halo(team: Team, tasks: Sequence[str]) -> tuple[halo.BatchResult, float]:
    """The tasks as one batch."""
    began = time.perf_counter()
    with Progress(len(tasks)) as progress:

        def changed(batch: Batch) -> None:
            progress.changed(batch)
            while progress.ended < batch.stats.rows_done + batch.stats.rows_failed:
                progress.row(failed=progress.failed < batch.stats.rows_failed)

        result = halo.run_batch(team, tasks, on_change=changed)
    return result, time.perf_counter() - began


def on_autogen(
    make: Callable[[str], Team], tasks: Sequence[str], urls: Sequence[str]
) -> tuple[list[TaskResult | BaseException], float]:
    """The tasks as AutoGen alone runs them at once: a fresh team for each, the engines taken in turns."""

    async def all_of_them() -> list[TaskResult | BaseException]:
        teams = [make(urls[i % len(urls)]) for i in range(len(tasks))]
        runs = (team.run(task=task) for team, task in zip(teams, tasks, strict=True))
        return await asyncio.gather(*runs, return_exceptions=True)

    began = time.perf_counter()
    results = asyncio.run(all_of_them())
    return results, time.perf_counter() - began


def transcript(result: Any, side_by_side: frozenset[str] = frozenset()) -> list[tuple[str, str, str]]:
    """Who said what, without ids and times; messages of agents that speak side by side in the order of their names."""
    if not isinstance(result, TaskResult):
        return [("", "error", repr(result))]
    said: list[tuple[str, str, str]] = []
    for message in result.messages:
        content = getattr(message, "content", None)
        if isinstance(content, list):  # tool calls and their results have ids of their own
            parts = [getattr(part, "arguments", None) or getattr(part, "content", "") for part in content]
            text = "; ".join(f"{part.name}: {value}" for part, value in zip(content, parts, strict=True))
        else:
            text = message.to_text()
        said.append((message.source, type(message).__name__, text))
    places = [i for i, (source, _, _) in enumerate(said) if source in side_by_side]
    for place, entry in zip(places, sorted(said[i] for i in places), strict=True):
        said[place] = entry
    return said


def answer(result: TaskResult, author: str) -> str:
    """The author's last words."""
    return next((m.to_text() for m in reversed(result.messages) if m.source == author), "")


def report(
    example: Example,
    result: halo.BatchResult,
    halo_s: float,
    analysis: str,
    others: Sequence[TaskResult | BaseException] | None,
    plain_s: float,
) -> None:
    """What came out, and what it cost."""
    console.rule("report")
    answers = Table(title=f"answers (first {min(SHOWN, len(result))} tasks)", show_lines=True)
    for column in ("task", "about", f"last words of {example.author}", "messages", "ended by"):
        answers.add_column(column, overflow="fold")
    for run in result[:SHOWN]:
        about = example.title(run.task)
        if run.result is None:
            answers.add_row(str(run.index), about, repr(run.error), "", "")
            continue
        said = answer(run.result, example.author).strip()
        answers.add_row(str(run.index), about, said, str(len(run.result.messages)), run.result.stop_reason or "")
    console.print(answers, markup=False)
    console.rule("explain analyze")
    console.print(analysis, markup=False, highlight=False, soft_wrap=True)
    total = result.stats.total
    figures = Table(title=f"{example.name}, {len(result)} tasks")
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
    ):
        figures.add_row(name, str(value))
    if others is not None:
        aside = example.side_by_side
        same = sum(
            transcript(run.result, aside) == transcript(other, aside) for run, other in zip(result, others, strict=True)
        )
        figures.add_row("time, plain AutoGen on the same engines", f"{plain_s:.1f} s")
        figures.add_row("ratio", f"{plain_s / halo_s:.2f}x")
        figures.add_row("equal transcripts", f"{same} of {len(result)}")
    console.print(figures)
