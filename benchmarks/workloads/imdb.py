"""IMDb for W1 and W2: tables with the columns of its dumps, the queries by parameter, rows as questions about a title.

The data come from a seeded generator that writes files of the dumps' format, or, where HALO_IMDB names a folder, from
the dumps there (https://datasets.imdbws.com: title.basics.tsv.gz and four more).

As in the paper, whose tools search for what the row asks about, rows have their HTTP requests almost to themselves;
queries by year, genre, region or keyword are shared with other rows.
"""

from __future__ import annotations

import gzip
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.workloads import data
from benchmarks.workloads.shape import Row

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

FOLDER = "HALO_IMDB"
"""The environment variable with the folder of the real dumps."""
MEAN_S = 3.0
"""Mean latency of the HTTP tools over this data."""
TABLES = {
    "title_basics": {
        "tconst": "VARCHAR",
        "title_type": "VARCHAR",
        "primary_title": "VARCHAR",
        "original_title": "VARCHAR",
        "is_adult": "BOOLEAN",
        "start_year": "INTEGER",
        "end_year": "INTEGER",
        "runtime_minutes": "INTEGER",
        "genres": "VARCHAR",
    },
    "title_ratings": {"tconst": "VARCHAR", "average_rating": "DOUBLE", "num_votes": "INTEGER"},
    "name_basics": {
        "nconst": "VARCHAR",
        "primary_name": "VARCHAR",
        "birth_year": "INTEGER",
        "death_year": "INTEGER",
        "primary_profession": "VARCHAR",
        "known_for_titles": "VARCHAR",
    },
    "title_crew": {"tconst": "VARCHAR", "directors": "VARCHAR", "writers": "VARCHAR"},
    "title_akas": {
        "title_id": "VARCHAR",
        "ordering": "INTEGER",
        "title": "VARCHAR",
        "region": "VARCHAR",
        "language": "VARCHAR",
        "types": "VARCHAR",
        "attributes": "VARCHAR",
        "is_original_title": "BOOLEAN",
    },
}
"""Table -> column -> type."""
FILES = {table: (f"{table.replace('_', '.')}.tsv.gz",) for table in TABLES}

_RATED = "FROM title_basics b JOIN title_ratings r ON r.tconst = b.tconst"
_BEST = "ORDER BY r.num_votes DESC, b.tconst LIMIT 2"

QUERIES = {
    "titles_by_name": (
        f"SELECT b.tconst, b.primary_title, b.start_year, b.title_type, r.average_rating, r.num_votes {_RATED} "
        f"WHERE position(lower($title) IN lower(b.primary_title)) > 0 {_BEST}",
        ("title",),
    ),
    "titles_since": (
        f"SELECT b.tconst, b.primary_title, b.start_year, b.genres, r.average_rating {_RATED} "
        f"WHERE position(lower($keyword) IN lower(b.primary_title)) > 0 AND b.start_year >= $year {_BEST}",
        ("keyword", "year"),
    ),
    "titles_of_year": (
        f"SELECT b.primary_title, b.start_year, r.average_rating, r.num_votes {_RATED} "
        f"WHERE b.start_year = $year {_BEST}",
        ("year",),
    ),
    "people_by_name": (
        "SELECT nconst, primary_name, primary_profession, known_for_titles FROM name_basics "
        "WHERE primary_name = $person ORDER BY nconst LIMIT 2",
        ("person",),
    ),
    "titles_by_director": (
        f"SELECT b.primary_title, b.start_year, r.average_rating {_RATED} JOIN title_crew c ON c.tconst = b.tconst "
        f"WHERE list_contains(string_split(c.directors, ','), $nconst) {_BEST}",
        ("nconst",),
    ),
    "crew_of_title": (
        "SELECT n.primary_name, n.birth_year, n.primary_profession FROM name_basics n WHERE n.nconst IN "
        "(SELECT unnest(string_split(c.directors, ',')) FROM title_crew c WHERE c.tconst = $tconst) "
        "ORDER BY n.nconst LIMIT 2",
        ("tconst",),
    ),
    "akas_of_title": (
        "SELECT title, region, language FROM title_akas WHERE title_id = $tconst AND region IS NOT NULL "
        "ORDER BY ordering LIMIT 2",
        ("tconst",),
    ),
    "akas_of_region": (
        f"SELECT a.title, b.primary_title, b.start_year {_RATED} JOIN title_akas a ON a.title_id = b.tconst "
        "WHERE a.region = $region AND b.start_year = $year ORDER BY r.num_votes DESC, b.tconst, a.ordering LIMIT 2",
        ("region", "year"),
    ),
    "ratings_of_genre": (
        f"SELECT count(*) AS titles, median(r.average_rating) AS median_rating {_RATED} "
        "WHERE list_contains(string_split(b.genres, ','), $genre)",
        ("genre",),
    ),
    "genres_of_year": (
        "SELECT genre, count(*) AS titles FROM (SELECT unnest(string_split(genres, ',')) AS genre FROM title_basics "
        "WHERE start_year = $year) AS listed GROUP BY genre ORDER BY titles DESC, genre LIMIT 2",
        ("year",),
    ),
}
"""Name -> SQL text with named parameters, and which parameters of the row it takes."""

