"""SQL as a tool: equal reads of a batch are one query, and a database gets no more of them than it bears.

DuckDB is embedded (`duckdb:FILE`, `duckdb:FILE?read_only`, `duckdb:` for one in memory); PostgreSQL takes a DSN
(`postgresql://...`).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from halo_core.plan import Effect
from halo_core.runtime import SESSION, ToolCall
from halo_core.runtime.databases import QueryLog, closed, opened
from halo_core.stats import KnownQuery
from halo_core.tools.signature import signature_of
from halo_core.tools.sql_effect import SqlError, Statement, classify

Parameters = Sequence[Any] | Mapping[str, Any] | None
Row = dict[str, Any]

DEFAULT_INFLIGHT = 32
"""Queries at a time; the paper's pool of database connections."""


class Database(Protocol):
    """A database behind a DSN."""

    dialect: str
    """In sqlglot's words."""

    def query(self, text: str, parameters: Parameters) -> list[Row]:
        """Run one text and fetch all rows; from any thread."""

    def units(self, text: str, parameters: Parameters) -> float:
        """What the planner expects of a text, by EXPLAIN: work in units of its own."""

    def close(self) -> None:
        """Let go of all connections."""


class DuckDB:
    """An embedded database; every thread has a cursor of its own."""

    dialect = "duckdb"

    def __init__(self, path: str, *, read_only: bool = False) -> None:
        try:
            import duckdb
        except ImportError as missing:
            raise SqlError("DuckDB is not installed: pip install 'halo-agents[sql]'") from missing
        if read_only and not Path(path).exists():
            raise SqlError(f"there is no DuckDB file {path!r}")
        try:
            self._connection = duckdb.connect(path or ":memory:", read_only=read_only)
        except duckdb.Error as error:
            raise SqlError(f"cannot open the DuckDB file {path!r}: {error}") from error

    def query(self, text: str, parameters: Parameters) -> list[Row]:
        """Run one text and fetch all rows."""
        cursor = self._connection.cursor()
        try:
            cursor.execute(text, parameters)
            names = [column[0] for column in cursor.description or ()]
            return [dict(zip(names, values, strict=True)) for values in cursor.fetchall()] if names else []
        finally:
            cursor.close()

    def units(self, text: str, parameters: Parameters) -> float:
        """Rows that the plan's operators are expected to give, summed: DuckDB tells no cost."""
        plan = self.query(f"EXPLAIN (FORMAT json) {text}", parameters)[0]["explain_value"]
        return _rows_of(json.loads(plan))

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


