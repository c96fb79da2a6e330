"""What a SQL text does, found by parsing it: reads, writes, and whether equal texts give equal answers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from halo_core.errors import HaloError
from halo_core.plan import Effect

_VOLATILE = frozenset(
    [
        *("CLOCK_TIMESTAMP", "CURRENT_DATE", "CURRENT_TIME", "CURRENT_TIMESTAMP", "CURRENT_USER", "GETDATE", "LASTVAL"),
        *("LOCALTIME", "LOCALTIMESTAMP", "NOW", "STATEMENT_TIMESTAMP", "SYSDATE", "TIMEOFDAY", "TODAY"),
        *("TRANSACTION_TIMESTAMP", "TXID_CURRENT", "UTC_DATE", "UTC_TIME", "UTC_TIMESTAMP"),
        *("GEN_RANDOM_UUID", "PG_SLEEP", "RAND", "RANDOM", "SETSEED", "SLEEP", "UUID", "UUIDV4", "UUIDV7"),
    ]
)
"""Functions whose value differs from call to call; a query with one is a read that is never shared."""
_WRITING = frozenset({"NEXTVAL", "SETVAL"})


class SqlError(HaloError):
    """A SQL text that cannot be parsed, or a database that cannot be reached."""


@dataclass(frozen=True, slots=True)
class Statement:
    """What is known of a SQL text."""

    text: str
    """The canonical text: equal for texts that differ in layout, comments or the case of keywords only."""
    effect: Effect
    volatile: bool
    tables: frozenset[str]
    """As they are named in the text, in lower case."""
    why: str
    """What decided the effect, for EXPLAIN."""
    count: int = 1
    """Statements in the text."""


@lru_cache(maxsize=4096)
def classify(text: str, dialect: str) -> Statement:
    """Parse `text` (one statement or several) in a dialect of sqlglot. Raises `SqlError` where it cannot be parsed."""
    try:
        import sqlglot
        from sqlglot import exp
        from sqlglot.errors import SqlglotError
    except ImportError as missing:
        raise SqlError("SQL tools need sqlglot: pip install 'halo-agents[sql]'") from missing
    try:
        trees = [tree for tree in sqlglot.parse(text, read=dialect) if tree is not None]
    except SqlglotError as error:
        raise SqlError(f"cannot parse the SQL as {dialect}: {str(error).splitlines()[0]}: {text[:200]}") from error
    if not trees:
        raise SqlError(f"the SQL text is empty: {text!r}")
    canonical = "; ".join(tree.sql(dialect=dialect, comments=False) for tree in trees)
    tables: set[str] = set()
    volatile, writes = False, ""
    changing: tuple[Any, ...] = (exp.Insert, exp.Update, exp.Delete, exp.Merge, exp.Create, exp.Drop, exp.Alter)
    changing += (exp.TruncateTable, exp.Copy)
    for tree in trees:
        defined = {cte.alias_or_name.lower() for cte in tree.find_all(exp.CTE)}
        tables |= {_table(t) for t in tree.find_all(exp.Table)} - defined
        found = next(tree.find_all(*changing), None)
        if found is not None:
            writes = f"{found.key.upper()} writes"
        elif not isinstance(tree, exp.Query | exp.Describe | exp.Show | exp.Values):
            writes = f"{tree.key.upper()} may change anything"
        elif tree.find(exp.Lock) is not None or tree.find(exp.Into) is not None:
            writes = "locks or writes what it selects"
        for call in tree.find_all(exp.Func):
            name = (call.name if isinstance(call, exp.Anonymous) else call.sql_name()).upper()
            if name in _WRITING:
                writes = f"{name} writes"
            elif name in _VOLATILE:
                volatile = True
            elif isinstance(call, exp.Anonymous):
                # A function of the user's own may write; what the parser knows does not.
                writes = f"the function {name} is unknown and may write"
    effect = Effect.WRITE if writes else Effect.READ
    why = writes or ("reads, and differs from call to call" if volatile else "reads only")
    return Statement(canonical, effect, volatile, frozenset(tables), why, len(trees))


def _table(table: Any) -> str:
    return ".".join(part.name for part in table.parts).lower()
