"""`halo doctor`: what is installed, what is configured, and whether it can work."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from halo_core.cli import checks
from halo_core.cli.checks import Check, State
from halo_core.cli.console import out
from halo_core.cli.options import Config, Models, pool_config
from halo_core.errors import HaloError
from halo_core.pool.config import PoolConfig
from halo_core.pool.pool import configure

EXAMPLES = """Examples:

`halo doctor`

`halo doctor --config gpu.toml --start`  (also starts the engines and makes one call to each)
"""

STYLES: dict[State, str] = {"ok": "green", "off": "dim", "warn": "yellow", "fail": "bold red"}


def doctor(
    config: Config = None,
    models: Models = None,
    start: Annotated[bool, typer.Option("--start", help="Also start every engine and make one call to it.")] = False,
) -> None:
    """Check the installation, the machine and the pool. Exits 1 when something that is configured cannot work."""
    groups: list[tuple[str, list[Check]]] = [
        ("versions", list(checks.versions())),
        ("frameworks", list(checks.frameworks())),
        ("machine", list(checks.machine())),
    ]
    try:
        pool, source = pool_config(config, models)
    except HaloError as error:
        groups.append(("pool", [Check("configuration", "fail", str(error))]))
    else:
        groups.append(("pool", list(checks.configuration(pool, source))))
        groups.append(("engines", asyncio.run(_engines(pool)) or [NO_ENGINES]))
        groups.append(("curves", list(checks.curves(pool))))
        groups.append(("KV sharing", list(checks.sharing(pool))))
        if start:
            groups.append(("first calls", _start(pool)))
    groups.append(("caches", list(checks.caches())))
    _show(groups)
    failed = sum(check.state == "fail" for _, group in groups for check in group)
    if failed:
        out().print(Text(f"{failed} problem{'s' if failed > 1 else ''}: see the lines marked fail", style="bold red"))
        raise typer.Exit(1)


NO_ENGINES = Check("engines", "off", "none configured: only servers that the app itself names are used")


async def _engines(config: PoolConfig) -> list[Check]:
    found = await asyncio.gather(*(checks.engine(spec) for spec in config.engines))
    return [check for group in found for check in group]


def _start(config: PoolConfig) -> list[Check]:
    try:
        pool = configure(config)
    except HaloError as error:
        return [Check("pool", "fail", str(error))]
    try:
        found = [check for model in pool.models for check in pool.thread.run(checks.first_call(pool, model))]
        return found + (checks.residents(pool.places) if pool.places is not None else [])
    finally:
        pool.close()


def _show(groups: Iterable[tuple[str, list[Check]]]) -> None:
    console = out()
    for title, group in groups:
        if not group:
            continue
        console.print(Text(title, style="bold"))
        table = Table(box=None, show_header=False, padding=(0, 1), pad_edge=False)
        table.add_column(width=4)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for check in group:
            table.add_row(
                Text(check.state, style=STYLES[check.state]), Text(f" {check.subject}"), Text(check.found, style="")
            )
        console.print(table)
