"""The route of OpenAI-shaped chat models (ChatOpenAI and what is built on it) to the pool.

Requests are built and answers are read by the model's own methods, so that messages, tools, structured output and
errors are what the model would have given. Streams run the model's own code too, over the hook in the OpenAI SDK.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, NoReturn

from langchain_core.language_models.chat_models import BaseChatModel

from halo_adapters.langgraph import sdk_hook
from halo_adapters.langgraph.intercept import Route, leave_alone
from halo_adapters.langgraph.session import origin_of
from halo_adapters.langgraph.wire import call_from_payload, name_of, resolve, unroutable
from halo_core.errors import EngineError
from halo_core.pool import Completion, LLMCall
from halo_core.runtime import Run, get_executor


class OpenAIRoute(Route):
    """Matches the classes of `langchain_openai`; subclasses of the user's own reach it through `super()`."""

    def matches(self, model: BaseChatModel, owner: type[BaseChatModel]) -> bool:
        return owner.__module__.startswith("langchain_openai.")

    def refuses(self, model: BaseChatModel, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        if method in ("_generate", "_agenerate"):
            return None  # these look for themselves: building the request twice would cost as much as all the rest
        return _reason(model, _payload(model, args, kwargs))[1]

    def generate(self, run: Run, model: Any, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        payload = _payload(model, args, kwargs)
        served, reason = _reason(model, payload)
        if served is None:
            leave_alone(run, model, reason or "")
            return original(*args, **kwargs)
        try:
            completion = get_executor().call_blocking(run, _call(run, payload, served, args, kwargs))
        except EngineError as error:
            _raise(error)
        return _result(model, payload, completion)

    async def agenerate(self, run: Run, model: Any, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        payload = _payload(model, args, kwargs)
        served, reason = _reason(model, payload)
        if served is None:
            leave_alone(run, model, reason or "")
            return await original(*args, **kwargs)
        try:
            completion = await get_executor().call(run, _call(run, payload, served, args, kwargs))
        except EngineError as error:
            _raise(error)
        return _result(model, payload, completion)

    def stream(self, run: Run, model: Any, original: Callable[..., Any], args: Any, kwargs: Any) -> Iterator[Any]:
        return sdk_hook.forced_iterator(original(*args, **kwargs))

    def astream(self, run: Run, model: Any, original: Callable[..., Any], args: Any, kwargs: Any) -> AsyncIterator[Any]:
        return sdk_hook.forced_async_iterator(original(*args, **kwargs))


def _payload(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    rest = dict(kwargs)
    messages = args[0] if args else rest.pop("messages")
    stop = args[1] if len(args) > 1 else rest.pop("stop", None)
    rest.pop("run_manager", None)
    rest.pop("stream_usage", None)
    payload: dict[str, Any] = model._get_request_payload(messages, stop=stop, **rest)
    return payload


def _call(run: Run, payload: dict[str, Any], served: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> LLMCall:
    run_manager = args[2] if len(args) > 2 else kwargs.get("run_manager")
    return call_from_payload(payload, served, origin_of(run, run_manager))


def _reason(model: Any, payload: dict[str, Any]) -> tuple[str | None, str | None]:
    """The served model for a request, or why it is left alone."""
    if "messages" not in payload or "input" in payload:
        return None, "the Responses API is not a chat completion"
    if getattr(model, "include_response_headers", False):
        return None, "include_response_headers asks for the server's own headers"
    reason = unroutable(payload)
    if reason is not None:
        return None, reason
    key = model.openai_api_key
    secret = key.get_secret_value() if hasattr(key, "get_secret_value") else None
    own = next((f"{name}=" for name in ("extra_headers", "extra_query") if payload.get(name)), "")
    own = own or ("default_query=" if model.default_query else "")
    return resolve(name_of(payload), model.openai_api_base, secret, model.default_headers, own=own)


def reason_to_refuse(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Why the pool cannot answer this call, None where it can."""
    return _reason(model, _payload(model, args, kwargs))[1]


def _result(model: Any, payload: dict[str, Any], completion: Completion) -> Any:
    from openai.types.chat import ChatCompletion

    data = completion.parse()
    data["model"] = name_of(payload)
    parsed = ChatCompletion.model_validate(data)
    response_format = payload.get("response_format")
    if response_format is not None:
        from openai import omit
        from openai.lib._parsing import parse_chat_completion

        parsed = parse_chat_completion(
            chat_completion=parsed,
            response_format=response_format,
            input_tools=payload.get("tools", omit),
        )
    return model._create_chat_result(parsed)


def _raise(error: EngineError) -> NoReturn:
    """Raise what the model's own client would have raised: callers catch `openai.RateLimitError` and the like."""
    import openai
    from langchain_openai.chat_models import base

    try:
        raise sdk_hook.as_openai_error(error) from error
    except openai.BadRequestError as bad:
        base._handle_openai_bad_request(bad)
    except openai.APIError as other:
        handler = getattr(base, "_handle_openai_api_error", None)  # newer versions sort errors more finely
        if handler is None:
            raise
        handler(other)
    raise error
