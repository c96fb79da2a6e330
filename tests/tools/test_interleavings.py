"""Any interleaving of reads and writes: every read returns what it could have returned without sharing.

The world is a counter per source, which writes raise. A call that reads it must see a value that the counter had while
the call was under way: then there is a serial order of all calls, made one by one, with the same results.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from halo_core import tool
from halo_core.runtime import SESSION, Run
from halo_core.runtime.batch import Batch

SOURCES = ("a", "b")


class World:
    """Counters, and tools that read and raise them after so many turns of the loop."""

    def __init__(self) -> None:
        self.value: Counter[str] = Counter()
        self.reads_made = 0
        self.lock = threading.Lock()

        async def look(source: str, turns: int) -> int:
            self.reads_made += 1
            await self._turns(turns)
            found = self.value[source]
            await self._turns(turns)
            return found

        async def put(source: str, turns: int) -> int:
            await self._turns(turns)
            self.value[source] += 1
            mine = self.value[source]
            await self._turns(turns)
            return mine

        # What takes how long is not part of the question.
        self.look = {
            s: tool(effect="read", source=s, name=f"look {s}", key=lambda source, turns: source)(look) for s in SOURCES
        }
        self.put = {s: tool(effect="write", source=s, name=f"put {s}")(put) for s in SOURCES}
        self.put_unknown = tool(name="put anywhere")(put)

    async def _turns(self, turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)


operations = st.tuples(
    st.sampled_from(["look", "look", "look", "put", "unknown"]),
    st.sampled_from(SOURCES),
    st.integers(0, 3),  # turns before it is asked for
    st.integers(0, 3),  # turns that it takes, twice
)
rows_of = st.lists(st.lists(operations, min_size=1, max_size=5), min_size=1, max_size=5)


@given(rows=rows_of)
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_read_sees_a_value_of_its_own_time(rows: list[list[tuple[str, str, int, int]]]) -> None:
    world, batch = World(), Batch("b")
    written: list[tuple[str, int]] = []

    async def row(number: int, program: list[tuple[str, str, int, int]]) -> None:
        SESSION.set(Run(batch, f"row {number}", number))
        for kind, source, wait, turns in program:
            for _ in range(wait):
                await asyncio.sleep(0)
            before = world.value[source]
            if kind == "look":
                seen = await world.look[source](source, turns)
                assert before <= seen <= world.value[source]
            else:
                put = world.put[source] if kind == "put" else world.put_unknown
                written.append((source, await put(source, turns)))
                assert before < written[-1][1] <= world.value[source]

    async def main() -> None:
        await asyncio.gather(*(row(i, program) for i, program in enumerate(rows)))

    asyncio.run(main())
    # Writes happened as often as asked for, each once.
    asked = Counter(source for program in rows for kind, source, _, _ in program if kind != "look")
    assert world.value == asked and len(set(written)) == len(written)


@given(program=st.lists(operations, min_size=1, max_size=12))
@settings(max_examples=100, deadline=None)
def test_one_after_the_other_is_a_serial_run(program: list[tuple[str, str, int, int]]) -> None:
    async def run(halo: bool) -> list[int]:
        world = World()
        SESSION.set(Run(Batch("b"), "row", 0) if halo else None)
        results = []
        for kind, source, _, turns in program:
            body: Any = {"look": world.look[source], "put": world.put[source], "unknown": world.put_unknown}[kind]
            results.append(await body(source, turns))
        return results

    assert asyncio.run(run(True)) == asyncio.run(run(False))


def test_threads_see_values_of_their_own_time() -> None:
    value, lock, chance = Counter[str](), threading.Lock(), random.Random(0)
    batch, wrong = Batch("b"), list[tuple[int, int, int]]()
    looked = Counter[str]()

    @tool(effect="read", source="a")
    def look() -> int:
        looked["made"] += 1
        time.sleep(0.001)
        found = value["a"]
        time.sleep(0.001)
        return found

    @tool(effect="write", source="a")
    def put() -> None:
        time.sleep(0.001)
        with lock:
            value["a"] += 1
        time.sleep(0.001)

    def row(number: int, writes: list[bool]) -> None:
        SESSION.set(Run(batch, f"row {number}", number))
        for write in writes:
            before = value["a"]
            if write:
                put()
            elif not before <= (seen := look()) <= value["a"]:
                wrong.append((before, seen, value["a"]))
            looked["asked"] += not write

    programs = [[chance.random() < 0.2 for _ in range(40)] for _ in range(8)]
    threads = [threading.Thread(target=row, args=(i, program)) for i, program in enumerate(programs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert value["a"] == sum(map(sum, programs)) and looked["made"] < looked["asked"]