class PostgreSQL:
    """A server; connections are opened as needed and kept."""

    dialect = "postgres"

    def __init__(self, dsn: str) -> None:
        try:
            import psycopg
            from psycopg.rows import dict_row
        except ImportError as missing:
            raise SqlError("PostgreSQL needs psycopg: pip install 'halo-agents[postgres]'") from missing
        self._connect = partial(psycopg.connect, dsn, autocommit=True, row_factory=dict_row)
        self._idle: list[Any] = []
        self._lock = threading.Lock()
        self._trouble = psycopg.OperationalError

    def query(self, text: str, parameters: Parameters) -> list[Row]:
        """Run one text in a transaction of its own and fetch all rows."""
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            try:
                connection = self._connect()
            except self._trouble as error:
                raise SqlError(f"cannot connect to PostgreSQL: {error}") from error
        try:
            cursor = connection.execute(text, parameters)
            return cursor.fetchall() if cursor.description else []
        finally:
            if not connection.closed:
                with self._lock:
                    self._idle.append(connection)

    def units(self, text: str, parameters: Parameters) -> float:
        """The plan's total cost."""
        plan = self.query(f"EXPLAIN (FORMAT JSON) {text}", parameters)[0]["QUERY PLAN"]
        return float(plan[0]["Plan"]["Total Cost"])

    def close(self) -> None:
        """Close all connections that are not in use."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()


class Sql:
    """A database whose queries are tools. Make one per database with `halo_core.sql` and keep it."""

    def __init__(
        self,
        database: Database,
        name: str,
        max_inflight: int,
        effect: Effect | None,
        retries: int,
        identity: str | None = None,
    ) -> None:
        """`identity` is equal for handles of one database; None: nobody else has it."""
        self.database = database
        self.name = name
        self.max_inflight = max_inflight
        self._effect = effect
        self._retries = retries
        self._threads: concurrent.futures.ThreadPoolExecutor | None = None
        self._identity = self if identity is None else identity
        opened(name, self)

    def query(self, text: str, parameters: Parameters = None) -> list[Row]:
        """Run a SQL text with parameters in the database's own style; the rows as dicts by column name.

        Raises `SqlError` for texts that cannot be parsed, and the database's own errors.
        """
        run = SESSION.get()
        if run is None:
            return self.database.query(text, parameters)
        call = self.call_of(text, parameters)
        return run.batch.desk.call(call, partial(self._make, call, run.batch.queries))

    async def aquery(self, text: str, parameters: Parameters = None) -> list[Row]:
        """The same from a task; the query runs in a thread."""
        run = SESSION.get()
        loop = asyncio.get_running_loop()
        if run is None:
            return await loop.run_in_executor(self._pool(), self.database.query, text, parameters)
        call = self.call_of(text, parameters)

        async def make() -> list[Row]:
            return await loop.run_in_executor(self._pool(), self._make, call, run.batch.queries)

        return await run.batch.desk.acall(call, make)

    def _make(self, call: ToolCall, log: QueryLog) -> list[Row]:
        text, parameters = call.arguments["text"], call.arguments["parameters"]
        begun = time.monotonic()
        rows = self.database.query(text, parameters)
        if call.effect is Effect.READ:
            log.note(self.name, text, parameters, time.monotonic() - begun)
        return rows

    def empty_s(self) -> float:
        """Seconds of a query that reads nothing: the way to the database and back, the median of a few."""
        seconds = []
        for _ in range(5):
            begun = time.monotonic()
            self.database.query("SELECT 1", None)
            seconds.append(time.monotonic() - begun)
        return statistics.median(seconds)

    def units(self, query: KnownQuery) -> float | None:
        """What the database's EXPLAIN says of a query now; None where the text is not one that reads."""
        statement = self.classify(query.text)
        if statement.effect is not Effect.READ or statement.count > 1:  # EXPLAIN would run what follows the first
            return None
        return self.database.units(query.text, query.parameters)

    def classify(self, text: str) -> Statement:
        """What the text does, as the batch sees it."""
        return classify(text, self.database.dialect)

    def call_of(self, text: str, parameters: Parameters = None) -> ToolCall:
        """The tool call that this query is."""
        statement = self.classify(text)
        effect = self._effect or statement.effect
        changing = statement.volatile and effect is not Effect.WRITE
        signature = None if changing else signature_of([statement.text, parameters])
        # Tables may be views of each other, so the source is the whole database: a write ends the sharing of its reads.
        return ToolCall(
            self.name,
            effect,
            signature,
            (self.name,),
            self.name,
            self.max_inflight,
            self._retries,
            arguments={"text": text, "parameters": parameters},
            identity=self._identity,
        )

    def close(self) -> None:
        """Close the database; queries under way end first."""
        closed(self.name, self)
        if self._threads is not None:
            self._threads.shutdown()
        with contextlib.suppress(Exception):
            self.database.close()

    def _pool(self) -> concurrent.futures.ThreadPoolExecutor:
        if self._threads is None:
            self._threads = concurrent.futures.ThreadPoolExecutor(self.max_inflight, f"halo-{self.name}")
        return self._threads


def _rows_of(plan: Any) -> float:
    """Estimated rows of a plan of DuckDB and all below it."""
    if isinstance(plan, list):
        return sum(map(_rows_of, plan))
    own = str(plan.get("extra_info", {}).get("Estimated Cardinality", 0)).strip("~ ").split(" ")[0]
    return float(own) + _rows_of(plan.get("children", []))


def _duckdb(dsn: str) -> DuckDB:
    path, _, option = dsn.removeprefix("duckdb:").removeprefix("//").partition("?")
    if option not in ("", "read_only"):
        raise SqlError(f"{dsn!r}: the only option of a DuckDB DSN is ?read_only")
    return DuckDB(path, read_only=bool(option))


_SCHEMES: dict[str, Callable[[str], Database]] = {
    "duckdb": _duckdb,
    "postgresql": PostgreSQL,
    "postgres": PostgreSQL,
}


def sql(
    dsn: str,
    *,
    name: str = "",
    max_inflight: int = DEFAULT_INFLIGHT,
    effect: str | None = None,
    retries: int = 0,
) -> Sql:
    """A database as a tool: `sql("duckdb:orders.duckdb").query("SELECT ... WHERE year = ?", [1993])`.

    name: what EXPLAIN calls it; by default the scheme and the last part of the DSN.
    max_inflight: queries at a time, over all rows of the process.
    effect: instead of what parsing the text tells ("read" for a query whose own functions do not write).
    retries: further attempts after a failure, of whatever the text does.
    Raises `SqlError` for an unknown kind of DSN or a file that cannot be opened.
    """
    scheme = dsn.split(":", 1)[0].lower()
    if scheme not in _SCHEMES or ":" not in dsn:
        raise SqlError(f"cannot tell the database of {dsn!r}; give duckdb:FILE or postgresql://...")
    if max_inflight < 1:
        raise SqlError(f"max_inflight is {max_inflight}; give 1 or more")
    last = dsn.split("?", 1)[0].rsplit("/", 1)[-1].rsplit("@", 1)[-1]
    shown = name or (last if last.startswith(f"{scheme}:") else f"{scheme}:{last}")
    database = _SCHEMES[scheme](dsn)
    classify("SELECT 1", database.dialect)  # loads the parser now, not while the first row waits
    identity = None if last == f"{scheme}:" or ":memory:" in dsn else dsn  # what lives in memory is its handle's alone
    return Sql(database, shown, max_inflight, None if effect is None else Effect(effect), retries, identity)
