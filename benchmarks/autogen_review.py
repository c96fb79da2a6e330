"""AutoGen teams on Halo, on the best plain AutoGen, and against the oracle, all on the same engines.

The review team has the shape of `examples/review_team`, three agents twice round, but no tools and no early end, so
that every run makes the same six calls of the same length; Debate and Parallel are two of Helium's primitives. B8 is
`asyncio.gather` over fresh teams with AutoGen's OpenAI client, each call to the engine with the fewest calls under way,
and the best bound on runs at a time of a sweep. The oracle knows all calls beforehand (see `oracle.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.base import TaskResult
from autogen_agentchat.messages import BaseChatMessage
from autogen_agentchat.teams import BaseGroupChat, RoundRobinGroupChat
from autogen_core.models import ChatCompletionClient
from autogen_ext.models.openai import OpenAIChatCompletionClient

from benchmarks import engines as shared
from benchmarks.balanced_autogen import BalancedOpenAIClient
from benchmarks.measure import RunRecord, ratio, report, write
from benchmarks.passages import rows
from benchmarks.trials import Trials, bar, command_for, console, show, systems_of, variants_of
from benchmarks.workloads import autogen_apps
from examples.reading_desk.roles import HOUSE

SWEEP = (8, 16, 32)
SWEEP_ROWS = 16
"""The sweep takes a quarter of the rows, but at least so many: it tells nothing of a bound that no run waits for."""
CHUNKS = 2
"""Of a task of Parallel: 22 calls a run; the source has six chunks, and 50 calls."""
B8_BAR = {True: 1.3, False: 1.0}
"""B8's time over Halo's, for the review team with half of the tasks repeated, and for all else."""
ORACLE_BAR = 1.15
"""Halo's time over the oracle's."""

WRITER = (
    HOUSE
    + """
You are the desk's writer. You get a passage and a question, and you write the note, the whole note and nothing else.
The first sentence answers the question. The second says what happens or what is claimed, in the order of the original.
The third keeps the one detail without which a reader would retell it wrongly. If there is no answer in the passage, the
first sentence says so. When the checker or the editor has found fault with a note of yours, write the whole note again
with the fault repaired; do not defend the first one, and do not explain what you have changed. When the two of them
disagree, the checker is right about names, numbers and who says what, and the editor is right about everything else.
"""
)
CHECKER = (
    HOUSE
    + """
You are the desk's checker. You compare the writer's note with the passage, sentence by sentence. A name that is spelled
in another way, a number that differs, a claim that nobody makes, words in quotation marks that do not stand there: say
which it is, where it stands in the note, and what the passage has instead. Say of each thing that cannot be checked
that it is opinion, prophecy, image or invention, so that nobody wastes a day on it. You do not write the note yourself
and you do not comment on how it sounds, since a colleague does that. When a fault that you have found was repaired, do
not come back to it. When nothing is wrong, say in one sentence that nothing is wrong.
"""
)
EDITOR = (
    HOUSE
    + """
