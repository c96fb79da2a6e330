"""`halo simulate`: a batch in virtual time, on as many engines as one likes."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter, ValidationError
from rich.progress import Progress
from rich.table import Table

from halo_core.cli.adapter import Adapter
from halo_core.cli.console import err, out
from halo_core.cli.options import Config, Models, Target, configured_pool
from halo_core.cli.rows import read_rows
from halo_core.cli.target import load_target
from halo_core.errors import ConfigError
from halo_core.pool import get_pool
from halo_core.runtime import catalogs
from halo_core.simulate import Fleet, RowSet, SimulatedGroup, Simulation, fleet_of, group_of, simulate
from halo_core.stats import CalibrationRecord, Catalog, EngineCurve

EXAMPLES = """Examples:

`halo simulate my_app.graph:app --rows 10000 --engines 64`

`halo simulate my_app.graph:app --input rows.jsonl --engines 8 --model-curve h100.json`
"""

_CURVES: TypeAdapter[list[CalibrationRecord] | CalibrationRecord | EngineCurve] = TypeAdapter(
    list[CalibrationRecord] | CalibrationRecord | EngineCurve
)


def simulate_command(
    target: Target,
    rows: Annotated[
        int | None, typer.Option("--rows", min=1, help="So many rows, all different.", show_default=False)
    ] = None,
    input: Annotated[
        Path | None,
        typer.Option("--input", "-i", metavar="FILE", help="These rows: equal ones share calls.", show_default=False),
    ] = None,
    engines: Annotated[
        int | None,
        typer.Option("--engines", min=1, help="Of each model; as configured when not given.", show_default=False),
    ] = None,
    model_curve: Annotated[
        Path | None,
        typer.Option(
            "--model-curve",
            metavar="FILE",
            help="How fast the engines are: what `halo calibrate --json` prints or keeps, of this or another machine.",
            show_default=False,
        ),
    ] = None,
    cost_per_gpu_hour: Annotated[
        float | None, typer.Option("--cost-per-gpu-hour", min=0, metavar="PRICE", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
    models: Models = None,
    config: Config = None,
) -> None:
    """Run a batch in virtual time: Halo's own scheduler on simulated engines, after what the app's last runs taught.

    Runs nothing of the app itself, and starts no engine. The app must have run before; its first rows are its profile.
    """
    if (rows is None) == (input is None):
        raise ConfigError("name either a number of rows (--rows 10000) or a file of rows (--input rows.jsonl)")
    configured_pool(config, models)
    adapter, found = load_target(target)
    app = adapter.prepare(found)
    catalog = catalogs.known(adapter.fingerprint(app))
    if catalog is None:
        raise ConfigError(
            f"nothing is known of the calls of {target} yet: run some rows of it first (halo run {target} --input ...)"
        )
    rowset = _rowset(adapter, rows, input)
    fleet = _fleet(catalog, engines, model_curve)
    began = time.perf_counter()
    with Progress(console=err(), transient=True) as progress:
        task = progress.add_task("simulating", total=len(rowset))
        simulation = simulate(catalog, rowset, fleet, on_row=lambda: progress.advance(task))
    document = _document(simulation, fleet, cost_per_gpu_hour, time.perf_counter() - began)
    if as_json:
        typer.echo(json.dumps(document, indent=1))
    else:
        _show(document, simulation)


def _rowset(adapter: Adapter, rows: int | None, input: Path | None) -> RowSet:
    if input is None:
        return RowSet.distinct(rows or 0)
    return RowSet.of(read_rows(input).values, adapter.row_content)


def _fleet(catalog: Catalog, engines: int | None, file: Path | None) -> Fleet:
    names = list(dict.fromkeys(step.model for step in catalog.steps))
    if file is None:
        return fleet_of(get_pool(), names, engines=engines)
    return Fleet([_read_group(file, name, engines) for name in names])


def _read_group(file: Path, model: str, engines: int | None) -> SimulatedGroup:
    """The engines of a curve file. Raises `ConfigError` that names the file and what it lacks."""
    try:
        found = _CURVES.validate_json(file.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read the curve {file}: {error.strerror or error}") from error
    except ValidationError as error:
        raise ConfigError(
            f"{file} holds no curve: it is neither what `halo calibrate --json` prints nor a file that it keeps "
            f"({error.error_count()} differences)"
        ) from error
    if isinstance(found, EngineCurve):
        return SimulatedGroup(model, engines or 1, found)
    records = found if isinstance(found, list) else [found]
    if not records:
        raise ConfigError(f"{file} holds no curve: its list is empty")
    record = next((r for r in records if r.key.model.rpartition("/")[2] == model), records[0])
    return group_of(model, record, engines)


def _document(simulation: Simulation, fleet: Fleet, price: float | None, spent_s: float) -> dict[str, Any]:
    hours = fleet.gpu_hours(simulation.makespan_s)
    return {
        "rows": simulation.rows,
        "engines": fleet.engines,
        "makespan_s": simulation.makespan_s,
        "rows_per_s": simulation.rows / simulation.makespan_s if simulation.makespan_s else 0.0,
        "calls": simulation.calls,
        "calls_executed": simulation.executed,
        "busy_share": simulation.busy_share,
        "preemptions": sum(engine.preemptions for engine in simulation.engines),
        "warmups": simulation.warmups,
        "gpu_hours": hours,
        "cost": hours * price if price is not None else None,
        "simulated_in_s": spent_s,
        "steps": [asdict(step) for step in simulation.steps],
    }


def _show(document: dict[str, Any], simulation: Simulation) -> None:
    console = out()
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column("step")
    for title in ("calls", "to make", "tokens in", "cached", "at most", "out", "from s", "to s", "s a call"):
        table.add_column(title, justify="right")
    for step in simulation.steps:
        table.add_row(
            step.name,
            f"{step.calls:,}",
            f"{step.executed:,}",
            f"{step.prompt_tokens:,}",
            f"{100 * step.cached_tokens / max(step.prompt_tokens, 1):.0f} %",
            f"{100 * step.ceiling_tokens / max(step.prompt_tokens, 1):.0f} %",
            f"{step.generated_tokens:,}",
            f"{step.first_s:,.1f}",
            f"{step.last_s:,.1f}",
            f"{step.mean_s:,.2f}",
        )
    console.print(table)
    console.print(
        f"{document['rows']:,} rows on {document['engines']:,} engines: {document['makespan_s']:,.1f} s "
        f"({document['rows_per_s']:,.1f} rows/s), engines busy {100 * document['busy_share']:.0f} % of it, "
        f"{document['preemptions']:,} preemptions, {document['gpu_hours']:,.3f} GPU hours"
        + (f", {document['cost']:,.2f} in all" if document["cost"] is not None else "")
    )
    console.print(f"simulated in {document['simulated_in_s']:.1f} s")
