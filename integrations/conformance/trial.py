"""One run of a suite, with or without Halo, and what became of each test."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from integrations.conformance import environment, recorder, routing
from integrations.conformance.suites import Suite

Backend = Literal["plain", "halo"]
_WORKERS = 2
_MAX_RETRIED = 40
_HIDDEN = re.compile("PYTHONPATH|VIRTUAL_ENV|.*_API_KEY")
"""Variables that the suites must not see; where they find a key, they call the paid service."""
_SEVERITY = ("passed", "skipped", "xfailed", "failed")


class TrialError(Exception):
    """A run gave no verdict: pytest could not start, was cut off, or Halo had no part in it."""


@dataclass(slots=True)
class Trial:
    """Outcome by test, what failed once and passed alone, and what went through Halo."""

    outcomes: dict[str, str] = field(default_factory=dict)
    flaky: list[str] = field(default_factory=list)
    """Failed beside other tests, passed on a second try alone; counted as passed."""
    reasons: dict[str, str] = field(default_factory=dict)
    """First words of each failure."""
    routing: dict[str, int] = field(default_factory=dict)
    """What the plugins counted: graph or team runs, and model calls through Halo."""
    wall_s: float = 0.0

    def having(self, *outcomes: str) -> set[str]:
        """Tests with one of these outcomes."""
        return {test for test, outcome in self.outcomes.items() if outcome in outcomes}

    def __str__(self) -> str:
        count = Counter(self.outcomes.values())
        words = [f"{count['passed']} passed"]
        if count["skipped"] or count["failed"]:
            words += [f"{count['skipped']} skipped", f"{count['failed']} failed"]
        if count["xfailed"]:
            words.append(f"{count['xfailed']} failed as they should")
        return ", ".join(words)


def run(suite: Suite, backend: Backend, *, fast: bool = False, expression: str | None = None) -> Trial:
    """Run the suite once and the tests that failed once more, alone. Raises `SetupError`, `TrialError`."""
    selection = [*(suite.fast if fast and suite.fast else suite.paths)]
    if expression:
        if "-k" in selection:
            selection[-1] = f"({selection[-1]}) and ({expression})"
        else:
            selection += ["-k", expression]
    trial = _pytest(suite, backend, [*selection, "-n", str(_WORKERS), "--dist", "worksteal"], "")
    failed = trial.having("failed")
    if 0 < len(failed) <= _MAX_RETRIED:
        # Timing-sensitive tests fail now and then on a busy machine, without Halo too.
        again = _pytest(suite, backend, [*sorted(failed), "-n", "0"], "-again")
        trial.flaky = sorted(failed & again.having("passed"))
        trial.outcomes.update(dict.fromkeys(trial.flaky, "passed"))
    return trial


def remembered(suite: Suite, *, fast: bool = False, expression: str | None = None) -> Trial | None:
    """The run without Halo of these versions and tests, where there has been one."""
    cache = _cache(suite, fast, expression)
    return Trial(**json.loads(cache.read_text("utf-8"))) if cache.is_file() else None


def plain(suite: Suite, *, fast: bool = False, expression: str | None = None) -> Trial:
    """Run the suite without Halo and remember the result. Raises `SetupError`, `TrialError`."""
    trial = run(suite, "plain", fast=fast, expression=expression)
    cache = _cache(suite, fast, expression)
    cache.parent.mkdir(exist_ok=True)
    partial = cache.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(trial)), "utf-8")
    partial.rename(cache)
    return trial


def _cache(suite: Suite, fast: bool, expression: str | None) -> Path:
    selection = f"{environment.key(suite)} {suite.distribution} {suite.paths} {fast and suite.fast} {expression}"
    name = f"{suite.name}-{hashlib.sha256(selection.encode()).hexdigest()[:16]}.json"
    return environment.ROOT / "plain" / name


def _pytest(suite: Suite, backend: Backend, selection: Sequence[str], suffix: str) -> Trial:
    python, folder = environment.python_of(suite), environment.tests_of(suite)
    logs = environment.ROOT / "logs"
    logs.mkdir(exist_ok=True)
    stem = f"{suite.name}-{backend}{suffix}"
    log, record, counts = (logs / f"{stem}{ending}" for ending in (".log", ".jsonl", ".routing"))
    for path in (record, counts):
        path.unlink(missing_ok=True)
    command = [str(python), "-m", "pytest", *selection, "-q", "--timeout=120", "-p", "no:cacheprovider"]
    command += ["-o", "addopts=--strict-markers --strict-config", "-p", "integrations.conformance.recorder"]
    if backend == "halo":
        for plugin in suite.plugins:
            command += ["-p", f"integrations.conformance.{plugin}"]
    variables = {name: value for name, value in os.environ.items() if not _HIDDEN.fullmatch(name)}
    variables |= {"LANGSMITH_TRACING": "false", "NO_COLOR": "1", **suite.variables}
    variables |= {recorder.VARIABLE: str(record), routing.VARIABLE: str(counts)}
    print(
        f"{suite.name}: running {suite.distribution} {suite.version}'s tests {_how(suite, backend, suffix)}", flush=True
    )
    started = time.monotonic()
    with log.open("wb") as output:
        status = _wait(command, folder, variables, output.fileno(), suite.timeout_s)
    if status not in (0, 1):  # 1 means that tests failed; anything else, that pytest did not come to a verdict.
        tail = "\n".join(log.read_text("utf-8", "replace").splitlines()[-25:])
        what = "was cut off" if status is None else f"ended with status {status}"
        raise TrialError(f"{suite.name}: pytest {what} after {time.monotonic() - started:.0f} s; from {log}:\n{tail}")
    trial = _read(record)
    trial.wall_s = time.monotonic() - started
    trial.routing = routing.read(counts)
    return trial


def _how(suite: Suite, backend: Backend, suffix: str) -> str:
    where = suite.under_halo if backend == "halo" else "without Halo"
    return f"{where}, those that failed, alone" if suffix else where


def _wait(command: Sequence[str], folder: Path, variables: dict[str, str], output: int, timeout_s: float) -> int | None:
    """Exit status; None when the time was up. Whatever the tests started ends with them."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _read(record: Path) -> Trial:
    trial = Trial()
    for line in record.read_text("utf-8").splitlines():
        entry = json.loads(line)
        test, outcome = entry["test"], entry["outcome"]
        known = trial.outcomes.get(test, "passed")
        trial.outcomes[test] = max(known, outcome, key=_SEVERITY.index)
        if outcome == "failed":
            trial.reasons.setdefault(test, entry["why"])
    return trial
