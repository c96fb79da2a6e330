"""`halo bench` hands over to the benchmarks of the source checkout."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Halo, Project

REGISTRY = 'BENCHMARKS = {"count": "benchmarks.count:count", "broken": "benchmarks.none:run"}\n'
COUNT = '''
def count(rows: int = 3, json: str = "") -> None:
    """Counts rows.

    And more.
    """
    print("counted", rows, json)
'''


@pytest.fixture(autouse=True)
def no_benchmarks_imported() -> Iterator[None]:
    """Other tests import this checkout's own `benchmarks`; here another one must be found."""
    ours = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "benchmarks"}
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "benchmarks"]:
        del sys.modules[name]
    sys.modules.update(ours)


def checkout(project: Project) -> None:
    (project.path / "benchmarks").mkdir()
    project.write("benchmarks/__init__.py", "")
    project.write("benchmarks/registry.py", REGISTRY)
    project.write("benchmarks/count.py", COUNT)


def test_lists_and_runs(project: Project, halo: Halo) -> None:
    checkout(project)
    listed = halo("bench").out.splitlines()
    assert listed[0].startswith("broken             (not available: the benchmark benchmarks.none:run cannot be loaded")
    assert listed[1] == "count              Counts rows."
    assert halo("bench", "count").out == "counted 3 \n"
    assert halo("bench", "count", "--rows", "5", "--json", "x").out == "counted 5 x\n"
    assert "--rows" in halo("bench", "count", "--help").out


def test_what_cannot_run(project: Project, halo: Halo) -> None:
    elsewhere = halo("bench", "count")
    assert elsewhere.code == 2 and "benchmarks run from Halo's source checkout" in elsewhere.err
    checkout(project)
    unknown = halo("bench", "sum")
    assert unknown.code == 2 and "there is no benchmark 'sum'; known: broken, count" in unknown.err
    assert halo("bench", "broken").code == 2


@pytest.mark.parametrize("name", ["W5", "W6", "demo", "autogen-review", "autogen-overhead", "overhead", "consolidate"])
def test_our_own_benchmarks_say_what_they_take(name: str, halo: Halo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    shown = halo("bench", name, "--help")
    assert shown.code == 0 and {"--rows", "--json", "--trials"} <= set(shown.out.split())
