"""`halo calibrate`: how fast the configured engines are, measured now or as remembered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from halo_core.cli.console import err, out
from halo_core.cli.options import Config, pool_config
from halo_core.errors import ConfigError, UnknownModelError
from halo_core.pool.calibrate import calibrate_again, curves_folder, remembered, zero_latency
from halo_core.pool.config import EngineSpec, PoolConfig
from halo_core.pool.layout import over_places
from halo_core.pool.pool import EnginePool, configure
from halo_core.stats import CalibrationRecord
from halo_core.stats.calibration import key_file

EXAMPLES = """Examples:

`halo calibrate`  (measures what has not been measured yet, and shows it)

`halo calibrate --config gpu.toml --model llama --again`

`halo calibrate --json > curves.json`
"""

_PREFILLS = (64, 256, 1024, 4096)
_WORDS = {
    "request": "overhead of a request",
    "prefill": "prefill",
    "cached": "prefill behind a cached context",
    "decode": "decode",
}


def calibrate(
    config: Config = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="Only this model of the pool.", show_default=False)
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Measure also what is remembered.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the records as JSON, with their probes.")] = False,
) -> None:
    """Measure how fast the engines prefill and decode, once; planning uses it. Servers that others run are included.

    Takes about a minute per model once its engines are up. The engines must have nothing else to do meanwhile.
    """
    pool, source = pool_config(config, None)
    turns = pool.places is not None
    pool = over_places(pool).model_copy(update={"calibrate": False})
    groups = _groups(pool, source, model)
    records = {name: None if again else remembered(specs) for name, specs in groups.items()}
    if None in records.values():
        unknown = [name for name, record in records.items() if record is None]
        for names in [[name] for name in unknown] if turns else [unknown]:  # models that take turns do not fit together
            records |= _measure(pool, names)
    found = {name: record for name, record in records.items() if record is not None}
    if as_json:
        listing = [
            {"model": name, "file": str(key_file(curves_folder(), record.key)), **record.model_dump(mode="json")}
            for name, record in found.items()
        ]
        typer.echo(json.dumps(listing, indent=1))
        return
    for name, record in found.items():
        _show(name, record, key_file(curves_folder(), record.key))


def _groups(pool: PoolConfig, source: str, model: str | None) -> dict[str, list[EngineSpec]]:
    """The configured models with their specifications. Raises `ConfigError` where there is nothing to measure."""
    if not pool.engines:
        where = f"{source} has no [[engines]]" if source else "no $HALO_CONFIG and no halo.toml in this folder"
        raise ConfigError(
            f"no engines are configured, so there is nothing to calibrate: {where}; or name --config FILE"
        )
    groups: dict[str, list[EngineSpec]] = {}
    for spec in pool.engines:
        groups.setdefault(spec.model, []).append(spec)
    if model is not None and model not in groups:
        raise UnknownModelError(f"--model {model}: no engine serves it; served: {', '.join(sorted(groups))}")
    groups = {name: specs for name, specs in groups.items() if model in (None, name)}
    for name, specs in groups.items():
        if zero_latency(specs):
            raise ConfigError(
                f"the engines of {name} are simulated without latency: there is nothing to measure. Set "
                "zero_latency = false, or name another model with --model"
            )
    return groups


def _measure(config: PoolConfig, models: list[str]) -> dict[str, CalibrationRecord]:
    pool = configure(config)
    try:
        return {model: _measure_one(pool, model) for model in models}
    finally:
        pool.close()


def _measure_one(pool: EnginePool, model: str) -> CalibrationRecord:
    with err().status(f"{model}: starting its engines") as status:
        group = pool.thread.run(pool.start(model))
        status.update(f"{model}: measuring {len(group.ready)} engines, about a minute")
        return pool.thread.run(calibrate_again(group.ready))


def _show(name: str, record: CalibrationRecord, file: Path) -> None:
    curve, key, console = record.curve, record.key, out()
    console.print(Text(f"{name}: {key.layout}, {key.dtype or 'dtype unknown'}, {key.engine or key.model}", "bold"))
    console.print(Text("each engine, while all of them work"))
    table = Table(box=None, padding=(0, 2), pad_edge=False)
    for title in ("prefill", "seconds", "tokens/s"):
        table.add_column(title, justify="right")
    for tokens in _PREFILLS:
        seconds = curve.request_s + curve.prefill_s(tokens)
        table.add_row(f"{tokens} tokens", f"{seconds:.3f}", f"{tokens / seconds:,.0f}" if seconds else "")
    console.print(table)
    table = Table(box=None, padding=(0, 2), pad_edge=False)
    for title in ("decode", "ms/step", "tokens/s", "ms/step behind 1,000 tokens each"):
        table.add_column(title, justify="right")
    for point in curve.decode:
        step_s, long_s = point.step_s, curve.step_s(0, 0, point.batch, 1000.0 * point.batch)
        rate = f"{point.batch / step_s:,.0f}" if step_s else ""
        table.add_row(f"batch {point.batch}", f"{step_s * 1e3:.1f}", rate, f"{long_s * 1e3:.1f}")
    console.print(table)
    table = Table(box=None, show_header=False, padding=(0, 2), pad_edge=False)
    table.add_row("request", f"{curve.request_s * 1e3:.1f} ms outside the engine's steps")
    table.add_row("load", f"{curve.load_s:.0f} s" if curve.load_s else "not measured: others start these engines")
    table.add_row("KV copy", _kv(record))
    table.add_row("measured", f"{record.measured_at}, in {record.took_s:.0f} s, with {len(record.probes)} probes")
    for residual in record.residuals:
        off = f"off by {residual.median:.1%} (median), {residual.worst:.1%} (worst of {residual.probes})"
        table.add_row("", f"{_WORDS[residual.kind]}: {off}")
    table.add_row("kept in", Text(str(file), overflow="fold"))
    console.print(table)


def _kv(record: CalibrationRecord) -> str:
    curve = record.curve
    if not curve.kv_copy_bytes_per_s:
        return "not measured: no shared memory to write to"
    speed = f"{curve.kv_copy_bytes_per_s / 1e9:.1f} GB/s through shared memory"
    seconds = curve.kv_copy_s(1000)
    if seconds is None:
        return f"{speed}; the size of a token's KV is unknown"
    return f"{speed}: {seconds * 1e3:.1f} ms for 1,000 tokens ({curve.kv_bytes_per_token / 1e3:.1f} kB each)"