QUESTIONS = (
    "Who directed {title}, and what else of theirs is worth watching?",
    "What is {title} known for?",
    "How was {title} received, and where was it shown?",
    "What should somebody who liked {title} watch next?",
)

_CANDIDATES = """
SELECT b.primary_title AS title, b.tconst, b.start_year AS year, string_split(b.genres, ',')[1] AS genre,
    n.primary_name AS person, n.nconst, a.region
FROM title_basics b
JOIN title_ratings r ON r.tconst = b.tconst
JOIN title_crew c ON c.tconst = b.tconst
JOIN name_basics n ON n.nconst = string_split(c.directors, ',')[1]
JOIN (SELECT title_id, min(region) AS region FROM title_akas GROUP BY title_id) a ON a.title_id = b.tconst
WHERE b.title_type IN ('movie', 'tvMovie', 'tvSeries') AND r.num_votes >= 100 AND b.start_year IS NOT NULL
    AND b.genres IS NOT NULL AND n.primary_name IS NOT NULL AND a.region IS NOT NULL
ORDER BY md5(b.tconst || $seed), b.tconst LIMIT $count
"""
"""Titles that people ask about and for which every query finds something, in the seed's order."""


def database() -> Path:
    """The DuckDB file with the five tables, made once: of the dumps in HALO_IMDB, else generated (about 2 MB)."""
    return data.database("imdb", FOLDER, FILES, load, generate, EDITION)


def rows(count: int, distinct: bool, seed: int) -> list[Row]:
    """Questions, each about another title whatever `distinct` says: the paper draws them without repetition."""
    found = data.drawn(database(), _CANDIDATES, count, seed)
    chance = random.Random(seed)
    for row in found:
        row["keyword"] = data.longest_word(row["title"])
    return [{"row": {"question": chance.choice(QUESTIONS).format(title=row["title"]), **row}} for row in found]


def load(connection: DuckDBPyConnection, files: Mapping[str, Path]) -> None:
    """Make the tables of files in the format of the dumps; a value that is not of its column's type is NULL."""
    for table, columns in TABLES.items():
        # Without a function within, DuckDB has its CSV reader cast, which stops at what TRY_CAST makes NULL.
        chosen = ", ".join(f'TRY_CAST(trim("{_camel(name)}") AS {type_}) AS {name}' for name, type_ in columns.items())
        options = "delim='\t', header=true, quote='', escape='', nullstr='\\N', all_varchar=true"
        connection.execute(
            f"CREATE TABLE {table} AS SELECT {chosen} FROM read_csv({data.quoted(files[table])}, {options})"
        )


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(map(str.capitalize, others))


# The generator.

