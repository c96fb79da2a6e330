"""The runtime-less driver: a team's own manager and agents, called directly instead of through AutoGen's runtime.

AutoGen delivers every message of a group chat through a queue, a task and a copy of the context per receiver. What
these deliveries come to is fixed by the group chat's own protocol, so the driver does just that: who is asked to speak
speaks, what is said goes into the others' buffers and to the manager. Where agents speak side by side (GraphFlow),
AutoGen takes their answers as they happen to end; the driver takes them in the participants' order, which AutoGen could
have done too, and which makes prompts equal from run to run.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing, nullcontext
from typing import Any, cast

from autogen_agentchat.base import ChatAgent, Response, TaskResult, Team
from autogen_agentchat.messages import (
    BaseAgentEvent,
    BaseChatMessage,
    ModelClientStreamingChunkEvent,
    TextMessage,
)
from autogen_agentchat.state import ChatAgentContainerState, TeamState
from autogen_agentchat.teams import BaseGroupChat, GraphFlow, RoundRobinGroupChat, SelectorGroupChat, Swarm
from autogen_agentchat.teams._group_chat._events import (
    GroupChatAgentResponse,
    GroupChatRequestPublish,
    GroupChatStart,
    GroupChatTeamResponse,
    GroupChatTermination,
    SerializableException,
)
from autogen_core import (
    AgentId,
    CancellationToken,
    MessageContext,
    MessageHandlerContext,
    TopicId,
    trace_invoke_agent_span,
)
from opentelemetry import trace

from halo_adapters.autogen.clone import DRIVER

Message = BaseAgentEvent | BaseChatMessage
Task = str | BaseChatMessage | Sequence[BaseChatMessage] | None

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


class _Outbox:
    """What the manager takes for the queue of messages that leave the team."""

    __slots__ = ("items",)

    def __init__(self) -> None:
        self.items: list[Message | GroupChatTermination] = []

    async def put(self, item: Message | GroupChatTermination) -> None:
        self.items.append(item)

    def take(self) -> list[Message | GroupChatTermination]:
        items, self.items = self.items, []
        return items


class _Failed(Exception):
    """An agent or the manager raised inside the conversation; AutoGen tells the caller with a RuntimeError."""


class Driver:
    """One team's manager and what its participants have not read yet; kept as long as the team."""

    def __init__(self, team: BaseGroupChat) -> None:
        self.team = team
        self.outbox = _Outbox()
        names = team._participant_names
        self.unread: dict[str, list[BaseChatMessage]] = {name: [] for name in names}
        self._place = {name: i for i, name in enumerate(names)}
        self._ids = {
            name: AgentId(topic, team._team_id)
            for name, topic in zip(names, team._participant_topic_types, strict=True)
        }
        self._name_of = dict(zip(team._participant_topic_types, names, strict=True))
        self._participants: dict[str, ChatAgent | Team] = {p.name: p for p in team._participants}
        self._asked: list[str] = []
        self._manager_id = AgentId(team._group_chat_manager_topic_type, team._team_id)
        self._registered: set[type] = set()
        self.manager: Any = team._create_group_chat_manager_factory(
            name=team._group_chat_manager_name,
            group_topic_type=team._group_topic_type,
            output_topic_type=team._output_topic_type,
            participant_topic_types=team._participant_topic_types,
            participant_names=names,
            participant_descriptions=team._participant_descriptions,
            output_message_queue=cast(Any, self.outbox),
            termination_condition=team._termination_condition,
            max_turns=team._max_turns,
            message_factory=team._message_factory,
        )()
        self.manager.__dict__["publish_message"] = self._publish

    # -- what the manager says -----------------------------------------------------------------------------------

    async def _publish(self, message: Any, topic_id: TopicId, *, cancellation_token: Any = None) -> None:
        if isinstance(message, GroupChatRequestPublish):
            self._asked.append(self._name_of[topic_id.type])
        elif isinstance(message, GroupChatStart) and topic_id.type == self.team._group_topic_type:
            for said in message.messages or ():
                self._check(said)
                for unread in self.unread.values():
                    unread.append(said)

    def _check(self, message: Message) -> None:
        kind = type(message)
        if kind not in self._registered:
            if not self.team._message_factory.is_registered(kind):
                raise ValueError(f"Message type {kind} is not registered.")
            self._registered.add(kind)

    def _as_manager(self) -> AbstractContextManager[None]:
        return MessageHandlerContext.populate_context(self._manager_id)

    def _context(self, token: CancellationToken) -> MessageContext:
        return MessageContext(sender=None, topic_id=None, is_rpc=False, cancellation_token=token, message_id="")

    # -- a run ---------------------------------------------------------------------------------------------------

    async def stream(
        self, messages: list[BaseChatMessage] | None, token: CancellationToken | None, output_task_messages: bool
    ) -> AsyncGenerator[Message | TaskResult, None]:
        """One run of the team, from these messages on; the last item is the result."""
        own = token or CancellationToken()
        context = self._context(own)
        said: list[Message] = []
        self._asked.clear()
        self.outbox.take()
        start = GroupChatStart(messages=messages, output_task_messages=output_task_messages)
        with self._as_manager():
            await self.manager.handle_start(start, context)
        try:
            while True:
                for item in self.outbox.take():
                    if isinstance(item, GroupChatTermination):
                        yield TaskResult(messages=said, stop_reason=item.message.content)
                        return
                    yield item
                    if not isinstance(item, ModelClientStreamingChunkEvent):
                        said.append(item)
                asked = sorted(self._asked, key=self._place.__getitem__)
                self._asked.clear()
                if not asked:
                    yield TaskResult(messages=said, stop_reason="The group chat is stopped.")
                    return
                answers: list[GroupChatAgentResponse | GroupChatTeamResponse] = []
                turn = self._turn(asked[0], own) if len(asked) == 1 and token is None else self._turns(asked, own)
                async with aclosing(turn):
                    async for event in turn:
                        if isinstance(event, GroupChatAgentResponse | GroupChatTeamResponse):
                            answers.append(event)
                            continue
                        yield event
                        if not isinstance(event, ModelClientStreamingChunkEvent):
                            said.append(event)
                for answer in answers:
                    await self._tell(answer, context)
        except _Failed as failure:
            error = cast(Exception, failure.__cause__)
            raise RuntimeError(str(SerializableException.from_exception(error))) from error
        finally:
            if token is None:
                own.cancel()  # whatever agents have linked to it ends with the run

    async def _tell(self, answer: GroupChatAgentResponse | GroupChatTeamResponse, context: MessageContext) -> None:
        """An answer goes into the others' buffers and to the manager, who decides what comes next."""
        heard = [answer.response.chat_message] if isinstance(answer, GroupChatAgentResponse) else answer.result.messages
        for name, unread in self.unread.items():
            if name != answer.name:
                unread += [message for message in heard if isinstance(message, BaseChatMessage)]
        try:
            with self._as_manager():
                await self.manager.handle_agent_response(answer, context)
        except Exception as error:
            raise _Failed from error

    # -- turns ---------------------------------------------------------------------------------------------------

    async def _turn(self, name: str, token: CancellationToken) -> AsyncGenerator[Any, None]:
        """What one participant says, event by event, its answer at the end."""
        participant, unread, agent_id = self._participants[name], self.unread[name], self._ids[name]
        steps = _steps(participant, unread, agent_id, token)
        try:
            async with aclosing(steps):
                while True:
                    # Around each step: a generator shares its consumer's context.
                    with MessageHandlerContext.populate_context(agent_id):
                        event = await anext(steps, None)
                    if event is None:
                        break
                    if isinstance(event, GroupChatAgentResponse | GroupChatTeamResponse):
                        if isinstance(event, GroupChatAgentResponse):
                            self._check(event.response.chat_message)
                            yield event.response.chat_message
                        unread.clear()
                        yield event
                        return
                    self._check(event)
                    yield event
            kind = "team" if isinstance(participant, Team) else "agent"
            raise RuntimeError(f"The {kind} did not produce a final result: check the stream of {name!r}.")
        except Exception as error:
            raise _Failed from error

    async def _turns(self, names: Sequence[str], token: CancellationToken) -> AsyncGenerator[Any, None]:
        """Turns of several participants side by side; what they say comes in their order, live for the first."""
        queues: list[asyncio.Queue[Any]] = [asyncio.Queue() for _ in names]

        failed: list[BaseException] = []

        async def run(name: str, queue: asyncio.Queue[Any]) -> None:
            async with aclosing(self._turn(name, token)) as turn:
                async for event in turn:
                    queue.put_nowait(event)

        def ended(task: asyncio.Task[None], queue: asyncio.Queue[Any]) -> None:
            error = asyncio.CancelledError() if task.cancelled() else task.exception()
            if error is None:
                queue.put_nowait(None)
                return
            failed.append(error)
            for each in queues:  # nobody waits for the end of a conversation that has failed
                each.put_nowait(None)

        tasks: list[asyncio.Task[None]] = []
        for name, queue in zip(names, queues, strict=True):
            task = asyncio.create_task(run(name, queue))
            task.add_done_callback(functools.partial(ended, queue=queue))
            token.link_future(task)
            tasks.append(task)
        try:
            for queue in queues:
                while True:
                    event = await queue.get()
                    if failed:
                        raise failed[0]
                    if event is None:
                        break
                    yield event
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _steps(
    participant: ChatAgent | Team, unread: list[BaseChatMessage], agent_id: AgentId, token: CancellationToken
) -> AsyncGenerator[Any, None]:
    """The events of one participant, and its answer in the form in which a group chat hears it."""
    if isinstance(participant, Team):
        result: TaskResult | None = None
        async for event in participant.run_stream(task=unread, cancellation_token=token, output_task_messages=False):
            if isinstance(event, TaskResult):
                result = event
            else:
                yield event
        if result is not None:
            yield GroupChatTeamResponse.model_construct(result=result, name=participant.name)
        return
    answer: Response | None = None
    with _span(participant, agent_id):
        async for message in participant.on_messages_stream(unread, token):
            if isinstance(message, Response):
                answer = message
            else:
                yield message
    if answer is not None:
        yield GroupChatAgentResponse.model_construct(response=answer, name=participant.name)


