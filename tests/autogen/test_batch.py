"""`run_batch` and its kin: order, isolation, consolidation, errors, cancellation, resuming, loops of every sort."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.conditions import TokenUsageTermination
from autogen_agentchat.messages import TextMessage
from autogen_agentchat.teams import MagenticOneGroupChat, RoundRobinGroupChat
from autogen_core.models import UserMessage

from halo_adapters.autogen import HaloChatCompletionClient, arun_batch, configure, run_batch
from halo_adapters.autogen.template import Template
from halo_core.errors import CloneError, ConfigError, EngineError, JournalError, UnknownModelError
from halo_core.pool import EnginePool, PoolConfig, SimulatedSpec
from tests.autogen.shapes import SHAPES, EchoClient, agent, round_robin, said

TASKS = [f"Task number {i % 4}" for i in range(12)]


@pytest.fixture(autouse=True)
def pool() -> Iterator[EnginePool]:
    made = configure(PoolConfig(models={"m": "sim"}, engines=(SimulatedSpec(model="sim"),)))
    yield made
    made.close()


def client(**options: Any) -> HaloChatCompletionClient:
    return HaloChatCompletionClient(**{"model": "m", "temperature": 0, **options})


async def plain(shape: str, tasks: list[str]) -> list[Any]:
    return [said(await SHAPES[shape](EchoClient()).run(task=task)) for task in tasks]


@pytest.mark.parametrize("driver", ["native", "autogen"])
@pytest.mark.parametrize("shape", SHAPES)
async def test_every_kind_of_team_gives_what_autogen_gives(shape: str, driver: Any) -> None:
    expected = await plain(shape, TASKS)
    for app in (SHAPES[shape](EchoClient()), lambda: SHAPES[shape](EchoClient())):
        result = await arun_batch(app, TASKS, driver=driver)
        assert [said(run.unwrap()) for run in result] == expected
        assert [run.index for run in result] == list(range(len(TASKS)))


async def test_equal_calls_of_different_runs_are_one_call() -> None:
    def team() -> Any:
        return RoundRobinGroupChat([agent("a", client()), agent("b", client())], max_turns=4)

    result = await arun_batch(team, TASKS)
    assert (result.stats.total.planned, result.stats.total.executed, result.stats.total.shared) == (48, 16, 32)
    assert sorted(result.stats.operators) == ["a", "b"]
    assert sum(run.stats.executed for run in result) == 16
    usages = {run.usage.prompt_tokens for run in result if run.task == TASKS[0]}
    assert len(usages) == 1 and usages.pop() > 0  # shared or not, a run's usage is what it would have used
    texts = [said(run.unwrap()) for run in result]
    assert texts[0] == texts[4] == texts[8]
    off = await arun_batch(team, TASKS, dedup="off")
    assert off.stats.total.executed == 48
    assert [said(run.unwrap()) for run in off] == texts


async def test_a_runs_own_repetition_is_a_call_of_its_own() -> None:
    """Magentic-One sends the identical ledger prompt again when it cannot read the answer."""
    asked: list[str] = []

    class Asks(AssistantAgent):
        async def on_messages_stream(self, messages: Any, cancellation_token: Any) -> Any:
            for _ in range(3):
                await self._model_client.create([UserMessage(content="again", source="user")])
            asked.append("done")
            async for event in super().on_messages_stream(messages, cancellation_token):
                yield event

    team = RoundRobinGroupChat([Asks("a", client())], max_turns=1)
    result = await arun_batch(team, ["x", "x", "x"])
    total = result.stats.total
    assert (total.planned, total.executed, total.shared) == (12, 4, 8)
    assert all(run.stats.executed + run.stats.shared == 4 for run in result)


async def test_tools_run_in_every_run_though_the_calls_are_shared() -> None:
    ran: list[int] = []

    def look_up(a: int) -> str:
        """Look something up."""
        ran.append(a)
        return "found"

    team = RoundRobinGroupChat([agent("a", client(), tools=[look_up])], max_turns=1)
    result = await arun_batch(team, ["Please use tool look_up."] * 5)
    assert (result.stats.total.executed, result.stats.total.shared) == (1, 4)
    assert len(ran) == 5
    messages = [message for run in result for message in run.unwrap().messages]
    ids = {call.id for message in messages for call in getattr(message, "tool_calls", [])}
    assert len(ids) == 5  # every run's tool calls have ids of their own


async def test_token_bounds_count_shared_calls_too() -> None:
    def team() -> Any:
        own = client()
        ends = TokenUsageTermination(max_total_token=150)
        return RoundRobinGroupChat([agent("a", own), agent("b", own)], termination_condition=ends, max_turns=20)

    alone = await arun_batch(team, ["count"], dedup="off")
    together = await arun_batch(team, ["count"] * 4)
    assert together.stats.total.shared > 0
    assert [len(run.unwrap().messages) for run in together] == [len(alone[0].unwrap().messages)] * 4
    assert "Token usage limit" in (together[3].unwrap().stop_reason or "")


async def test_the_collectors_thresholds_are_restored() -> None:
    before = gc.get_threshold()
    inside: list[Any] = []
    await arun_batch(round_robin(EchoClient()), TASKS[:2], on_event=lambda i, m: inside.append(gc.get_threshold()))
    assert gc.get_threshold() == before and inside[0] != before


async def test_sampled_calls_stay_apart() -> None:
    team = RoundRobinGroupChat([agent("a", client(temperature=0.7))], max_turns=1)
    result = await arun_batch(team, ["x"] * 5)
    assert result.stats.total.executed == 5


async def test_an_agent_by_itself_is_a_team_of_one() -> None:
    result = await arun_batch(agent("solo", client()), TASKS)
    assert not result.errors and list(result.stats.operators) == ["solo"]
    assert result.stats.total.executed == 4


async def test_tasks_of_every_form() -> None:
    team = RoundRobinGroupChat([agent("a", client())], max_turns=1)
    messages = [TextMessage(content="one", source="user"), TextMessage(content="two", source="user")]
    result = await arun_batch(team, ["one", TextMessage(content="one", source="user"), messages])
    assert [len(run.unwrap().messages) for run in result] == [2, 2, 3]
    assert result.stats.total.executed == 2


async def test_failures_stay_with_their_run() -> None:
    class Picky(EchoClient):
        async def create(self, messages: Any, **options: Any) -> Any:
            if "number 2" in str(messages):
                raise LookupError("no answer to that")
            return await super().create(messages, **options)

    result = await arun_batch(RoundRobinGroupChat([agent("a", Picky())], max_turns=2), TASKS)
    assert sorted(result.errors) == [2, 6, 10]
    assert all(isinstance(error, LookupError) for error in result.errors.values())
    assert all(run.result is not None for run in result if run.index not in result.errors)
    assert result.stats.rows_failed == 3 and result.stats.rows_done == 9
    with pytest.raises(LookupError, match="no answer to that"):
        result[2].unwrap()
    with pytest.raises(LookupError) as caught:
        await arun_batch(lambda: RoundRobinGroupChat([agent("a", Picky())], max_turns=2), TASKS, on_error="raise")
    assert "task 2; 3 of 12 tasks failed" in "".join(caught.value.__notes__)


@pytest.mark.parametrize("driver", ["native", "autogen"])
async def test_model_errors_keep_their_kind(driver: Any) -> None:
    """AutoGen's runtime passes on only the text of an error; the run has the error itself."""
    team = RoundRobinGroupChat([agent("a", client(model="nobody"))], max_turns=1)
    result = await arun_batch(team, ["x", "y"], driver=driver)
    assert [type(error) for error in result.errors.values()] == [UnknownModelError, UnknownModelError]
    assert "served: " in str(result[0].error) or "pool: sim" in str(result[0].error)


