"""`halo explain`: the plan of an app, what its rows would share, and what really happened."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic_core import to_json

from halo_core.cli.adapter import Adapter
from halo_core.cli.console import fail
from halo_core.cli.interrupt import EXIT_CODE, Interrupted, Interruption
from halo_core.cli.options import Config, Models, Target, configured_pool
from halo_core.cli.progress import Progress
from halo_core.cli.rows import Rows, read_rows
from halo_core.cli.target import load_target
from halo_core.errors import ConfigError
from halo_core.explain import Forecast, page
from halo_core.plan import Plan
from halo_core.pool import get_pool
from halo_core.runtime import row_keys
from halo_core.simulate import RowSet

EXAMPLES = """Examples:

`halo explain my_app.graph:app`

`halo explain my_app.graph:app --input rows.jsonl --cost-per-gpu-hour 2.50`

`halo explain my_app.graph:app --input rows.jsonl --analyze`

`halo explain my_app.graph:app --input rows.jsonl --html > plan.html`

`halo explain my_app.graph:app --mermaid > plan.mmd`
"""


def explain(
    target: Target,
    input: Annotated[
        Path | None,
        typer.Option("--input", "-i", metavar="FILE", help="Rows: also say what they would share.", show_default=False),
    ] = None,
    analyze: Annotated[bool, typer.Option("--analyze", help="Run the rows and show what happened.")] = False,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="The plan as a Mermaid flowchart.")] = False,
    cost_per_gpu_hour: Annotated[
        float | None,
        typer.Option(
            "--cost-per-gpu-hour", min=0, metavar="PRICE", help="Say what the rows would cost.", show_default=False
        ),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="The plan as a JSON document; with --input also what its rows would take.")
    ] = False,
    html: Annotated[bool, typer.Option("--html", help="With --input: a page of HTML.")] = False,
    models: Models = None,
    config: Config = None,
) -> None:
    """Show the plan of an app: operators, prompts, edges, and what the rows of a batch would share."""
    if mermaid + json + html + analyze > 1:
        raise ConfigError("--analyze, --mermaid, --json and --html are four different outputs: choose one")
    if analyze and input is None:
        raise ConfigError("--analyze runs rows: name their file with --input FILE")
    if html and input is None:
        raise ConfigError("--html shows what rows would take: name their file with --input FILE")
    if cost_per_gpu_hour is not None and input is None:
        raise ConfigError("--cost-per-gpu-hour prices rows: name their file with --input FILE")
    rows = read_rows(input) if input is not None else None
    configured_pool(config, models)
    adapter, found = load_target(target)
    app = adapter.prepare(found)
    if mermaid:
        typer.echo(_plan(adapter, app, target).to_mermaid())
    elif html and rows is not None:
        typer.echo(page(_forecast(adapter, app, target, rows), cost_per_gpu_hour))
    elif json and rows is not None:
        found_document = _forecast(adapter, app, target, rows).document(cost_per_gpu_hour)
        typer.echo(to_json(found_document, indent=2).decode())
    elif json:
        typer.echo(_plan(adapter, app, target).to_json(indent=2))
    elif analyze and rows is not None:
        _analyze(adapter, app, rows)
    else:
        typer.echo(adapter.explain(app, rows.values if rows is not None else None, cost_per_gpu_hour))


def _plan(adapter: Adapter, app: Any, target: str) -> Plan:
    plan = adapter.plan(app)
    if plan is None:
        raise ConfigError(
            f"{target} has no static plan, which --mermaid, --json and --html need ({adapter.name} lifts none)"
        )
    return plan


def _forecast(adapter: Adapter, app: Any, target: str, rows: Rows) -> Forecast:
    rowset = RowSet.of(rows.values, adapter.row_content)
    return Forecast.of(_plan(adapter, app, target), adapter.plan_rows(rows.values), rowset, adapter.fingerprint(app))


def _analyze(adapter: Adapter, app: Any, rows: Rows) -> None:
    keys = row_keys(adapter.row_content(row) for row in rows.values)
    failed = 0
    try:
        with Interruption() as interruption, Progress(len(rows)) as progress:
            results = adapter.run(app, rows.values, on_change=progress.changed, keys=keys)
            for _, result in interruption.items(results):
                failed += isinstance(result, BaseException)
                progress.row(failed=isinstance(result, BaseException))
    except Interrupted:
        get_pool().close()
        raise typer.Exit(EXIT_CODE) from None
    typer.echo(adapter.explain_analyze(app))
    if failed:
        fail(f"{failed} of {len(rows)} rows failed; halo run shows why")
        raise typer.Exit(1)