def _span(agent: ChatAgent, agent_id: AgentId) -> AbstractContextManager[Any]:
    """AutoGen's span of an agent's turn, where anybody collects spans."""
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return nullcontext()
    return trace_invoke_agent_span(agent_name=agent.name, agent_description=agent.description, agent_id=str(agent_id))


# -- the methods of a driven team --------------------------------------------------------------------------------------


def driver_of(team: BaseGroupChat) -> Driver:
    """The team's driver, made on first use."""
    driver: Driver | None = team.__dict__.get(DRIVER)
    if driver is None:
        driver = team.__dict__[DRIVER] = Driver(team)
        team._initialized = True
    return driver


def start_messages(team: BaseGroupChat, task: Task) -> list[BaseChatMessage] | None:
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


def _claim(team: BaseGroupChat, message: str) -> None:
    if team._is_running:
        raise ValueError(message)
    team._is_running = True


async def run_stream(
    team: BaseGroupChat,
    *,
    task: Task = None,
    cancellation_token: CancellationToken | None = None,
    output_task_messages: bool = True,
) -> AsyncGenerator[Message | TaskResult, None]:
    """`BaseGroupChat.run_stream` on the driver."""
    messages = start_messages(team, task)
    _claim(team, "The team is already running, it cannot run again until it is stopped.")
    try:
        async with aclosing(driver_of(team).stream(messages, cancellation_token, output_task_messages)) as stream:
            async for item in stream:
                yield item
    finally:
        team._is_running = False


