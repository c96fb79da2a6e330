"""Tasks and results as plain data: what a row of a file stands for, what identifies it, what a result is as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from autogen_agentchat.base import TaskResult
from autogen_agentchat.messages import BaseChatMessage, MessageFactory

from halo_core.errors import ConfigError
from halo_core.runtime import digest

Task = str | BaseChatMessage | Sequence[BaseChatMessage]

_VOLATILE = ("id", "created_at", "full_message_id")
"""Fields of a message that differ from run to run."""


def task_of(row: Any) -> Task:
    """The task of a row: a task itself, or an object whose `task` is a text or a list of messages.

    Raises `ConfigError` for a row that has none.
    """
    if isinstance(row, str | BaseChatMessage):
        return row
    if isinstance(row, Mapping):
        task = row.get("task")
        if isinstance(task, str):
            return task
        if isinstance(task, list) and task:
            factory = MessageFactory()
            try:
                return [_message(factory, entry) for entry in task]
            except (TypeError, ValueError) as error:
                raise ConfigError(f"the row's messages cannot be read: {error}") from error
        raise ConfigError(f"the row has no 'task' (a text, or a list of messages); it has {sorted(row) or 'nothing'}")
    if isinstance(row, Sequence) and row and all(isinstance(message, BaseChatMessage) for message in row):
        return list(row)
    raise ConfigError(f"a task is a text, a message or a list of messages, not {row!r}")


def _message(factory: MessageFactory, entry: Any) -> BaseChatMessage:
    if isinstance(entry, str):
        entry = {"content": entry}
    message = factory.create({"type": "TextMessage", "source": "user", **entry})
    if not isinstance(message, BaseChatMessage):
        raise ValueError(f"{type(message).__name__} is an event, not a message")
    return message


def task_content(row: Any) -> str:
    """A short text that is equal for equal tasks across processes."""
    try:
        task = task_of(row)
    except ConfigError:  # the row's own failure, told when it is run
        return digest(json.dumps(row, sort_keys=True, default=repr))
    if isinstance(task, str):
        return digest(json.dumps(task))
    messages = [task] if isinstance(task, BaseChatMessage) else task
    return digest(json.dumps([stable(message) for message in messages], sort_keys=True, default=repr))


def stable(message: Any) -> dict[str, Any]:
    """A message as JSON data without what differs from run to run."""
    data: dict[str, Any] = dict(message.dump())
    for name in _VOLATILE:
        data.pop(name, None)
    return data


def result_to_json(result: TaskResult) -> dict[str, Any]:
    """A result as JSON data; `result_from_json` reads it back."""
    return {"stop_reason": result.stop_reason, "messages": [dict(message.dump()) for message in result.messages]}


def result_from_json(data: Mapping[str, Any], factory: MessageFactory) -> TaskResult:
    """A result that `result_to_json` wrote. Raises `ValueError` for a message type that the team does not know."""
    return TaskResult(messages=[factory.create(m) for m in data["messages"]], stop_reason=data["stop_reason"])
