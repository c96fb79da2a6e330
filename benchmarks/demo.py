"""The demo app on Halo, on the best plain LangGraph, and against the oracle, all on the same engines.

B0 is the same graph under `abatch` with async nodes, the shortest-queue client over both engines, and the best
`max_concurrency` of a sweep at a quarter of the rows. The oracle knows all calls beforehand (see `oracle.py`).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import engines as shared
from benchmarks.balanced import BalancedChatOpenAI
from benchmarks.measure import RunRecord, ratio, report, write
from benchmarks.passages import rows
from benchmarks.trials import Trials, show, systems_of, variants_of
from examples.reading_desk.app import build, chat_model

SWEEP = (None, 16, 32, 64, 128)


@dataclass
class Bench(Trials):
    """The app's settings, and the app on each system."""

    tokens: int = 32

    def settings(self) -> dict[str, Any]:
        """Of the chat model: fixed lengths, so that every system generates the same number of tokens."""
        return {"max_tokens": self.tokens, "extra_body": {"ignore_eos": True}, "max_retries": 0}

    def halo(self, batch: list[Any]) -> RunRecord:
        """The app with `backend="halo"`."""
        import halo_adapters.langgraph as halo

        halo.install()
        app = build(chat_model(**self.settings())).compile(backend="halo", name="reading_desk")  # type: ignore[call-arg]
        record = RunRecord("halo", 0)
        with self.counted(record):
            asyncio.run(app.abatch(batch))
        total = app.last_run.stats.total  # type: ignore[attr-defined]
        record.calls_executed, record.calls_shared = total.executed, total.shared
        return record

    def b0(self, batch: list[Any], concurrency: int | None) -> RunRecord:
        """The app on plain LangGraph."""
        settings = {**self.settings(), "model": shared.MODEL}
        llm = BalancedChatOpenAI.over(
            shared.base_urls(self.pool),
            temperature=0,
            api_key="unused",
            **settings,  # type: ignore[arg-type]
        )
        app = build(llm).compile()
        record = RunRecord("B0", 0, extra={"max_concurrency": concurrency})
        with self.counted(record):
            asyncio.run(app.abatch(batch, {"max_concurrency": concurrency} if concurrency else None))
        record.calls_executed = 4 * len(batch)
        return record

    def prepare(self, batch: list[Any], repeated: bool, against: list[str], known: str) -> None:
        """Sweep B0's setting at a quarter of the rows; record the oracle's calls; both uncounted.

        `known` is what an earlier sweep found ("none" or a number), empty to sweep now.
        """
        quarter = batch[: max(len(batch) // 4, 1)]
        self.b0(quarter[:2], None)  # warm up clients and engines
        if "B0" in against:
            self.find_bound(repeated, "B0", SWEEP, partial(self.b0, quarter), len(quarter), known)
        self.prepare_oracle(repeated, lambda: self.halo(batch), "oracle" in against)

    def one(self, name: str, batch: list[Any], repeated: bool) -> RunRecord:
        """One run of a system."""
        if name == "halo":
            return self.halo(batch)
        if name == "B0":
            return self.b0(batch, self.best_concurrency[repeated])
        return self.oracle(repeated)


def main(
    rows_: Annotated[int, typer.Option("--rows", help="Rows of the batch.")] = 48,
    against: Annotated[str, typer.Option(help="Systems beside Halo: B0, oracle.")] = "B0,oracle",
    trials: Annotated[int, typer.Option(help="Trials of each system, interleaved.")] = 3,
    json_: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens that every call generates.")] = 32,
    layout: Annotated[str, typer.Option(help="Engine layout, ENGINESxCORES or auto (calibrated).")] = "auto",
    dtype: Annotated[str, typer.Option(help="Engine data type.")] = "auto",
    max_concurrency: Annotated[
        str, typer.Option(help="B0's setting, `none` or a number, from an earlier sweep; swept when not given.")
    ] = "",
    repeats: Annotated[str, typer.Option(help="Which variants: half, none, or both.")] = "both",
) -> None:
    """Halo against the best plain LangGraph and the oracle, cold, on the demo app."""
    systems = systems_of(against, ("B0", "oracle"))
    variants = variants_of(repeats)
    pool = shared.start(layout, dtype)
    bench = Bench(pool, tokens=tokens)
    documents: dict[str, Any] = {}
    for repeated in variants:
        batch = rows(rows_, repeated)
        bench.prepare(batch, repeated, systems, max_concurrency)
        records = bench.run(["halo", *systems], trials, partial(bench.one, batch=batch, repeated=repeated))
        label = "demo, half of the rows repeated" if repeated else "demo, no repeats"
        documents["half" if repeated else "none"] = report(
            label,
            rows_,
            f"{len(pool.group(shared.MODEL).engines)} engines ({layout}), dtype {dtype}",
            records,
            {
                "B0/halo": ratio(records, "B0", "halo"),
                "halo/oracle": ratio(records, "halo", "oracle"),
                "B0/oracle": ratio(records, "B0", "oracle"),
            },
            tokens=tokens,
            trials=trials,
        )
        show(documents["half" if repeated else "none"])
    if json_ is not None:
        write(documents if len(documents) > 1 else next(iter(documents.values())), json_)
    pool.close()


if __name__ == "__main__":
    typer.run(main)
