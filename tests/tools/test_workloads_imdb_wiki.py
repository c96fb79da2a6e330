"""W1 to W4: their shape, their data (generated or real), and that Halo's answers and side calls are LangGraph's."""

from __future__ import annotations

import asyncio
import csv
import gzip
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import duckdb
import pytest
from langchain_openai import ChatOpenAI

import halo_adapters.langgraph as halo
from benchmarks.workloads import imdb, tool_server, w1, w2, w3, w4, wiki
from benchmarks.workloads.shape import Step, build
from benchmarks.workloads.toolbox import Toolbox
from halo_core.pool import PoolConfig, SimulatedSpec, configure

DATA = {"imdb": imdb, "wiki": wiki}
WORKLOADS = {
    # name: maker, data, model calls, queries, requests
    "W1": (w1.workload, "imdb", 8, 7, 2),
    "W2": (w2.workload, "imdb", 10, 2, 1),
    "W3": (w3.workload, "wiki", 9, 4, 2),
    "W4": (w4.workload, "wiki", 9, 2, 1),
}
NEEDS = {
    "W1": {
        "planner": set(),
        "movie": {"planner"},
        "person": {"planner"},
        "akas": {"planner"},
        "hub1": {"movie", "person"},
        "hub2": {"hub1", "akas"},
        "tail": {"hub2"},
        "final": {"hub2", "tail"},
    },
    "W2": {
        "planner": set(),
        "check": set(),
        "movie2": {"movie1"},
        "people2": {"people1"},
        "crew1": {"planner"},
        "crew3": {"crew2"},
        "final": {"movie2", "people2", "crew3", "planner", "check"},
    },
    "W3": {
        "rewriter": set(),
        "outbound": set(),
        "timeline2": {"timeline1"},
        "inbound": {"expander", "outbound"},
        "final": {"rewriter", "expander", "outbound", "timeline2", "drilldown", "inbound"},
    },
    "W4": {
        "a0": set(),
        "b1": {"a1"},
        "c1": {"a0"},
        "s0": {"b2", "a2", "c2"},
        "final": {"a2", "s0"},
    },
}
MODELS = {
    "W1": "ABACABCA",
    "W2": "ACCCAABBBB",
    "W3": "AACBAACBB",
    "W4": "AAACCBBBB",
}


@pytest.fixture(scope="module", autouse=True)
def generated() -> Iterator[None]:
    """No real dumps, whatever the environment says."""
    with pytest.MonkeyPatch.context() as patch:
        for data in DATA.values():
            patch.delenv(data.FOLDER, raising=False)
        yield


