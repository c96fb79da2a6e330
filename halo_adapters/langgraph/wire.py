"""From a request of the OpenAI client to a call of the pool: what is routable, to which model, with which body."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from halo_core.pool import CallOrigin, LLMCall, get_pool

# Arguments of the client itself, not of the request.
_CLIENT_FIELDS = frozenset(
    {"extra_headers", "extra_query", "timeout", "extra_body", "stream", "stream_options", "model"}
)

# Features whose meaning lies outside a plain chat completion.
_FOREIGN = {
    "audio": "audio output",
    "modalities": "modalities other than text",
    "prediction": "predicted outputs",
    "web_search_options": "the provider's own web search",
    "store": "storing completions at the provider",
}


def unroutable(payload: Mapping[str, Any]) -> str | None:
    """Why a request cannot be answered by the pool, None where it can."""
    for name, meaning in _FOREIGN.items():
        if payload.get(name):
            return f"the request uses {meaning} ({name}=)"
    for tool in payload.get("tools") or ():
        if isinstance(tool, Mapping) and tool.get("type") not in ("function", None):
            return f"the request uses the provider's own tool {tool.get('type')!r}"
    return None


def name_of(payload: Mapping[str, Any]) -> str:
    """The model's name as the app uses it."""
    return str(payload.get("model", ""))


def resolve(
    name: str,
    base_url: str | None,
    api_key: str | None,
    headers: Mapping[str, Any] | None = None,
    *,
    own: str = "",
) -> tuple[str | None, str | None]:
    """The served model for an app's model name and server (with the client's own headers), or why there is none.

    `own` names what a request has that only the app's server understands: to that it goes as it is.
    """
    pool = get_pool()
    texts = {key: value for key, value in (headers or {}).items() if isinstance(value, str)}
    served, reason = pool.route(name, base_url, api_key, texts)
    if own and served is not None and pool.adopted(served):
        return None, f"the request has {own}"
    return served, reason


def call_from_payload(payload: Mapping[str, Any], served: str, origin: CallOrigin, *, stream: bool = False) -> LLMCall:
    """The call that a request stands for; Python objects in it (schemas) become JSON."""
    body = {k: v for k, v in payload.items() if k not in _CLIENT_FIELDS and v is not None}
    body.update(payload.get("extra_body") or {})
    response_format = body.get("response_format")
    if isinstance(response_format, type):
        from openai.lib._parsing import type_to_response_format_param

        body["response_format"] = type_to_response_format_param(response_format)
    return LLMCall(served, body, stream=stream, origin=origin)
