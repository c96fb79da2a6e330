"""From an engine's answer to AutoGen's `CreateResult`: contents, tool calls, reasoning, finish reasons, log-probs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal
from uuid import uuid4

from autogen_core import FunctionCall
from autogen_core.models import ChatCompletionTokenLogprob, CreateResult, ModelFamily, RequestUsage, TopLogprob

from halo_core.errors import EngineError

FinishReason = Literal["stop", "length", "function_calls", "content_filter", "unknown"]

_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "end_turn": "stop",
    "length": "length",
    "content_filter": "content_filter",
    "function_calls": "function_calls",
    "tool_calls": "function_calls",
}
_NOT_A_NAME = re.compile(r"[^a-zA-Z0-9_-]")


def finish_reason(said: str | None) -> FinishReason:
    """AutoGen's word for an engine's finish reason."""
    return _REASONS.get((said or "").lower(), "unknown")


def result_of(document: Mapping[str, Any], family: str, *, structured: bool = False) -> CreateResult:
    """The result of a `chat.completion` document. Tool calls get new ids: they must be unique in a conversation.

    Raises `EngineError` where there is no answer, or a structured one was cut off.
    """
    choices = document.get("choices")
    if not choices:
        raise EngineError("the engine's answer has no choices")
    choice = choices[0]
    message = choice["message"]
    text = message.get("content") or ""
    reason = choice.get("finish_reason")
    thought: str | None = None
    content: str | list[FunctionCall]
    if calls := message.get("tool_calls"):
        thought = text or None
        content = [_call(call["function"].get("name"), call["function"].get("arguments")) for call in calls]
    else:
        content = text
        thought = _reasoning(message)
    if structured:
        _refuse_incomplete(reason)
    if calls:
        reason = "tool_calls"
    return _result(content, thought, reason, _usage(document.get("usage")), _logprobs(choice), family)


def _result(
    content: str | list[FunctionCall],
    thought: str | None,
    reason: str | None,
    usage: RequestUsage,
    logprobs: list[ChatCompletionTokenLogprob] | None,
    family: str,
) -> CreateResult:
    if isinstance(content, str) and thought is None and family == ModelFamily.R1:
        thought, content = split_thought(content)
    return CreateResult(
        finish_reason=finish_reason(reason),
        content=content,
        usage=usage,
        cached=False,
        logprobs=logprobs,
        thought=thought,
    )


def split_thought(text: str) -> tuple[str | None, str]:
    """(reasoning, answer) of a text with its reasoning in `<think>...</think>`."""
    start, end = text.find("<think>"), text.find("</think>")
    if start < 0 or end < start:
        return None, text
    return text[start + len("<think>") : end].strip(), text[end + len("</think>") :].strip()


def _call(name: str | None, arguments: Any) -> FunctionCall:
    name = _NOT_A_NAME.sub("_", name or "")[:64]
    return FunctionCall(id=f"call_{uuid4().hex[:24]}", arguments=_text(arguments), name=name)


def _text(arguments: Any) -> str:
    """The arguments of a tool call, which some engines give as an object, as JSON text."""
    if arguments is None:
        return ""
    return arguments if isinstance(arguments, str) else json.dumps(arguments)


def _reasoning(message: Mapping[str, Any]) -> str | None:
    """Engines call it `reasoning` now and called it `reasoning_content` before."""
    found = message.get("reasoning") or message.get("reasoning_content")
    return found if isinstance(found, str) else None


def _refuse_incomplete(reason: str | None) -> None:
    if reason == "length":
        raise EngineError(
            "a structured answer was cut off before it was complete (finish reason 'length'): raise max_tokens"
        )
    if reason == "content_filter":
        raise EngineError("a structured answer was stopped by the engine's content filter")


def _usage(usage: Mapping[str, Any] | None) -> RequestUsage:
    if not usage:
        return RequestUsage(0, 0)
    return RequestUsage(int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0))


def _logprobs(choice: Mapping[str, Any]) -> list[ChatCompletionTokenLogprob] | None:
    tokens = (choice.get("logprobs") or {}).get("content")
    if not tokens:
        return None
    return [
        ChatCompletionTokenLogprob(
            token=token["token"],
            logprob=token["logprob"],
            top_logprobs=[
                TopLogprob(logprob=t["logprob"], bytes=t.get("bytes")) for t in token.get("top_logprobs") or ()
            ],
            bytes=token.get("bytes"),
        )
        for token in tokens
    ]


class Assembler:
    """Puts the chunks of a streamed answer together: `feed` gives the texts to show, `result` the whole in the end."""

    def __init__(self, family: str, *, structured: bool = False) -> None:
        self._family = family
        self._structured = structured
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._thinking = False
        self._calls: dict[int, tuple[list[str], list[str]]] = {}
        self._reason: str | None = None
        self._usage = RequestUsage(0, 0)
        self._logprobs: list[ChatCompletionTokenLogprob] = []

    def feed(self, chunk: Mapping[str, Any]) -> Iterator[str]:
        """Take one `chat.completion.chunk`; yields its texts, reasoning within `<think>` and `</think>`."""
        if chunk.get("usage"):
            self._usage = _usage(chunk["usage"])
        for choice in (chunk.get("choices") or ())[:1]:
            self._reason = choice.get("finish_reason") or self._reason
            delta = choice.get("delta") or {}
            self._logprobs += _logprobs(choice) or ()
            if thought := _reasoning(delta):
                self._thoughts.append(thought)
                yield thought if self._thinking else f"<think>{thought}"
                self._thinking = True
            text = delta.get("content")
            if self._thinking and (text or delta.get("tool_calls") or choice.get("finish_reason")):
                self._thinking = False
                yield "</think>"
            if text:
                self._texts.append(text)
                yield text
            for call in delta.get("tool_calls") or ():
                names, arguments = self._calls.setdefault(call.get("index") or 0, ([], []))
                function = call.get("function") or {}
                names.append(function.get("name") or "")
                arguments.append(_text(function.get("arguments")))

    def result(self) -> CreateResult:
        """The whole answer. Raises as `result_of` does."""
        content: str | list[FunctionCall]
        thought: str | None
        text = "".join(self._texts)
        if self._calls:
            content = [_call("".join(names), "".join(parts)) for _, (names, parts) in sorted(self._calls.items())]
            thought = text or None
        else:
            content = text
            thought = "".join(self._thoughts) or None
        if self._structured:
            _refuse_incomplete(self._reason)
        reason = "tool_calls" if self._calls else self._reason
        return _result(content, thought, reason, self._usage, self._logprobs or None, self._family)
