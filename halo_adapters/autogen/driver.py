"""The driver of one team: its own manager and agents, called directly instead of through AutoGen's runtime.

AutoGen delivers every message of a group chat through a queue, a task and a copy of the context per receiver. What
these deliveries come to is fixed by the group chat's own protocol, so the driver does just that: who is asked to speak
speaks, what is said goes into the others' buffers and to the manager. Where agents speak side by side (GraphFlow),
AutoGen takes their answers as they happen to end; the driver takes them in the participants' order, which AutoGen could
have done too, and which makes prompts equal from run to run.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager, aclosing, suppress
from typing import Any, cast

from autogen_agentchat.base import ChatAgent, TaskResult, Team
from autogen_agentchat.messages import BaseChatMessage, ModelClientStreamingChunkEvent
from autogen_agentchat.teams import BaseGroupChat
from autogen_agentchat.teams._group_chat._events import (
    GroupChatAgentResponse,
    GroupChatRequestPublish,
    GroupChatStart,
    GroupChatTermination,
    SerializableException,
)
from autogen_core import AgentId, CancellationToken, MessageContext, MessageHandlerContext, TopicId

from halo_adapters.autogen.turns import Answer, Message, Round, Speaker, TurnFailed


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
        self.manager._active_speakers.clear()  # of a run that was broken off
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
                answers: list[Answer] = []
                async with aclosing(self._round(asked, own, context, alone=token is None)) as turns:
                    async for event in turns:
                        if isinstance(event, Answer):
                            answers.append(event)
                            continue
                        yield event
                        if not isinstance(event, ModelClientStreamingChunkEvent):
                            said.append(event)
                for answer in answers:
                    await self._tell(answer, context)
        except TurnFailed as failure:
            error = cast(Exception, failure.__cause__)
            raise RuntimeError(str(SerializableException.from_exception(error))) from error
        finally:
            if token is None:
                own.cancel()  # whatever agents have linked to it ends with the run

    async def _round(
        self, names: list[str], token: CancellationToken, context: MessageContext, *, alone: bool
    ) -> AsyncGenerator[Any, None]:
        """What the participants say who were asked; `alone`: nobody else holds the token."""
        speakers = [
            Speaker(self._participants[name], self.unread[name], self._ids[name], self._check) for name in names
        ]
        if len(speakers) == 1 and alone:
            async with aclosing(speakers[0].turn(token)) as turn:
                async for event in turn:
                    yield event
            return
        together = Round(speakers, token)
        try:
            async with aclosing(together.events()) as events:
                async for event in events:
                    yield event
        except asyncio.CancelledError:
            # What was said to the end has been said: the next run goes on from there.
            with suppress(asyncio.CancelledError, TurnFailed):
                for answer in together.left() if token.is_cancelled() else ():
                    await self._tell(answer, context)
            raise

    async def _tell(self, answer: Answer, context: MessageContext) -> None:
        """An answer goes into the others' buffers and to the manager, who decides what comes next."""
        heard = [answer.response.chat_message] if isinstance(answer, GroupChatAgentResponse) else answer.result.messages
        for name, unread in self.unread.items():
            if name != answer.name:
                unread += [message for message in heard if isinstance(message, BaseChatMessage)]
        try:
            with self._as_manager():
                await self.manager.handle_agent_response(answer, context)
        except Exception as error:
            raise TurnFailed from error
