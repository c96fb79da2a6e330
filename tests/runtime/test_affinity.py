"""Which engines serve which group of calls, and how far an engine must be with what it was given."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from halo_core.pool.call import LLMCall
from halo_core.runtime import station as station_module
from halo_core.runtime.affinity import Affinity, group_of
from halo_core.runtime.flight import Flight
from halo_core.runtime.prefix import CHUNK_TOKENS, Chain, PrefixIndex
from halo_core.runtime.station import Pace, Station
from tests.runtime.scripted import ScriptedEngine

ROLE_CHUNKS = 4
"""About 256 tokens."""


def station(name: str) -> Station:
    return Station(ScriptedEngine(name, slots=64), PrefixIndex(10_000), PrefixIndex(10_000))


def chain(*parts: str) -> Chain:
    return tuple("/".join(parts[: i + 1]).encode() for i in range(len(parts)))


def flight(role: str, row: int, *, static: int = ROLE_CHUNKS) -> Flight:
    """A call of 64 own prompt tokens and 50 units of answer behind a role prompt."""
    parts = [f"{role}{i}" for i in range(ROLE_CHUNKS)]
    links = chain(*parts, f"row{row}")
    return Flight(LLMCall("m", {}), None, ("", "", 0), (row, row), links, static, len(links) * CHUNK_TOKENS, 50.0)


def names(affinity: Affinity, call: Flight, stations: list[Station]) -> list[str]:
    return [home.engine.name for home in affinity.homes(call, stations)]


def wait(affinity: Affinity, role: str, rows: int) -> Flight:
    calls = [flight(role, row) for row in range(rows)]
    for call in calls:
        affinity.add(call)
    return calls[0]


def test_each_group_gets_one_home_and_the_engines_equal_work() -> None:
    stations, affinity = [station("a"), station("b")], Affinity()
    calls = [wait(affinity, role, 20) for role in ("p", "q", "r", "s")]
    affinity.place(stations)
    homes = [names(affinity, call, stations) for call in calls]
    assert sorted(homes) == [["a"], ["a"], ["b"], ["b"]]


def test_the_group_that_does_not_fit_is_shared_and_no_other() -> None:
    stations, affinity = [station("a"), station("b")], Affinity()
    calls = [wait(affinity, role, 40) for role in ("p", "q", "r")]
    affinity.place(stations)
    assert sorted(len(names(affinity, call, stations)) for call in calls) == [1, 1, 2]


def test_a_prefix_is_not_computed_again_for_a_few_calls() -> None:
    """Moving two of four calls gains 230 units; the prefix costs 256."""
    stations, affinity = [station("a"), station("b")], Affinity()
    call = wait(affinity, "p", 4)
    affinity.place(stations)
    assert len(names(affinity, call, stations)) == 1


@pytest.mark.parametrize(("load", "homes"), [(0.0, 2), (20.0, 1)])
def test_an_idle_engine_helps_earlier_than_one_that_is_only_behind(load: float, homes: int) -> None:
    """Moving half of the work gains 550 units for a prefix of 256: enough for an idle engine only."""
    stations, affinity = [station("a"), station("b")], Affinity()
    stations[0].sent.insert(flight("p", 0).chain)
    stations[1].load_units = load
    call = wait(affinity, "p", 12)
    affinity.place(stations)
    assert len(names(affinity, call, stations)) == homes


def test_an_engine_that_holds_the_prefix_is_home_even_when_it_is_busier() -> None:
    stations, affinity = [station("a"), station("b")], Affinity()
    stations[0].sent.insert(flight("p", 0).chain)
    stations[0].load_units = 300.0
    call = wait(affinity, "p", 4)
    affinity.place(stations)
    assert names(affinity, call, stations) == ["a"]


def test_a_home_that_forgot_its_prefix_is_chosen_anew() -> None:
    stations, affinity = [station("a"), station("b")], Affinity()
    call = wait(affinity, "p", 4)
    affinity.place(stations)
    (first,) = names(affinity, call, stations)
    busy = next(s for s in stations if s.engine.name == first)
    busy.load_units = 10_000.0
    busy.forget()
    affinity.touch()
    affinity.place(stations)
    assert names(affinity, call, stations) == [s.engine.name for s in stations if s is not busy]


def test_a_dead_home_leaves_its_group_to_the_others() -> None:
    stations, affinity = [station("a"), station("b")], Affinity()
    call = wait(affinity, "p", 4)
    affinity.place(stations)
    (home,) = names(affinity, call, stations)
    left = [s for s in stations if s.engine.name != home]
    assert names(affinity, call, left) == [left[0].engine.name]


def test_calls_without_a_long_static_prefix_may_go_anywhere() -> None:
    stations, affinity = [station("a"), station("b")], Affinity()
    call = flight("p", 0, static=2)
    assert group_of(call) is None
    affinity.add(call)
    affinity.place(stations)
    assert names(affinity, call, stations) == ["a", "b"]


def test_calls_that_were_sent_no_longer_count() -> None:
    stations, affinity = [station("a"), station("b")], Affinity()
    calls = [flight("p", row) for row in range(40)]
    for call in calls:
        affinity.add(call)
    for call in calls[2:]:
        affinity.remove(call)
    affinity.place(stations)
    assert len(names(affinity, calls[0], stations)) == 1


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the time."""
    now = [100.0]
    monkeypatch.setattr(station_module, "now_s", lambda: now[0])

    def set_time(seconds: float) -> None:
        now[0] = 100.0 + seconds

    return set_time


def test_progress_is_judged_by_the_pace_shown_so_far(at: Callable[[float], None]) -> None:
    pace = Pace()
    pace.begin()
    assert pace.progress() == 0.0
    at(2.0)
    pace.finish(200.0, idle=True)  # 100 units a second
    at(10.0)
    assert pace.progress() == 0.0
    pace.begin()
    at(13.0)
    assert pace.progress() == pytest.approx(300.0)
    pace.finish(250.0, idle=False)  # now 90 a second over 5 busy seconds, 250 of them delivered
    assert pace.progress() == pytest.approx(90.0 * 3.0 - 250.0)


def test_an_idle_engine_has_no_outlook_but_its_load(at: Callable[[float], None]) -> None:
    one = station("a")
    one.load_units = 500.0
    assert one.outlook == 500.0
    one.pace.begin()
    at(1.0)
    one.pace.finish(100.0, idle=False)
    at(1000.0)
    assert one.outlook == pytest.approx(50.0)  # never done altogether before it says so