EDITION = 1
"""Of what the generator makes: files are kept, so a change takes another number."""
TITLES, NAMES = 4000, 4000
TYPES = ("movie", "tvMovie", "tvSeries", "short")
GENRES = (
    *("Action", "Adventure", "Animation", "Biography", "Comedy", "Crime", "Documentary", "Drama", "Family"),
    *("Fantasy", "History", "Horror", "Music", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
ADJECTIVES = (
    *("Silent", "Golden", "Broken", "Hidden", "Distant", "Crimson", "Frozen", "Restless", "Hollow", "Burning"),
    *("Forgotten", "Electric", "Gentle", "Savage", "Paper", "Midnight", "Velvet", "Wandering", "Borrowed", "Last"),
)
NOUNS = (
    *("Harbour", "Orchard", "Station", "Lantern", "River", "Winter", "Garden", "Letter", "Mountain", "Stranger"),
    *("Violin", "Kingdom", "Shadow", "Island", "Promise", "Carnival", "Desert", "Mirror", "Voyage", "Sparrow"),
    *("Witness", "Bridge", "Empire", "Summer", "Detective", "Lighthouse", "Thief", "Widow", "Sister", "Comet"),
)
PLACES = (
    *("Lisbon", "Tangier", "Calcutta", "Trieste", "Havana", "Odessa", "Kyoto", "Marseille", "Bergen", "Tucson"),
    *("Dakar", "Quito", "Galway", "Minsk", "Adelaide", "Winnipeg"),
)
TITLE_FORMS = (
    *("The {adjective} {noun}", "{adjective} {noun}", "The {noun} of {place}", "{noun} and {other}"),
    *("The {noun} in {place}", "{adjective} {noun} in {place}", "The {noun}'s {other}", "{place}, {adjective} {noun}"),
)
FIRST_NAMES = (
    *("Ada", "Boris", "Carla", "Dmitri", "Elena", "Farid", "Greta", "Hugo", "Ingrid", "Jonas", "Keiko", "Luis"),
    *("Mina", "Nadia", "Oskar", "Priya", "Quentin", "Rosa", "Samuel", "Tessa", "Umberto", "Vera", "Walter", "Yara"),
)
LAST_NAMES = (
    *("Abbott", "Bianchi", "Castellan", "Dubois", "Ekberg", "Fontaine", "Grigorescu", "Hartmann", "Ivanova"),
    *("Jensen", "Kowalski", "Lindqvist", "Moreau", "Nakamura", "Okafor", "Petrov", "Quiroga", "Rossi", "Sandoval"),
    *("Takeda", "Ulrich", "Varga", "Whitlock", "Yilmaz", "Zielinski"),
)
PROFESSIONS = ("director", "writer", "producer", "actor", "actress", "editor", "cinematographer", "composer")
REGIONS = {
    "US": ("en", "{title}"),
    "GB": ("en", "{title}"),
    "DE": ("de", "{title} - Das Geheimnis"),
    "FR": ("fr", "{title} : le secret"),
    "ES": ("es", "{title}: el secreto"),
    "IT": ("it", "{title} - Il segreto"),
    "PL": ("pl", "{title}: tajemnica"),
    "SE": ("sv", "{title} - hemligheten"),
    "BR": ("pt", "{title}: O Segredo"),
}
"""Region -> its language, and how its distributors call a title."""

Values = tuple[str | int | float | None, ...]


def generate(folder: Path) -> None:
    """Write files of the dumps' format into the folder, the same ones every time."""
    chance = random.Random(0)
    titles, ratings, crew, akas = list[Values](), list[Values](), list[Values](), list[Values]()
    works: defaultdict[int, list[str]] = defaultdict(list)
    directing: set[int] = set()
    for number in range(1, TITLES + 1):
        tconst, kind, year = f"tt{number:07d}", chance.choices(TYPES, (6, 1, 2, 2))[0], chance.randint(1950, 2024)
        noun, other = chance.sample(NOUNS, 2)
        words = {"adjective": chance.choice(ADJECTIVES), "place": chance.choice(PLACES), "noun": noun, "other": other}
        title = chance.choice(TITLE_FORMS).format(**words)
        end = min(year + chance.randint(1, 9), 2024) if kind == "tvSeries" else None
        minutes = chance.randint(5, 40) if kind == "short" else chance.randint(70, 190)
        genres = ",".join(sorted(chance.sample(GENRES, chance.randint(1, 3))))
        titles.append((tconst, kind, title, title, 0, year, end, minutes, genres))
        ratings.append((tconst, round(chance.triangular(2, 9.5, 6.8), 1), int(10 ** chance.uniform(1, 6))))
        directors = chance.sample(range(1, NAMES + 1), chance.choices((1, 2), (5, 1))[0])
        writers = chance.sample(range(1, NAMES + 1), chance.randint(0, 3))
        directing.update(directors)
        for person in {*directors, *writers}:
            works[person].append(tconst)
        crew.append((tconst, _names(directors), _names(writers)))
        akas.append((tconst, 1, title, None, None, "original", None, 1))
        for ordering, region in enumerate(chance.sample(sorted(REGIONS), chance.randint(1, 4)), 2):
            language, form = REGIONS[region]
            akas.append((tconst, ordering, form.format(title=title), region, language, "imdbDisplay", None, 0))
    names = list[Values]()
    for number in range(1, NAMES + 1):
        born = chance.randint(1910, 1995)
        died = born + chance.randint(50, 95) if born < 1950 and chance.random() < 0.7 else None
        name = f"{chance.choice(FIRST_NAMES)} {chance.choice('ABCDEGHJKLMNPRSTW')}. {chance.choice(LAST_NAMES)}"
        professions = chance.sample(PROFESSIONS, chance.randint(1, 3))
        if number in directing and "director" not in professions:
            professions[0] = "director"
        known = ",".join(works[number][:4]) or None
        names.append((_names([number]), name, born, died, ",".join(professions), known))
    made = {"title_basics": titles, "title_ratings": ratings, "name_basics": names}
    for table, values in {**made, "title_crew": crew, "title_akas": akas}.items():
        _write(folder / FILES[table][0], [tuple(map(_camel, TABLES[table])), *values])


def _names(numbers: Sequence[int]) -> str | None:
    return ",".join(f"nm{number:07d}" for number in numbers) or None


def _write(file: Path, lines: Iterable[Values]) -> None:
    with gzip.open(file, "wt", compresslevel=1, encoding="utf-8", newline="\n") as opened:
        for line in lines:
            opened.write("\t".join("\\N" if value is None else str(value) for value in line) + "\n")
