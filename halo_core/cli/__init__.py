"""The command line: `halo COMMAND`, one file per command."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from halo_core import __version__
from halo_core.cli import bench, calibrate, doctor, exec, explain, run, simulate
from halo_core.cli.console import fail
from halo_core.errors import HaloError

__all__ = ["app", "main"]

app = typer.Typer(
    name="halo",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run", epilog=run.EXAMPLES)(run.run)
# The script's own arguments are its own, dashes and all.
app.command(
    "exec", epilog=exec.EXAMPLES, context_settings={"allow_interspersed_args": False, "ignore_unknown_options": False}
)(exec.exec_script)
app.command("explain", epilog=explain.EXAMPLES)(explain.explain)
app.command("simulate", epilog=simulate.EXAMPLES)(simulate.simulate_command)
app.command("doctor", epilog=doctor.EXAMPLES)(doctor.doctor)
app.command("calibrate", epilog=calibrate.EXAMPLES)(calibrate.calibrate)
app.command("bench", epilog=bench.EXAMPLES, context_settings={"allow_interspersed_args": False})(bench.bench)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"halo {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks of Halo's own errors (also: HALO_DEBUG=1).")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Batch query processing for agent workflows: many rows through a LangGraph app, on a shared pool of engines."""
    if debug:
        os.environ["HALO_DEBUG"] = "1"


def main() -> None:
    """The `halo` command. Exits 0 on success, 1 when something failed on the way, 2 when it could not begin."""
    try:
        app()
    except HaloError as error:
        if os.environ.get("HALO_DEBUG", "0") not in ("", "0"):
            raise
        fail(str(error))
        sys.exit(2)
