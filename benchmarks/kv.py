"""What moving KV between two engines costs beside computing it: `python -m benchmarks.kv --json FILE`."""

from __future__ import annotations

import asyncio
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import engines as shared
from benchmarks.measure import machine, versions, write
from benchmarks.trials import bar, console
from halo_core.pool import Completion, LLMCall
from halo_core.pool.kv_speed import kv_bytes_per_token
from halo_core.pool.synthetic import text

TOKENS = 1152
QUESTIONS = ("Who is named first?", "What is the last word?")


def main(
    json_: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    trials: Annotated[int, typer.Option(help="Prefixes that are moved, each once.")] = 5,
    dtype: Annotated[str, typer.Option(help="Engine data type; answers are comparable in float32.")] = "float32",
) -> None:
    """Two engines, one core each: a prefix of 1,152 tokens computed on one, moved to the other, and found there.

    `move_over_recompute` is the time that the connectors spend on saving and loading the prefix over the time that
    computing it takes; `wall_move_over_recompute` the same by the clock of the calls, in which other things happen too.
    """
    pool = shared.start("2x1", dtype, kv_sharing="on")
    found = pool.thread.run(_measure(pool, trials))
    expected = kv_bytes_per_token(shared.default_model_path(), dtype)
    document: dict[str, Any] = {
        "benchmark": "kv",
        "prefix_tokens": TOKENS,
        "layout": "2 engines, 1 core each",
        "dtype": dtype,
        "machine": machine(),
        "versions": versions(),
        **found,
        "expected_bytes_per_token": expected,
    }
    document["bars"] = {
        "move_over_recompute": bar(document["move_over_recompute"], at_most=0.05),
        "bytes_per_token": {
            "value": document["bytes_per_token"],
            "expected": expected,
            "held": document["bytes_per_token"] == expected,
        },
    }
    console.print_json(data={key: document[key] for key in (*found, "expected_bytes_per_token")})
    write(document, json_)
    pool.close()


async def _measure(pool: Any, trials: int) -> dict[str, Any]:
    one, two = pool.group(shared.MODEL).engines
    await asyncio.gather(*(engine.complete(_call("warm", QUESTIONS[0], 0)) for engine in (one, two)))
    records: list[dict[str, float]] = []
    equal = True
    for trial in range(trials):
        prefix = text(trial + 1, TOKENS + 4)  # a token a word
        await pool.reset_caches()
        answers: list[str] = []
        record: dict[str, float] = {}
        before = _counters(one, two)
        record["cold_s"] = await _timed(one, _call(prefix, QUESTIONS[0], 0), answers)  # nobody has it or keeps it
        record["local_s"] = await _timed(one, _call(prefix, QUESTIONS[1], 0), answers)
        await pool.reset_caches()
        record["saving_s"] = await _timed(one, _call(prefix, QUESTIONS[0], TOKENS), answers)
        record["moved_s"] = await _timed(two, _call(prefix, QUESTIONS[1], 0), answers)
        equal = equal and answers[0] == answers[2] and answers[1] == answers[3]
        used = {key: value - before[key] for key, value in _counters(one, two).items()}
        record |= {"save_s": used["save_us"] / 1e6, "load_s": used["load_us"] / 1e6}
        record |= {"blocks": used["loaded_blocks"], "bytes": used["loaded_bytes"]}
        records.append(record)
        console.log({key: round(value, 4) for key, value in record.items()})
    block = one.capacity.block_size
    median = {key: statistics.median(record[key] for record in records) for key in records[0]}
    recompute_s = median["cold_s"] - median["local_s"]
    return {
        "move_over_recompute": (median["save_s"] + median["load_s"]) / recompute_s,
        "wall_move_over_recompute": (median["moved_s"] - median["local_s"]) / recompute_s,
        "bytes_per_token": median["bytes"] / (median["blocks"] * block) if median["blocks"] else 0,
        "tokens_equal": equal,
        "moved_tokens": median["blocks"] * block,
        "load_bytes_per_s": median["bytes"] / median["load_s"] if median["load_s"] else 0,
        "median": median,
        "trials": records,
    }


def _counters(*engines: Any) -> dict[str, int]:
    return {key: sum(e.sharing.counters()[key] for e in engines) for key in engines[0].sharing.counters()}


async def _timed(engine: Any, call: LLMCall, answers: list[str]) -> float:
    began = time.perf_counter()
    completion: Completion = await engine.complete(call)
    took = time.perf_counter() - began
    answers.append(completion.parse()["choices"][0]["message"]["content"])
    return took


def _call(prefix: str, question: str, share: int) -> LLMCall:
    """A call whose first 1,152 tokens are a prefix, and which generates four."""
    messages = [{"role": "system", "content": prefix}, {"role": "user", "content": question}]
    body = {"messages": messages, "temperature": 0, "max_tokens": 4, "ignore_eos": True}
    return LLMCall(shared.MODEL, body, share_tokens=share)


if __name__ == "__main__":
    typer.run(main)