You are the desk's editor. You read the note as somebody who has never seen the passage and who will not read it. If a
sentence has to be read twice, say which one, and how it could be said at once. If the note is longer than three
sentences, say which of them can go. If it begins with a remark about itself, or praises, or leaves the question open,
say so. Find one fault at a time, the worst one, because the writer repairs one thing better than three. You do not
write the note yourself, and you do not check names and numbers, since a colleague does that. When the note can be
printed as it stands, say in one sentence what it will be good for.
"""
)


def team(client: ChatCompletionClient) -> RoundRobinGroupChat:
    """A writer, a checker and an editor, twice round."""
    roles = {"writer": WRITER, "checker": CHECKER, "editor": EDITOR}
    agents: list[Any] = [AssistantAgent(name, client, system_message=rules) for name, rules in roles.items()]
    return RoundRobinGroupChat(agents, name="review", max_turns=2 * len(agents))


def tasks_of(count: int, repeated: bool) -> list[str]:
    """The passages as tasks."""
    return [f"Passage:\n{row['passage']}\n\nQuestion: {row['question']}" for row in rows(count, repeated)]


@dataclass(frozen=True)
class TeamApp:
    """A team that the benchmark can run."""

    title: str
    team: Callable[[ChatCompletionClient], BaseGroupChat]
    tasks: Callable[[int, bool], list[Any]]
    """(count, half of them repeated) -> tasks."""
    calls: int
    """Of one run."""
    ordered: bool = True
    """Whether plain AutoGen fixes the order in which the agents are heard."""

    def transcript(self, result: TaskResult) -> list[tuple[str, str]]:
        """Who said what. Raises RuntimeError unless everybody has spoken."""
        spoken = [m for m in result.messages if isinstance(m, BaseChatMessage) and m.models_usage is not None]
        said = [(message.source, message.to_model_text()) for message in spoken]
        if len(said) != self.calls or not all(text for _, text in said):
            raise RuntimeError(f"a run of the {self.title} is not complete: {said}")
        return said if self.ordered else sorted(said)


def _repeating(tasks: Callable[[int, int], list[Any]]) -> Callable[[int, bool], list[Any]]:
    """(count, repeated) -> as many tasks, of which half come a second time, later, where they are to repeat."""

    def made(count: int, repeated: bool) -> list[Any]:
        if not repeated:
            return tasks(count, 0)
        distinct = tasks((count + 1) // 2, 0)
        return (distinct + distinct)[:count]

    return made


APPS = {
    "review": TeamApp("review team", team, tasks_of, 6),
    "debate": TeamApp("debate", autogen_apps.debate, _repeating(autogen_apps.debate_tasks), 6),
    "parallel": TeamApp(
        "parallel readers",
        partial(autogen_apps.parallel, chunks=CHUNKS),
        _repeating(partial(autogen_apps.parallel_tasks, chunks=CHUNKS)),
        7 * (CHUNKS + 1) + 1,
        ordered=False,
    ),
}


@dataclass
class Review(Trials):
    """A team on each system, and what was said in the first trial of each."""

    app: TeamApp = APPS["review"]
    tokens: int = 24
    said: dict[str, list[list[tuple[str, str]]]] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """Of the model client: fixed lengths, so that every system generates the same number of tokens."""
        return {
            "api_key": "unused",
            "temperature": 0,
            "max_tokens": self.tokens,
            "extra_body": {"ignore_eos": True},
            "max_retries": 0,
        }

    def app_client(self) -> OpenAIChatCompletionClient:
        """The client as an app would define it."""
        return OpenAIChatCompletionClient(model=shared.APP_MODEL, **self.settings())

    def halo(self, tasks: list[str]) -> RunRecord:
        """The team, with AutoGen's own client in it, through `arun_batch`."""
        from halo_adapters.autogen import arun_batch

        app = self.app.team(self.app_client())
        record = RunRecord("halo", 0)
        with self.counted(record):
            batch = asyncio.run(arun_batch(app, tasks))
        total = batch.stats.total
        record.calls_executed, record.calls_shared = total.executed, total.shared
        self.said.setdefault("halo", [self.app.transcript(run.unwrap()) for run in batch])
        return record

    def b8(self, tasks: list[str], concurrency: int | None) -> RunRecord:
        """The team on plain AutoGen, as many at a time as `concurrency` allows."""
        from halo_adapters.autogen import intercept

        intercept.uninstall()  # an earlier trial of Halo has wrapped AutoGen's client
        client = BalancedOpenAIClient(
            shared.base_urls(self.pool),
            model=shared.MODEL,
            model_info=self.app_client().model_info,
            **self.settings(),
        )
        record = RunRecord("B8", 0, extra={"concurrency": concurrency})
        with self.counted(record):
            results = asyncio.run(gather(self.app.team, client, tasks, concurrency))
        record.calls_executed = client.calls
        self.said.setdefault("B8", [self.app.transcript(result) for result in results])
        return record

    def prepare(self, tasks: list[str], repeated: bool, against: list[str], known: str) -> None:
        """Find B8's bound at a part of the rows; record the oracle's calls; both uncounted.

        `known` is what an earlier sweep found ("none" or a number), empty to sweep now.
        """
        part = tasks[: max(len(tasks) // 4, SWEEP_ROWS)]
        bounds = [None, *(bound for bound in SWEEP if bound < len(part))]
        self.b8(tasks[:2], None)  # warm up clients and engines
        if "B8" in against:
            self.find_bound(repeated, "B8", bounds, partial(self.b8, part), len(part), known)
        self.prepare_oracle(repeated, lambda: self.halo(tasks), "oracle" in against)

    def one(self, name: str, tasks: list[str], repeated: bool) -> RunRecord:
        """One run of a system."""
        if name == "halo":
            return self.halo(tasks)
        if name == "B8":
            return self.b8(tasks, self.best_concurrency[repeated])
        return self.oracle(repeated)

    def equal_runs(self) -> int | None:
        """Runs in which Halo's team and B8's said the same, None where only one of them ran."""
        if not self.said.keys() >= {"halo", "B8"}:
            return None
        return sum(ours == theirs for ours, theirs in zip(self.said["halo"], self.said["B8"], strict=True))


async def gather(
    team: Callable[[ChatCompletionClient], BaseGroupChat],
    client: BalancedOpenAIClient,
    tasks: list[Any],
    concurrency: int | None,
) -> list[TaskResult]:
    """Every task on a fresh team, at most `concurrency` at a time."""
    bound = asyncio.Semaphore(concurrency) if concurrency else nullcontext()

    async def run(task: Any) -> TaskResult:
        async with bound:
            return await team(client).run(task=task)

    try:
        return await asyncio.gather(*map(run, tasks))
    finally:
        await client.close()


def bars(name: str, ratios: dict[str, Any], repeated: bool) -> dict[str, Any]:
    """What was promised, and whether it holds."""
    found: dict[str, Any] = {}
    if ratios["B8/halo"] is not None:
        found["B8/halo"] = bar(ratios["B8/halo"]["median"], at_least=B8_BAR[repeated and name == "review"])
    if ratios["halo/oracle"] is not None:
        found["halo/oracle"] = bar(ratios["halo/oracle"]["median"], at_most=ORACLE_BAR)
    return found


def main(
    name: Annotated[str, typer.Argument(metavar="TEAM", help=f"Of {', '.join(APPS)}.")] = "review",
    rows_: Annotated[int, typer.Option("--rows", help="Tasks of the batch.")] = 32,
    against: Annotated[str, typer.Option(help="Systems beside Halo: B8, oracle.")] = "B8,oracle",
    trials: Annotated[int, typer.Option(help="Trials of each system, interleaved.")] = 3,
    json_: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens that every call generates.")] = 24,
    layout: Annotated[str, typer.Option(help="ENGINESxCORES, auto (calibrated), or stub (answers at once).")] = "2x1",
    dtype: Annotated[str, typer.Option(help="Engine data type; answers are comparable in float32.")] = "float32",
    b8_concurrency: Annotated[
        str, typer.Option(help="B8's bound, `none` or a number, from an earlier sweep; swept when not given.")
    ] = "",
    repeats: Annotated[str, typer.Option(help="Which variants: half, none, or both.")] = "both",
) -> None:
    """An AutoGen team: Halo against the best plain AutoGen and the oracle, cold and interleaved."""
    if name not in APPS:
        raise typer.BadParameter(f"unknown team {name!r}; known: {', '.join(APPS)}")
    app = APPS[name]
    systems = systems_of(against, ("B8", "oracle"))
    variants = variants_of(repeats)
    pool = shared.start(layout, dtype)
    bench = Review(pool, app=app, tokens=tokens)
    documents: dict[str, Any] = {}
    for repeated in variants:
        tasks = app.tasks(rows_, repeated)
        bench.prepare(tasks, repeated, systems, b8_concurrency)
        bench.said.clear()
        records = bench.run(["halo", *systems], trials, partial(bench.one, tasks=tasks, repeated=repeated))
        equal = bench.equal_runs()
        if equal is not None:
            console.log(f"equal transcripts of halo and B8: {equal} of {len(tasks)}")
        compared = {
            "B8/halo": ratio(records, "B8", "halo"),
            "halo/oracle": ratio(records, "halo", "oracle"),
            "B8/oracle": ratio(records, "B8", "oracle"),
        }
        kind = "half" if repeated else "none"
        documents[kind] = report(
            f"{app.title}, " + ("half of the tasks repeated" if repeated else "no repeats"),
            rows_,
            f"{len(pool.group(shared.MODEL).engines)} engines ({layout}), dtype {dtype}",
            records,
            compared,
            tokens=tokens,
            trials=trials,
            calls_per_run=app.calls,
            equal_transcripts=equal,
            bars=bars(name, compared, repeated),
        )
        show(documents[kind])
    if json_ is not None:
        write(documents if len(documents) > 1 else next(iter(documents.values())), json_)
    pool.close()


run_review = command_for(main, name="review")
run_debate = command_for(main, name="debate")
run_parallel = command_for(main, name="parallel")


if __name__ == "__main__":
    typer.run(main)
