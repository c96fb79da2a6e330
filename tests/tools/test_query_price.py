"""Queries are priced by the database's own EXPLAIN: what was measured holds until the data has grown."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from halo_core import sql, tool
from halo_core.explain.prediction import predict, summary
from halo_core.pool import EnginePool, LLMCall, PoolConfig, configure
from halo_core.pool.calibrate import curve_key, curves_folder
from halo_core.pool.simulated import SimulatedEngine
from halo_core.runtime import SESSION, catalogs, get_executor
from halo_core.simulate import RowSet
from halo_core.stats import (
    CalibrationRecord,
    Catalog,
    DecodePoint,
    EngineCurve,
    KnownQuery,
    QueryPrice,
    QueryTime,
    growth_of,
    price_of,
)
from halo_core.stats.calibration import key_file, write
from halo_core.tools.sql import Sql

CURVE = EngineCurve(
    prefill_step_s=0.0, prefill_token_s=0.001, attention_pair_s=0.0, decode=(DecodePoint(batch=1, step_s=0.01),)
)
SUM = "SELECT kind, sum(price) AS total FROM item WHERE id >= ? GROUP BY kind"


def times(*pairs: tuple[float, float]) -> list[QueryTime]:
    return [QueryTime(KnownQuery(text=f"SELECT {n}"), seconds, units) for n, (units, seconds) in enumerate(pairs)]


def price(empty_s: float, *pairs: tuple[float, float]) -> QueryPrice:
    found = price_of(times(*pairs), empty_s)
    assert found is not None
    return found


def test_what_a_query_takes_beyond_an_empty_one_grows_with_its_units() -> None:
    found = price(0.2, (100, 0.3), (200, 0.4), (600, 0.8))
    assert (found.fixed_s, found.unit_s, found.units) == (0.2, pytest.approx(0.001), 300)
    assert found.growth(300) == pytest.approx(1.0)
    assert found.growth(3000) == pytest.approx((0.2 + 3.0) / 0.5)


def test_queries_that_take_no_longer_than_an_empty_one_do_not_grow() -> None:
    assert price(0.15, (50, 0.1), (50, 0.1)).growth(5000) == 1.0


def test_only_what_is_short_and_json_can_hold_is_kept() -> None:
    limits = [1, 2]
    kept = KnownQuery.of("SELECT ?", limits)
    limits.append(3)
    assert kept == KnownQuery(text="SELECT ?", parameters=[1, 2])
    assert KnownQuery.of("SELECT 1", None) is not None and KnownQuery.of("SELECT ?", ("a",)) is not None
    assert KnownQuery.of("SELECT ?", [object()]) is None
    assert KnownQuery.of("SELECT ?", {1: "a number is no name in JSON"}) is None
    assert KnownQuery.of("SELECT ?", ["x" * 5000]) is None


def test_history_stands_where_a_database_does_not_answer_or_has_hardly_changed() -> None:
    known = price(0.0, (100, 0.1), (100, 0.1))
    told = {"SELECT 0": 1000.0}
    assert growth_of(known, lambda query: told.get(query.text)) is None
    assert growth_of(known, lambda _: 104.0) == 1.0
    assert growth_of(known, lambda _: 300.0) == pytest.approx(3.0)


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EnginePool]:
    monkeypatch.setenv("HALO_CATALOG", str(tmp_path / "catalogs"))
    monkeypatch.setenv("HALO_CACHE", str(tmp_path / "cache"))
    pool = configure(PoolConfig())
    engine = SimulatedEngine("m#0", "m", clock="zero")
    pool.add(engine)
    record = CalibrationRecord(
        key=curve_key([engine]),
        slots=16,
        kv_tokens=0,
        block_size=16,
        curve=CURVE,
        residuals=(),
        probes=(),
        measured_at="2026-01-01T00:00:00Z",
        took_s=1.0,
    )
    write(key_file(curves_folder(), record.key), record)
    yield pool
    pool.close()


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Sql]:
    database = sql(f"duckdb:{tmp_path / 'shop.duckdb'}", name="shop")
    fill(database, 0, 2_000)
    yield database
    database.close()


def fill(shop: Sql, begin: int, end: int) -> None:
    shop.query("CREATE TABLE IF NOT EXISTS item (id INTEGER, kind INTEGER, price DOUBLE)")
    shop.query("INSERT INTO item SELECT n, n % 7, n / 3 FROM range(?, ?) AS t(n)", [begin, end])


async def run_batch(shop: Sql, rows: int, *, last: bool = False) -> None:
    """Rows that query the database and ask a model about the answer; `last`: and query it again."""
    executor = get_executor()
    batch = executor.open_batch("b", app="app")

    async def row(n: int) -> None:
        run = executor.begin(batch, str(n))
        await executor.admitted(run)
        token = SESSION.set(run)
        try:
            found = await shop.aquery(SUM, [n])
            asked = {"messages": [{"role": "user", "content": str(found)}], "max_tokens": 4}
            await executor.call(run, LLMCall("m", asked, origin=run.origin("judge")))
            if last:
                await shop.aquery(SUM, [100 + n])
        finally:
            SESSION.reset(token)
        executor.end(run)

    await asyncio.gather(*(row(n) for n in range(rows)))
    await asyncio.to_thread(executor.close_batch, batch)


def known() -> Catalog:
    catalog = catalogs.known("app")
    assert catalog is not None
    return catalog


def asked_again(catalog: Catalog) -> float | None:
    price = catalog.tools["shop"].price
    assert price is not None and price.queries and {query.text for query in price.queries} == {SUM}
    return price.now


async def test_when_the_data_has_grown_the_plan_expects_longer_queries(pool: EnginePool, shop: Sql) -> None:
    await run_batch(shop, 6, last=True)
    before, step = known(), known().step("judge")
    assert asked_again(before) == 1.0
    assert step is not None and 0 < step.tools_s["shop"] <= step.lead_s.mean + 1e-9
    assert 0 < before.tail_tools_s["shop"] <= before.tail_s.mean + 1e-9
    fill(shop, 2_000, 100_000)
    after = known()
    now, later = asked_again(after), after.step("judge")
    # Every estimate of the plan but those of its 7 groups is a share of the table's rows, now 50 times as many.
    assert now is not None and later is not None and 1.1 < now < 51
    assert after.tools["shop"].mean_s == pytest.approx(now * before.tools["shop"].mean_s)
    assert later.lead_s.mean == pytest.approx(step.lead_s.mean + (now - 1) * step.tools_s["shop"])
    assert after.tail_s.mean == pytest.approx(before.tail_s.mean + (now - 1) * before.tail_tools_s["shop"])
    said = summary(predict("app", RowSet([str(n) for n in range(6)]), pool=pool))
    assert f"{now:.2g} times what they took, by its EXPLAIN" in next(line for line in said if "queries of shop" in line)


async def test_what_is_slower_because_of_the_data_does_not_make_engines_faster(pool: EnginePool, shop: Sql) -> None:
    """The last run's time is compared with what was expected of the data of that time."""
    await run_batch(shop, 6)
    rows = RowSet([str(n) for n in range(6)])
    before = predict("app", rows, pool=pool)
    fill(shop, 2_000, 400_000)
    after = predict("app", rows, pool=pool)
    assert after.pace == before.pace and after.makespan_s > before.makespan_s


