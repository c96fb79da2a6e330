"""A copy of a team for a run of its own: what runs change is copied, what they only use is shared.

Dumping and loading a team's configuration would lose callables (conditions, selectors, tool closures) and keys. Here
clients, tools, workbenches, memories and code executors are shared; contexts, terminations, queues, the runtime and the
team's id are new. AutoGen's own classes are copied attribute by attribute, everything else with `copy.deepcopy`.
"""

from __future__ import annotations

import asyncio
import copy
import time
import types
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar, cast

from autogen_agentchat.agents import (
    AssistantAgent,
    CodeExecutorAgent,
    MessageFilterAgent,
    SocietyOfMindAgent,
    UserProxyAgent,
)
from autogen_agentchat.base import (
    AndTerminationCondition,
    ChatAgent,
    OrTerminationCondition,
    Team,
    TerminationCondition,
)
from autogen_agentchat.conditions import ExternalTermination, TimeoutTermination
from autogen_agentchat.messages import BaseAgentEvent, BaseChatMessage, StopMessage
from autogen_agentchat.teams import BaseGroupChat
from autogen_agentchat.tools import AgentTool, TeamTool
from autogen_core import SingleThreadedAgentRuntime
from autogen_core.code_executor import CodeExecutor
from autogen_core.memory import Memory
from autogen_core.model_context import (
    BufferedChatCompletionContext,
    ChatCompletionContext,
    HeadAndTailChatCompletionContext,
    TokenLimitedChatCompletionContext,
    UnboundedChatCompletionContext,
)
from autogen_core.models import ChatCompletionClient
from autogen_core.tools import BaseTool, StaticStreamWorkbench, StaticWorkbench, Workbench

from halo_core.errors import CloneError

T = TypeVar("T")

_SHARED = (ChatCompletionClient, BaseTool, Workbench, Memory, CodeExecutor, types.ModuleType)
"""Used by runs, not changed by them, or (a server behind a workbench) not to be doubled."""

_CONTEXTS = (
    UnboundedChatCompletionContext,
    BufferedChatCompletionContext,
    HeadAndTailChatCompletionContext,
    TokenLimitedChatCompletionContext,
)
_CONDITIONS = "autogen_agentchat.conditions"
_DEPTH = 6


def clone(app: T) -> T:
    """A copy of a team or an agent. Raises `CloneError`, naming the attribute that cannot be copied.

    The copy goes on from where the agents of the original are; what a team that has been run keeps in its runtime comes
    with `halo_adapters.autogen.template.Template`.
    """
    return cast(T, _Copy().part(app, type(app).__name__))


class _Copy:
    """One copy under way; an object that stands in two places of the original is one object in the copy."""

    def __init__(self) -> None:
        self._done: dict[int, Any] = {}

    def part(self, part: Any, path: str) -> Any:
        """A team, an agent, a context or a termination condition."""
        if part is None:
            return None
        done = self._done.get(id(part))
        if done is None:
            done = self._done[id(part)] = self._copied(part, path)
        return done

    def _copied(self, part: Any, path: str) -> Any:
        kind = type(part)
        if isinstance(part, BaseGroupChat):
            return self._team(part, path)
        if kind in (AssistantAgent, CodeExecutorAgent, UserProxyAgent, SocietyOfMindAgent, MessageFilterAgent):
            return self._agent(part, path)
        if kind in _CONTEXTS:
            return _context(part)
        if kind in (AndTerminationCondition, OrTerminationCondition) or kind.__module__.startswith(_CONDITIONS):
            return self._condition(part, path)
        return self._deep(part, path)

    def _team(self, team: BaseGroupChat, path: str) -> BaseGroupChat:
        if team._is_running:
            raise CloneError(
                f"{path} {team.name!r} is already running: a copy would start in the middle. Wait for its end, or "
                "give a function that makes a team"
            )
        if not team._embedded_runtime:
            raise CloneError(
                f"{path} {team.name!r} has a runtime of its own (runtime=...), which cannot be copied: leave the "
                "argument out, or give a function that makes a team"
            )
        new: BaseGroupChat = _shallow(team)
        own: dict[str, Any] = new.__dict__
        own.pop(DRIVER, None)
        own["_participants"] = [self.part(p, f"{path}.participants[{p.name!r}]") for p in team._participants]
        for name, value in own.items():
            if name == "_input_participants":
                own[name] = list(own["_participants"])
                continue
            if name in _TEAM_FIELDS:
                continue
            kind = _kind(type(value))
            if kind == "part":
                own[name] = self.part(value, f"{path}.{name}")
            elif kind == "deep":
                own[name] = self._deep(value, f"{path}.{name}")
        own["_runtime"] = SingleThreadedAgentRuntime(ignore_unhandled_exceptions=False)
        own["_initialized"] = False
        _rename(new)
        return new

    def _agent(self, agent: Any, path: str) -> Any:
        new = _shallow(agent)
        own: dict[str, Any] = new.__dict__
        for name, value in own.items():
            if _kind(type(value)) == "part":
                own[name] = self.part(value, f"{path}.{name}")
            elif name == "_workbench":
                own[name] = [self._workbench(bench, f"{path}.{name}") for bench in value]
        return new

    def _workbench(self, bench: Workbench, path: str) -> Workbench:
        """Tools are shared but for teams and agents behind a tool: they have conversations of their own."""
        tools = getattr(bench, "_tools", ())
        if type(bench) not in (StaticWorkbench, StaticStreamWorkbench) or not any(_runs_team(t) for t in tools):
            return bench
        new: Workbench = _shallow(bench)
        new.__dict__["_tools"] = [self._tool(tool, path) if _runs_team(tool) else tool for tool in tools]
        return new

    def _tool(self, tool: Any, path: str) -> Any:
        new = _shallow(tool)
        new._task_runner = self.part(tool._task_runner, f"{path}[{tool.name!r}]")
        return new

    def _condition(self, condition: Any, path: str) -> Any:
        if type(condition) is ExternalTermination:
            return _Follows(condition)
        new = _shallow(condition)
        for name, value in new.__dict__.items():
            if isinstance(value, list | tuple) and any(isinstance(v, TerminationCondition) for v in value):
                new.__dict__[name] = type(value)(self.part(v, f"{path}.{name}") for v in value)
            elif isinstance(value, list | set | dict):
                new.__dict__[name] = copy.copy(value)
        if isinstance(condition, TimeoutTermination) and not condition.terminated:
            new._start_time = time.monotonic()  # the copy's time begins with the copy
        return new

    def _deep(self, value: Any, path: str) -> Any:
        memo: dict[int, Any] = {}
        for found in _held(value, _DEPTH):
            if isinstance(found, _SHARED):
                memo[id(found)] = found
            elif isinstance(found, BaseGroupChat) and found is not value:
                memo[id(found)] = self.part(found, f"{path} ({type(found).__name__})")
        try:
            return copy.deepcopy(value, dict(memo))
        except Exception as error:
            where = _culprit(value, memo, path)
            raise CloneError(
                f"{where} cannot be copied ({type(error).__name__}: {error}): give a function that makes a team "
                "instead, which is called once per task, or a __deepcopy__ to its class"
            ) from error


