"""An encyclopedia for W3 and W4: articles, links and categories, the queries by parameter, rows as titles of articles.

The data come from a seeded generator, or, where HALO_WIKI names a folder, from three files there, each NAME.parquet or
NAME.csv (a line of column names, commas, double quotes):

    articles    id (number), title, category, text
    links       source, target (ids of articles; others are left out)
    categories  name, parent (empty at the top)

Queries by topic are a row's own, as in the paper; those by category or keyword are shared with other rows.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.workloads import data
from benchmarks.workloads.shape import Row

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

FOLDER = "HALO_WIKI"
"""The environment variable with the folder of real articles."""
MEAN_S = 3.0
"""Mean latency of the HTTP tools over this data."""
TABLES = {
    "articles": {"id": "BIGINT", "title": "VARCHAR", "category": "VARCHAR", "text": "VARCHAR"},
    "links": {"source": "BIGINT", "target": "BIGINT"},
    "categories": {"name": "VARCHAR", "parent": "VARCHAR"},
}
"""Table -> column -> type."""
FILES = {table: (f"{table}.csv", f"{table}.parquet") for table in TABLES}

_YEAR = r"\b(1[0-9]{3}|20[0-9]{2})\b"
_START = "substr(a.text, 1, 120) AS beginning"

QUERIES = {
    "articles_by_text": (
        f"SELECT a.title, {_START} FROM articles a WHERE position(lower($keyword) IN lower(a.title || ' ' || a.text)) "
        "> 0 ORDER BY length(a.text) DESC, a.id LIMIT 2",
        ("keyword",),
    ),
    "articles_by_title": (
        "SELECT a.id, a.title, a.category FROM articles a WHERE position(lower($keyword) IN lower(a.title)) > 0 "
        "ORDER BY length(a.title), a.id LIMIT 2",
        ("keyword",),
    ),
    "timeline": (
        f"SELECT regexp_extract(a.text, '{_YEAR}') AS year, a.title FROM articles a WHERE a.category = $category "
        f"AND regexp_matches(a.text, '{_YEAR}') ORDER BY year, a.id LIMIT 2",
        ("category",),
    ),
    "category_pages": (
        "SELECT c.name, c.parent, b.title FROM articles a JOIN categories c ON c.name = a.category "
        "JOIN articles b ON b.category = c.name WHERE a.title = $topic "
        "ORDER BY length(b.text) DESC, b.id, c.parent LIMIT 2",
        ("topic",),
    ),
    "outbound_links": (
        "SELECT b.title, b.category FROM articles a JOIN links l ON l.source = a.id JOIN articles b ON b.id = l.target "
        "WHERE a.title = $topic ORDER BY b.id LIMIT 2",
        ("topic",),
    ),
    "inbound_links": (
        "SELECT b.title, b.category FROM articles a JOIN links l ON l.target = a.id JOIN articles b ON b.id = l.source "
        "WHERE a.title = $topic ORDER BY b.id LIMIT 2",
        ("topic",),
    ),
    "snippets": (
        "SELECT a.title, substr(a.text, 1, 240) AS snippet FROM articles a WHERE a.title = $topic "
        "ORDER BY a.id LIMIT 2",
        ("topic",),
    ),
}
"""Name -> SQL text with named parameters, and which parameters of the row it takes."""

_CANDIDATES = f"""
SELECT a.title AS topic, a.category FROM articles a
WHERE a.id IN (SELECT source FROM links) AND a.id IN (SELECT target FROM links)
    AND a.category IN (SELECT name FROM categories) AND regexp_matches(a.text, '{_YEAR}')
QUALIFY row_number() OVER (PARTITION BY a.title ORDER BY a.id) = 1
ORDER BY md5(a.title || $seed), a.title LIMIT $count
"""
"""Articles for which every query finds something, in the seed's order."""


def database() -> Path:
    """The DuckDB file with the three tables, made once: of the files in HALO_WIKI, else generated (about 2 MB)."""
    return data.database("wiki", FOLDER, FILES, load, generate, EDITION)


def rows(count: int, distinct: bool, seed: int) -> list[Row]:
    """Articles to explain, each another one whatever `distinct` says: the paper draws them without repetition."""
    found = data.drawn(database(), _CANDIDATES, count, seed)
    return [{"row": {**row, "keyword": data.longest_word(row["topic"])}} for row in found]