async def test_an_offline_endpoint_fails_its_own_tasks_only() -> None:
    def team() -> Any:
        return RoundRobinGroupChat([agent("a", client())], max_turns=1)

    offline = client(model="far", base_url="http://127.0.0.1:9/v1", api_key="x")

    class Routes(AssistantAgent):
        async def on_messages_stream(self, messages: Any, cancellation_token: Any) -> Any:
            if "far" in messages[-1].content:
                self._model_client = offline
            async for event in super().on_messages_stream(messages, cancellation_token):
                yield event

    people = RoundRobinGroupChat([Routes("a", client())], max_turns=1)
    result = await arun_batch(people, ["near", "far", "near again"])
    assert sorted(result.errors) == [1]
    assert isinstance(result.errors[1], EngineError) and "127.0.0.1:9" in str(result.errors[1])


async def test_a_timeout_ends_its_run_only() -> None:
    class Hangs(EchoClient):
        async def create(self, messages: Any, **options: Any) -> Any:
            if "number 1" in str(messages):
                await asyncio.Event().wait()
            return await super().create(messages, **options)

    team = RoundRobinGroupChat([agent("a", Hangs())], max_turns=1)
    result = await arun_batch(team, TASKS, timeout=0.2)
    assert sorted(result.errors) == [1, 5, 9]
    assert all(isinstance(error, TimeoutError) for error in result.errors.values())


