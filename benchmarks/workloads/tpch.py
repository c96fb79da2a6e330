"""TPC-H for W5 and W6: data by `tpchgen-cli`, the queries by parameter, rows as strings of parameters.

The queries are TPC-H's own (specification, chapter 2.4), shortened where their result would not fit into a prompt.
"""

from __future__ import annotations

import random
import re
import subprocess
import sys
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.workloads import data
from benchmarks.workloads.shape import Row

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

REGIONS = ("AFRICA", "AMERICA", "ASIA", "EUROPE", "MIDDLE EAST")
SEGMENTS = ("AUTOMOBILE", "BUILDING", "FURNITURE", "HOUSEHOLD", "MACHINERY")
YEARS = tuple(range(1992, 1999))
MEAN_S = 6.0
"""Mean latency of the HTTP tools, before any factor."""
PAPER_ROWS = 1024
"""Rows of the paper's batches, of which there are 5 x 5 x 7 = 175 distinct ones."""

QUERIES = {
    "Q1": (
        "SELECT l_returnflag, l_linestatus, round(sum(l_quantity)) AS quantity, round(avg(l_discount), 3) AS discount "
        "FROM lineitem WHERE year(l_shipdate) = $year GROUP BY l_returnflag, l_linestatus ORDER BY ALL LIMIT 2",
        ("year",),
    ),
    "Q2": (
        "SELECT s_name, round(min(ps_supplycost), 2) AS cost FROM partsupp JOIN supplier ON ps_suppkey = s_suppkey "
        "JOIN nation ON s_nationkey = n_nationkey JOIN region ON n_regionkey = r_regionkey WHERE r_name = $region "
        "GROUP BY s_name ORDER BY cost, s_name LIMIT 2",
        ("region",),
    ),
    "Q3": (
        "SELECT l_orderkey, round(sum(l_extendedprice * (1 - l_discount))) AS revenue FROM customer "
        "JOIN orders ON c_custkey = o_custkey JOIN lineitem ON l_orderkey = o_orderkey WHERE c_mktsegment = $segment "
        "AND year(o_orderdate) = $year GROUP BY l_orderkey ORDER BY revenue DESC, l_orderkey LIMIT 2",
        ("segment", "year"),
    ),
    "Q5": (
        "SELECT n_name, round(sum(l_extendedprice * (1 - l_discount))) AS revenue FROM orders "
        "JOIN lineitem ON l_orderkey = o_orderkey JOIN supplier ON l_suppkey = s_suppkey "
        "JOIN nation ON s_nationkey = n_nationkey JOIN region ON n_regionkey = r_regionkey WHERE r_name = $region "
        "AND year(o_orderdate) = $year GROUP BY n_name ORDER BY revenue DESC LIMIT 2",
        ("region", "year"),
    ),
    "Q6": (
        "SELECT round(sum(l_extendedprice * l_discount)) AS revenue FROM lineitem WHERE year(l_shipdate) = $year "
        "AND l_discount BETWEEN 0.05 AND 0.07 AND l_quantity < 24",
        ("year",),
    ),
    "Q9": (
        "SELECT n_name, round(sum(l_extendedprice * (1 - l_discount) - ps_supplycost * l_quantity)) AS profit "
        "FROM lineitem JOIN supplier ON l_suppkey = s_suppkey JOIN partsupp ON ps_suppkey = l_suppkey "
        "AND ps_partkey = l_partkey JOIN nation ON s_nationkey = n_nationkey JOIN region ON n_regionkey = r_regionkey "
        "WHERE r_name = $region GROUP BY n_name ORDER BY profit DESC LIMIT 2",
        ("region",),
    ),
    "Q12": (
        "SELECT l_shipmode, count(*) AS late FROM orders JOIN lineitem ON o_orderkey = l_orderkey "
        "WHERE l_commitdate < l_receiptdate AND year(l_receiptdate) = $year GROUP BY l_shipmode ORDER BY ALL LIMIT 2",
        ("year",),
    ),
    "Q14": (
        "SELECT round(100 * sum(CASE WHEN p_type LIKE 'PROMO%' THEN l_extendedprice ELSE 0 END) / "
        "sum(l_extendedprice), 2) AS promo_share FROM lineitem JOIN part ON l_partkey = p_partkey "
        "WHERE year(l_shipdate) = $year",
        ("year",),
    ),
    "Q15": (
        "SELECT s_name, round(sum(l_extendedprice * (1 - l_discount))) AS revenue FROM lineitem "
        "JOIN supplier ON l_suppkey = s_suppkey WHERE year(l_shipdate) = $year GROUP BY s_name "
        "ORDER BY revenue DESC, s_name LIMIT 1",
        ("year",),
    ),
}
"""Name -> SQL text with named parameters, and which parameters of the row it takes."""


def database(scale: float = 0.01) -> Path:
    """The DuckDB file with TPC-H's eight tables, made once (about 10 MB at scale 0.01)."""

    def fill(connection: DuckDBPyConnection, raw: Path) -> None:
        generator = str(Path(sys.executable).with_name("tpchgen-cli"))
        command = [generator, "parquet", "-s", f"{scale:g}", f"--output-dir={raw}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        for table in sorted(raw.glob("*.parquet")):
            connection.execute(f"CREATE TABLE {table.stem} AS SELECT * FROM read_parquet({data.quoted(table)})")

    return data.cached(f"tpch_{scale:g}", fill)


_INPUT = re.compile(r"region=(?P<region>[A-Z ]+) segment=(?P<segment>[A-Z]+) year=(?P<year>\d{4})")


def rule(text: str) -> Row:
    """The workloads' regex rule: the parameters out of the input. Raises ValueError for another input."""
    found = _INPUT.fullmatch(text)
    if found is None:
        raise ValueError(f"not an input of this workload: {text!r}")
    return {**found.groupdict(), "year": int(found["year"])}


def rows(count: int, distinct: bool, seed: int) -> list[Row]:
    """Parameter strings; unless all are to be distinct, as many distinct ones as the paper's share of them gives."""
    inputs = _inputs(seed)
    if distinct:
        if count > len(inputs):
            raise ValueError(f"there are {len(inputs)} distinct rows; {count} are asked for")
        return [{"input": text} for text in inputs[:count]]
    different = max(round(count * len(inputs) / PAPER_ROWS), 1)
    chosen = inputs[:different]
    drawn = chosen + random.Random(seed).choices(chosen, k=max(count - different, 0))
    random.Random(seed + 1).shuffle(drawn)
    return [{"input": text} for text in drawn[:count]]


@lru_cache
def _inputs(seed: int) -> list[str]:
    every = [f"region={r} segment={s} year={y}" for r, s, y in product(REGIONS, SEGMENTS, YEARS)]
    random.Random(seed).shuffle(every)
    return every
