"""The suites: whose tests are run, in which environment, with which arguments."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
    group: str
    """The front end under test; `all-GROUP` runs the group's suites."""
    plugins: tuple[str, ...]
    """Pytest plugins in this package that put Halo under the suite."""
    under_halo: str
    """What the plugins do, as the end of "running the tests ..."."""
    proof: str
    """The plugins' count that must not be zero: without it Halo had no part in the run."""
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


def _langgraph(name: str, distribution: str, project: str = "LangGraph", **others: Any) -> Suite:
    return Suite(
        name=name,
        distribution=distribution,
        project=project,
        group="langgraph",
        plugins=("plugin",),
        under_halo="with every graph and model call through Halo",
        proof="graph runs",
        **others,
    )


def _autogen(name: str, distribution: str, **others: Any) -> Suite:
    through_halo = {
        "plugins": ("autogen_plugin",),
        "under_halo": "with every model call through Halo",
        "proof": "model calls through the pool",
    }
    return Suite(
        name=name,
        distribution=distribution,
        project="AutoGen",
        environment="autogen",
        group="autogen",
        **through_halo | others,
    )


# NO_DOCKER is LangGraph's own switch: checkpointers in memory and SQLite instead of Postgres and Redis servers.
_NO_SERVERS = {"NO_DOCKER": "true"}

SUITES = (
    _langgraph(
        "langgraph",
        "langgraph",
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
    _langgraph("prebuilt", "langgraph-prebuilt", environment="langgraph", variables=_NO_SERVERS),
    _langgraph(
        "langchain",
        "langchain",
        project="LangChain",
        environment="langchain",
        paths=("tests/unit_tests/agents", "tests/unit_tests/chat_models"),
    ),
    _autogen("agentchat", "autogen-agentchat"),
    _autogen(
        "agentchat-driver",
        "autogen-agentchat",
        plugins=("autogen_plugin", "autogen_driver_plugin"),
        under_halo="with Halo's driver in place of AutoGen's runtime",
        proof="team runs by the driver",
        paths=(
            "tests/test_group_chat.py",
            "tests/test_group_chat_graph.py",
            "tests/test_group_chat_nested.py",
            "tests/test_group_chat_pause_resume.py",
            "tests/test_task_runner_tool.py",
            "tests/test_society_of_mind_agent.py",
        ),
    ),
    _autogen("ext-openai", "autogen-ext", paths=("tests/models/test_openai_model_client.py",)),
    _autogen(
        "ext-cache-replay",
        "autogen-ext",
        paths=("tests/models/test_chat_completion_cache.py", "tests/models/test_reply_chat_completion_client.py"),
    ),
)

GROUPS = tuple(dict.fromkeys(suite.group for suite in SUITES))
