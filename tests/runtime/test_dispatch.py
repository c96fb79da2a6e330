"""Dispatch: shallow queues, order, warm prefixes, dead engines."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from halo_core.errors import EngineDiedError, UnknownModelError
from halo_core.pool import EnginePool, LLMCall, PoolConfig
from halo_core.pool.engine import Capacity
from halo_core.runtime import Executor, placement
from halo_core.runtime.prefix import PrefixIndex
from halo_core.runtime.station import Station
from halo_core.stats import Catalog, Distribution, StepProfile
from tests.runtime.scripted import ScriptedEngine, ask, text_of
from tests.runtime.test_merging import until

ROLE = "You are a careful analyst. " * 60


def with_role(text: str, role: str = ROLE) -> LLMCall:
    messages = [{"role": "system", "content": role}, {"role": "user", "content": text}]
    return LLMCall("m", {"messages": messages, "temperature": 0})


async def test_no_more_calls_than_slots_are_in_an_engine(executor: Executor, engine: ScriptedEngine) -> None:
    engine.held = True
    batch = executor.open_batch("b")
    calls = [asyncio.create_task(executor.call(executor.begin(batch, str(n)), ask(f"q{n}"))) for n in range(20)]
    await until(lambda: len(engine.seen) >= engine.slots)
    executor.pool.thread.loop.call_soon_threadsafe(engine.release)
    await asyncio.gather(*calls)
    assert engine.peak == engine.slots == 4 and len(engine.seen) == 20


@pytest.mark.parametrize(("tokens", "ahead"), [(None, 4), (400, 1), (24, 3), (2, 4)])
def test_as_many_calls_wait_in_an_engine_as_end_before_others_can_be_there(tokens: int | None, ahead: int) -> None:
    station = Station(ScriptedEngine(slots=32), PrefixIndex(10), PrefixIndex(10))
    if tokens is not None:
        station.observe(tokens, 0.1 * tokens)
        assert station.step_s == pytest.approx(0.1)
    assert station.ahead == ahead


async def test_calls_spread_over_the_engines(executor: Executor, engine: ScriptedEngine) -> None:
    other = ScriptedEngine(name="e1")
    executor.pool.add(other)
    batch = executor.open_batch("b")
    await asyncio.gather(*(executor.call(executor.begin(batch, str(n)), ask(f"q{n}")) for n in range(40)))
    assert len(engine.seen) + len(other.seen) == 40
    assert min(len(engine.seen), len(other.seen)) >= 10


async def test_earlier_rows_go_first(executor: Executor, engine: ScriptedEngine) -> None:
    engine.slots, engine.held = 1, True
    batch = executor.open_batch("b")
    runs = [executor.begin(batch, str(n)) for n in range(3)]
    for order, run in enumerate(runs):
        run.order = order
    blocker = asyncio.create_task(executor.call(executor.begin(batch, "x"), ask("blocker")))
    await until(lambda: engine.seen)
    late = [asyncio.create_task(executor.call(runs[n], ask(f"row {n}"))) for n in (2, 1, 0)]
    await until(lambda: sum(d.backlog for d in executor._dispatchers.values()) == 3)
    executor.pool.thread.loop.call_soon_threadsafe(engine.release)
    await asyncio.gather(blocker, *late)
    assert [call.body["messages"][0]["content"] for call in engine.seen[1:]] == ["row 0", "row 1", "row 2"]


async def test_calls_that_share_a_cold_prefix_are_sent_together(executor: Executor, engine: ScriptedEngine) -> None:
    """The engine computes for all what it schedules for the first; nobody waits for that."""
    engine.slots, engine.held = 16, True
    batch = executor.open_batch("b")
    runs = [executor.begin(batch, str(n)) for n in range(8)]
    asked = [asyncio.create_task(executor.call(run, with_role(f"question {run.key}"))) for run in runs]
    await until(lambda: len(engine.seen) == 8)
    executor.pool.thread.loop.call_soon_threadsafe(engine.release)
    await asyncio.gather(*asked)
    assert len(engine.seen) == 8 and executor.warmups()[0] == 0


async def test_roles_stay_on_their_engines(executor: Executor, engine: ScriptedEngine) -> None:
    """Two roles, two engines: each engine computes one of the two long prefixes."""
    other = ScriptedEngine(name="e1", slots=32)
    engine.slots = 32
    executor.pool.add(other)
    batch = executor.open_batch("b")
    roles = ["You write the summary. " * 60, "You check every fact. " * 60]
    await asyncio.gather(
        *(
            executor.call(executor.begin(batch, f"{n}{role}"), with_role(f"question {n}", role))
            for n in range(12)
            for role in roles
        )
    )
    served = [{call.body["messages"][0]["content"] for call in e.seen} for e in (engine, other)]
    assert sorted(map(sorted, served)) == [[role] for role in sorted(roles)]


async def test_nothing_is_warmed_for_a_single_call_or_a_short_prefix(
    executor: Executor, engine: ScriptedEngine
) -> None:
    batch = executor.open_batch("b")
    await executor.call(executor.begin(batch, "1"), with_role("alone"))
    short = [with_role(f"q{n}", role="Be brief.") for n in range(4)]
    await asyncio.gather(*(executor.call(executor.begin(batch, f"s{n}"), call) for n, call in enumerate(short)))
    assert executor.warmups()[0] == 0


async def test_a_dead_engine_is_started_again_and_its_calls_are_sent_again(
    executor: Executor, engine: ScriptedEngine
) -> None:
    engine.held = True
    batch = executor.open_batch("b")
    tasks = [asyncio.create_task(executor.call(executor.begin(batch, str(n)), ask(f"q{n}"))) for n in range(3)]
    await until(lambda: len(engine.seen) == 3)

    def kill() -> None:
        engine.held = False
        engine.die()

    executor.pool.thread.loop.call_soon_threadsafe(kill)
    answers = await asyncio.gather(*tasks)
    assert [text_of(a) for a in answers] == ["Q0", "Q1", "Q2"]
    assert engine.starts == 2 and engine.counters.restarts == 1
    assert batch.stats.total.executed == 3 and batch.stats.total.failed == 0


async def test_an_engine_that_stays_dead_fails_its_calls_clearly() -> None:
    class Doomed(ScriptedEngine):
        async def start(self) -> None:
            self.starts += 1
            if self.starts == 1:
                self.state = "ready"

    pool = EnginePool(PoolConfig(restarts=1))
    engine = Doomed(held=True)
    pool.add(engine)
    executor = Executor(pool)
    try:
        batch = executor.open_batch("b")
        task = asyncio.create_task(executor.call(executor.begin(batch, "1"), ask("x")))
        await until(lambda: engine.seen)
        pool.thread.loop.call_soon_threadsafe(engine.die)
        with pytest.raises(EngineDiedError):
            await asyncio.wait_for(task, 20)
        assert batch.stats.total.failed == 1
    finally:
        pool.close()


async def test_an_unknown_model_names_the_known_ones(executor: Executor, engine: ScriptedEngine) -> None:
    batch = executor.open_batch("b")
    with pytest.raises(UnknownModelError, match="no engine serves model 'other'; served: m"):
        await executor.call(executor.begin(batch, "1"), LLMCall("other", {"messages": []}))
    # the batch goes on
    assert text_of(await executor.call(executor.begin(batch, "2"), ask("x"))) == "X"


async def conversations(executor: Executor, engine: ScriptedEngine, count: int) -> tuple[ScriptedEngine, list[int]]:
    """Begin conversations on one engine, bring up another, and go on: who got how many of the second calls."""
    engine.slots = 32
    batch = executor.open_batch("b")
    runs = [executor.begin(batch, str(n)) for n in range(count)]
    opening = [
        [{"role": "user", "content": f"Document {n}. " + f"Sentence of document {n}. " * 40}] for n in range(count)
    ]

    def call(n: int, *said: str) -> LLMCall:
        turns = [{"role": "assistant", "content": text} for text in said]
        return LLMCall("m", {"messages": [*opening[n], *turns], "temperature": 0})

    await asyncio.gather(*(executor.call(run, call(n)) for n, run in enumerate(runs)))
    other = ScriptedEngine(name="e1", slots=32)
    executor.pool.add(other)
    await asyncio.wrap_future(executor.pool.thread.submit(other.start()))
    engine.held = other.held = True
    calls = [asyncio.create_task(executor.call(run, call(n, "A longer answer. " * 200))) for n, run in enumerate(runs)]
    await until(lambda: len(engine.seen) + len(other.seen) == 2 * count)
    counts = [len(engine.seen) - count, len(other.seen)]
    for each in (engine, other):
        executor.pool.thread.loop.call_soon_threadsafe(each.release)
    await asyncio.gather(*calls)
    return other, counts


async def test_a_conversation_goes_on_where_it_began(executor: Executor, engine: ScriptedEngine) -> None:
    """What an engine holds of a conversation outweighs an idle neighbour."""
    _, counts = await conversations(executor, engine, placement.SLACK)
    assert counts == [placement.SLACK, 0]


async def test_conversations_do_not_make_one_queue_much_longer(executor: Executor, engine: ScriptedEngine) -> None:
    _, counts = await conversations(executor, engine, 20)
    assert sum(counts) == 20 and 0 < counts[0] - counts[1] <= placement.SLACK + 1


async def test_a_rows_conversations_are_in_one_place(executor: Executor, engine: ScriptedEngine) -> None:
    """While engines have room, a row's next role begins where its last call was, not where that role is at home."""
    other = ScriptedEngine(name="e1", slots=32)
    engine.slots = 32
    executor.pool.add(other)
    batch = executor.open_batch("b")
    roles = ["You write the summary. " * 60, "You check every fact. " * 60]
    others = [
        (executor.begin(batch, f"{n}{role}"), with_role(f"question {n}", role)) for n in range(12) for role in roles
    ]
    await asyncio.gather(*(executor.call(run, call) for run, call in others))  # now each role is at home somewhere
    run = executor.begin(batch, "row")
    for role in roles:
        await executor.call(run, replace(with_role("the row", role), origin=run.origin("role")))
    where = [e.name for e in (engine, other) for call in e.seen if call.origin.run == run.key]
    assert len(set(where)) == 1


