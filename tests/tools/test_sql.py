"""SQL tools against a real DuckDB and a real PostgreSQL server."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from halo_core import sql
from halo_core.plan import Effect
from halo_core.runtime import SESSION, Run
from halo_core.runtime.batch import Batch
from halo_core.stats import KnownQuery
from halo_core.tools.sql import Sql
from halo_core.tools.sql_effect import SqlError

SETUP = "CREATE TABLE item (id INTEGER, name TEXT, price DOUBLE PRECISION)"
ROWS = "INSERT INTO item VALUES (1, 'tea', 2.5), (2, 'milk', 1.0), (3, 'bread', 3.0)"


@pytest.fixture
def batch() -> Iterator[Batch]:
    batch = Batch("b")
    token = SESSION.set(Run(batch, "row", 0))
    yield batch
    SESSION.reset(token)


@pytest.fixture
def duck(tmp_path: Path) -> Iterator[Sql]:
    database = sql(f"duckdb:{tmp_path / 'shop.duckdb'}")
    database.query(SETUP)
    database.query(ROWS)
    yield database
    database.close()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A PostgreSQL server of its own, where PostgreSQL is installed."""
    places = ["/usr/local/bin", *sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), reverse=True)]
    initdb = shutil.which("initdb") or next((f"{p}/initdb" for p in places if Path(p, "initdb").is_file()), None)
    if initdb is None:
        pytest.skip("PostgreSQL is not installed: no initdb")
    programs = Path(initdb).parent
    folder = Path(tempfile.mkdtemp(prefix="halo-pg-"))
    # PostgreSQL refuses to run as root.
    user: dict[str, Any] = {}
    if os.geteuid() == 0:
        user = {"user": "nobody"}
        shutil.chown(folder, "nobody")
    data = folder / "data"

    def run(*command: str) -> None:
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=folder, env={**os.environ, "LC_ALL": "C"}, **user
        )
        if done.returncode:
            pytest.fail(f"{' '.join(command)}: {done.stdout[-500:]} {done.stderr[-500:]}")

    run(str(initdb), "-D", str(data), "-U", "halo", "-E", "UTF8", "--auth=trust", "--no-sync")
    settings = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
    # pg_ctl would hand our pipes to the server, so its log goes to a file.
    run(str(programs / "pg_ctl"), "-D", str(data), "-w", "-l", str(folder / "log"), "-o", settings, "start")
    yield f"postgresql://halo@/postgres?host={folder}"
    run(str(programs / "pg_ctl"), "-D", str(data), "-w", "-m", "immediate", "stop")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres(server: str) -> Iterator[Sql]:
    pytest.importorskip("psycopg")
    database = sql(server, name="shop")
    database.query("DROP TABLE IF EXISTS item")
    database.query(SETUP)
    database.query(ROWS)
    yield database
    database.close()


@pytest.fixture(params=["duck", "postgres"])
def shop(request: pytest.FixtureRequest) -> Sql:
    database: Sql = request.getfixturevalue(request.param)
    return database


def where(shop: Sql) -> str:
    return "?" if shop.database.dialect == "duckdb" else "%s"


async def test_equal_queries_are_one(shop: Sql, batch: Batch) -> None:
    text = f"SELECT name, price FROM item WHERE price > {where(shop)} ORDER BY id"
    answers = await asyncio.gather(*(shop.aquery(text, [limit]) for limit in (2.0, 2.0, 2.9, 2.0)))
    assert answers[0] == answers[1] == answers[3] == [{"name": "tea", "price": 2.5}, {"name": "bread", "price": 3.0}]
    assert answers[2] == [{"name": "bread", "price": 3.0}]
    assert shop.query(text.replace(" ORDER", "\n -- sorted\n  ORDER"), [2.0]) == answers[0]
    stats = batch.stats.tools[shop.name]
    assert (stats.executed, stats.shared) == (2, 3)


