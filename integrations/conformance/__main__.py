"""Command line: runs the suites under Halo and ends with one line per suite."""

from __future__ import annotations

import argparse
import sys

from integrations.conformance import environment, trial
from integrations.conformance.suites import GROUPS, SUITES, Suite
from integrations.conformance.verdict import Difference, Verdict, compare, expected_differences

_SHOWN = 30


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 when all that passes plain passes under Halo, 1 when not, 2 when a run gave no verdict."""
    options = _parser().parse_args(arguments)
    suites = [suite for suite in SUITES if options.suite in (suite.name, f"all-{suite.group}", "all")]
    differences = expected_differences()
    lines, status = [], 0
    try:
        with environment.exclusive():
            for suite in suites:
                line, code = _judge(suite, options, differences)
                lines.append(line)
                status = max(status, code)
    except (environment.SetupError, trial.TrialError, LookupError) as error:
        print(error, file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("stopped; environments and plain results that were finished are kept", file=sys.stderr)
        status = 130
    for line in lines:
        print(line)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m integrations.conformance", description=__doc__)
    groups = [f"all-{group}" for group in GROUPS]
    parser.add_argument("suite", choices=[*(suite.name for suite in SUITES), *groups, "all"])
    parser.add_argument("--plain", action="store_true", help="run without Halo, and remember the result")
    parser.add_argument("--fast", action="store_true", help="a subset of LangGraph's tests (under a minute)")
    parser.add_argument("-k", dest="expression", metavar="EXPR", help="only tests that match, as pytest's -k")
    return parser


def _judge(suite: Suite, options: argparse.Namespace, differences: list[Difference]) -> tuple[str, int]:
    selection = {"fast": options.fast, "expression": options.expression}
    if options.plain:
        result = trial.plain(suite, **selection)
        _explain(result)
        return f"{suite.name} (plain): {result}", 0
    halo = trial.run(suite, "halo", **selection)
    if not options.expression and not halo.routing.get(suite.proof):
        raise trial.TrialError(f"{suite.name}: Halo had no part in it (0 {suite.proof}), so the run proves nothing")
    plain = trial.remembered(suite, **selection)
    if plain is None and halo.having("failed"):
        plain = trial.plain(suite, **selection)
    verdict = compare(suite, halo, plain, differences) if plain else Verdict()
    _explain(halo, verdict)
    return _summary(suite, halo, plain, verdict), 1 if verdict.regressions else 0


def _summary(suite: Suite, halo: trial.Trial, plain: trial.Trial | None, verdict: Verdict) -> str:
    """One line: the counts, and how they compare with those without Halo where any test failed."""
    parts = [f"{suite.name}: {halo}"]
    if plain and plain.having("failed"):
        parts[0] += f" (plain: {plain})"
    if verdict.expected:
        parts.append(f"{len(verdict.expected)} fail as expected_differences.toml says")
    if verdict.regressions:
        parts.append(f"fails {len(verdict.regressions)} that plain {suite.project} passes")
    elif plain and plain.having("failed") and not verdict.expected:
        parts.append(f"fails nowhere that plain {suite.project} does not")
    return "; ".join(parts)


def _explain(result: trial.Trial, verdict: Verdict | None = None) -> None:
    print(f"  {result.wall_s:.0f} s" + "".join(f", {count} {what}" for what, count in sorted(result.routing.items())))
    for test in result.flaky:
        print(f"  passed alone on a second try: {test}")
    if verdict is None:
        return
    for test in sorted(verdict.regressions)[:_SHOWN]:
        print(f"  ONLY UNDER HALO: {test}: {result.reasons.get(test, 'did not run')}".splitlines()[0])
    if len(verdict.regressions) > _SHOWN:
        print(f"  and {len(verdict.regressions) - _SHOWN} more; the logs are in {environment.ROOT / 'logs'}")
    for reason in dict.fromkeys(verdict.expected.values()):
        tests = sorted(test for test, known in verdict.expected.items() if known == reason)
        print("\n    ".join([f"  {len(tests)} fail as expected: {reason}", *tests]))
    for test in verdict.stale:
        print(f"  no longer differs, remove it from expected_differences.toml: {test}")


if __name__ == "__main__":
    sys.exit(main())
