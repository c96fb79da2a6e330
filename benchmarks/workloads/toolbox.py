"""The tools of the workloads: SQL on the embedded database, and HTTP requests to the tool server, both declared."""

from __future__ import annotations

from typing import Any

from benchmarks.workloads.shape import Row, Tool
from benchmarks.workloads.tpch import QUERIES, parameters
from halo_core import http, sql

CONNECTIONS = 32
"""The paper's pool of database connections."""


class Toolbox:
    """Tools over one database and one tool server."""

    def __init__(self, database: str, server: str) -> None:
        self.sql = sql(f"duckdb:{database}?read_only", name="tpch", max_inflight=CONNECTIONS)
        self.http = http(server, name="web")

    def query(self, name: str) -> Tool:
        """The query `name` against the database."""
        text = QUERIES[name][0]

        def call(row: Row) -> Any:
            return self.sql.query(text, parameters(name, row))

        async def acall(row: Row) -> Any:
            return await self.sql.aquery(text, parameters(name, row))

        return Tool(name, call, acall)

    def request(self, name: str) -> Tool:
        """The query `name` by way of the tool server."""

        def call(row: Row) -> Any:
            return self.http.get(f"/{name}", params=parameters(name, row)).raise_for_status().json()

        async def acall(row: Row) -> Any:
            answer = await self.http.aget(f"/{name}", params=parameters(name, row))
            return answer.raise_for_status().json()

        return Tool(name, call, acall)

    def close(self) -> None:
        """Let go of database and connections."""
        self.sql.close()
        self.http.close()
