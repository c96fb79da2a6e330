"""The tools of the workloads: SQL on the embedded database, and HTTP requests to the tool server, both declared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.workloads import tpch
from benchmarks.workloads.shape import Row, Tool
from halo_core import http, sql

CONNECTIONS = 32
"""The paper's pool of database connections."""

Queries = Mapping[str, tuple[str, tuple[str, ...]]]
"""Name -> SQL text with named parameters, and which parameters of the row it takes."""


class Toolbox:
    """Tools over one database and one tool server, which knows the same queries."""

    def __init__(self, database: str, server: str, queries: Queries = tpch.QUERIES) -> None:
        data = Path(database).stem.split("_")[0]
        self.sql = sql(f"duckdb:{database}?read_only", name=data, max_inflight=CONNECTIONS)
        self.http = http(server, name="web")
        self.queries = queries

    def parameters(self, name: str, row: Row) -> dict[str, Any]:
        """What the query `name` takes of the row."""
        return {parameter: row[parameter] for parameter in self.queries[name][1]}

    def query(self, name: str) -> Tool:
        """The query `name` against the database."""
        text = self.queries[name][0]

        def call(row: Row) -> Any:
            return self.sql.query(text, self.parameters(name, row))

        async def acall(row: Row) -> Any:
            return await self.sql.aquery(text, self.parameters(name, row))

        return Tool(name, call, acall)

    def request(self, name: str) -> Tool:
        """The query `name` by way of the tool server."""

        def call(row: Row) -> Any:
            return self.http.get(f"/{name}", params=self.parameters(name, row)).raise_for_status().json()

        async def acall(row: Row) -> Any:
            answer = await self.http.aget(f"/{name}", params=self.parameters(name, row))
            return answer.raise_for_status().json()

        return Tool(name, call, acall)

    def close(self) -> None:
        """Let go of database and connections."""
        self.sql.close()
        self.http.close()
