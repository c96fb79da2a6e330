"""`halo bench report`: every file, system and figure on one page, missed bars and unreadable files included."""

from __future__ import annotations

import json
import re
import shutil
import statistics
from html import unescape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from markupsafe import escape

from tests.cli.conftest import REPOSITORY, Halo

OURS = REPOSITORY / "benchmarks" / "results"
RESOURCE = re.compile(r"""https?://|\bsrc=|\bhref="[^#]|url\(|@import|<script|<link""")


def run(system: str, trial: int, wall: float, **more: Any) -> dict[str, Any]:
    figures = {"orchestrator_cpu_s": 1.5, "peak_rss_mb": 100.25, "calls_executed": 1234, "calls_shared": 7}
    tokens = {"prompt_tokens_computed": 4321, "prompt_tokens_cached": 98765, "generated_tokens": 55}
    return {"system": system, "trial": trial, "wall_s": wall, **figures, **tokens, "extra": {}, **more}


def document(**more: Any) -> dict[str, Any]:
    return {
        "workload": "W5",
        "rows": 16,
        "layout": "2 engines (2x1)",
        "machine": {"cpu": "EPYC", "cores": 2, "load_before": [0.5, 0.25, 0.125]},
        "versions": {"python": "3.11.7"},
        "trials": 3,
        "runs": [run(name, i, wall + i) for i in range(3) for name, wall in (("halo", 10.0), ("B0", 20.0))],
        "ratios": {"B0/halo": {"median": 1.9091, "min": 1.8333, "max": 2.0}},
        **more,
    }


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, halo: Halo) -> Path:
    """An empty folder of results; the checkout is the current one."""
    monkeypatch.chdir(REPOSITORY)
    folder = tmp_path / "results"
    folder.mkdir()
    return folder


def put(folder: Path, name: str, content: Any) -> None:
    (folder / name).write_text(json.dumps(content), "utf-8")


def page_of(halo: Halo, folder: Path) -> str:
    """The page of a folder's files, which must be self-contained."""
    made = halo("bench", "report", "--results", str(folder))
    assert made.code == 0 and str(folder / "report.html") in made.out
    page = (folder / "report.html").read_text("utf-8")
    assert not RESOURCE.search(page)
    assert all(ElementTree.fromstring(svg).tag == "svg" for svg in svgs(page))
    return page


def svgs(page: str) -> list[str]:
    return re.findall(r"<svg.*?</svg>", page, re.DOTALL)


def words(markup: str) -> str:
    """What is read: no tags, single spaces."""
    return " ".join(unescape(re.sub(r"<style>.*?</style>|<[^>]+>", " ", markup, flags=re.DOTALL)).split())


def section(page: str, name: str) -> str:
    """The section of one file."""
    return next(part for part in page.split("<section")[1:] if f"<h2>{name}</h2>" in part)


def test_our_own_results_are_all_there(results: Path, halo: Halo) -> None:
    files = sorted(OURS.rglob("*.json"))
    for file in files:
        shutil.copy(file, results / file.name)
    page = page_of(halo, results)
    for file in files:
        content = json.loads(file.read_text("utf-8"))
        shown = section(page, file.name)
        measured = [one for one in (content, *content.values()) if isinstance(one, dict) and "runs" in one]
        assert measured or all(name in words(shown) for name in content)  # of another shape: plain figures
        for one in measured:
            assert one["workload"] in words(shown)
            for system in {entry["system"] for entry in one["runs"]}:
                assert f"<td>{system}</td>" in shown
                assert any(f">{system}" in drawn for drawn in svgs(shown))
            for name, ratio in one.get("ratios", {}).items():
                assert f"<th>{name}</th><td>{ratio['median']:.4g}x</td>" in shown
                of_trials = f"{name}: {ratio['median']:.4g}x ({ratio['min']:.4g} to {ratio['max']:.4g})"
                assert of_trials in words(page.partition("<section")[0])
    assert "Unreadable" not in page


def test_a_document_with_all_its_figures(results: Path, halo: Halo) -> None:
    put(results, "w5.json", document(equal_rows={"B0": 15, "B7": 16}, seed=2026, notes={"why": "a trial"}))
    page = page_of(halo, results)
    shown, head = words(section(page, "w5.json")), words(page.partition("<section")[0])
    assert "W5 w5.json 16 3 B0/halo: 1.909x (1.833 to 2) none set B0: 15 of 16 B7: 16 of 16" in head
    assert '<div class="missed">B0: 15 of 16</div>' in page and "<div>B7: 16 of 16</div>" in page
    assert "Trials of each system: 3. Layout: 2 engines (2x1)." in shown
    assert "halo 0 10 1.5 1,234 7 4,321 98,765 55 100.2" in shown
    assert "cpu EPYC cores 2 load_before 0.5, 0.25, 0.125" in shown and "python 3.11.7" in shown
    assert "trials 3 seed 2,026 notes.why a trial" in shown


def test_the_plot_has_a_dot_per_trial_and_a_bar_to_the_median(results: Path, halo: Halo) -> None:
    put(results, "w5.json", document())
    (drawn,) = svgs(page_of(halo, results))
    svg = ElementTree.fromstring(drawn)
    dots = [float(dot.attrib["cx"]) for dot in svg.iter("circle")]
    assert len(dots) == 6
    for system, bar in enumerate(svg.iter("rect")):
        middle = statistics.median(dots[3 * system : 3 * system + 3])
        assert float(bar.attrib["x"]) + float(bar.attrib["width"]) == pytest.approx(middle, abs=0.2)
    texts = [text.text for text in svg.iter("text")]
    assert {"halo", "11 s (10 to 12)", "B0", "21 s (20 to 22)", "wall time, s"} <= set(texts)


