"""The workloads of the paper and the primitives of Helium on Halo and on its baselines, all on the same engines."""

from __future__ import annotations

import json
import statistics
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import engines as shared
from benchmarks.measure import RunRecord, ratio, report, write
from benchmarks.trials import bar, command_for, console, show, systems_of
from benchmarks.workloads.catalog import NAMES, TOOLED, opened, repeats
from benchmarks.workloads.systems import SYSTEMS, Systems
from halo_core.pool.kv_speed import kv_bytes_per_token


def main(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help=f"Of {', '.join(NAMES)}.")],
    rows_: Annotated[int, typer.Option("--rows", help="Rows of the batch.")] = 32,
    against: Annotated[str, typer.Option(help=f"Systems beside Halo: {', '.join(SYSTEMS)}.")] = "B0,B7,oracle",
    trials: Annotated[int, typer.Option(help="Trials of each system, interleaved.")] = 3,
    json_: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens that every call of W1-W6 generates.")] = 24,
    distinct: Annotated[str, typer.Option(help="paper (its share of distinct rows), all, or both.")] = "both",
    latency_scale: Annotated[float, typer.Option(help="Factor on the HTTP tools' latency.")] = 0.2,
    scale: Annotated[float, typer.Option(help="Factor on the primitives' prompts and answers.")] = 0.25,
    answer_scale: Annotated[
        float | None, typer.Option(help="Factor on the primitives' answers where it differs from --scale.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="Above 0 nothing is merged but tools and prefixes.")] = 0.0,
    sync: Annotated[bool, typer.Option("--sync", help="Synchronous nodes, run by `batch`.")] = False,
    warm: Annotated[bool, typer.Option("--warm", help="Keep the engines' prefix caches between runs.")] = False,
    seed: Annotated[int, typer.Option(help="Of the rows.")] = 0,
    layout: Annotated[str, typer.Option(help="ENGINESxCORES, auto (calibrated), or stub (answers at once).")] = "2x1",
    dtype: Annotated[str, typer.Option(help="Engine data type; answers are comparable in float32.")] = "float32",
    kv_tokens: Annotated[int, typer.Option(help="Of KV that each engine has; 0 = as Halo gives it.")] = 0,
    max_concurrency: Annotated[
        str, typer.Option(help="B0's setting, `none` or a number, from an earlier sweep; swept when not given.")
    ] = "",
) -> None:
    """A workload: Halo against plain LangGraph, a hand-written program and the oracle, cold and interleaved."""
    if unknown := [name for name in names if name not in NAMES]:
        raise typer.BadParameter(f"unknown workload {', '.join(unknown)}; known: {', '.join(NAMES)}")
    if distinct not in ("paper", "all", "both"):
        raise typer.BadParameter("--distinct takes paper, all or both")
    systems = systems_of(against, tuple(SYSTEMS))
    length = min(kv_tokens // 2, shared.MODEL_TOKENS)
    small = {"kv_cache_gib": _kv_gib(kv_tokens, dtype), "max_model_len": length} if kv_tokens else {}
    pool = shared.start(layout, dtype, out_of_the_box="B0d" in systems, **small)
    documents: dict[str, Any] = {}
    answer_scale = scale if answer_scale is None else answer_scale
    for name in names:
        with opened(name, latency_scale=latency_scale, scale=scale) as workload:
            bench = Systems(
                pool,
                cold=not warm,
                workload=workload,
                tokens=tokens,
                token_scale=answer_scale,
                temperature=temperature,
                sync=sync,
                once=trials == 1,
            )
            for variant in _variants(name, distinct):
                rows = workload.rows(rows_, variant, seed)
                alone = bench.prepare(rows, variant, systems, max_concurrency)
                records = bench.run(["halo", *systems], trials, partial(bench.one, rows=rows, variant=variant))
                document = _document(
                    bench,
                    name,
                    variant,
                    records,
                    alone,
                    trials=trials,
                    layout=layout,
                    dtype=dtype,
                    distinct_rows=len({json.dumps(row, sort_keys=True) for row in rows}),
                    rows=rows_,
                    **({"kv_tokens": kv_tokens} if kv_tokens else {}),
                    **(
                        {"latency_scale": latency_scale}
                        if name in TOOLED
                        else {"scale": scale, "answer_scale": answer_scale}
                    ),
                )
                documents[f"{name}, {'every row distinct' if variant else 'rows as in the source'}"] = document
                show(document)
                write(documents if len(documents) > 1 else document, json_)  # what is measured is not lost
    _show_mean(documents)
    pool.close()


def _kv_gib(tokens: int, dtype: str) -> float:
    """The memory of so much KV of the benchmarks' model."""
    return tokens * kv_bytes_per_token(shared.default_model_path(), dtype) / 2**30


def _variants(name: str, distinct: str) -> list[bool]:
    """Rows as the source has them (False), every row distinct (True)."""
    if not repeats(name):
        return [False]
    return {"paper": [False], "all": [True], "both": [False, True]}[distinct]


def _document(
    bench: Systems,
    name: str,
    variant: bool,
    records: list[RunRecord],
    alone: float,
    *,
    rows: int,
    layout: str,
    dtype: str,
    **extra: Any,
) -> dict[str, Any]:
    systems = dict.fromkeys(record.system for record in records)
    ratios = {f"{other}/halo": ratio(records, other, "halo") for other in systems if other not in ("halo", "oracle")}
    ratios["halo/oracle"] = ratio(records, "halo", "oracle")
    if alone and ratios["halo/oracle"]:
        # The oracle knows all prompts beforehand: a row's chain of calls and tools is a limit of its own.
        limit = max(alone, statistics.median(r.wall_s for r in records if r.system == "oracle"))
        walls = [r.wall_s / limit for r in records if r.system == "halo"]
        ratios["halo/limit"] = {"median": statistics.median(walls), "min": min(walls), "max": max(walls)}
    promised = _promised(name, bench, variant)
    bars = {key: bar(found["median"], **promised[key]) for key, found in ratios.items() if found and key in promised}
    kind = "every row distinct" if variant else "rows as in the source"
    how = "".join(
        [", synchronous nodes" * bench.sync, f", temperature {bench.temperature:g}" * bool(bench.temperature)]
    )
    engines = len(bench.pool.group(shared.MODEL).engines)
    return report(
        f"{name}, {kind}{how}{'' if bench.cold else ', warm'}",
        rows,
        f"{engines} engines ({layout}), dtype {dtype}",
        records,
        ratios,
        tokens=bench.tokens,
        one_row_alone_s=alone or None,
        model_calls_per_row=bench.workload.calls,
        tool_calls_per_row=bench.workload.tool_calls,
        equal_rows=bench.equal_rows() if not bench.temperature else None,
        bars=bars,
        **extra,
    )


def _promised(name: str, bench: Systems, variant: bool) -> dict[str, dict[str, float]]:
    """What the project promises of each ratio."""
    if bench.temperature or not bench.cold:
        return {}
    if bench.sync:
        return {"B0/halo": {"at_least": 2.5}}
    primitive = name not in TOOLED
    return {
        "B0/halo": {"at_least": 1.0 if variant or primitive else 1.1},
        "B7/halo": {"at_least": 1.0},
        "halo/oracle": {"at_most": 1.15},
    }


def _show_mean(documents: dict[str, Any]) -> None:
    found = [d["ratios"]["B0/halo"]["median"] for d in documents.values() if "B0/halo" in d["ratios"]]
    if len(found) > 1:
        console.print(f"B0/halo, geometric mean of {len(found)}: {statistics.geometric_mean(found):.2f}")


globals().update({f"run_{name.replace('-', '_')}": command_for(main, names=[name]) for name in NAMES})


if __name__ == "__main__":
    typer.run(main)
