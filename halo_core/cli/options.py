"""Options that several commands share, and the pool that they describe."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from halo_core.errors import UnknownModelError
from halo_core.pool.config import PoolConfig, parse_models
from halo_core.pool.pool import EnginePool, configure

Target = Annotated[
    str,
    typer.Argument(
        metavar="MODULE:NAME",
        help="The app: a compiled graph, a graph builder, an AutoGen team or agent, or a function without arguments "
        "that returns one.",
        show_default=False,
    ),
]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--models",
        metavar="APP=SERVED",
        help="Send the model name that the app uses to a model of the pool; '*=SERVED' for every other name. May be "
        "given several times.",
        show_default=False,
    ),
]
Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="The pool: $HALO_CONFIG or ./halo.toml by default."),
]


def pool_config(config: Path | None, models: list[str] | None) -> tuple[PoolConfig, str]:
    """The pool's configuration with the name map of the command line in it, and where it was found.

    Raises `ConfigError` for a file that cannot be used, `UnknownModelError` for a name that leads nowhere.
    """
    if config is not None:
        found, source = PoolConfig.from_file(config), str(config)
    else:
        found = PoolConfig.discover()
        source = os.environ.get("HALO_CONFIG") or ("halo.toml" if Path("halo.toml").is_file() else "")
    extra = parse_models(models or [])
    served = sorted({spec.model for spec in found.engines})
    for name, model in extra.items():
        if model not in served:
            raise UnknownModelError(
                f"--models {name}={model}: no engine serves {model!r}; served: "
                f"{', '.join(served) or 'nothing'} ({source or 'no halo.toml found; name one with --config'})"
            )
    return found.model_copy(update={"models": {**found.models, **extra}}), source


def configured_pool(config: Path | None, models: list[str] | None) -> EnginePool:
    """Make the pool of this process; its engines start with the first call."""
    return configure(pool_config(config, models)[0])
