"""From AutoGen's messages and tools to a chat-completions request, exactly as AutoGen's OpenAI client writes it.

The oracle is `autogen_ext.models.openai`'s `to_oai_type` and `convert_tools`; nothing of it is imported, since that
costs a second of imports and several times the CPU per message.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import Any, get_args

from autogen_core import FunctionCall, Image
from autogen_core.models import (
    AssistantMessage,
    FunctionExecutionResultMessage,
    LLMMessage,
    ModelFamily,
    SystemMessage,
    UserMessage,
)
from autogen_core.tools import Tool, ToolSchema

Wire = dict[str, Any]
ToolChoice = Any
"""A `Tool`, or "auto", "required", "none"."""

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}\Z")
_FAMILIES = frozenset(get_args(ModelFamily.ANY))


class Dialect(Enum):
    """How a family of models wants its messages; AutoGen keeps one set of transformers for each."""

    BASE = "base"
    GEMINI = "gemini"
    """Nothing may be empty."""
    CLAUDE = "claude"
    """Nothing may be empty; blank user and assistant messages are left out."""
    MISTRAL = "mistral"
    """User messages have no name; system messages may not be empty."""

    @classmethod
    def of(cls, model: str, family: str) -> Dialect:
        """The dialect of a model: by its family, else by the longest family that its name begins with."""
        if family not in _FAMILIES or family == ModelFamily.UNKNOWN:
            family = max((known for known in _FAMILIES if model.startswith(known)), key=len, default="")
        if ModelFamily.is_gemini(family):
            return cls.GEMINI
        if ModelFamily.is_claude(family):
            return cls.CLAUDE
        return cls.MISTRAL if ModelFamily.is_mistral(family) else cls.BASE


def messages_to_wire(
    messages: Iterable[LLMMessage], dialect: Dialect, *, prefixes: bool = False, names: bool = True
) -> list[Wire]:
    """The messages of a request; `prefixes` puts "NAME said:" before texts, `names` the `name` field of user messages.

    Raises `ValueError` for a source that is no valid name, as AutoGen does.
    """
    wire: list[Wire] = []
    for message in messages:
        if isinstance(message, UserMessage):
            _user(message, dialect, prefixes, names, wire)
        elif isinstance(message, AssistantMessage):
            _assistant(message, dialect, prefixes, wire)
        elif isinstance(message, FunctionExecutionResultMessage):
            wire += [{"role": "tool", "content": r.content, "tool_call_id": r.call_id} for r in message.content]
        elif isinstance(message, SystemMessage):
            content = message.content
            if dialect is not Dialect.BASE:
                content = content or " "
            wire.append({"role": "system", "content": content})
        else:
            raise ValueError(f"Unknown message type: {type(message)}")
    return wire


def _user(message: UserMessage, dialect: Dialect, prefixes: bool, names: bool, wire: list[Wire]) -> None:
    source = _valid_name(message.source)
    prefix = f"{source} said:\n" if prefixes else ""
    content: Any = message.content
    if isinstance(content, str):
        if dialect is Dialect.CLAUDE and not content.strip():
            return
        text = prefix + content
        if dialect is Dialect.GEMINI:
            text = content or " "
        content = text
    else:
        content = [_part(part, prefix if i == 0 else "") for i, part in enumerate(content)]
    entry = {"role": "user", "content": content}
    if names and dialect is not Dialect.MISTRAL:
        entry["name"] = source
    wire.append(entry)


def _part(part: Any, prefix: str) -> Wire:
    if isinstance(part, str):
        return {"type": "text", "text": prefix + part}
    if isinstance(part, Image):
        return part.to_openai_format()
    raise ValueError(f"Unknown content part: {part}")


def _assistant(message: AssistantMessage, dialect: Dialect, prefixes: bool, wire: list[Wire]) -> None:
    _valid_name(message.source)
    content: Any = message.content
    if isinstance(content, list):
        thought = message.thought
        if thought is not None and dialect in (Dialect.GEMINI, Dialect.CLAUDE):
            thought = thought or " "
        wire.append({"role": "assistant", "content": thought, "tool_calls": [_tool_call(call) for call in content]})
        return
    if dialect is Dialect.CLAUDE and not content.strip():
        return
    if dialect is Dialect.GEMINI:
        content = content or " "
    wire.append({"role": "assistant", "content": content})


def _tool_call(call: FunctionCall) -> Wire:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _valid_name(name: str) -> str:
    if not _NAME.match(name):
        if len(name) > 64:
            raise ValueError(f"Invalid name: {name}. Name must be less than 64 characters.")
        raise ValueError(f"Invalid name: {name}. Only letters, numbers, '_' and '-' are allowed.")
    return name


# -- system messages -------------------------------------------------------------------------------------------------


def merge_system(
    messages: Sequence[LLMMessage], late: Callable[[SystemMessage], LLMMessage | None]
) -> Sequence[LLMMessage]:
    """Adjacent leading system messages as one, as AutoGen does for models that take only one.

    `late` decides about a system message that comes after others: what stands in its place, or None to add its text to
    the first one.
    """
    first = last = -1
    text = ""
    merged: list[LLMMessage] = []
    for i, message in enumerate(messages):
        if not isinstance(message, SystemMessage):
            merged.append(message)
            continue
        if first < 0:
            first = last = i
        elif last + 1 == i:
            last = i
        elif (instead := late(message)) is not None:
            merged.append(instead)
            continue
        text += message.content + "\n"
    text = text.rstrip()
    if text:
        merged.insert(first, SystemMessage(content=text))
    return merged


# -- tools -----------------------------------------------------------------------------------------------------------


def tools_to_wire(tools: Iterable[Tool | ToolSchema]) -> list[Wire]:
    """The tools of a request. Raises `ValueError` for an invalid tool name."""
    wire: list[Wire] = []
    for tool in tools:
        schema: Mapping[str, Any] = tool if isinstance(tool, dict) else tool.schema
        function = {
            "name": _valid_name(schema["name"]),
            "description": schema.get("description", ""),
            "parameters": schema.get("parameters", {}),
            "strict": schema.get("strict", False),
        }
        wire.append({"type": "function", "function": function})
    return wire


def tool_choice_to_wire(choice: ToolChoice, tools: Sequence[Tool | ToolSchema]) -> Any:
    """The `tool_choice` of a request with these tools; None where none is sent, since there are no tools.

    Raises `ValueError` for a choice that is not among the tools, or is none at all.
    """
    if isinstance(choice, str):  # before asking for the protocol, which is slow
        if choice not in ("auto", "required", "none"):
            raise ValueError(f"tool_choice must be a Tool object, 'auto', 'required', or 'none', got {choice!r}")
        return choice if tools else None
    if isinstance(choice, Tool):
        name = choice.schema["name"]
        if not tools:
            raise ValueError(f"tool_choice specified ({name!r}) but no tools provided")
        available = [tool.schema["name"] if isinstance(tool, Tool) else tool["name"] for tool in tools]
        if name not in available:
            raise ValueError(
                f"tool_choice references '{name}' but it's not in the provided tools ({', '.join(available)})"
            )
        return {"type": "function", "function": {"name": name}}
    raise ValueError(f"tool_choice must be a Tool object, 'auto', 'required', or 'none', got {type(choice)}")


# -- tool call ids ---------------------------------------------------------------------------------------------------


def canonical_ids(messages: Sequence[Wire]) -> list[Wire]:
    """The same messages with tool-call ids numbered in order of appearance.

    Engines make the ids up, so that equal conversations of two runs differ in them alone. Nine letters and digits is
    what the strictest template (Mistral's) takes.
    """
    numbers: dict[str, str] = {}

    def number(given: str) -> str:
        return numbers.setdefault(given, f"call{len(numbers):05d}")

    result: list[Wire] = []
    for message in messages:
        if calls := message.get("tool_calls"):
            message = {**message, "tool_calls": [{**call, "id": number(call["id"])} for call in calls]}
        elif message["role"] == "tool":
            message = {**message, "tool_call_id": number(message["tool_call_id"])}
        result.append(message)
    return result
