"""The files that the workloads' tools look into: DuckDB databases in the cache, filled once.

Of real dumps where an environment variable names their folder, else of what a seeded generator writes.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from benchmarks.workloads.shape import Row
from halo_core.pool.vllm_command import cache_dir

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


def database(
    name: str,
    variable: str,
    files: Mapping[str, Sequence[str]],
    load: Callable[[DuckDBPyConnection, Mapping[str, Path]], None],
    generate: Callable[[Path], None],
    edition: int,
) -> Path:
    """The DuckDB file of the data set `name`, made once.

    variable: the environment variable with the folder of real dumps.
    files: table -> names that its file may have there; the generator writes the first.
    edition: of what the generator makes; files are kept, so a change takes another number.
    """
    given = _dumps(variable, files)
    if given is not None:
        return cached(f"{name}_dumps_{_stamp(given)}", lambda connection, _: load(connection, given))

    def generated(connection: DuckDBPyConnection, raw: Path) -> None:
        generate(raw)
        load(connection, {table: raw / names[0] for table, names in files.items()})

    return cached(f"{name}_generated_{edition}", generated)


def _dumps(variable: str, names: Mapping[str, Sequence[str]]) -> dict[str, Path] | None:
    """Table -> its file in the folder that the environment variable gives; None where it is not set.

    names: table -> names that its file may have. Raises FileNotFoundError for tables without a file.
    """
    given = os.environ.get(variable)
    if not given:
        return None
    folder = Path(given).expanduser().absolute()
    found = {table: file for table, known in names.items() for file in (folder / n for n in known) if file.is_file()}
    missing = [" or ".join(known) for table, known in names.items() if table not in found]
    if missing:
        raise FileNotFoundError(f"{variable}={folder} lacks {', '.join(missing)}; unset it to use generated data")
    return found


def _stamp(files: Mapping[str, Path]) -> str:
    """Of the files as they are now: another when one of them changes."""
    states = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files.values()]
    return hashlib.sha256(repr(states).encode()).hexdigest()[:8]


def cached(name: str, fill: Callable[[DuckDBPyConnection, Path], None]) -> Path:
    """The DuckDB file `name` of the benchmarks' cache, filled once; `fill` is also given a folder for its own files."""
    folder = cache_dir() / "bench"
    file = folder / f"{name}.duckdb"
    if file.is_file():
        return file
    import duckdb

    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder) as raw:
        unfinished = Path(raw) / file.name
        with duckdb.connect(str(unfinished)) as connection:
            fill(connection, Path(raw))
        unfinished.replace(file)
    return file


def drawn(file: Path, candidates: str, count: int, seed: int) -> list[Row]:
    """The first `count` of the candidates. Raises ValueError where there are fewer."""
    import duckdb

    with duckdb.connect(str(file), read_only=True) as connection:
        cursor = connection.execute(candidates, {"count": count, "seed": str(seed)})
        names = [column[0] for column in cursor.description or ()]
        found: list[Row] = [dict(zip(names, values, strict=True)) for values in cursor.fetchall()]
    if len(found) < count:
        raise ValueError(f"there are {len(found)} distinct rows; {count} are asked for")
    return found


def longest_word(text: str) -> str:
    """What to search for when asked for `text`; the text itself where it has no word."""
    return max(re.findall(r"\w+", text), key=len, default=text)


def quoted(file: Path) -> str:
    """The file's name as SQL."""
    return "'" + str(file).replace("'", "''") + "'"