@pytest.fixture(scope="module")
def served() -> Iterator[dict[str, str]]:
    """The address of each data set's server."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(tool_server.running(data, latency_scale=0.002)) for name, data in DATA.items()}


@pytest.fixture
def tools(served: dict[str, str]) -> Iterator[dict[str, Toolbox]]:
    boxes = {name: Toolbox(str(data.database()), served[name], data.QUERIES) for name, data in DATA.items()}
    yield boxes
    for box in boxes.values():
        box.close()


def requests_so_far(address: str) -> int:
    return int(urllib.request.urlopen(f"{address}/count", timeout=10).read())


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_shape_is_the_papers(name: str, served: dict[str, str]) -> None:
    make, data, calls, queries, requests = WORKLOADS[name]
    kinds: list[str] = []

    class Counted(Toolbox):
        def query(self, name: str) -> Any:
            kinds.append("sql")
            return super().query(name)

        def request(self, name: str) -> Any:
            kinds.append("http")
            return super().request(name)

    box = Counted(str(DATA[data].database()), served[data], DATA[data].QUERIES)
    workload = make(box)
    box.close()
    assert (kinds.count("sql"), kinds.count("http")) == (queries, requests)
    assert (workload.name, workload.calls, workload.tool_calls) == (name, calls, queries + requests)
    assert "".join(step.model for step in workload.steps) == MODELS[name]
    known: dict[str, set[str]] = {}
    for step in workload.steps:  # `by_hand` relies on it
        assert set(step.needs) <= set(known)
        known[step.name] = set(step.needs)
    assert {step: known[step] for step in NEEDS[name]} == NEEDS[name]
    looks = [tool.name for step in workload.steps for tool in step.tools]
    assert len(set(looks)) == len(looks)
    house = w1.HOUSE if data == "imdb" else w3.HOUSE
    assert 60 <= len(house.split()) <= 80 and all(step.role.startswith(house) for step in workload.steps)


@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
def test_rows_are_distinct_and_the_seeds(data: ModuleType) -> None:
    many = data.rows(2048, False, 0)
    assert len({tuple(given["row"].values()) for given in many}) == len(many) == 2048
    assert data.rows(9, True, 1) == data.rows(9, False, 1) == data.rows(12, False, 1)[:9] != data.rows(9, False, 2)
    with pytest.raises(ValueError, match=r"there are \d+ distinct rows; 100000 are asked for"):
        data.rows(100_000, False, 0)


@pytest.mark.parametrize("name", DATA)
def test_every_query_finds_something_for_every_row(name: str, tools: dict[str, Toolbox]) -> None:
    box = tools[name]
    rows = [given["row"] for given in DATA[name].rows(2048, True, 0)]
    for query in box.queries:
        assert box.sql.classify(box.queries[query][0]).why == "reads only"
        questions = {tuple(box.parameters(query, row).items()) for row in rows}
        for question in sorted(questions)[:: max(len(questions) // 150, 1)]:
            found = box.query(query).call(dict(question))
            assert 1 <= len(found) <= 2, (query, question)
            assert any(value for value in found[0].values()), (query, question)


def test_requests_are_a_rows_own_and_queries_are_shared(tools: dict[str, Toolbox]) -> None:
    def different(name: str, query: str) -> int:
        rows = [given["row"] for given in DATA[name].rows(256, True, 0)]
        return len({tuple(tools[name].parameters(query, row).values()) for row in rows})

    assert min(different("imdb", name) for name in ("titles_by_name", "titles_since", "people_by_name")) > 230
    assert min(different("wiki", name) for name in ("category_pages", "outbound_links")) == 256
    assert max(different("imdb", name) for name in ("ratings_of_genre", "genres_of_year", "titles_of_year")) < 80
    assert different("wiki", "timeline") == 24


def test_generated_data_are_the_same_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for data in DATA.values():
        before = data.rows(64, True, 5)
        file = data.database()
        with monkeypatch.context() as patch:
            patch.setenv("HALO_CACHE", str(tmp_path))
            assert data.database() != file
            assert data.rows(64, True, 5) == before


def dump(folder: Path, name: str, *lines: str) -> None:
    """A file as IMDb's: a bar here is a tab there."""
    with gzip.open(folder / f"{name}.tsv.gz", "wt", encoding="utf-8") as opened:
        opened.writelines("\t".join(line.split("|")) + "\n" for line in lines)


