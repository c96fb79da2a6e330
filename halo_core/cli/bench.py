"""`halo bench`: the benchmarks of a source checkout, by name."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from halo_core.cli.target import path_first
from halo_core.errors import ConfigError

EXAMPLES = """Examples:

`halo bench`  (lists them)

`halo bench demo --rows 48 --trials 3 --json out.json`

`halo bench demo --help`
"""

REGISTRY = Path("benchmarks") / "registry.py"


def bench(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="The benchmark; none lists them.", show_default=False)
    ] = None,
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[ARGS]...", help="The benchmark's own.", show_default=False)
    ] = None,
) -> None:
    """Run a benchmark of Halo's source checkout; everything behind NAME is the benchmark's own."""
    benchmarks = _registry()
    if name is None:
        for known in sorted(benchmarks):
            typer.echo(f"{known:<18} {_first_line(benchmarks[known])}".rstrip())
        return
    if name not in benchmarks:
        raise ConfigError(f"there is no benchmark {name!r}; known: {', '.join(sorted(benchmarks)) or 'none'}")
    command = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    command.command(name)(_load(benchmarks[name]))
    command(arguments or [], prog_name=f"halo bench {name}")


def checkout() -> Path:
    """The source checkout that the current folder lies in. Raises `ConfigError` elsewhere."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / REGISTRY).is_file():
            return folder
    raise ConfigError(
        f"benchmarks run from Halo's source checkout, and neither {here} nor a folder above it has {REGISTRY}: "
        "clone the repository and run halo bench there"
    )


def _registry() -> Mapping[str, str]:
    path_first(os.fspath(checkout()))
    registry = importlib.import_module("benchmarks.registry")
    benchmarks: Mapping[str, str] = registry.BENCHMARKS
    return benchmarks


def _load(reference: str) -> Callable[..., Any]:
    module_name, _, function = reference.partition(":")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module_name), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"the benchmark {reference} cannot be loaded: {error}") from error
    return found


def _first_line(reference: str) -> str:
    """What a benchmark says of itself; listing must not fail because one of them cannot be imported here."""
    try:
        return (_load(reference).__doc__ or "").strip().partition("\n")[0]
    except ConfigError as error:
        return f"(not available: {error})"