DRIVER = "_halo_driver"
"""Attribute of a team under Halo's driver; a copy starts without."""

_TEAM_FIELDS = frozenset(
    {
        "_participants",
        "_graph",
        "_base_group_chat_manager_class",
        "_message_factory",
        "_participant_names",
        "_participant_descriptions",
        "_participant_topic_types",
    }
)
"""What teams only read, or what is made anew."""


class _Follows(ExternalTermination):
    """A copy that ends its run when the original is set: whoever holds the original stops all runs."""

    def __init__(self, original: ExternalTermination) -> None:
        super().__init__()
        self._original = original
        self._setted = original._setted

    async def __call__(self, messages: Sequence[BaseAgentEvent | BaseChatMessage]) -> StopMessage | None:
        self._setted = self._setted or self._original._setted
        return await super().__call__(messages)


def _kind(cls: Any) -> Literal["part", "plain", "deep"]:
    """What becomes of a value of this class: a part of the team is copied as such, plain values are shared."""
    known = _kinds.get(cls)
    if known is None:
        known = _kinds[cls] = _judged(cls)
    return known


_kinds: dict[Any, Literal["part", "plain", "deep"]] = {}


def _judged(cls: Any) -> Literal["part", "plain", "deep"]:
    if issubclass(cls, TerminationCondition | ChatCompletionContext | ChatAgent | Team):
        return "part"
    plain = (*_SHARED, str, int, float, bool, type(None), SingleThreadedAgentRuntime, asyncio.Queue)
    return "plain" if issubclass(cls, plain) or hasattr(cls, "__call__") else "deep"  # noqa: B004


def _shallow(thing: Any) -> Any:
    new = object.__new__(type(thing))
    new.__dict__.update(thing.__dict__)
    return new


def _runs_team(tool: Any) -> bool:
    return isinstance(tool, AgentTool | TeamTool)


def _context(context: Any) -> Any:
    new = _shallow(context)
    new._messages = [message.model_copy(deep=True) for message in context._messages]
    return new


def _rename(team: BaseGroupChat) -> None:
    """Give a team an id and a queue of its own, as its constructor does."""
    own = cast(Any, team)
    own._team_id = str(uuid.uuid4())
    own._group_topic_type = f"group_topic_{own._team_id}"
    own._group_chat_manager_topic_type = f"{own._group_chat_manager_name}_{own._team_id}"
    own._participant_topic_types = [f"{participant.name}_{own._team_id}" for participant in own._participants]
    own._output_topic_type = f"output_topic_{own._team_id}"
    own._output_message_queue = asyncio.Queue()


def _held(value: Any, depth: int, seen: set[int] | None = None) -> Iterator[Any]:
    """The objects that `value` holds, through attributes and containers, a few levels deep."""
    seen = seen if seen is not None else set()
    if id(value) in seen:
        return
    seen.add(id(value))
    yield value
    if depth == 0 or isinstance(value, _SHARED):
        return
    for _, each in _attributes(value):
        yield from _held(each, depth - 1, seen)


def _culprit(value: Any, memo: dict[int, Any], path: str) -> str:
    """The path of the innermost attribute that cannot be copied, with its type."""
    for name, inner in _attributes(value):
        if not _copies(inner, memo):
            return _culprit(inner, memo, f"{path}{name}")
    return f"{path} (a {type(value).__name__})"


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """What a value holds, each with how it is written behind the value's own path."""
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", inner) for key, inner in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((f"[{i}]", inner) for i, inner in enumerate(value))
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        yield from ((f".{name}", inner) for name, inner in vars(value).items())


def _copies(value: Any, memo: dict[int, Any]) -> bool:
    try:
        copy.deepcopy(value, dict(memo))
    except Exception:
        return False
    return True