@pytest.mark.parametrize("alike", ["", "All steps begin with the same few sentences, and no more. " * 6])
async def test_a_row_without_a_conversation_does_not_queue_at_home(
    executor: Executor, engine: ScriptedEngine, alike: str
) -> None:
    """Its steps share next to nothing: several at once go where there is least to do, not all to one engine."""
    other = ScriptedEngine(name="e1", slots=32)
    engine.slots = 32
    executor.pool.add(other)
    for each in (engine, other):
        await asyncio.wrap_future(executor.pool.thread.submit(each.start()))
    batch = executor.open_batch("b")
    run = executor.begin(batch, "row")
    await executor.call(run, replace(ask(f"{alike}first step"), origin=run.origin("step")))
    before = [len(engine.seen), len(other.seen)]
    assert sorted(before) == [0, 1]
    engine.held = other.held = True
    calls = [replace(ask(f"{alike}step {i}"), origin=run.origin("step")) for i in range(4)]
    steps = [asyncio.create_task(executor.call(run, call)) for call in calls]
    await until(lambda: len(engine.seen) + len(other.seen) == 5)
    assert [len(engine.seen) - before[0], len(other.seen) - before[1]] == [2, 2]
    for each in (engine, other):
        executor.pool.thread.loop.call_soon_threadsafe(each.release)
    await asyncio.gather(*steps)


