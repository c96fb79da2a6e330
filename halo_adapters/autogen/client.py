"""`HaloChatCompletionClient`: AutoGen's chat-completion client over Halo's pool of engines."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Literal, Self

from autogen_core import EVENT_LOGGER_NAME, CancellationToken, Component, Image
from autogen_core.logging import LLMCallEvent, LLMStreamEndEvent, LLMStreamStartEvent
from autogen_core.models import (
    AssistantMessage,
    ChatCompletionClient,
    CreateResult,
    LLMMessage,
    ModelInfo,
    RequestUsage,
    SystemMessage,
    UserMessage,
)
from autogen_core.tools import Tool, ToolSchema
from pydantic import BaseModel
from pydantic_core import from_json

from halo_adapters.autogen.answers import Assembler, result_of
from halo_adapters.autogen.attribution import calling
from halo_adapters.autogen.chat_template import shows_late_system
from halo_adapters.autogen.settings import ENGINE_FIELDS, REQUEST_FIELDS, HaloClientConfig, Settings, request_fields
from halo_adapters.autogen.wire import (
    Dialect,
    canonical_ids,
    merge_system,
    messages_to_wire,
    tool_choice_to_wire,
    tools_to_wire,
)
from halo_core.errors import ClosedError, ConfigError, EngineError, PromptTooLongError, UnknownModelError
from halo_core.pool import LLMCall, get_pool
from halo_core.runtime import How, digest, get_executor

logger = logging.getLogger(__name__)
events = logging.getLogger(EVENT_LOGGER_NAME)

CHARS_PER_TOKEN = 4
"""For counting tokens where no engine can tell."""

ToolChoice = Tool | Literal["auto", "required", "none"]


class HaloChatCompletionClient(ChatCompletionClient, Component[HaloClientConfig]):
    """Chat completions from Halo's pool; takes `OpenAIChatCompletionClient`'s arguments, so that a rename suffices.

    `model` is a name that the pool serves or maps; with `base_url` a server of one's own becomes an engine of the pool.
    All sampling parameters of OpenAI's protocol and of vLLM are arguments. Equal deterministic calls of one batch
    become one. Calls raise `UnknownModelError`, `EngineError` and its kin, `ClosedError` after `close()`, and
    `ValueError` for what AutoGen's own client refuses with it.
    """

    component_type = "model"
    component_config_schema = HaloClientConfig
    component_provider_override = "halo_adapters.autogen.HaloChatCompletionClient"

    def __init__(self, **arguments: Any) -> None:
        """See `OpenAIChatCompletionClient`; besides:

        `api_key_env`: environment variable with the server's key (keys are never written into configurations);
        `late_system`: what becomes of a later system message, see `halo_adapters.autogen.settings.LateSystem`;
        `context_length`: the model's context in tokens, where the engine does not say it.
        """
        self._settings = Settings.of(arguments)
        self._dialect = Dialect.of(self._settings.model, self._settings.info["family"])
        self._total = RequestUsage(0, 0)
        self._actual = RequestUsage(0, 0)
        self._closed = False
        self._charged: Callable[[RequestUsage, bool], None] | None = None
        """Hears the usage of every answer, and whether it was executed for this client."""

    def __repr__(self) -> str:
        return f"HaloChatCompletionClient(model={self._settings.model!r})"

    @property
    def _create_args(self) -> dict[str, Any]:
        return {"model": self._settings.model, **request_fields(self._settings.create_args)}

    @property
    def _base_url(self) -> str | None:
        return self._settings.base_url

    # -- calls ---------------------------------------------------------------------------------------------------

    async def create(
        self,
        messages: Sequence[LLMMessage],
        *,
        tools: Sequence[Tool | ToolSchema] = (),
        tool_choice: ToolChoice = "auto",
        json_output: bool | type[BaseModel] | None = None,
        extra_create_args: Mapping[str, Any] | None = None,
        cancellation_token: CancellationToken | None = None,
    ) -> CreateResult:
        """One answer. Cancelling the token gives up this caller; others who wait for an equal call get it."""
        how: list[How] = []
        with calling(lambda: _content(messages)) as (run, origin):
            served, body = self._request(messages, tools, tool_choice, json_output, extra_create_args or {})
            completion = await get_executor().call(
                run,
                LLMCall(served, body, origin=origin),
                link=cancellation_token.link_future if cancellation_token is not None else None,
                told=how.append,
            )
        document = completion.parse()
        structured = self._structured(json_output, extra_create_args or {})
        result = result_of(document, self._settings.info["family"], structured=structured)
        if events.isEnabledFor(logging.INFO):
            document["model"] = self._settings.model
            events.info(
                LLMCallEvent(
                    messages=body["messages"],
                    response=document,
                    prompt_tokens=result.usage.prompt_tokens,
                    completion_tokens=result.usage.completion_tokens,
                    tools=body.get("tools", []),
                )
            )
        self._charge(result.usage, how)
        return result

    async def create_stream(
        self,
        messages: Sequence[LLMMessage],
        *,
        tools: Sequence[Tool | ToolSchema] = (),
        tool_choice: ToolChoice = "auto",
        json_output: bool | type[BaseModel] | None = None,
        extra_create_args: Mapping[str, Any] | None = None,
        cancellation_token: CancellationToken | None = None,
        max_consecutive_empty_chunk_tolerance: int = 0,
        include_usage: bool | None = None,
    ) -> AsyncGenerator[str | CreateResult, None]:
        """The answer in pieces as they are generated, then the whole as a `CreateResult`, always with its usage.

        `max_consecutive_empty_chunk_tolerance` and `include_usage` are taken for the sake of AutoGen's client.
        """
        structured = self._structured(json_output, extra_create_args or {})
        assembler = Assembler(self._settings.info["family"], structured=structured)
        how: list[How] = []
        with calling(lambda: _content(messages)) as (run, origin):
            served, body = self._request(messages, tools, tool_choice, json_output, extra_create_args or {})
            stream = get_executor().stream(
                run,
                LLMCall(served, body, stream=True, origin=origin),
                link=cancellation_token.link_future if cancellation_token is not None else None,
                told=how.append,
            )
            started = False
            async with aclosing(stream):
                async for raw in stream:
                    if not started and events.isEnabledFor(logging.INFO):
                        events.info(LLMStreamStartEvent(messages=body["messages"]))
                    started = True
                    for text in assembler.feed(from_json(raw)):
                        yield text
        result = assembler.result()
        if events.isEnabledFor(logging.INFO):
            events.info(
                LLMStreamEndEvent(
                    response=result.model_dump(),
                    prompt_tokens=result.usage.prompt_tokens,
                    completion_tokens=result.usage.completion_tokens,
                )
            )
        self._charge(result.usage, how)
        yield result

    # -- requests ------------------------------------------------------------------------------------------------

    def route(self, model: str | None = None) -> tuple[str | None, str | None]:
        """The pool's served model for the client's calls (or for another model's), or why there is none."""
        settings = self._settings
        return get_pool().route(model or settings.model, settings.base_url, settings.api_key, settings.headers)

    def _request(
        self,
        messages: Sequence[LLMMessage],
        tools: Sequence[Tool | ToolSchema],
        tool_choice: ToolChoice,
        json_output: bool | type[BaseModel] | None,
        extra: Mapping[str, Any],
    ) -> tuple[str, dict[str, Any]]:
        """(served model, request body)."""
        if self._closed:
            raise ClosedError(f"{self!r} was closed: make a new client, or close it after the last call")
        served, reason = self.route(extra.get("model"))
        if served is None:
            raise UnknownModelError(f"{self!r}: {reason}")
        return served, self._body(served, messages, tools, tool_choice, json_output, extra)

    def _body(
        self,
        served: str,
        messages: Sequence[LLMMessage],
        tools: Sequence[Tool | ToolSchema],
        tool_choice: ToolChoice,
        json_output: bool | type[BaseModel] | None,
        extra: Mapping[str, Any],
    ) -> dict[str, Any]:
        settings = self._settings
        if unknown := [name for name in extra if name not in REQUEST_FIELDS and name not in ENGINE_FIELDS]:
            raise ValueError(f"Extra create args are invalid: {', '.join(unknown)}")
        body = request_fields({**settings.create_args, **extra})
        model = body.pop("model", settings.model)
        dialect = self._dialect if model == settings.model else Dialect.of(model, settings.info["family"])
        if options := body.get("stream_options"):
            body["stream_options"] = {**options, "include_usage": True}
        if tools and settings.info["function_calling"] is False:
            raise ValueError("Model does not support function calling")
        choice = tool_choice_to_wire(tool_choice, tools)
        response_format = _response_format(body.pop("response_format", None), json_output, settings.info)
        if settings.info["vision"] is False and any(map(_has_image, messages)):
            raise ValueError("Model does not support vision and image was provided")
        if not settings.info.get("multiple_system_messages", False):
            messages = merge_system(messages, lambda message: self._late(message, served))
        if model.startswith("claude-"):
            messages = _rstrip_last(messages)
        wire = messages_to_wire(messages, dialect, prefixes=settings.prefixes, names=settings.names)
        body["messages"] = canonical_ids(wire)
        if tools:
            body["tools"] = tools_to_wire(tools)
            body["tool_choice"] = choice
        if response_format is not None:
            body["response_format"] = response_format
        forced = extra.get("extra_body") or settings.create_args.get("extra_body") or {}
        return body | {name: value for name, value in forced.items() if name != "model"}  # as the OpenAI SDK does

    def _structured(self, json_output: bool | type[BaseModel] | None, extra: Mapping[str, Any]) -> bool:
        """Whether a Pydantic class says what the answer looks like."""
        given = extra.get("response_format", self._settings.create_args.get("response_format"))
        return _is_class(json_output) or _is_class(given)

    def _late(self, message: SystemMessage, served: str) -> LLMMessage | None:
        policy = self._settings.late_system
        if policy == "auto":
            policy = "keep" if shows_late_system(served) else "user"
        if policy == "error":
            raise ValueError(
                "Multiple and Not continuous system messages are not supported if "
                "model_info['multiple_system_messages'] is False; choose late_system='keep', 'user' or 'merge'"
            )
        if policy == "user":
            return UserMessage(content=message.content, source="system")
        return message if policy == "keep" else None

    def _charge(self, usage: RequestUsage, how: Sequence[How]) -> None:
        self._total.prompt_tokens += usage.prompt_tokens
        self._total.completion_tokens += usage.completion_tokens
        executed = How.EXECUTED in how
        if self._charged is not None:
            self._charged(usage, executed)
        if executed:
            self._actual.prompt_tokens += usage.prompt_tokens
            self._actual.completion_tokens += usage.completion_tokens

    # -- facts ---------------------------------------------------------------------------------------------------

    def total_usage(self) -> RequestUsage:
        """Tokens of all answers, shared ones too: what the same app would have used by itself."""
        return RequestUsage(self._total.prompt_tokens, self._total.completion_tokens)

    def actual_usage(self) -> RequestUsage:
        """Tokens of the calls that were really executed for this client."""
        return RequestUsage(self._actual.prompt_tokens, self._actual.completion_tokens)

    def count_tokens(self, messages: Sequence[LLMMessage], *, tools: Sequence[Tool | ToolSchema] = ()) -> int:
        """Prompt tokens by the model's own template and tokenizer; an estimate where the engine cannot tell.

        Starts the engines of the model.
        """
        return self._count(messages, tools)[0]

    def remaining_tokens(self, messages: Sequence[LLMMessage], *, tools: Sequence[Tool | ToolSchema] = ()) -> int:
        """Tokens left in the model's context after these messages.

        Raises `ConfigError` where neither the engine nor `context_length` says how long the context is.
        """
        count, context = self._count(messages, tools)
        context = self._settings.context_length or context
        if not context:
            raise ConfigError(
                f"{self!r}: the engine does not say how long the model's context is: give context_length=TOKENS"
            )
        return context - count

    def _count(self, messages: Sequence[LLMMessage], tools: Sequence[Tool | ToolSchema]) -> tuple[int, int]:
        served, body = self._request(messages, tools, "auto", None, {})
        pool = get_pool()
        least = 0
        try:
            count, context = pool.thread.run(pool.count_tokens(served, body))
        except EngineError as error:
            logger.info("tokens are estimated: %s", error)
            ready = pool.group(served).ready
            count, context = None, ready[0].capacity.max_model_len if ready else 0
            if isinstance(error, PromptTooLongError):
                least = context + 1
        if count is None:
            text = json.dumps([body["messages"], body.get("tools")], default=str)
            count = max(-(-len(text) // CHARS_PER_TOKEN), least)
        return count, context

    @property
    def model_info(self) -> ModelInfo:
        """What the model can do, as the user or AutoGen says; agents decide by it."""
        return self._settings.info

    @property
    def capabilities(self) -> ModelInfo:
        """Deprecated in AutoGen: see `model_info`."""
        return self._settings.info

    async def close(self) -> None:
        """No more calls from this client; the pool and other clients go on."""
        self._closed = True

    # -- component -----------------------------------------------------------------------------------------------

    def _to_config(self) -> HaloClientConfig:
        return self._settings.config()

    @classmethod
    def _from_config(cls, config: HaloClientConfig) -> Self:
        return cls(**config.model_dump(exclude_none=True, exclude={"api_key"}), api_key=config.api_key)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # clients hold no state of a conversation: copies of a team share them


def _response_format(given: Any, json_output: bool | type[BaseModel] | None, info: ModelInfo) -> Any:
    """The `response_format` of a request. Raises `ValueError` where `model_info` says that the model cannot."""
    if json_output is not None and not isinstance(json_output, bool) and not _is_class(json_output):
        raise ValueError(f"json_output must be a boolean or a Pydantic model class, got {type(json_output)}")
    if json_output is True and info["json_output"] is False:
        raise ValueError("Model does not support JSON output.")
    if _is_class(given):
        if _is_class(json_output):
            raise ValueError(
                "response_format and json_output cannot be set to a Pydantic model class at the same time."
            )
        json_output = given
    elif json_output is None:
        if isinstance(given, Mapping) and given.get("type") == "json_object" and not info["json_output"]:
            raise ValueError("Model does not support JSON output.")
        return given
    if isinstance(json_output, bool):
        return {"type": "json_object" if json_output else "text"}
    if info["structured_output"] is False:
        raise ValueError("Model does not support structured output.")
    return _schema_of(json_output)


_schemas: dict[type, Any] = {}


def _schema_of(model: Any) -> Any:
    """The strict JSON schema that the OpenAI SDK would send, so that the engine enforces the very same grammar."""
    known = _schemas.get(model)
    if known is None:
        from openai.lib._parsing import type_to_response_format_param

        known = _schemas[model] = type_to_response_format_param(model)
    return known


def _is_class(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseModel)


def _rstrip_last(messages: Sequence[LLMMessage]) -> Sequence[LLMMessage]:
    """The same messages, without white space at the end where the assistant has the last word: Claude refuses it."""
    last = messages[-1] if messages else None
    if not isinstance(last, AssistantMessage) or not isinstance(last.content, str):
        return messages
    return [*messages[:-1], last.model_copy(update={"content": last.content.rstrip()})]


def _has_image(message: LLMMessage) -> bool:
    if not isinstance(message, UserMessage) or isinstance(message.content, str):
        return False
    return any(isinstance(part, Image) for part in message.content)


def _content(messages: Sequence[LLMMessage]) -> str:
    dumped = [message.model_dump() if isinstance(message, BaseModel) else repr(message) for message in messages]
    return digest(json.dumps(dumped, default=repr))
