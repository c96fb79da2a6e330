"""Pytest plugin that writes one JSON line per test report, so that a cut-off run leaves what it had."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TextIO

import pytest

VARIABLE = "HALO_CONFORMANCE_RECORD"


class Recorder:
    """Writes the reports of the process that gathers them; pytest-xdist's workers only send theirs there."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Record what decides a test's outcome: its call, a skip, and any phase that failed."""
        if report.when == "call" or report.outcome != "passed":
            xfailed = report.skipped and hasattr(report, "wasxfail")
            self._write(report.nodeid, "xfailed" if xfailed else report.outcome, report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Record a file that cannot be imported, or that is skipped whole, as one test (pytest counts it so too)."""
        if report.outcome != "passed":
            self._write(report.nodeid, report.outcome, report)

    def _write(self, nodeid: str, outcome: str, report: pytest.TestReport | pytest.CollectReport) -> None:
        crash = getattr(report.longrepr, "reprcrash", None) if outcome == "failed" else None
        line = {"test": nodeid, "outcome": outcome, "why": str(getattr(crash, "message", ""))[:500]}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def pytest_configure(config: pytest.Config) -> None:
    """Start recording where the environment names a file."""
    path = os.environ.get(VARIABLE)
    if path and not hasattr(config, "workerinput"):
        file = Path(path).open("w", encoding="utf-8")  # noqa: SIM115 - open until the process ends
        config.pluginmanager.register(Recorder(file), "halo-conformance-recorder")
