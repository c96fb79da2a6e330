"""Turns: what one participant of a team says when it is asked, and what several say side by side."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractContextManager, aclosing, nullcontext
from dataclasses import dataclass
from typing import Any

from autogen_agentchat.base import ChatAgent, Response, TaskResult, Team
from autogen_agentchat.messages import BaseAgentEvent, BaseChatMessage
from autogen_agentchat.teams._group_chat._events import GroupChatAgentResponse, GroupChatTeamResponse
from autogen_core import AgentId, CancellationToken, MessageHandlerContext, trace_invoke_agent_span
from opentelemetry import trace

Message = BaseAgentEvent | BaseChatMessage
Answer = GroupChatAgentResponse | GroupChatTeamResponse


class TurnFailed(Exception):
    """A participant or the manager raised inside the conversation; AutoGen tells the caller with a RuntimeError."""


@dataclass(slots=True, frozen=True)
class Speaker:
    """A participant, and what has been said since it last spoke."""

    participant: ChatAgent | Team
    unread: list[BaseChatMessage]
    agent_id: AgentId
    check: Callable[[Message], None]
    """Raises `ValueError` for a message of a type that the team does not know."""

    async def turn(self, token: CancellationToken) -> AsyncGenerator[Any, None]:
        """What it says, event by event, its `Answer` at the end. Raises `TurnFailed`."""
        steps = _steps(self.participant, self.unread, self.agent_id, token)
        try:
            async with aclosing(steps):
                while True:
                    # Around each step: a generator shares its consumer's context.
                    with MessageHandlerContext.populate_context(self.agent_id):
                        event = await anext(steps, None)
                    if event is None:
                        break
                    if isinstance(event, Answer):
                        if isinstance(event, GroupChatAgentResponse):
                            self.check(event.response.chat_message)
                            yield event.response.chat_message
                        self.unread.clear()
                        yield event
                        return
                    self.check(event)
                    yield event
            kind = "team" if isinstance(self.participant, Team) else "agent"
            raise RuntimeError(f"The {kind} {self.participant.name!r} did not produce a final result.")
        except Exception as error:
            raise TurnFailed from error


class Round:
    """Turns of several participants side by side, or of one that a token may cancel."""

    def __init__(self, speakers: Sequence[Speaker], token: CancellationToken) -> None:
        self._speakers = speakers
        self._token = token
        self._queues: list[asyncio.Queue[Any]] = [asyncio.Queue() for _ in speakers]
        self._failed: list[BaseException] = []

    async def events(self) -> AsyncGenerator[Any, None]:
        """What they say, in their order, live for the first. Raises `TurnFailed`, and `CancelledError` with the token.

        As in AutoGen the token cancels the wait for what is said, not the turn: an agent that does not heed the token
        finishes. Its answer is then in `left`.
        """
        tasks: list[asyncio.Task[None]] = []
        for speaker, queue in zip(self._speakers, self._queues, strict=True):
            task = asyncio.create_task(self._speak(speaker, queue))
            task.add_done_callback(functools.partial(self._ended, queue=queue))
            tasks.append(task)
        finish = False
        try:
            for queue in self._queues:
                while True:
                    waiting = asyncio.ensure_future(queue.get())
                    self._token.link_future(waiting)
                    try:
                        event = await waiting
                    except asyncio.CancelledError:
                        own = asyncio.current_task()
                        finish = self._token.is_cancelled() and (own is None or not own.cancelling())
                        raise
                    if self._failed:
                        raise self._failed[0]
                    if event is None:
                        break
                    yield event
        finally:
            if not finish:
                for task in tasks:
                    task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def left(self) -> list[Answer]:
        """Answers that nobody has taken, once the events have ended."""
        found: list[Answer] = []
        for queue in self._queues:
            while not queue.empty():
                event = queue.get_nowait()
                if isinstance(event, Answer):
                    found.append(event)
        return found

    async def _speak(self, speaker: Speaker, queue: asyncio.Queue[Any]) -> None:
        async with aclosing(speaker.turn(self._token)) as turn:
            async for event in turn:
                queue.put_nowait(event)

    def _ended(self, task: asyncio.Task[None], queue: asyncio.Queue[Any]) -> None:
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is None:
            queue.put_nowait(None)
            return
        self._failed.append(error)
        for each in self._queues:  # nobody waits for the end of a conversation that has failed
            each.put_nowait(None)


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