async def test_a_write_is_seen_by_the_next_read(shop: Sql, batch: Batch) -> None:
    count = "SELECT count(*) AS n FROM item"
    assert await shop.aquery(count) == [{"n": 3}]
    assert await shop.aquery(f"INSERT INTO item VALUES (4, {where(shop)}, 1)", ["salt"]) is not None
    assert await shop.aquery(count) == shop.query(count) == [{"n": 4}]
    assert batch.stats.tools[shop.name].executed == 3


async def test_equal_writes_are_all_made(shop: Sql, batch: Batch) -> None:
    await asyncio.gather(*(shop.aquery("UPDATE item SET price = price + 1 WHERE id = 1") for _ in range(8)))
    assert shop.query("SELECT price FROM item WHERE id = 1") == [{"price": 10.5}]
    assert batch.stats.tools[shop.name].shared == 0


async def test_what_differs_from_call_to_call_is_asked_every_time(shop: Sql, batch: Batch) -> None:
    values = {str(shop.query("SELECT random() AS r")) for _ in range(4)}
    assert len(values) == 4


async def test_a_failed_query_raises_the_databases_own_error_and_harms_nobody(shop: Sql, batch: Batch) -> None:
    for _ in range(2):
        with pytest.raises(Exception, match="no_such_column"):
            await shop.aquery("SELECT no_such_column FROM item")
    assert await shop.aquery("SELECT id FROM item WHERE name = 'tea'") == [{"id": 1}]
    assert batch.stats.tools[shop.name].failed == 2


async def test_many_queries_at_once(shop: Sql, batch: Batch) -> None:
    text = f"SELECT {where(shop)} + id AS n FROM item WHERE id = 1"
    answers = await asyncio.gather(*(shop.aquery(text, [n]) for n in range(100)))
    assert [rows[0]["n"] for rows in answers] == [n + 1 for n in range(100)]


def test_outside_a_run_it_is_a_plain_query(shop: Sql) -> None:
    assert shop.query("SELECT id FROM item WHERE name = 'milk'") == [{"id": 2}]


def test_the_users_word_counts(tmp_path: Path, batch: Batch) -> None:
    database = sql("duckdb:", effect="read")
    assert database.call_of("SELECT charge(12)").effect is Effect.READ
    database.close()


@pytest.mark.parametrize(
    ("dsn", "options", "said"),
    [
        ("oracle://host/db", {}, "give duckdb:FILE or postgresql"),
        ("shop.duckdb", {}, "cannot tell the database of 'shop.duckdb'"),
        ("duckdb:/no/such/folder/shop.duckdb", {}, "cannot open the DuckDB file"),
        ("duckdb:/no/such/shop.duckdb?read_only", {}, "there is no DuckDB file '/no/such/shop.duckdb'"),
        ("duckdb:?threads=1", {}, r"the only option of a DuckDB DSN is \?read_only"),
        ("duckdb:", {"max_inflight": 0}, "max_inflight is 0"),
    ],
)
def test_bad_databases(dsn: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(SqlError, match=said):
        sql(dsn, **options)


def test_a_server_that_is_not_there(batch: Batch) -> None:
    pytest.importorskip("psycopg")
    database = sql("postgresql://halo@127.0.0.1:9/none?connect_timeout=2")
    with pytest.raises(SqlError, match="cannot connect to PostgreSQL"):
        database.query("SELECT 1")


def test_what_explain_says_grows_with_the_table(shop: Sql) -> None:
    query = KnownQuery(text=f"SELECT name FROM item WHERE price > {where(shop)}", parameters=[1.0])
    refresh = "ANALYZE item" if shop.database.dialect == "postgres" else "SELECT 1"
    shop.query(refresh)
    few = shop.units(query)
    for _ in range(8):
        shop.query("INSERT INTO item SELECT id, name, price FROM item")
    shop.query(refresh)
    many = shop.units(query)
    assert few is not None and many is not None and many > 5 * few
