"""The comparison of a run under Halo with the plain one."""

from __future__ import annotations

import fnmatch
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from integrations.conformance.suites import HERE, Suite
from integrations.conformance.trial import Trial

EXPECTED = HERE / "expected_differences.toml"


@dataclass(slots=True, frozen=True)
class Difference:
    """A test that may fail under Halo although it passes plain, and why that is right."""

    suite: str
    test: str
    """Node id, or a pattern of them with `*`."""
    failure: str
    """How the failure reads, with `*`: a test that fails otherwise is not excused."""
    reason: str


@dataclass(slots=True)
class Verdict:
    """What differs between the two runs."""

    regressions: set[str] = field(default_factory=set)
    """Fail under Halo only, or did not come to run there, for no reason that is written down."""
    expected: dict[str, str] = field(default_factory=dict)
    """Fail under Halo only, with the reason."""
    stale: list[str] = field(default_factory=list)
    """Entries of the list of expected differences that differ no more."""


def expected_differences(path: Path = EXPECTED) -> list[Difference]:
    """Read the list. Raises `ValueError` naming an entry that lacks a field or a reason."""
    entries = tomllib.loads(path.read_text("utf-8")).get("difference", [])
    for entry in entries:
        if set(entry) != {"suite", "test", "failure", "reason"} or not all(entry.values()):
            raise ValueError(f"{path}: a [[difference]] needs suite, test, failure and reason, none empty, not {entry}")
    return [Difference(**entry) for entry in entries]


def compare(suite: Suite, halo: Trial, plain: Trial, differences: list[Difference]) -> Verdict:
    """Judge `halo` by `plain`: whatever passes plain has to pass under Halo."""
    passes_plain = plain.having("passed", "xfailed")
    runs_plain = set(plain.outcomes)
    worse = {test for test in halo.having("failed") if test in passes_plain or test not in runs_plain}
    worse |= passes_plain - halo.having("passed", "xfailed", "failed")
    verdict = Verdict()
    for difference in differences:
        if difference.suite != suite.name:
            continue
        test, failure = _pattern(difference.test), _pattern(difference.failure)
        matching = fnmatch.filter(worse, test)
        for name in matching:
            if fnmatch.fnmatchcase(halo.reasons.get(name, ""), failure):
                verdict.expected[name] = difference.reason
        if not matching and fnmatch.filter(halo.outcomes, test):
            verdict.stale.append(difference.test)
    verdict.regressions = worse - set(verdict.expected)
    return verdict


def _pattern(text: str) -> str:
    """Brackets, as of parametrised ids, are not character classes here."""
    return text.replace("[", "[[]")