async def rows(executor: Executor, engine: ScriptedEngine, count: int) -> tuple[list[ScriptedEngine], list[list[str]]]:
    """Two calls of each of `count` rows that all have the same document in their prompts, and where they were made."""
    other = ScriptedEngine(name="e1", slots=32)
    engine.slots = 32
    executor.pool.add(other)
    await asyncio.wrap_future(executor.pool.thread.submit(other.start()))
    await asyncio.wrap_future(executor.pool.thread.submit(engine.start()))
    batch = executor.open_batch("b")
    runs = [executor.begin(batch, str(n)) for n in range(count)]
    document = "A sentence of the document that all rows are about. " * 40
    turns: list[list[str]] = []
    for turn in range(2):
        calls = [
            replace(with_role(f"{document} Question {n}, turn {turn}."), origin=run.origin("role"))
            for n, run in enumerate(runs)
        ]
        seen = [len(e.seen) for e in (engine, other)]
        await asyncio.gather(*(executor.call(run, call) for run, call in zip(runs, calls, strict=True)))
        real = [
            {call.origin.run for call in e.seen[before:] if call.body.get("max_tokens") != 1}
            for e, before in zip((engine, other), seen, strict=True)
        ]
        turns.append([",".join(sorted(keys)) for keys in real])
    return [engine, other], turns