def load(connection: DuckDBPyConnection, files: Mapping[str, Path]) -> None:
    """Make the tables of the files. Raises duckdb.Error for one without the columns or with an id that is no number."""
    for table, columns in TABLES.items():
        chosen = ", ".join(f"CAST({name} AS {type_}) AS {name}" for name, type_ in columns.items())
        file = data.quoted(files[table])
        csv_options = "header=true, delim=',', quote='\"', escape='\"', all_varchar=true"
        source = f"read_parquet({file})" if files[table].suffix == ".parquet" else f"read_csv({file}, {csv_options})"
        connection.execute(f"CREATE TABLE {table} AS SELECT {chosen} FROM {source}")
    known = "SELECT id FROM articles"
    connection.execute(f"DELETE FROM links WHERE source NOT IN ({known}) OR target NOT IN ({known})")


# The generator.

EDITION = 1
"""Of what the generator makes: files are kept, so a change takes another number."""
ARTICLES_EACH = 125
"""Articles in a category, of which there are 24."""
CATEGORIES = {
    "Transport": {"Bridge": "Bridges", "railway station": "Railway stations", "Canal": "Canals", "Airport": "Airports"},
    "Culture": {"Museum": "Museums", "Theatre": "Theatres", "Festival": "Festivals", "Orchestra": "Orchestras"},
    "Sport": {"Rovers": "Football clubs", "Stadium": "Stadiums", "Marathon": "Marathons", "Cup": "Cup competitions"},
    "Learning": {"University": "Universities", "Observatory": "Observatories", "Library": "Libraries"},
    "Nature": {"Lake": "Lakes", "Forest": "Forests", "Valley": "Valleys", "Island": "Islands"},
    "History": {"Castle": "Castles", "Treaty": "Treaties", "Rebellion": "Rebellions", "Abbey": "Abbeys"},
    "Business": {"Brewery": "Breweries"},
}
"""Parent -> last word of a title -> category."""
BEGINNINGS = (
    *("Ash", "Brom", "Calder", "Dun", "Elm", "Fair", "Glen", "Hart", "Inver", "Kel", "Lang", "Marl", "Nor", "Oak"),
    *("Pen", "Rother", "Stan", "Thorn", "Up", "Wal"),
)
ENDINGS = ("bridge", "bury", "combe", "dale", "field", "ford", "ham", "holm", "mouth", "ton", "wick", "worth")
FACTS = (
    "It was rebuilt in {later} after a fire",
    "A plan of {later} to close it was dropped after protests",
    "About {many} thousand people visit it in a year",
    "It is named after a family from {place}",
    "Its records since {later} are kept in {place}",
    "Painters from {place} made it known abroad",
    "In {later} it was listed as of national interest",
)


def generate(folder: Path) -> None:
    """Write CSV files into the folder, the same ones every time."""
    chance = random.Random(0)
    places = [first + last for first in BEGINNINGS for last in ENDINGS]
    kinds = [(kind, category) for kinds in CATEGORIES.values() for kind, category in kinds.items()]
    articles, links = list[tuple[object, ...]](), set[tuple[int, int]]()
    for kind, category in kinds:
        first = len(articles) + 1
        for place in chance.sample(places, ARTICLES_EACH):
            identity, year, near = len(articles) + 1, chance.randint(1100, 1950), chance.choice(places)
            text = [f"{place} {kind}, near {near}, goes back to {year}"]
            for fact in chance.sample(FACTS, chance.randint(2, 5)):
                words = {"later": chance.randint(year + 1, 2020), "many": chance.randint(2, 900)}
                text.append(fact.format(place=chance.choice(places), **words))
            articles.append((identity, f"{place} {kind}", category, ". ".join(text) + "."))
            # A ring through the category, so that every article is linked to.
            links.add((identity, first + (identity - first + 1) % ARTICLES_EACH))
            links |= {(identity, chance.randint(1, len(kinds) * ARTICLES_EACH)) for _ in range(chance.randint(1, 6))}
    parents = [(category, parent) for parent, kinds in CATEGORIES.items() for category in kinds.values()]
    _write(folder, "articles", articles)
    _write(folder, "links", sorted((source, target) for source, target in links if source != target))
    _write(folder, "categories", [*parents, *((parent, "") for parent in CATEGORIES)])


def _write(folder: Path, table: str, lines: Iterable[tuple[object, ...]]) -> None:
    with (folder / FILES[table][0]).open("w", encoding="utf-8", newline="") as opened:
        csv.writer(opened).writerows([tuple(TABLES[table]), *lines])
