"""Time and memory of `consolidate` at growing numbers of rows: `python -m benchmarks.consolidate --json FILE`."""

from __future__ import annotations

import logging
import multiprocessing
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.measure import machine, peak_mb, reset_peak_mb, versions, write
from halo_core.plan import (
    Edge,
    Exit,
    Join,
    LLMOperator,
    Operator,
    Plan,
    PromptTemplate,
    Sampling,
    StateKey,
    consolidate,
)

logger = logging.getLogger("benchmarks.consolidate")

ROWS = (5_000, 10_000, 25_000, 50_000)


def workload() -> Plan:
    """Ten operators: a planner, four parallel readers of its plan and the row, a join, and a chain of four."""

    def llm(name: str, prompt: str) -> LLMOperator:
        template = PromptTemplate.parse(prompt)
        return LLMOperator(name=name, model="m", prompt=template, sampling=Sampling(temperature=0), writes=(name,))

    readers = [llm(f"reader{i}", "Read {documents} for {question} by {outline}") for i in range(4)]
    chain = [
        llm("merge", "Merge {reader0} {reader1} {reader2} {reader3}"),
        llm("draft", "Write {merge} for {profile}"),
        llm("check", "Check {draft} against {documents}"),
        llm("answer", "Answer {question} with {draft} and {check}"),
    ]
    operators: list[Operator] = [llm("outline", "Plan {question}"), *readers, Join(name="all"), *chain]
    names = [reader.name for reader in readers]
    pairs = [("outline", name) for name in names] + [(name, "all") for name in names]
    pairs += list(zip(["all", "merge", "draft", "check"], ["merge", "draft", "check", "answer"], strict=True))
    written = [o.name for o in operators if not isinstance(o, Join)]
    return Plan(
        name="consolidate",
        operators=tuple(operators),
        edges=tuple(Edge(source=a, target=b) for a, b in pairs),
        entry=("outline",),
        exits=(Exit(source="answer"),),
        state=(
            *(StateKey(name=name) for name in ("question", "documents", "profile")),
            *(StateKey(name=name, input=False) for name in written),
        ),
    )


def batch(rows: int) -> list[dict[str, Any]]:
    """Rows of which every second repeats an earlier one; about 1 kB of text each, and nested values."""

    def row(i: int) -> dict[str, Any]:
        return {
            "question": f"What does report {i} say about the river? " * 4,
            "documents": [{"id": i, "score": i / 7, "text": f"Passage {j} of report {i}. " * 12} for j in range(3)],
            "profile": {"language": "en", "level": i % 5, "tags": ["short", "plain"]},
        }

    return [row(i // 2) for i in range(rows)]


def measure(rows: int) -> dict[str, Any]:
    """One cold consolidation; seconds of wall and CPU, MB of peak memory above the plan and its rows."""
    plan, given = workload(), batch(rows)
    consolidate(plan, given[:10])
    before = reset_peak_mb()
    wall, cpu = time.perf_counter(), time.process_time()
    consolidated = consolidate(plan, given)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = peak_mb() - before
    counts = consolidated.counts()
    bound = time.process_time()
    for count in counts:
        writes = plan[count.operator].writes or ()
        for row in range(rows):
            if consolidated.resolve(count.operator, row) is not None:
                consolidated.bind(count.operator, row, {key: given[row]["question"] for key in writes})
    bound = time.process_time() - bound
    return {
        "rows": rows,
        "operators": len(counts),
        "instances": sum(c.instances for c in counts),
        "classes": sum(c.classes for c in counts),
        "wall_s": round(wall, 4),
        "cpu_s": round(cpu, 4),
        "us_per_instance": round(1e6 * cpu / sum(c.instances for c in counts), 3),
        "peak_rss_delta_mb": round(peak, 1),
        "bind_all_cpu_s": round(bound, 4),
        "peak_rss_delta_bound_mb": round(peak_mb() - before, 1),
    }


def main(
    rows: Annotated[list[int] | None, typer.Option("--rows", help="Sizes; may be repeated.")] = None,
    trials: Annotated[int, typer.Option(help="Trials of each size.")] = 3,
    json_: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Time and memory of consolidate(plan, rows), 10 operators, each size in a process of its own."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    runs: list[dict[str, Any]] = []
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for size in rows or ROWS:
            for trial in range(trials):
                run = {"system": "halo", "trial": trial, **pool.apply(measure, (size,))}
                logger.info("%s", run)
                runs.append(run)
    result = {
        "workload": "consolidate: 10 operators, every second row repeats an earlier one",
        "machine": machine(),
        "versions": versions(),
        "runs": runs,
    }
    write(result, json_)


if __name__ == "__main__":
    typer.run(main)
