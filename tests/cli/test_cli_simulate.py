"""`halo simulate`, and what EXPLAIN says of rows once an app has run: predictions, as text, JSON and HTML."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from halo_core.stats import DecodePoint, EngineCurve
from tests.cli.conftest import Halo, Project

CURVE = EngineCurve(
    prefill_step_s=0.01,
    prefill_token_s=0.001,
    attention_pair_s=0.0,
    decode=(DecodePoint(batch=1, step_s=0.05), DecodePoint(batch=32, step_s=0.1)),
)


@pytest.fixture
def ran(project: Project, halo: Halo, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project whose app has run three rows, and a curve."""
    monkeypatch.setenv("HALO_CATALOG", str(Path.cwd() / "catalogs"))
    project.rows("a", "b", "c")
    project.write("curve.json", CURVE.model_dump_json())
    result = halo("run", "app:graph", "--input", "rows.jsonl", "--output", "out.jsonl")
    assert result.code == 0, result.err
    return project


def test_a_thousand_rows_on_many_engines(ran: Project, halo: Halo) -> None:
    arguments = ("simulate", "app:graph", "--rows", "200", "--model-curve", "curve.json", "--json")
    few, many = (json.loads(halo(*arguments, "--engines", n).out) for n in ("1", "8"))
    assert few["rows"] == many["rows"] == 200
    assert few["calls"] == many["calls"] == 400
    assert many["engines"] == 8
    assert many["makespan_s"] < few["makespan_s"]
    assert [step["operator"] for step in few["steps"]] == ["draft", "answer"]


def test_equal_rows_share_their_calls(ran: Project, halo: Halo) -> None:
    ran.rows(*["a"] * 6)
    result = halo("simulate", "app:graph", "--input", "rows.jsonl", "--model-curve", "curve.json", "--json")
    found = json.loads(result.out)
    assert (found["calls"], found["calls_executed"]) == (12, 2)


def test_as_a_table_with_its_price(ran: Project, halo: Halo) -> None:
    result = halo("simulate", "app:graph", "--rows", "8", "--model-curve", "curve.json", "--cost-per-gpu-hour", "3600")
    assert result.code == 0, result.err
    assert "draft" in result.out and "8 rows on 1 engines" in result.out and "in all" in result.out


def test_what_is_missing_is_named(project: Project, halo: Halo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALO_CATALOG", str(Path.cwd() / "catalogs"))
    unknown = halo("simulate", "app:graph", "--rows", "8")
    assert unknown.code == 2 and "run some rows of it first" in unknown.err
    neither = halo("simulate", "app:graph")
    assert neither.code == 2 and "--rows 10000" in neither.err


def test_a_curve_that_is_none(ran: Project, halo: Halo) -> None:
    ran.write("bad.json", '{"speed": 9}')
    bad = halo("simulate", "app:graph", "--rows", "8", "--model-curve", "bad.json")
    assert bad.code == 2 and "bad.json holds no curve" in bad.err
    absent = halo("simulate", "app:graph", "--rows", "8", "--model-curve", "absent.json")
    assert absent.code == 2 and "cannot read the curve absent.json" in absent.err
    unmeasured = halo("simulate", "app:graph", "--rows", "8")
    assert unmeasured.code == 2 and "halo calibrate" in unmeasured.err


def test_explain_says_why_it_predicts_nothing(ran: Project, halo: Halo) -> None:
    told = halo("explain", "app:graph", "--input", "rows.jsonl")
    assert told.code == 0, told.err
    assert "no prediction: how fast the engines of 'small' are is not known" in told.out
    document = json.loads(halo("explain", "app:graph", "--input", "rows.jsonl", "--json").out)
    assert document["rows"] == 3 and document["prediction"] is None
    assert "halo calibrate" in document["no_prediction_because"]
    assert [operator["name"] for operator in document["operators"]] == ["draft", "answer"]
    page = halo("explain", "app:graph", "--input", "rows.jsonl", "--html")
    assert page.out.startswith("<!doctype html>") and "draft" in page.out


def test_prices_and_pages_need_rows(project: Project, halo: Halo) -> None:
    for option in (["--html"], ["--cost-per-gpu-hour", "2"]):
        result = halo("explain", "app:graph", *option)
        assert result.code == 2 and "name their file with --input" in result.err


def test_a_corrupt_catalog_changes_no_answer(ran: Project, halo: Halo, caplog: pytest.LogCaptureFixture) -> None:
    before = ran.output()
    for file in (Path.cwd() / "catalogs").glob("*.json"):
        file.write_text("{ not json")
    again = halo("run", "app:graph", "--input", "rows.jsonl", "--output", "again.jsonl")
    assert again.code == 0, again.err
    assert ran.output("again.jsonl") == before
    assert "the app is learnt again" in caplog.text + again.err
