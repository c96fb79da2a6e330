"""Teams that are driven: which can be, the methods of those that are, and how a team becomes one.

See `halo_adapters.autogen.driver` for what driving is.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any, Literal, cast

from autogen_agentchat.base import TaskResult, Team
from autogen_agentchat.messages import BaseChatMessage, TextMessage
from autogen_agentchat.state import ChatAgentContainerState, TeamState
from autogen_agentchat.teams import BaseGroupChat, GraphFlow, RoundRobinGroupChat, SelectorGroupChat, Swarm
from autogen_core import CancellationToken
from pydantic import ValidationError

from halo_adapters.autogen.clone import DRIVER
from halo_adapters.autogen.driver import Driver
from halo_adapters.autogen.tasks import Task
from halo_adapters.autogen.turns import Message

_KINDS: tuple[type[BaseGroupChat], ...] = (RoundRobinGroupChat, SelectorGroupChat, Swarm, GraphFlow)
"""Teams whose managers do nothing but what `BaseGroupChatManager`'s protocol says."""

_native_classes: dict[type, type] = {}
"""Class of a team -> its subclass that is driven; filled as teams are attached."""

_plain_classes: dict[type, type] = {}
"""The other way round."""


def why_not_native(team: Team) -> str | None:
    """Why this team runs on AutoGen's own runtime, None where the driver is exact."""
    kind = _plain_classes.get(type(team), type(team))
    if kind not in _KINDS:
        return f"{kind.__name__} has a manager of its own"
    chat = cast(BaseGroupChat, team)
    if not chat._embedded_runtime:
        return "it was given a runtime (runtime=...)"
    if chat._initialized and DRIVER not in chat.__dict__:
        return "it has been run on AutoGen's runtime, which keeps its conversation"
    return None


# -- the methods of a driven team --------------------------------------------------------------------------------------


def driver_of(team: BaseGroupChat) -> Driver:
    """The team's driver, made on first use."""
    driver: Driver | None = team.__dict__.get(DRIVER)
    if driver is None:
        driver = team.__dict__[DRIVER] = Driver(team)
        team._initialized = True
    return driver


def start_messages(team: BaseGroupChat, task: Task | None) -> list[BaseChatMessage] | None:
    """A task as messages. Raises `ValueError` for what AutoGen refuses."""
    messages: list[BaseChatMessage]
    if task is None:
        return None
    if isinstance(task, str):
        messages = [TextMessage(content=task, source="user")]
    elif isinstance(task, BaseChatMessage):
        messages = [task]
    elif isinstance(task, list):
        if not task:
            raise ValueError("Task list cannot be empty.")
        if not all(isinstance(message, BaseChatMessage) for message in task):
            raise ValueError("All messages in task list must be valid BaseChatMessage types")
        messages = list(task)
    else:
        raise ValueError("Task must be a string, a BaseChatMessage, or a list of BaseChatMessage.")
    for message in messages:
        if not team._message_factory.is_registered(type(message)):
            raise ValueError(
                f"Message type {type(message)} is not registered with the message factory. Please register it with the "
                "message factory by adding it to the custom_message_types list when creating the team."
            )
    return messages


@contextmanager
def _busy(team: BaseGroupChat, refusal: Exception) -> Iterator[None]:
    """The team does one thing at a time: raises `refusal` where it does something already."""
    if team._is_running:
        raise refusal
    team._is_running = True
    try:
        yield
    finally:
        team._is_running = False


async def run_stream(
    team: BaseGroupChat,
    *,
    task: Task | None = None,
    cancellation_token: CancellationToken | None = None,
    output_task_messages: bool = True,
) -> AsyncGenerator[Message | TaskResult, None]:
    """`BaseGroupChat.run_stream` on the driver."""
    messages = start_messages(team, task)
    with _busy(team, ValueError("The team is already running, it cannot run again until it is stopped.")):
        async with aclosing(driver_of(team).stream(messages, cancellation_token, output_task_messages)) as stream:
            async for item in stream:
                yield item


async def reset(team: BaseGroupChat) -> None:
    """`BaseGroupChat.reset` on the driver."""
    running = "The group chat is currently running. It must be stopped before it can be reset."
    with _busy(team, RuntimeError(running)):
        driver = driver_of(team)
        for unread in driver.unread.values():
            unread.clear()
        await _each(team, "reset")
        await driver.manager.reset()


async def pause(team: BaseGroupChat) -> None:
    """`BaseGroupChat.pause` on the driver."""
    _require_begun(team, "paused")
    await _each(team, "pause")


async def resume(team: BaseGroupChat) -> None:
    """`BaseGroupChat.resume` on the driver."""
    _require_begun(team, "resumed")
    await _each(team, "resume")