def test_imdbs_dumps_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "the reader's dumps"
    folder.mkdir()
    monkeypatch.setenv("HALO_IMDB", str(folder))
    monkeypatch.setenv("HALO_CACHE", str(tmp_path / "cache"))
    dump(
        folder,
        "title.basics",
        "tconst|titleType|primaryTitle|originalTitle|isAdult|startYear|endYear|runtimeMinutes|genres",
        'tt01|movie|The "Quoted" Café|Kavárna|0|1994|\\N|142|Drama,Crime',
        "tt02|movie|Never Rated|Never Rated|0|1994|\\N|\\N|Drama",
        "tt03|movie|No Year|No Year|0|\\N|\\N|x|\\N",
    )
    dump(folder, "title.ratings", "tconst|averageRating|numVotes", "tt01|9.3|2900000", "tt03|5.0|700")
    dump(
        folder,
        "name.basics",
        "nconst|primaryName|birthYear|deathYear|primaryProfession|knownForTitles",
        "nm1|Ana Šimek|1959|\\N|director,writer|tt01",
    )
    dump(folder, "title.crew", "tconst|directors|writers", "tt01|nm1,nm2|\\N", "tt02|nm1|\\N", "tt03|nm1|\\N")
    with pytest.raises(FileNotFoundError, match=r"HALO_IMDB=.* lacks title\.akas\.tsv\.gz; unset it"):
        imdb.database()
    columns = "titleId|ordering|title|region|language|types|attributes|isOriginalTitle"
    dump(
        folder,
        "title.akas",
        columns,
        "tt01|1|Kavárna|\\N|\\N|original|\\N|1",
        "tt01|2|Das Café|DE|\\N|imdbDisplay|\\N|0",
    )
    file = imdb.database()
    assert file.name.startswith("imdb_dumps_") and imdb.database() == file
    (row,) = [given["row"] for given in imdb.rows(1, True, 0)]
    assert row.pop("question")
    assert row == {
        "title": 'The "Quoted" Café',
        "tconst": "tt01",
        "year": 1994,
        "genre": "Drama",
        "person": "Ana Šimek",
        "nconst": "nm1",
        "region": "DE",
        "keyword": "Quoted",
    }
    with duckdb.connect(str(file), read_only=True) as connection:
        for text, names in imdb.QUERIES.values():
            assert connection.execute(text, {name: row[name] for name in names}).fetchall()
        odd = connection.execute("SELECT is_adult, start_year, runtime_minutes FROM title_basics WHERE tconst = 'tt03'")
        assert odd.fetchall() == [(False, None, None)]
    with pytest.raises(ValueError, match="there are 1 distinct rows; 2 are asked for"):
        imdb.rows(2, True, 0)
    dump(folder, "title.ratings", "tconst|averageRating|numVotes", "tt01|9.2|2900001")
    assert imdb.database() != file


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_articles_are_loaded(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALO_WIKI", str(tmp_path))
    monkeypatch.setenv("HALO_CACHE", str(tmp_path / "cache"))
    with pytest.raises(FileNotFoundError, match=r"lacks articles\.csv or articles\.parquet, links\.csv or "):
        wiki.database()
    tables: dict[str, list[tuple[object, ...]]] = {
        "articles": [
            ("id", "title", "category", "text"),
            (7, 'Oak, "the" Bridge', "Bridges", "Built in 1841,\nof stone."),
            (8, "Stone", "Materials", "No date is known."),
        ],
        "links": [("source", "target"), (7, 8), (8, 7), (7, 99)],
        "categories": [("name", "parent"), ("Bridges", "Transport"), ("Materials", ""), ("Transport", "")],
    }
    for table, lines in tables.items():
        with (tmp_path / f"{table}.csv").open("w", encoding="utf-8", newline="") as opened:
            csv.writer(opened).writerows(lines)
        if kind == "parquet":
            source = tmp_path / f"{table}.csv"
            duckdb.sql(f"COPY (FROM read_csv('{source}')) TO '{tmp_path}/{table}.parquet'")
            source.unlink()
    file = wiki.database()
    assert file.name.startswith("wiki_dumps_")
    (row,) = [given["row"] for given in wiki.rows(1, True, 0)]
    assert row == {"topic": 'Oak, "the" Bridge', "category": "Bridges", "keyword": "Bridge"}
    with duckdb.connect(str(file), read_only=True) as connection:
        for text, names in wiki.QUERIES.values():
            assert connection.execute(text, {name: row[name] for name in names}).fetchall()
        assert connection.execute("SELECT * FROM links ORDER BY ALL").fetchall() == [(7, 8), (8, 7)]


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("name", WORKLOADS)
def test_answers_are_langgraphs_and_each_look_is_taken_once(
    name: str, sync: bool, tools: dict[str, Toolbox], served: dict[str, str]
) -> None:
    pool = configure(PoolConfig(models={"*": "sim"}, engines=(SimulatedSpec(model="sim"),)))
    halo.install()
    make, data, _, _, _ = WORKLOADS[name]
    workload = make(tools[data])
    rows = workload.rows(6, False, 0)

    def models(step: Step) -> ChatOpenAI:
        settings: dict[str, Any] = {"api_key": "unused", "temperature": 0, "max_tokens": 4}
        return ChatOpenAI(model=f"model-{step.model}", **settings)

    def run(app: Any) -> list[Any]:
        outs = app.batch(rows) if sync else asyncio.run(app.abatch(rows))
        return list(map(workload.answers, outs))

    before = requests_so_far(served[data])
    app: Any = build(workload, models, sync=sync).compile(backend="halo")  # type: ignore[call-arg]
    answers = run(app)
    stats = app.last_run.stats
    looks = {
        (tool.name, *sorted(tools[data].parameters(tool.name, given["row"]).items()))
        for given in rows
        for step in workload.steps
        for tool in step.tools
    }
    web = {"titles_since", "outbound_links", "category_pages", "people_by_name" if name == "W2" else "titles_by_name"}
    assert stats.tool_total.executed == len(looks)
    assert stats.tool_total.planned == workload.tool_calls * len(rows)
    assert requests_so_far(served[data]) - before == len([look for look in looks if look[0] in web])
    # Without merging every call is made, one row after the other.
    alone = halo.accelerate(build(workload, models, sync=sync).compile(), merge=False)
    assert run(alone) == answers
    halo.uninstall()
    pool.close()
