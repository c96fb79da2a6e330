"""Queries are priced by the database's own EXPLAIN: what was measured holds until the data has grown."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from halo_core import sql
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
    QueryTime,
    growths,
    price_of,
)
from halo_core.stats.calibration import key_file, write
from halo_core.tools.sql import Sql

CURVE = EngineCurve(
    prefill_step_s=0.0, prefill_token_s=0.001, attention_pair_s=0.0, decode=(DecodePoint(batch=1, step_s=0.01),)
)
SUM = "SELECT kind, sum(price) AS total FROM item WHERE id >= ? GROUP BY kind"


def times(*pairs: tuple[float, float]) -> list[QueryTime]:
    return [QueryTime(f"SELECT {n}", [n], seconds, units) for n, (units, seconds) in enumerate(pairs)]


def test_what_a_query_takes_beyond_an_empty_one_grows_with_its_units() -> None:
    price = price_of(times((100, 0.3), (200, 0.4), (600, 0.8)), empty_s=0.2)
    assert price is not None
    assert (price.fixed_s, price.unit_s, price.units) == (0.2, pytest.approx(0.001), 300)
    assert price.growth(300) == pytest.approx(1.0)
    assert price.growth(3000) == pytest.approx((0.2 + 3.0) / 0.5)


def test_queries_that_take_no_longer_than_an_empty_one_do_not_grow() -> None:
    price = price_of(times((50, 0.1), (50, 0.1)), empty_s=0.15)
    assert price is not None and price.growth(5000) == 1.0


def test_only_what_json_can_hold_is_kept() -> None:
    kept = price_of([QueryTime("SELECT ?", [object()], 0.1, 5.0), QueryTime("SELECT 1", None, 0.1, 5.0)], 0.0)
    assert kept is not None and [query.text for query in kept.queries] == ["SELECT 1"]
    assert price_of([QueryTime("SELECT ?", [{1, 2}], 0.1, 5.0)], 0.0) is None


def test_history_stands_where_a_database_does_not_answer_or_has_hardly_changed() -> None:
    price = price_of(times((100, 0.1), (100, 0.1)), 0.0)
    assert price is not None
    told: dict[str, float | None] = {"SELECT 0": 1000.0, "SELECT 1": None}
    assert growths({"db": price}, lambda _, query: told[query.text]) == {}
    assert growths({"db": price}, lambda *_: 104.0) == {}
    assert growths({"db": price}, lambda *_: 300.0) == {"db": pytest.approx(3.0)}


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


async def run_batch(shop: Sql, rows: int) -> None:
    """Rows that query the database and ask a model about the answer."""
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
        finally:
            SESSION.reset(token)
        executor.end(run)

    await asyncio.gather(*(row(n) for n in range(rows)))
    await asyncio.to_thread(executor.close_batch, batch)


def known() -> Catalog:
    catalog = catalogs.known("app")
    assert catalog is not None
    return catalog


async def test_when_the_data_has_grown_the_plan_expects_longer_queries(pool: EnginePool, shop: Sql) -> None:
    await run_batch(shop, 6)
    before = known()
    price, step = before.tools["shop"].price, before.step("judge")
    assert price is not None and price.now == 1.0 and {q.text for q in price.queries} == {SUM}
    assert step is not None and 0 < step.tools_s["shop"] <= step.lead_s.mean + 1e-9
    fill(shop, 2_000, 100_000)
    after = known()
    grown, later = after.tools["shop"].price, after.step("judge")
    assert grown is not None and later is not None
    assert (
        1.1 < grown.now <= 51.0
    )  # every estimate of the plan is a share of the table's rows, which are 50 times as many
    assert after.tools["shop"].mean_s == pytest.approx(grown.now * before.tools["shop"].mean_s)
    longer_s = (grown.now - 1.0) * step.tools_s["shop"]
    assert later.lead_s.mean == pytest.approx(step.lead_s.mean + longer_s)
    said = summary(predict("app", RowSet([str(n) for n in range(6)]), pool=pool))
    assert f"{grown.now:.2g} times what they took" in next(line for line in said if "queries of shop" in line)


async def test_a_database_that_is_not_open_or_has_lost_a_table_is_priced_by_history(
    pool: EnginePool, shop: Sql
) -> None:
    await run_batch(shop, 4)
    before = known()
    shop.query("DROP TABLE item")
    assert shop.units(KnownQuery(text=SUM, parameters=[1])) is None
    assert known() == before
    fill(shop, 0, 100_000)
    shop.close()
    assert known() == before


def test_only_reads_are_explained(shop: Sql) -> None:
    assert shop.units(KnownQuery(text=SUM, parameters=[1])) is not None
    assert shop.units(KnownQuery(text="DELETE FROM item")) is None
    assert shop.query("SELECT count(*) AS n FROM item") == [{"n": 2_000}]


async def test_a_database_that_does_not_explain_in_time_is_asked_once(
    pool: EnginePool, shop: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    await run_batch(shop, 4)
    before = known()
    asked: list[str] = []
    answers = threading.Event()

    def units(text: str, parameters: object) -> float:
        asked.append(text)
        answers.wait(20)
        return 1e9

    monkeypatch.setattr("halo_core.tools.sql.EXPLAIN_WITHIN_S", 0.05)
    monkeypatch.setattr(shop.database, "units", units)
    assert known() == before == known()
    assert asked == [SUM]
    answers.set()