def test_missed_bars_are_called_missed(results: Path, halo: Halo) -> None:
    bars = {
        "B0/halo": {"value": 1.9, "at_least": 1.1, "held": True},
        "halo/oracle": {"value": 2.03, "at_most": 1.15, "held": False},
        "free": {"value": 3.0, "at_least": None, "held": True},
    }
    put(results, "w5.json", document(bars=bars))
    page = page_of(halo, results)
    head, shown = words(page.partition("<section")[0]), words(section(page, "w5.json"))
    assert "Bars: 2 held, 1 missed ." in head
    assert "held : B0/halo 1.9, at least 1.1 missed : halo/oracle 2.03, at most 1.15" in head
    assert "halo/oracle 2.03 at most 1.15 missed" in shown and "free 3 no bound held" in shown
    assert page.count('<b class="missed">missed</b>') == 2


def test_both_variants_and_what_lies_beside_them(results: Path, halo: Halo) -> None:
    both = {"paper": document(workload="W5, paper"), "all": document(workload="W5, distinct"), "about": {"seed": 5}}
    put(results, "w5.json", both)
    page = page_of(halo, results)
    shown = words(section(page, "w5.json"))
    assert "paper: W5, paper" in shown and "all: W5, distinct" in shown and "other fields about.seed 5" in shown
    assert len(svgs(page)) == 2


def test_runs_of_different_sizes_are_drawn_apart_and_per_row(results: Path, halo: Halo) -> None:
    runs = [{"system": "halo", "trial": 0, "wall_s": rows / 1000, "rows": rows, "cpu_s": 0.5} for rows in (2000, 5000)]
    put(results, "c.json", {"workload": "consolidate", "runs": runs})
    page = page_of(halo, results)
    seconds, per_row = map(words, svgs(page))
    assert "halo, 2,000 rows 2 s halo, 5,000 rows 5 s" in seconds
    assert "halo, 2,000 rows 1 ms halo, 5,000 rows 1 ms" in per_row
    shown = words(section(page, "c.json"))
    assert "Rows: 2,000 / 5,000. Trials of each system: 1." in shown and "calls executed" not in shown
    assert "1 no spread none none set not compared" in words(page)


def test_unknown_files_keep_their_figures(results: Path, halo: Halo) -> None:
    put(results, "list.json", [{"latency_ms": 12.5}, {"latency_ms": 13}])
    put(results, "nearly.json", document(runs=[{"system": "halo", "trial": 0}]))
    put(results, "none.json", document(runs=[]))
    page = page_of(halo, results)
    assert "0.latency_ms 12.5 1.latency_ms 13" in words(section(page, "list.json"))
    nearly = words(section(page, "nearly.json"))
    assert "runs.0.wall_s: Field required" in nearly and "layout 2 engines (2x1)" in nearly
    assert "No runs." in section(page, "none.json")


def test_text_is_escaped(results: Path, halo: Halo) -> None:
    evil = '<script src="http://x.test/a.js">&'
    runs = [run(evil, 0, 1.0, extra={evil: evil})]
    hostile = document(workload=evil, layout=evil, runs=runs, machine={evil: evil}, equal_rows={evil: 3})
    hostile |= {"ratios": {evil: {"median": 1, "min": 1, "max": 1}}, "bars": {evil: {"value": 1, "held": False}}}
    put(results, "a&b.json", {evil: hostile, "more": {evil: evil}})
    put(results, "surrogate.json", {"said": "\ud800"})
    made = halo("bench", "report", "--results", str(results))
    page = (results / "report.html").read_text("utf-8")
    assert made.code == 0 and "<script" not in page and "<h2>a&amp;b.json</h2>" in page
    assert page.count(str(escape(evil))) == 19  # every place that a file's text can reach
    assert evil in [text.text for svg in svgs(page) for text in ElementTree.fromstring(svg).iter("text")]


def test_unreadable_files_are_named(results: Path, halo: Halo) -> None:
    put(results, "good.json", document())
    for name, content in {"broken.json": b'{"runs": [', "binary.json": b"\xff\xfe", "empty.json": b"{}"}.items():
        (results / name).write_bytes(content)
    put(results, "number.json", 5)
    made = halo("bench", "report", "--results", str(results), "--output", str(results / "new" / "page.html"))
    page = (results / "new" / "page.html").read_text("utf-8")
    assert made.code == 0 and "1 files, 4 unreadable" in made.out
    listed = words(page.partition('<section id="unreadable">')[2])
    for name in ("broken.json", "binary.json", "empty.json", "number.json"):
        assert name in listed and f"{name} is unreadable: " in made.err
    assert "number.json neither an object nor a list with figures in it" in listed
    assert "good.json" in page and "good.json" not in made.err


def test_nothing_to_report(results: Path, halo: Halo) -> None:
    for folder in (results, results / "missing"):
        made = halo("bench", "report", "--results", str(folder))
        assert made.code == 2 and f"{folder} is no folder with JSON files in it" in made.err
    put(results, "w5.json", document())
    assert halo("bench", "report", "--results", str(results), "--output", str(results)).code == 2