async def test_rows_are_divided_evenly_and_stay_where_they_are(executor: Executor, engine: ScriptedEngine) -> None:
    """What rows share is not worth an engine that has to work longer than the other until the end."""
    _, turns = await rows(executor, engine, 8)
    assert [len(keys.split(",")) for keys in turns[0]] == [4, 4]
    assert turns[1] == turns[0]


async def test_what_is_being_computed_is_not_computed_again(executor: Executor, engine: ScriptedEngine) -> None:
    """A row far ahead computes what they share; those that come when its prompt is under way need no warm-up."""
    document = "A sentence of the document that all rows are about. " * 100
    engine.slots, engine.held = 32, True
    batch = executor.open_batch("b")
    runs = [executor.begin(batch, str(n)) for n in range(4)]
    first = asyncio.create_task(executor.call(runs[0], ask(f"{document} question 0")))
    await until(lambda: len(engine.seen) == 1)
    others = [asyncio.create_task(executor.call(run, ask(f"{document} {run.key}"))) for run in runs[1:]]
    await until(lambda: len(engine.seen) == 4)
    assert not any(call.body.get("max_tokens") == 1 for call in engine.seen)
    executor.pool.thread.loop.call_soon_threadsafe(engine.release)
    await asyncio.gather(first, *others)


async def test_a_call_given_up_as_it_is_sent_gives_its_slot_back(executor: Executor, engine: ScriptedEngine) -> None:
    """Its task is cancelled before the first step, so nothing of it ever runs."""
    batch = executor.open_batch("b")
    await executor.call(executor.begin(batch, "start"), ask("start the engine"))

    async def give_up_as_it_is_sent() -> int:
        waiter = executor._submit(executor.begin(batch, "x"), ask("q"), lambda completion, error: None)
        while waiter.flight is None or waiter.flight.task is None:
            await asyncio.sleep(0)
        executor._leave(waiter)
        for _ in range(3):
            await asyncio.sleep(0)
        return executor._dispatchers["m"].in_flight

    assert executor.pool.thread.run(give_up_as_it_is_sent()) == 0
    assert len(engine.seen) == 1


@pytest.mark.parametrize(("known", "together"), [(400.0, 3), (None, 8)])
async def test_the_first_calls_leave_room_for_answers_as_long_as_the_catalog_knows(
    executor: Executor, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch, known: float | None, together: int
) -> None:
    monkeypatch.setattr(ScriptedEngine, "capacity", Capacity(slots=8, kv_tokens=1300))
    engine.held = True
    answers = Distribution.of([known] if known is not None else [])
    step = StepProfile(operator="op", model="m", frequency=1, answer_tokens=answers)
    batch = executor.open_batch("b", app="app", known=Catalog(app="app", steps=(step,)))
    runs = [executor.begin(batch, str(n)) for n in range(8)]
    calls = [replace(ask(f"question {n}"), origin=run.origin("op")) for n, run in enumerate(runs)]
    asked = [asyncio.create_task(executor.call(run, call)) for run, call in zip(runs, calls, strict=True)]
    await until(lambda: len(engine.seen) >= together)
    await asyncio.sleep(0.05)
    assert len(engine.seen) == together
    executor.pool.thread.loop.call_soon_threadsafe(engine.release)
    await asyncio.gather(*asked)
    assert len(engine.seen) == 8
