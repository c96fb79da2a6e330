"""The suites: whose tests are run, in which environment, with which arguments."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(slots=True, frozen=True)
class Suite:
    """One project's tests, taken from the sdist of the version that its environment pins."""

    name: str
    distribution: str
    project: str
    """How the project is called in sentences."""
    environment: str
    """Name of the lock file, which is also the name of the virtual environment."""
    paths: tuple[str, ...] = ("tests",)
    fast: tuple[str, ...] = ()
    """Arguments of the `--fast` subset; empty when the whole suite is fast."""
    variables: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 1800.0
    """Limit for one pytest process; a single test has 120 s."""

    @property
    def lock(self) -> Path:
        """The file that pins every package of the environment."""
        return HERE / f"{self.environment}.lock"

    @property
    def version(self) -> str:
        """The pinned version of the distribution. Raises `LookupError` when the lock does not pin it."""
        pinned = re.search(rf"^{re.escape(self.distribution)}==(\S+)$", self.lock.read_text("utf-8"), re.MULTILINE)
        if pinned is None:
            raise LookupError(f"{self.lock} does not pin {self.distribution}; add a line {self.distribution}==VERSION")
        return pinned[1]


# NO_DOCKER is LangGraph's own switch: checkpointers in memory and SQLite instead of Postgres and Redis servers.
_NO_SERVERS = {"NO_DOCKER": "true"}

SUITES = (
    Suite(
        name="langgraph",
        distribution="langgraph",
        project="LangGraph",
        environment="langgraph",
        fast=(
            "tests/test_pregel.py",
            "tests/test_pregel_async.py",
            "tests/test_interrupt_state.py",
            "tests/test_stream_events_v3.py",
            "tests/test_retry.py",
            "tests/test_runtime.py",
            "-k",
            "not sqlite",
        ),
        variables=_NO_SERVERS,
    ),
    Suite(
        name="prebuilt",
        distribution="langgraph-prebuilt",
        project="LangGraph",
        environment="langgraph",
        variables=_NO_SERVERS,
    ),
    Suite(
        name="langchain",
        distribution="langchain",
        project="LangChain",
        environment="langchain",
        paths=("tests/unit_tests/agents", "tests/unit_tests/chat_models"),
    ),
)