async def test_results_as_they_come_and_leaving_early() -> None:
    gate, cancelled = asyncio.Event(), []

    class Gated(EchoClient):
        async def create(self, messages: Any, **options: Any) -> Any:
            if "number 0" in str(messages):
                try:
                    await gate.wait()
                except asyncio.CancelledError:
                    cancelled.append(1)
                    raise
            return await super().create(messages, **options)

    team = RoundRobinGroupChat([agent("a", Gated())], max_turns=1)
    came = []
    stream = arun_batch.stream(team, TASKS[:4])
    async for i, run in stream:
        came.append(i)
        assert run.index == i and run.result is not None
        if len(came) == 3:
            break
    await stream.aclose()
    assert sorted(came) == [1, 2, 3] and cancelled == [1]


async def test_cancelling_a_batch_cancels_its_runs() -> None:
    waiting, cancelled = asyncio.Semaphore(0), []

    class Waits(EchoClient):
        async def create(self, messages: Any, **options: Any) -> Any:
            waiting.release()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(1)
                raise

    team = RoundRobinGroupChat([agent("a", Waits())], max_turns=1)
    batch = asyncio.create_task(arun_batch(team, TASKS[:3]))
    for _ in range(3):
        await waiting.acquire()
    batch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await batch
    assert len(cancelled) == 3


async def test_runs_at_a_time_and_lazy_copies() -> None:
    made: list[int] = []
    active = 0
    most = 0

    class Counts(EchoClient):
        async def create(self, messages: Any, **options: Any) -> Any:
            nonlocal active, most
            active += 1
            most = max(most, active)
            await asyncio.sleep(0)
            active -= 1
            return await super().create(messages, **options)

    def team() -> Any:
        made.append(1)
        assert len(made) <= most + 4
        return RoundRobinGroupChat([agent("a", Counts())], max_turns=1)

    await arun_batch(team, [f"t{i}" for i in range(20)], concurrency=2)
    assert most <= 2


async def test_factories_may_be_async() -> None:
    async def team() -> Any:
        await asyncio.sleep(0)
        return round_robin(EchoClient())

    result = await arun_batch(team, TASKS[:3])
    assert not result.errors


async def test_events_are_told_with_their_task() -> None:
    seen: dict[int, list[str]] = {}
    result = await arun_batch(
        round_robin(EchoClient()), TASKS[:3], on_event=lambda i, m: seen.setdefault(i, []).append(m.source)
    )
    assert {i: len(sources) for i, sources in seen.items()} == {i: len(result[i].unwrap().messages) for i in range(3)}


async def test_a_used_team_goes_on_from_where_it_is() -> None:
    used, fresh = round_robin(EchoClient()), round_robin(EchoClient())
    await used.run(task="before")
    await fresh.run(task="before")
    result = await arun_batch(used, ["after", "after"])
    expected = said(await fresh.run(task="after"))
    assert [said(run.unwrap()) for run in result] == [expected, expected]


async def test_magentic_one_runs_on_autogens_runtime() -> None:
    team = MagenticOneGroupChat([agent("a", client()), agent("b", client())], model_client=client(), max_turns=2)
    result = await arun_batch(team, TASKS[:3])
    operators = set(result.stats.operators)
    assert "MagenticOneOrchestrator" in operators
    with pytest.raises(ConfigError, match=r"driver='native'.*manager of its own"):
        await arun_batch(team, TASKS[:1], driver="native")


# -- loops -------------------------------------------------------------------------------------------------------------


def test_run_batch_again_and_again() -> None:
    team = RoundRobinGroupChat([agent("a", client())], max_turns=2)
    texts = [[said(run.unwrap()) for run in run_batch(team, TASKS)] for _ in range(3)]
    assert texts[0] == texts[1] == texts[2]
    texts.append([said(run.unwrap()) for run in asyncio.run(arun_batch(team, TASKS))])
    texts.append([said(run.unwrap()) for run in asyncio.run(arun_batch(team, TASKS))])
    assert texts[3] == texts[4] == texts[0]


async def test_run_batch_inside_a_running_loop() -> None:
    """As in a notebook."""
    team = RoundRobinGroupChat([agent("a", client())], max_turns=2)
    assert not run_batch(team, TASKS).errors


def test_two_batches_of_one_team_in_two_threads() -> None:
    team = RoundRobinGroupChat([agent("a", client())], max_turns=2)
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(run_batch(team, TASKS))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2 and not any(result.errors for result in results)


