"""LangChain's prompt templates and messages as the plan's prompt templates. Nothing is formatted or called."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from langchain_core.messages import BaseMessage
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.prompts import PromptTemplate as LangChainPrompt
from langchain_core.prompts.chat import (
    AIMessagePromptTemplate,
    ChatMessagePromptTemplate,
    HumanMessagePromptTemplate,
    SystemMessagePromptTemplate,
)
from langchain_core.prompts.message import BaseMessagePromptTemplate

from halo_core.errors import PlanError
from halo_core.lift import fields
from halo_core.plan import LiteralText, Message, MessagesSlot, PromptTemplate, Slot

ROLES = {"human": "user", "ai": "assistant", "system": "system"}
"""LangChain's message types -> the wire's roles."""

_TEMPLATE_ROLES: dict[type, str] = {
    HumanMessagePromptTemplate: "user",
    AIMessagePromptTemplate: "assistant",
    SystemMessagePromptTemplate: "system",
}


def prompt_template(prompt: Any) -> PromptTemplate | None:
    """The template, or None where part of it only running tells (other formats than f-strings, partials that are
    functions, images, limited placeholders, subclasses of the user's own)."""
    try:
        if type(prompt) is ChatPromptTemplate:
            values = fields(prompt).get("partial_variables") or {}
            return PromptTemplate(parts=tuple(_part(message, values) for message in prompt.messages))
        if type(prompt) is LangChainPrompt:
            return PromptTemplate(parts=(_message("user", prompt, {}),))
    except (_Unknown, PlanError):
        return None
    return None


def fixed_messages(messages: Iterable[BaseMessage]) -> tuple[Message, ...] | None:
    """Messages that are the same in every row; None where one is more than a role and text."""
    try:
        return tuple(_fixed(message) for message in messages)
    except _Unknown:
        return None


class _Unknown(Exception):
    """The plan's templates cannot say this."""


def _part(part: Any, partials: dict[str, Any]) -> Message | MessagesSlot:
    if isinstance(part, BaseMessage):
        return _fixed(part)
    if type(part) is MessagesPlaceholder:
        if part.n_messages is not None or part.variable_name in partials:
            raise _Unknown
        return MessagesSlot(path=part.variable_name)
    if not isinstance(part, BaseMessagePromptTemplate) or fields(part).get("additional_kwargs"):
        raise _Unknown
    role = part.role if type(part) is ChatMessagePromptTemplate else _TEMPLATE_ROLES.get(type(part))
    inner = fields(part).get("prompt")
    if role is None or type(inner) is not LangChainPrompt:
        raise _Unknown
    return _message(role, inner, partials)


def _fixed(message: BaseMessage) -> Message:
    role = ROLES.get(message.type)
    if role is None or not isinstance(message.content, str) or message.additional_kwargs or message.name:
        raise _Unknown
    if getattr(message, "tool_calls", None):
        raise _Unknown
    return Message(role=role, segments=(LiteralText(text=message.content),) if message.content else ())


def _message(role: str, prompt: LangChainPrompt, partials: dict[str, Any]) -> Message:
    if prompt.template_format != "f-string":
        raise _Unknown
    parsed = PromptTemplate.parse(prompt.template, role).parts[0]
    if not isinstance(parsed, Message):
        raise _Unknown
    values = {**partials, **prompt.partial_variables}
    segments: list[LiteralText | Slot] = []
    for segment in parsed.segments:
        if isinstance(segment, Slot) and segment.path in values:
            value = values[segment.path]
            if not isinstance(value, str):  # a function, called anew for each prompt
                raise _Unknown
            segment = LiteralText(text=value)
        if isinstance(segment, Slot) and segment.key != segment.path:
            raise _Unknown  # `{doc.title}` would run the value's own code
        if isinstance(segment, LiteralText) and segments and isinstance(segments[-1], LiteralText):
            segment = LiteralText(text=segments.pop().text + segment.text)  # type: ignore[union-attr]
        segments.append(segment)
    return Message(role=role, segments=tuple(segments))
