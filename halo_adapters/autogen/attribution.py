"""Who makes a model call: the run, the team, the agent and its how-manieth call; nothing of it is the user's to say."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from autogen_core import AgentId, MessageHandlerContext

from halo_core.pool import CallOrigin
from halo_core.runtime import SESSION, Run, ambient_run

AGENT: ContextVar[str] = ContextVar("halo_agent", default="")
"""Name of the agent that is run by itself, outside any team."""

KEPT_TEAMS = 10_000
"""Teams outside any run of Halo whose repetitions are remembered."""

_repeats: OrderedDict[str, Counter[tuple[str, str]]] = OrderedDict()
_NOBODY = "(no agent)"


@contextmanager
def speaking(agent: str) -> Iterator[None]:
    """Within the block calls are this agent's, unless they are made inside a team."""
    token = AGENT.set(agent)
    try:
        yield
    finally:
        AGENT.reset(token)


def agent_and_team() -> tuple[str, str]:
    """(agent, team id) of the code that runs now; the runtime names agents `NAME_TEAMID/TEAMID`."""
    try:
        found: AgentId = MessageHandlerContext.agent_id()
    except RuntimeError:  # not inside a runtime
        return AGENT.get() or _NOBODY, ""
    return found.type.removesuffix(f"_{found.key}"), found.key


@contextmanager
def calling(content: Callable[[], str]) -> Iterator[tuple[Run, CallOrigin]]:
    """The run that makes a call now, and the call's attribution.

    Outside any run a call is a run of its own in the ambient batch; calls of one team go on counting repetitions, so
    that an agent that asks the same again on purpose is never answered from the first time.
    """
    agent, team = agent_and_team()
    run = SESSION.get()
    if run is not None:
        try:
            yield run, _origin(run, agent, team)
        except Exception as error:
            run.trouble = error
            raise
        return
    with ambient_run(content(), _counts(team) if team else None) as own:
        yield own, _origin(own, agent, team)


def _origin(run: Run, agent: str, team: str) -> CallOrigin:
    run.steps[agent] += 1
    return run.origin(agent, run.steps[agent], team=team)


def _counts(team: str) -> Counter[tuple[str, str]]:
    counts = _repeats.get(team)
    if counts is None:
        counts = _repeats[team] = Counter()
        if len(_repeats) > KEPT_TEAMS:
            _repeats.popitem(last=False)
    else:
        _repeats.move_to_end(team)
    return counts