async def test_a_database_that_is_not_open_or_has_lost_a_table_is_priced_by_history(
    pool: EnginePool, shop: Sql
) -> None:
    await run_batch(shop, 4)
    as_measured = catalogs.measured("app")
    assert as_measured is not None and asked_again(as_measured) is None
    shop.query("DROP TABLE item")
    assert known() == as_measured
    fill(shop, 0, 100_000)
    assert known() != as_measured
    shop.close()
    assert known() == as_measured
    said = summary(predict("app", RowSet(["1"]), pool=pool))
    assert any("queries of shop" in line and "was not asked again" in line for line in said)


async def test_of_two_databases_of_one_name_none_is_asked(pool: EnginePool, shop: Sql) -> None:
    await run_batch(shop, 4)
    other = sql("duckdb:", name="shop")
    fill(other, 0, 100_000)
    assert asked_again(known()) is None
    other.close()
    assert asked_again(known()) == 1.0


def test_only_single_reads_are_explained(shop: Sql) -> None:
    assert shop.units(KnownQuery(text=SUM, parameters=[1])) is not None
    assert shop.units(KnownQuery(text="DELETE FROM item")) is None
    assert shop.units(KnownQuery(text="SELECT 1; SELECT count(*) FROM item")) is None
    assert shop.query("SELECT count(*) AS n FROM item") == [{"n": 2_000}]


async def test_a_database_that_does_not_explain_in_time_is_asked_once(
    pool: EnginePool, shop: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    await run_batch(shop, 4)
    as_measured = catalogs.measured("app")
    asked: list[str] = []
    answers = threading.Event()

    def units(text: str, parameters: object) -> float:
        asked.append(text)
        answers.wait(20)
        return 1e9

    monkeypatch.setattr("halo_core.runtime.databases.EXPLAIN_WITHIN_S", 0.05)
    monkeypatch.setattr(shop.database, "units", units)
    assert known() == as_measured == known()
    assert asked == [SUM]
    answers.set()


async def test_a_row_is_in_the_query_while_the_tool_around_it_waits_for_it(pool: EnginePool, shop: Sql) -> None:
    @tool(effect="read")
    async def report(n: int) -> str:
        await asyncio.sleep(0.05)
        return str(await shop.aquery(SUM, [n]))

    executor = get_executor()
    batch = executor.open_batch("b", app="nested")
    run = executor.begin(batch, "row")
    token = SESSION.set(run)
    begun = time.monotonic()
    await report(1)
    passed_s = time.monotonic() - begun
    SESSION.reset(token)
    spent = dict(run.tools_so_far())
    executor.end(run)
    await asyncio.to_thread(executor.close_batch, batch)
    assert spent["report"] >= 0.05 and spent["shop"] > 0
    assert spent["report"] + spent["shop"] <= passed_s
    assert run.tools_so_far() == {}
