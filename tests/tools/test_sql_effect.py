"""What SQL texts are taken to do."""

from __future__ import annotations

import pytest

from halo_core.plan import Effect
from halo_core.tools.sql_effect import SqlError, classify

READS = [
    "SELECT 1",
    "select a, sum(b) from t join u using (id) where c > ? group by a order by 2 limit 3",
    "WITH x AS (SELECT * FROM t) SELECT * FROM x UNION ALL SELECT * FROM u",
    "SELECT extract(year FROM d), coalesce(a, b), date_trunc('month', d) FROM t",
    "VALUES (1), (2)",
    "DESCRIBE t",
]
WRITES = [
    "INSERT INTO t VALUES (1)",
    "UPDATE t SET a = 1",
    "DELETE FROM t",
    "CREATE TABLE t (a INT)",
    "CREATE TABLE t AS SELECT 1 AS a",
    "DROP TABLE t",
    "ALTER TABLE t ADD COLUMN b INT",
    "COPY t TO 'file.csv'",
    "TRUNCATE TABLE t",
    "SELECT 1; DELETE FROM t",
    "WITH gone AS (DELETE FROM t RETURNING *) SELECT * FROM gone",
    "SELECT * FROM t FOR UPDATE",
    "SELECT nextval('serial')",
    "SELECT charge_the_customer(12)",
    "VACUUM",
    "SET threads = 4",
    "BEGIN",
    "CALL refresh()",
]


@pytest.mark.parametrize("text", READS)
@pytest.mark.parametrize("dialect", ["duckdb", "postgres"])
def test_reads(text: str, dialect: str) -> None:
    statement = classify(text, dialect)
    assert (statement.effect, statement.volatile, statement.why) == (Effect.READ, False, "reads only")


@pytest.mark.parametrize("text", WRITES)
@pytest.mark.parametrize("dialect", ["duckdb", "postgres"])
def test_writes(text: str, dialect: str) -> None:
    statement = classify(text, dialect)
    assert statement.effect is Effect.WRITE and statement.why != "reads only"


@pytest.mark.parametrize(
    "text", ["SELECT now()", "SELECT random()", "SELECT current_timestamp", "SELECT * FROM t WHERE d < current_date"]
)
@pytest.mark.parametrize("dialect", ["duckdb", "postgres"])
def test_what_differs_from_call_to_call_is_a_read_that_is_not_shared(text: str, dialect: str) -> None:
    statement = classify(text, dialect)
    assert (statement.effect, statement.volatile) == (Effect.READ, True)


def test_an_unknown_function_is_named() -> None:
    assert classify("SELECT charge(12)", "postgres").why == "the function CHARGE is unknown and may write"


def test_layout_comments_and_keywords_do_not_matter_but_literals_do() -> None:
    texts = ["SELECT a FROM t WHERE b = 'X'", "select a\n  from t -- the table\n where b='X'"]
    assert len({classify(text, "duckdb").text for text in texts}) == 1
    assert classify("SELECT a FROM t WHERE b = 'x'", "duckdb").text != classify(texts[0], "duckdb").text


def test_tables_are_found_but_not_the_names_of_subqueries() -> None:
    text = "WITH x AS (SELECT * FROM main.Orders) SELECT * FROM x JOIN lineitem l ON l.k = x.k"
    assert classify(text, "duckdb").tables == {"main.orders", "lineitem"}


@pytest.mark.parametrize(("text", "said"), [("SELEC 1 FROM", "cannot parse"), ("  ", "empty"), ("-- nothing", "empty")])
def test_bad_texts(text: str, said: str) -> None:
    with pytest.raises(SqlError, match=said):
        classify(text, "duckdb")