# -- journals ----------------------------------------------------------------------------------------------------------


async def test_a_batch_is_resumed_without_repeating_what_is_finished(tmp_path: Path) -> None:
    journal, cured = tmp_path / "runs.db", tmp_path / "cured"
    asked: list[int] = []

    class Sometimes(HaloChatCompletionClient):
        async def create(self, messages: Any, **options: Any) -> Any:
            asked.append(1)
            if not cured.exists() and "number 3" in str(messages):
                raise ConnectionError("not today")
            return await super().create(messages, **options)

    def team() -> Any:
        own = Sometimes(model="m", temperature=0)
        return RoundRobinGroupChat([agent("a", own), agent("b", own)], max_turns=2)

    tasks = TASKS[:4]
    first = await arun_batch(team, tasks, journal=journal)
    assert sorted(first.errors) == [3]
    cured.touch()
    asked.clear()
    second = await arun_batch(team, tasks, journal=journal, resume=True)
    assert not second.errors and len(asked) == 2  # only the failed task was run
    assert [run.replayed for run in second] == [True, True, True, False]
    assert [said(run.unwrap()) for run in second[:3]] == [said(run.unwrap()) for run in first[:3]]
    assert second.stats.rows_replayed == 3
    third = await arun_batch(team, tasks, journal=journal, resume=True)
    assert all(run.replayed for run in third)
    with pytest.raises(JournalError, match="already exists"):
        await arun_batch(team, tasks, journal=journal)
    with pytest.raises(JournalError, match="another"):
        await arun_batch(round_robin(client()), tasks, journal=journal, resume=True)


async def test_finished_calls_of_unfinished_runs_are_not_repeated(tmp_path: Path) -> None:
    journal, cured = tmp_path / "runs.db", tmp_path / "cured"

    class Stops(HaloChatCompletionClient):
        async def create(self, messages: Any, **options: Any) -> Any:
            if not cured.exists() and "You are b" in str(messages):
                raise ConnectionError("cut off")
            return await super().create(messages, **options)

    def team() -> Any:
        own = Stops(model="m", temperature=0)
        return RoundRobinGroupChat([agent("a", own), agent("b", own)], max_turns=2)

    await arun_batch(team, TASKS[:4], journal=journal)
    cured.touch()
    result = await arun_batch(team, TASKS[:4], journal=journal, resume=True)
    assert not result.errors
    assert (result.stats.total.replayed, result.stats.total.executed) == (4, 4)


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"driver": "fast"}, "driver='fast'"),
        ({"concurrency": 0}, "concurrency=0"),
        ({"dedup": "maybe"}, "dedup='maybe'"),
        ({"resume": True}, "journal=FILE"),
    ],
)
async def test_bad_options_are_named(options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        await arun_batch(round_robin(EchoClient()), ["x"], **options)


async def test_bad_apps_and_tasks_are_named() -> None:
    with pytest.raises(ConfigError, match="takes a team, an agent, or a function"):
        await arun_batch(3, ["x"])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="must make a team"):
        await arun_batch(lambda: 3, ["x"])
    with pytest.raises(ConfigError, match="a list of tasks"):
        await arun_batch(round_robin(EchoClient()), "x")
    result = await arun_batch(round_robin(EchoClient()), ["x", 3, {"tusk": "y"}, {"task": "z"}])  # type: ignore[list-item]
    assert sorted(result.errors) == [1, 2] and "'task'" in str(result.errors[2])
    assert (await arun_batch(round_robin(EchoClient()), [])).errors == {}


async def test_a_team_that_cannot_be_copied_is_refused_before_anything_runs() -> None:
    team = round_robin(EchoClient())
    team._participants[0].lock = threading.Lock()  # type: ignore[attr-defined]
    Template(team)  # AutoGen's own agents are copied attribute by attribute: a lock of the user's is shared

    class Mine(AssistantAgent):
        pass

    own = Mine("mine", EchoClient())
    own.lock = threading.Lock()  # type: ignore[attr-defined]
    with pytest.raises(CloneError, match=r"participants\['mine'\]\.lock"):
        await arun_batch(RoundRobinGroupChat([own]), ["x"])


async def test_explain_analyze_shows_every_agent() -> None:
    result = await arun_batch(RoundRobinGroupChat([agent("a", client()), agent("b", client())], max_turns=4), TASKS)
    text = result.explain_analyze()
    assert "a: llm m" in text and "rows: 12 done, 0 failed" in text
    assert json.dumps(result.stats.total.planned) in text
