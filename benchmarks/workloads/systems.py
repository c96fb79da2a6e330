"""The systems that run a workload on the same engines: Halo, and the baselines in the order of honesty they demand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from langchain_openai import ChatOpenAI
from openai import DefaultAsyncHttpxClient

import halo_adapters.langgraph as halo
from benchmarks import engines as shared
from benchmarks.balanced import BalancedChatOpenAI, Queues
from benchmarks.measure import RunRecord
from benchmarks.trials import Trials
from benchmarks.workloads.shape import Models, Row, Step, Workload, build, by_hand, by_operator

SYSTEMS = {
    "B0": "plain LangGraph, shortest queue over the same engines, unlimited connections, best max_concurrency",
    "B0d": "plain LangGraph out of the box: one engine as vLLM lays it out, LangChain's default client",
    "B0s": "B0 with the rows sorted",
    "B6": "no framework: level by level, all rows of a level at once",
    "B7": "no framework: every step as soon as its inputs are there, written by hand",
    "alone": "Halo, its engines sharing no KV",
    "oracle": "all calls known in advance, merged, in the best order, straight into the engines",
    "serial": "plain LangGraph, one row after the other",
}
SWEEP = (16, 32, 64, 128)


@dataclass
class Systems(Trials):
    """A workload on each system, and the answers of the first trial of each."""

    workload: Workload = field(default=None)  # type: ignore[assignment]
    tokens: int = 24
    """That a call generates where its step does not say."""
    token_scale: float = 1.0
    """Factor on what a step says."""
    temperature: float = 0.0
    once: bool = False
    """One trial only."""
    sync: bool = False
    """Nodes as most users write them: synchronous, called by `batch`."""
    answers: dict[str, list[Mapping[str, str]]] = field(default_factory=dict)

    # -- models --------------------------------------------------------------------------------------------------

    def settings(self, step: Step) -> dict[str, Any]:
        """Of a step's chat model: fixed lengths, so that every system generates the same number of tokens."""
        length = max(1, round(step.tokens * self.token_scale)) if step.tokens else self.tokens
        return {
            "temperature": self.temperature,
            **({"top_p": 0.9} if self.temperature else {}),
            "max_tokens": length,
            "extra_body": {"ignore_eos": True},
            "max_retries": 0,
            "api_key": "unused",
        }

    def intercepted(self, step: Step) -> Any:
        """Halo's models: three names, as the app would use, all served by the engines' one."""
        return ChatOpenAI(model=f"model-{step.model.lower()}", **self.settings(step))

    def balanced(self) -> Models:
        """The baselines' models: shortest queue over the engines, whatever the name."""
        urls, clients = shared.base_urls(self.pool), dict[int, Any]()
        queues = Queues(len(urls))

        def model(step: Step) -> Any:
            settings = {**self.settings(step), "model": shared.MODEL}
            if settings["max_tokens"] not in clients:
                clients[settings["max_tokens"]] = BalancedChatOpenAI.over(urls, queues, **settings)
            return clients[settings["max_tokens"]]

        return model

    def default(self) -> Models:
        """LangChain's client for one server, with the OpenAI SDK's own limits.

        LangChain caches its client across event loops, of which each run here has its own; hence an equal new one.
        """
        url, client = shared.base_urls(self.pool, shared.OUT_OF_THE_BOX)[0], DefaultAsyncHttpxClient()
        given = {"model": shared.OUT_OF_THE_BOX, "base_url": url, "http_async_client": client}
        return lambda step: ChatOpenAI(**{**self.settings(step), **given})

    # -- systems -------------------------------------------------------------------------------------------------

    def halo(self, rows: list[Row], name: str = "halo") -> RunRecord:
        """The app with `backend="halo"`; as `alone` without shared KV."""
        self.pool.kv_moves = "never" if name == "alone" else "auto"
        halo.install()
        graph = build(self.workload, self.intercepted, sync=self.sync)
        app: Any = graph.compile(backend="halo", name=self.workload.name)  # type: ignore[call-arg]
        record = RunRecord(name, 0)
        with self.ceilinged(record), self.counted(record):
            outs = app.batch(rows) if self.sync else asyncio.run(app.abatch(rows))
        stats = app.last_run.stats
        record.calls_executed, record.calls_shared = stats.total.executed, stats.total.shared
        tools = stats.tool_total
        record.extra |= {"tools_executed": tools.executed, "tools_shared": tools.shared, "tools_ahead": tools.ahead}
        self._keep(name, map(self.workload.answers, outs))
        return record

    def langgraph(
        self,
        name: str,
        rows: list[Row],
        concurrency: int | None = None,
        models: Models | None = None,
        engine: str = shared.MODEL,
    ) -> RunRecord:
        """The app on plain LangGraph."""
        app: Any = build(self.workload, models or self.balanced(), sync=self.sync).compile()
        config = {"max_concurrency": concurrency} if concurrency else None
        record = RunRecord(name, 0, extra={"max_concurrency": concurrency})
        with self.counted(record, engine):
            if name == "serial":
                outs = [app.invoke(row) for row in rows] if self.sync else asyncio.run(_one_by_one(app, rows))
            else:
                outs = app.batch(rows, config) if self.sync else asyncio.run(app.abatch(rows, config))
        record.calls_executed = self.workload.calls * len(rows)
        self._keep(name, map(self.workload.answers, outs))
        return record

    def b0(self, rows: list[Row], concurrency: int | None) -> RunRecord:
        """See `SYSTEMS`."""
        return self.langgraph("B0", rows, concurrency)

    def b0s(self, rows: list[Row], concurrency: int | None) -> RunRecord:
        """See `SYSTEMS`."""
        order = sorted(range(len(rows)), key=lambda i: json.dumps(rows[i], sort_keys=True))
        record = self.langgraph("B0s", [rows[i] for i in order], concurrency)
        back = {i: answer for i, answer in zip(order, self.answers["B0s"], strict=True)}
        self.answers["B0s"] = [back[i] for i in range(len(rows))]
        return record

    def by_script(self, name: str, rows: list[Row]) -> RunRecord:
        """B6 and B7."""
        run = by_hand if name == "B7" else by_operator
        record = RunRecord(name, 0)
        with self.counted(record):
            answers = asyncio.run(run(self.workload, rows, self.balanced()))
        record.calls_executed = self.workload.calls * len(rows)
        self._keep(name, answers)
        return record

    def one(self, name: str, rows: list[Row], variant: bool) -> RunRecord:
        """One run of a system."""
        if name in ("halo", "alone"):
            return self.halo(rows, name)
        if name == "oracle":
            return self.tried[variant] if self.once else self.oracle(variant)
        if name in ("B0", "B0s"):
            return (self.b0 if name == "B0" else self.b0s)(rows, self.best_concurrency.get(variant))
        if name == "B0d":
            return self.langgraph(name, rows, None, self.default(), shared.OUT_OF_THE_BOX)
        return self.langgraph(name, rows) if name == "serial" else self.by_script(name, rows)

    # -- before and after ----------------------------------------------------------------------------------------

    def prepare(self, rows: list[Row], variant: bool, against: Sequence[str], known: str) -> float:
        """Find B0's bound at a quarter of the rows and record the oracle's calls, uncounted.

        Returns the seconds that the first row takes alone, by hand, on cold and idle engines: no system that runs the
        app can be faster than its longest row. 0.0 where nobody asks: without the oracle, or with synchronous nodes.
        """
        quarter = rows[: max(len(rows) // 4, 2)]
        self.b0(quarter[:2], None)  # warm up clients and engines
        if "B0" in against or "B0s" in against:
            bounds: list[int | None] = [None, *(bound for bound in SWEEP if bound < len(rows))]
            if self.sync:
                # A synchronous batch has as many threads as its bound, and six on two cores without one: enough for
                # a quarter of the rows, which would then stand for too few.
                bounds = [bound for bound in SWEEP if bound <= 2 * len(rows)] or [None]
            part = len(rows) // len(quarter)
            run = partial(self.b0, quarter)
            self.find_bound(variant, "B0", bounds, lambda b: run(b and max(b // part, 1)), len(quarter), known)
        self.prepare_oracle(variant, lambda: self.halo(rows), "oracle" in against)
        alone = 0.0 if self.sync or "oracle" not in against else self.by_script("B7", rows[:1]).wall_s
        self.answers.clear()
        return alone

    def _keep(self, name: str, answers: Any) -> None:
        self.answers.setdefault(name, list(answers))

    def equal_rows(self) -> dict[str, int]:
        """Rows in which a baseline's answers are Halo's, by baseline."""
        ours = self.answers.get("halo", [])
        return {
            name: sum(a == b for a, b in zip(ours, theirs, strict=True))
            for name, theirs in self.answers.items()
            if name != "halo"
        }


async def _one_by_one(app: Any, rows: Sequence[Row]) -> list[Any]:
    return [await app.ainvoke(row) for row in rows]