def _require_begun(team: BaseGroupChat, what: str) -> None:
    if not team._initialized:
        raise RuntimeError(f"The group chat has not been initialized. It must be run before it can be {what}.")


async def _each(team: BaseGroupChat, what: Literal["reset", "pause", "resume"]) -> None:
    """Have every participant do it, one after the other."""
    for participant in team._participants:
        if isinstance(participant, Team):
            await getattr(participant, what)()
        else:
            await getattr(participant, f"on_{what}")(CancellationToken())


async def save_state(team: BaseGroupChat) -> Mapping[str, Any]:
    """`BaseGroupChat.save_state` on the driver, in AutoGen's own form."""
    driver = driver_of(team)
    states: dict[str, Mapping[str, Any]] = {}
    for participant in team._participants:
        states[participant.name] = ChatAgentContainerState(
            agent_state=dict(await participant.save_state()),
            message_buffer=[message.dump() for message in driver.unread[participant.name]],
        ).model_dump()
    states[team._group_chat_manager_name] = await driver.manager.save_state()
    return TeamState(agent_states=states).model_dump()


async def load_state(team: BaseGroupChat, state: Mapping[str, Any]) -> None:
    """`BaseGroupChat.load_state` on the driver; takes what AutoGen's runtime saved too."""
    with _busy(team, RuntimeError("The team cannot be loaded while it is running.")):
        driver = driver_of(team)
        states = _agent_states(state)
        for participant in team._participants:
            if participant.name not in states:
                raise ValueError(f"Agent state for {participant.name} not found in the saved state.")
            kept = ChatAgentContainerState.model_validate(states[participant.name])
            unread = [team._message_factory.create(data) for data in kept.message_buffer]
            driver.unread[participant.name][:] = cast(list[BaseChatMessage], unread)
            await participant.load_state(kept.agent_state)
        if team._group_chat_manager_name not in states:
            raise ValueError(f"Agent state for {team._group_chat_manager_name} not found in the saved state.")
        await driver.manager.load_state(states[team._group_chat_manager_name])


def _agent_states(state: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        return TeamState.model_validate(state).agent_states
    except ValidationError as error:
        raise ValueError(
            "Invalid state format. The expected state format has changed since v0.4.9. "
            "Please read the release note on GitHub."
        ) from error


# -- attaching ---------------------------------------------------------------------------------------------------------

_METHODS: dict[str, Any] = {
    "run_stream": run_stream,
    "reset": reset,
    "pause": pause,
    "resume": resume,
    "save_state": save_state,
    "load_state": load_state,
}


def attach(app: Any) -> None:
    """Drive a team, and the teams inside it, from now on; those that are not eligible stay on AutoGen's runtime.

    For copies that belong to Halo: it changes the class of the team object.
    """
    if isinstance(app, BaseGroupChat) and why_not_native(app) is None:
        cast(Any, app).__class__ = _native(type(app))
    for part in _inside(app):
        attach(part)


def release(app: Any) -> None:
    """Let go of what the runs of driven teams have left, now instead of at the next collection of cycles."""
    driver = app.__dict__.pop(DRIVER, None) if isinstance(app, BaseGroupChat) else None
    if driver is not None:
        driver.manager.__dict__.clear()
        driver.__dict__.clear()
    for part in _inside(app):
        release(part)


def _inside(app: Any) -> Iterator[Any]:
    """The participants of a team, and what an agent runs or wraps."""
    if isinstance(app, BaseGroupChat):
        yield from app._participants
    inner = getattr(app, "_team", None) or getattr(app, "_wrapped_agent", None)
    if inner is not None:
        yield inner


def is_driven(app: Any) -> bool:
    """Whether a team was attached."""
    return type(app) in _plain_classes


def _native(cls: type) -> type:
    if cls in _plain_classes:
        return cls
    native = _native_classes.get(cls)
    if native is None:
        native = type(
            cls.__name__, (cls,), {**_METHODS, "__module__": cls.__module__, "__qualname__": cls.__qualname__}
        )
        _native_classes[cls] = native
        _plain_classes[native] = cls
    return native


_originals: dict[str, Any] = {}


def install_class_patch() -> None:
    """Drive every eligible team of this process (for AutoGen's own test suites); idempotent."""
    if _originals:
        return
    for name, method in _METHODS.items():
        _originals[name] = getattr(BaseGroupChat, name)
        setattr(BaseGroupChat, name, _either(_originals[name], method))


def uninstall_class_patch() -> None:
    """Put AutoGen's own methods back."""
    for name, original in _originals.items():
        setattr(BaseGroupChat, name, original)
    _originals.clear()


def _either(original: Any, native: Any) -> Any:
    @functools.wraps(original)
    def method(self: BaseGroupChat, *args: Any, **kwargs: Any) -> Any:
        return (native if why_not_native(self) is None else original)(self, *args, **kwargs)

    return method
