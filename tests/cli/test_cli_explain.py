"""`halo explain`: the plan before and after."""

from __future__ import annotations

from halo_core.plan import Plan
from tests.cli.conftest import Halo, Project


def test_the_plan(project: Project, halo: Halo) -> None:
    result = halo("explain", "app:graph")
    assert result.code == 0, result.err
    assert "draft" in result.out and "answer" in result.out
    assert not project.exists("drafts")  # nothing was run


def test_other_forms(project: Project, halo: Halo) -> None:
    drawn = halo("explain", "app:graph", "--mermaid")
    assert drawn.code == 0, drawn.err
    assert drawn.out.startswith("flowchart") and "draft" in drawn.out
    written = halo("explain", "app:graph", "--json")
    assert [operator.name for operator in Plan.from_json(written.out).operators][:1] == ["draft"]


def test_with_rows_and_analyze(project: Project, halo: Halo) -> None:
    project.rows("a", "b", "a")
    planned = halo("explain", "app:graph", "--input", "rows.jsonl")
    assert planned.code == 0, planned.err
    assert not project.exists("drafts")
    analyzed = halo("explain", "app:graph", "--input", "rows.jsonl", "--analyze")
    assert analyzed.code == 0, analyzed.err
    assert sorted(project.drafts()) == ["a", "a", "b"]
    assert "draft" in analyzed.out


def test_a_failed_row_is_said(project: Project, halo: Halo) -> None:
    project.rows("a", "bad")
    result = halo("explain", "app:graph", "--input", "rows.jsonl", "--analyze")
    assert result.code == 1
    assert "1 of 2 rows failed" in result.err


def test_what_makes_no_sense(project: Project, halo: Halo) -> None:
    for arguments, complaint in (
        (["--analyze"], "name their file with --input"),
        (["--json", "--mermaid"], "choose one"),
    ):
        result = halo("explain", "app:graph", *arguments)
        assert result.code == 2 and complaint in result.err
