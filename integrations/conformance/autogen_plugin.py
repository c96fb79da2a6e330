"""Pytest plugin that puts Halo under an AutoGen suite: `-p integrations.conformance.autogen_plugin`.

Every run of a team is a run of Halo's, and every call of a model client goes through Halo's pool, to an engine that has
the suite's own client answer.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import pytest
from autogen_agentchat.teams import BaseGroupChat

from halo_core.pool import PoolConfig, configure
from halo_core.runtime import SESSION, Run, ambient_run
from integrations.conformance import autogen_route, routing
from integrations.conformance.loopback import LoopbackEngine

_engine = LoopbackEngine()
_runs = 0


def pytest_configure(config: pytest.Config) -> None:
    """Install Halo before the suite's own modules are imported."""
    configure(PoolConfig(adopt=False)).add(_engine)
    autogen_route.install(_engine)
    _open_sessions()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Leave the counts for the harness."""
    routing.tell({"team runs": _runs, "model calls through the pool": _engine.counters.calls})


@contextmanager
def _run_of(team: BaseGroupChat) -> Iterator[Run]:
    outer = SESSION.get()
    if outer is not None:  # a team inside another belongs to the same row
        yield outer
    else:
        with ambient_run(type(team).__name__) as run:
            yield run


def _open_sessions() -> None:
    original: Any = BaseGroupChat.run_stream

    @functools.wraps(original)
    async def run_stream(self: BaseGroupChat, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        global _runs
        _runs += 1
        with _run_of(self) as run:
            async with aclosing(original(self, *args, **kwargs)) as messages:
                while True:
                    token = SESSION.set(run)  # around each step: a generator shares its consumer's context
                    try:
                        message = await anext(messages)
                    except StopAsyncIteration:
                        return
                    finally:
                        SESSION.reset(token)
                    yield message

    BaseGroupChat.run_stream = run_stream  # type: ignore[method-assign]
