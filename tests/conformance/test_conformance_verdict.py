"""The harness's judgement: what counts as worse than plain, and how the counts are told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from integrations.conformance import routing, trial
from integrations.conformance.suites import GROUPS, HERE, SUITES, Suite
from integrations.conformance.trial import Trial
from integrations.conformance.verdict import Difference, compare, expected_differences

SUITE = SUITES[0]


def of(**outcomes: str) -> Trial:
    return Trial({f"tests/{name}": outcome for name, outcome in outcomes.items()})


def test_worse_is_what_passes_plain_and_fails_or_vanishes_under_halo() -> None:
    plain = of(a="passed", b="failed", c="passed", d="skipped", e="xfailed", f="passed")
    halo = of(a="passed", b="failed", c="failed", d="skipped", e="xfailed", g="failed")
    # f did not come to run; g cannot be excused by a plain run that does not know it.
    assert compare(SUITE, halo, plain, []).regressions == {"tests/c", "tests/f", "tests/g"}


def test_a_test_that_is_skipped_only_under_halo_is_worse() -> None:
    assert compare(SUITE, of(a="skipped"), of(a="passed"), []).regressions == {"tests/a"}


def test_expected_differences_need_their_suite_and_pattern() -> None:
    plain = Trial({"tests/t.py::x[1]": "passed", "tests/t.py::x[2]": "passed", "tests/t.py::y": "passed"})
    halo = Trial({"tests/t.py::x[1]": "failed", "tests/t.py::x[2]": "failed", "tests/t.py::y": "passed"})
    listed = [
        Difference(SUITE.name, "tests/t.py::x[1]", "*", "because"),
        Difference(SUITE.name, "tests/t.py::y", "*", "no longer"),
        Difference("another suite", "tests/t.py::x[2]", "*", "not here"),
    ]
    verdict = compare(SUITE, halo, plain, listed)
    assert verdict.expected == {"tests/t.py::x[1]": "because"}
    assert verdict.regressions == {"tests/t.py::x[2]"}
    assert verdict.stale == ["tests/t.py::y"]


def test_a_test_that_fails_in_another_way_than_expected_is_worse() -> None:
    plain = of(a="passed", b="passed")
    halo = of(a="failed", b="failed")
    halo.reasons = {"tests/a": "LookupError: no m[1] here", "tests/b": "AssertionError: 1 != 2"}
    verdict = compare(SUITE, halo, plain, [Difference(SUITE.name, "tests/*", "LookupError: no m[1] *", "because")])
    assert verdict.expected == {"tests/a": "because"}
    assert verdict.regressions == {"tests/b"}


def test_a_difference_without_a_reason_is_refused(tmp_path: Path) -> None:
    listed = tmp_path / "expected.toml"
    listed.write_text('[[difference]]\nsuite = "langgraph"\ntest = "tests/t.py::x"\nfailure = "*"\nreason = ""\n')
    with pytest.raises(ValueError, match="reason"):
        expected_differences(listed)


def test_the_committed_list_is_well_formed() -> None:
    assert all(difference.suite in {suite.name for suite in SUITES} for difference in expected_differences())


def test_counts_are_told_as_pytest_tells_them() -> None:
    assert str(of(a="passed", b="passed")) == "2 passed"
    assert str(of(a="passed", b="skipped")) == "1 passed, 1 skipped, 0 failed"
    assert str(of(a="passed", b="failed", c="xfailed")) == "1 passed, 0 skipped, 1 failed, 1 failed as they should"


def test_the_worst_report_of_a_test_decides(tmp_path: Path) -> None:
    record = tmp_path / "record.jsonl"
    reports = [("a", "passed", ""), ("a", "failed", "teardown"), ("b", "skipped", ""), ("c", "passed", "")]
    lines = [json.dumps({"test": test, "outcome": outcome, "why": why}) for test, outcome, why in reports]
    record.write_text("\n".join(lines))
    read = trial._read(record)
    assert read.outcomes == {"a": "failed", "b": "skipped", "c": "passed"}
    assert read.reasons == {"a": "teardown"}


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_every_suite_finds_its_version_in_its_lock(suite: Suite) -> None:
    assert suite.version[0].isdigit()
    pinned = suite.lock.read_text("utf-8")
    # LangGraph's tests compare metadata that names `langchain` when it can be imported.
    assert ("\nlangchain==" in pinned) is (suite.environment == "langchain")


def test_each_suite_belongs_to_one_group_and_brings_its_plugins() -> None:
    names = {suite.name for suite in SUITES}
    assert len(names) == len(SUITES)
    assert not names & {"all", *(f"all-{group}" for group in GROUPS)}
    for suite in SUITES:
        assert all((HERE / f"{plugin}.py").is_file() for plugin in suite.plugins)


def test_counts_of_all_test_processes_are_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "counts"
    assert routing.read(file) == {}
    monkeypatch.setenv(routing.VARIABLE, str(file))
    routing.tell({"team runs": 2})
    routing.tell({"team runs": 3, "model calls through the pool": 1})
    assert routing.read(file) == {"team runs": 5, "model calls through the pool": 1}