async def reset(team: BaseGroupChat) -> None:
    """`BaseGroupChat.reset` on the driver."""
    if team._is_running:
        raise RuntimeError("The group chat is currently running. It must be stopped before it can be reset.")
    team._is_running = True
    try:
        driver = driver_of(team)
        for participant in team._participants:
            driver.unread[participant.name].clear()
            if isinstance(participant, Team):
                await participant.reset()
            else:
                await participant.on_reset(CancellationToken())
        await driver.manager.reset()
    finally:
        team._is_running = False


async def pause(team: BaseGroupChat) -> None:
    """`BaseGroupChat.pause` on the driver."""
    if not team._initialized:
        raise RuntimeError("The group chat has not been initialized. It must be run before it can be paused.")
    for participant in team._participants:
        if isinstance(participant, Team):
            await participant.pause()
        else:
            await participant.on_pause(CancellationToken())


async def resume(team: BaseGroupChat) -> None:
    """`BaseGroupChat.resume` on the driver."""
    if not team._initialized:
        raise RuntimeError("The group chat has not been initialized. It must be run before it can be resumed.")
    for participant in team._participants:
        if isinstance(participant, Team):
            await participant.resume()
        else:
            await participant.on_resume(CancellationToken())


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
    _claim_for_load(team)
    try:
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
    finally:
        team._is_running = False


def _claim_for_load(team: BaseGroupChat) -> None:
    if team._is_running:
        raise RuntimeError("The team cannot be loaded while it is running.")
    team._is_running = True


def _agent_states(state: Mapping[str, Any]) -> Mapping[str, Any]:
    from pydantic import ValidationError

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
    if isinstance(app, BaseGroupChat):
        if why_not_native(app) is None:
            cast(Any, app).__class__ = _native(type(app))
        for participant in app._participants:
            attach(participant)
    inner = getattr(app, "_team", None) or getattr(app, "_wrapped_agent", None)
    if inner is not None:
        attach(inner)


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
