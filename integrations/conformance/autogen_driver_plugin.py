"""Pytest plugin that has Halo's driver run the teams in place of AutoGen's runtime: beside `autogen_plugin`."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from autogen_agentchat.teams import BaseGroupChat

from halo_adapters.autogen import drive
from integrations.conformance import routing

_runs = 0
_left_alone: Counter[str] = Counter()


def pytest_configure(config: pytest.Config) -> None:
    """Install the driver between two counters: what comes in, and what it hands on to AutoGen's own method."""
    _before_each_run(_leave_alone)
    drive.install_class_patch()
    _before_each_run(_come_in)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Leave the counts for the harness."""
    counts = {f"left alone: {reason}": count for reason, count in _left_alone.items()}
    routing.tell({"team runs by the driver": _runs - _left_alone.total(), **counts})


def _come_in(team: BaseGroupChat) -> None:
    global _runs
    _runs += 1


def _leave_alone(team: BaseGroupChat) -> None:
    _left_alone[drive.why_not_native(team) or "for no reason that the driver gives"] += 1


def _before_each_run(count: Callable[[BaseGroupChat], None]) -> None:
    original: Any = BaseGroupChat.run_stream

    @functools.wraps(original)
    def run_stream(self: BaseGroupChat, *args: Any, **kwargs: Any) -> Any:
        count(self)
        return original(self, *args, **kwargs)

    BaseGroupChat.run_stream = run_stream  # type: ignore[method-assign]
