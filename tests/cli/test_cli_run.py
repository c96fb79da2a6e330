"""`halo run` on the simulated engine: order, errors, resuming, refusals."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from halo_core.runtime import Journal
from tests.cli.conftest import Halo, Project

RUN = ("run", "app:graph", "--input", "rows.jsonl", "--output", "out.jsonl")


def figure(text: str, label: str) -> int:
    """A number of the summary table."""
    found = re.search(rf"{label}\s*│\s*([\d,]+)", text)
    assert found, text
    return int(found[1].replace(",", ""))


def test_results_come_in_the_rows_order(project: Project, halo: Halo) -> None:
    questions = [f"q{i % 4}" for i in range(10)]
    project.rows(*questions)
    result = halo(*RUN)
    assert result.code == 0, result.err
    output = project.output()
    assert [row["question"] for row in output] == questions
    assert output[0] == output[4] == output[8] and output[0]["answer"] != output[1]["answer"]
    assert figure(result.out, "calls planned") == 20
    assert figure(result.out, "executed") == 8
    assert figure(result.out, "shared") == 12
    assert "10 of 10 rows done" in result.err  # not a terminal: log lines


@pytest.mark.parametrize("target", ["app:builder", "app:build", "app:Holder.inner", "app:agraph"])
def test_targets(project: Project, halo: Halo, target: str) -> None:
    project.rows("a", "b")
    result = halo("run", target, "--input", "rows.jsonl", "--output", "out.jsonl", "--quiet")
    assert result == type(result)(0, "", "")
    assert [row["question"] for row in project.output()] == ["a", "b"]


def test_no_merge_executes_every_call(project: Project, halo: Halo) -> None:
    project.rows("same", "same", "same")
    result = halo(*RUN, "--no-merge", "--concurrency", "2")
    assert result.code == 0, result.err
    assert figure(result.out, "executed") == 6
    assert figure(result.out, "shared") == 0


def test_a_failed_row_is_isolated_and_tried_again(project: Project, halo: Halo) -> None:
    project.rows("a", "bad", "b", "a")
    result = halo(*RUN)
    assert result.code == 1
    error = project.output()[1]["error"]
    assert error == {"type": "ValueError", "message": "a bad question\nof two lines", "row": 1}
    assert [row.get("question") for row in project.output()] == ["a", None, "b", "a"]
    assert "1 of 4 rows failed" in result.err
    assert "row 1 (rows.jsonl, line 2): ValueError: a bad question of two lines" in result.err
    assert "halo run app:graph --input rows.jsonl --output out.jsonl --resume" in result.err
    assert sorted(project.drafts()) == ["a", "a", "b", "bad"]

    refused = halo(*RUN)
    assert refused.code == 2
    assert "out.jsonl.halo.db holds an earlier run" in refused.err and "--resume" in refused.err

    project.write("cured", "")
    resumed = halo(*RUN, "--resume")
    assert resumed.code == 0, resumed.err
    assert "resuming: 3 of 4 rows are finished and not run again, 1 that failed are tried again" in resumed.err
    assert project.drafts()[4:] == ["bad"]
    assert figure(resumed.out, "executed") == 1 and figure(resumed.out, "  replayed") == 1
    assert [row["question"] for row in project.output()] == ["a", "bad", "b", "a"]

    (project.path / "out.jsonl").unlink()
    again = halo(*RUN, "--resume")
    assert again.code == 0 and figure(again.out, "calls planned") == 0
    assert len(project.output()) == 4 and len(project.drafts()) == 5


def test_resume_follows_rows_that_moved(project: Project, halo: Halo) -> None:
    project.rows("a", "b", "a")
    assert halo(*RUN, "--quiet").code == 0
    before = project.output()
    project.rows("new", "b", "a", "a", "a")
    result = halo(*RUN, "--resume")
    assert result.code == 0, result.err
    assert project.output()[1:4] == [before[1], before[0], before[0]]
    assert sorted(project.drafts()[3:]) == ["a", "new"]  # the third "a" was not there before


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"question": ', "not valid JSON"),
        ('["question"]', "a JSON array, not an object"),
        ('"question"', "a JSON string, not an object"),
        ("null", "a JSON null, not an object"),
    ],
)
def test_a_malformed_row_stops_everything_before_it_starts(
    project: Project, halo: Halo, line: str, complaint: str
) -> None:
    project.write("rows.jsonl", f'{{"question": "a"}}\n\n{line}\n{{"question": "b"}}\n')
    result = halo(*RUN)
    assert result.code == 2
    assert "rows.jsonl, line 3:" in result.err and complaint in result.err
    assert len(result.err.splitlines()) == 1
    assert not any(project.exists(name) for name in ("out.jsonl", "out.jsonl.halo.db", "imported"))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ("run", "app:nothing", "-i", "rows.jsonl", "-o", "o"),
            "has no attribute 'nothing'; its apps: builder, graph, agraph",
        ),
        (("run", "app:Holder.x", "-i", "rows.jsonl", "-o", "o"), "app.Holder"),
        (("run", "nowhere:graph", "-i", "rows.jsonl", "-o", "o"), "there is no module 'nowhere'"),
        (("run", "app.sub:graph", "-i", "rows.jsonl", "-o", "o"), "there is no module 'app.sub'"),
        (("run", "app.py:graph", "-i", "rows.jsonl", "-o", "o"), "name the module, app:graph"),
        (("run", "app", "-i", "rows.jsonl", "-o", "o"), "not of the form package.module:attribute"),
        (("run", "app:llm", "-i", "rows.jsonl", "-o", "o"), "app:llm is a ChatOpenAI, which no installed adapter runs"),
        (("run", "app:broken", "-i", "rows.jsonl", "-o", "o"), "calling app:broken() raised RuntimeError: no database"),
        (("run", "app:needs_an_argument", "-i", "rows.jsonl", "-o", "o"), "is a function, which no"),
        (
            ("run", "bad_import:graph", "-i", "rows.jsonl", "-o", "o"),
            "bad_import.py:1); halo --debug shows the traceback",
        ),
        (("run", "bad_need:graph", "-i", "rows.jsonl", "-o", "o"), "No module named 'nothing_like_it' ("),
        (("run", "app:graph", "-i", "none.jsonl", "-o", "o"), "cannot read the rows of none.jsonl: No such file"),
        (("run", "app:graph", "-i", "rows.jsonl", "-o", "no/o"), "there is no folder"),
        (("run", "app:graph", "-i", "rows.jsonl", "-o", "rows.jsonl"), "would be overwritten"),
        (("run", "app:graph", "-i", "rows.jsonl", "-o", "o", "--config", "none.toml"), "none.toml"),
        (
            ("run", "app:graph", "-i", "rows.jsonl", "-o", "o", "--models", "gpt=big"),
            "no engine serves 'big'; served: small",
        ),
        (("run", "app:graph", "-i", "rows.jsonl", "-o", "o", "--models", "gpt"), "APP_NAME=SERVED_MODEL"),
    ],
)
def test_what_cannot_begin_exits_2_with_one_line(
    project: Project, halo: Halo, arguments: tuple[str, ...], complaint: str
) -> None:
    project.rows("a")
    project.write("bad_import.py", "1 / 0\n")
    project.write("bad_need.py", "import nothing_like_it\n")
    result = halo(*arguments)
    assert result.code == 2
    assert complaint in result.err
    assert len(result.err.splitlines()) == 1 and result.out == ""
    assert not project.exists("o") and not project.exists("drafts")


def test_debug_shows_the_traceback(project: Project, halo: Halo, monkeypatch: pytest.MonkeyPatch) -> None:
    from halo_core.errors import ConfigError

    monkeypatch.setenv("HALO_DEBUG", "")
    with pytest.raises(ConfigError, match=r"none\.jsonl"):
        halo("--debug", "run", "app:graph", "-i", "none.jsonl", "-o", "o")


def test_a_model_name_can_be_mapped(project: Project, halo: Halo) -> None:
    project.write("halo.toml", '[[engines]]\nkind = "simulated"\nmodel = "big"\n')
    project.rows("a")
    result = halo(*RUN, "--models", "small=big")
    assert result.code == 0, result.err
    assert figure(result.out, "executed") == 2


def test_a_model_that_nobody_serves_fails_its_rows(project: Project, halo: Halo) -> None:
    project.write("halo.toml", 'adopt = false\n[[engines]]\nkind = "simulated"\nmodel = "big"\n')
    project.rows("a", "b")
    result = halo(*RUN)  # the app's own server is called instead, where nobody listens
    assert result.code == 1
    assert [row["error"]["row"] for row in project.output()] == [0, 1]
    assert "no engine serves model 'small' (pool: big) (2)" in " ".join(result.out.replace("│", " ").split())


def test_another_graph_does_not_continue_a_journal(project: Project, halo: Halo) -> None:
    project.rows("a")
    assert halo(*RUN, "--quiet").code == 0
    app = (project.path / "app.py").read_text()
    project.write("app.py", app.replace('builder.add_edge("draft", "answer")', 'builder.add_edge("draft", END)'))
    result = halo(*RUN, "--resume")
    assert result.code == 2
    assert "belongs to another program or graph" in result.err


def test_a_full_disk_under_the_journal(project: Project, halo: Halo, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = Journal._connect

    def small(self: Journal) -> sqlite3.Connection:
        db = connect(self)
        db.execute("pragma max_page_count = 6")  # SQLite's own "database or disk is full"
        return db

    monkeypatch.setattr(Journal, "_connect", small)
    project.rows(*(f"question number {i}" for i in range(40)))
    result = halo(*RUN)
    assert result.code == 1
    assert "disk is full" in result.err and "cannot be written any more" in result.err
    assert result.err.count("error:") == 1
    assert len([row for row in project.output() if "answer" in row]) == 40


def test_a_row_that_ends_the_process(project: Project, halo: Halo) -> None:
    project.rows("exit")
    result = halo(*RUN)
    assert result.code == 2
    assert "the app called sys.exit(7)" in result.err
    assert not project.exists("out.jsonl")


def test_no_rows(project: Project, halo: Halo) -> None:
    project.rows()
    result = halo(*RUN)
    assert result.code == 0, result.err
    assert project.output() == []


def test_rows_are_journaled_before_they_count(project: Project, halo: Halo, monkeypatch: pytest.MonkeyPatch) -> None:
    from halo_core.cli.progress import Progress

    counted: list[int] = []

    def row(self: Progress, *, failed: bool) -> None:
        with sqlite3.connect(f"file:{Path('out.jsonl.halo.db').absolute()}?mode=ro", uri=True) as db:
            counted.append(db.execute("select count(*) from rows").fetchone()[0])

    monkeypatch.setattr(Progress, "row", row)
    project.rows("a", "b", "c")
    assert halo(*RUN, "--quiet").code == 0
    assert counted == [1, 2, 3]


def test_version_and_help(halo: Halo) -> None:
    from halo_core import __version__

    assert halo("--version").out == f"halo {__version__}\n"
    for command in ("run", "exec", "explain", "doctor", "bench"):
        shown: Any = halo(command, "--help")
        assert shown.code == 0 and "Examples" in shown.out
