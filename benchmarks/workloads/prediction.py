"""How well a batch is predicted: profile on a few rows, predict others, run them on the real engines, compare."""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

import halo_adapters.langgraph as halo
from benchmarks import engines as shared
from benchmarks.measure import report, write
from benchmarks.trials import bar, console, show_figures
from benchmarks.workloads.catalog import NAMES, opened
from benchmarks.workloads.shape import Row, build
from benchmarks.workloads.systems import Systems
from halo_core.explain import Comparison, predict
from halo_core.runtime import Batch, catalogs
from halo_core.simulate import RowSet


def main(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help=f"Of {', '.join(NAMES)}.")] = None,
    rows: Annotated[int, typer.Option(help="Rows that are predicted and run, of W1-W6.")] = 8,
    profile: Annotated[int, typer.Option(help="Rows of the run before, from which the catalog is learnt.")] = 4,
    trials: Annotated[int, typer.Option(help="Runs that are compared with the one prediction.")] = 1,
    tokens: Annotated[int, typer.Option(help="Tokens that every call of W1-W6 generates.")] = 24,
    latency_scale: Annotated[float, typer.Option(help="Factor on the HTTP tools' latency.")] = 0.2,
    scale: Annotated[float, typer.Option(help="Factor on the primitives' prompts and answers.")] = 0.1,
    layout: Annotated[str, typer.Option(help="ENGINESxCORES, or auto.")] = "2x1",
    dtype: Annotated[str, typer.Option(help="Engine data type.")] = "float32",
    seed: Annotated[int, typer.Option(help="Of the rows that are predicted; the profile has another.")] = 0,
    json_: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Predicted against real makespans, and the simulator against reality, after one calibration."""
    if unknown := [name for name in names or () if name not in NAMES]:
        raise typer.BadParameter(f"unknown workload {', '.join(unknown)}; known: {', '.join(NAMES)}")
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="halo-catalogs-") as folder:
        os.environ["HALO_CATALOG"] = folder
        pool = shared.start(layout, dtype, calibrate=True)
        for name in names or NAMES:
            with opened(name, latency_scale=latency_scale, scale=scale) as workload:
                bench = _Predicted(pool, workload=workload, tokens=tokens, token_scale=scale)
                found[name] = bench.measure(
                    workload.rows(profile, True, seed + 1), workload.rows(rows, False, seed), trials
                )
            console.log(f"{name}: {found[name]}")
            write(_document(found, rows, layout, profile=profile, trials=trials, dtype=dtype), json_)
        pool.close()
    document = _document(found, rows, layout, profile=profile, trials=trials, dtype=dtype)
    out = Console()
    for name, one in found.items():
        out.print(
            f"{name:<18} predicted {one['predicted_s']:7.2f} s  took {one['actual_s']:7.2f} s  "
            f"({100 * one['error']:+.0f} %; simulated from its own profile {one['simulated_s']:.2f} s)"
        )
    show_figures(document, out)


@contextmanager
def _unlearnt() -> Iterator[None]:
    """Runs inside teach the catalog nothing."""
    folder = os.environ["HALO_CATALOG"]
    os.environ["HALO_CATALOG"] = catalogs.OFF
    try:
        yield
    finally:
        os.environ["HALO_CATALOG"] = folder


class _Predicted(Systems):
    """One workload, predicted and run."""

    def measure(self, profile: list[Row], rows: list[Row], trials: int) -> dict[str, Any]:
        """Learn from `profile`, predict `rows`, run them cold."""
        halo.install()
        self.app: Any = build(self.workload, self.intercepted).compile(backend="halo", name=self.workload.name)  # type: ignore[call-arg]
        with _unlearnt():  # imports, connections and the engines' first shapes are nobody's speed
            self._run(profile[:2])
        self._run(profile)
        before = catalogs.known(self.app.halo.fingerprint(self.app))
        predicted = predict(self.app.halo.fingerprint(self.app), RowSet.of(rows, str))
        batches = [self._run(rows) for _ in range(trials)]
        walls = [batch.stats.wall_s for batch in batches]
        last = batches[-1]
        assert last.learnt is not None and last.watch is not None
        # The simulator's own error: told how long prompts, answers and tools were, and nothing of this run's time.
        itself = last.learnt.model_copy(update={"last": before.last if before is not None else None})
        simulated = predict(last.app, RowSet(last.watch.contents, last.watch.fields), catalog=itself)
        actual_s = statistics.median(walls)
        return {
            "rows": len(rows),
            "predicted_s": predicted.makespan_s,
            "actual_s": actual_s,
            "actual_range_s": [min(walls), max(walls)],
            "error": predicted.makespan_s / actual_s - 1,
            "pace": predicted.pace,
            "simulated_s": simulated.makespan_s,
            "simulator_error": simulated.makespan_s / actual_s - 1,
            "largest_errors": [str(error) for error in Comparison(last, predicted).errors()[:3]],
        }

    def _run(self, rows: list[Row]) -> Batch:
        if self.cold:
            self.executor.reset_caches()
        asyncio.run(self.app.abatch(rows))
        batch: Batch = self.app.last_run.batch
        return batch


def _document(found: dict[str, dict[str, Any]], rows: int, layout: str, **extra: Any) -> dict[str, Any]:
    errors = [abs(one["error"]) for one in found.values()]
    simulated, actual = (sum(one[key] for one in found.values()) for key in ("simulated_s", "actual_s"))
    figures = {
        "median_error": statistics.median(errors),
        "worst_error": max(errors),
        "simulator_error": abs(simulated / actual - 1),
    }
    bars = {
        "median_error": bar(figures["median_error"], at_most=0.10),
        "worst_error": bar(figures["worst_error"], at_most=0.20),
        "simulator_error": bar(figures["simulator_error"], at_most=0.10),
    }
    return report("prediction", rows, layout, [], {}, **figures, per_workload=found, bars=bars, **extra)


if __name__ == "__main__":
    typer.run(main)
