"""Refusals: what an OpenAI-compatible server says when it does not answer, turned into Halo's errors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from pydantic_core import from_json

from halo_core.errors import EngineDiedError, EngineError, PromptTooLongError

_LONGEST_MESSAGE = 600

# How vLLM, OpenAI, SGLang, llama.cpp, TGI and Anthropic's compatible endpoint say it.
_TOO_LONG = re.compile(
    r"maximum context length|context_length_exceeded|exceed_context_size|available context size|model's context length"
    r"|longer than the maximum model length|maximum model length|context window|prompt is too long"
    r"|inputs?.{1,3}(?:length|tokens).{0,40}(?:exceeds|must be)",
    re.IGNORECASE,
)
_ENGINE_DEAD = re.compile(r"EngineCore encountered|EngineDeadError", re.IGNORECASE)
# A 429 that no waiting cures.
_FINAL = re.compile(r"insufficient_quota|billing", re.IGNORECASE)


def parse(body: bytes) -> Any:
    """The body as JSON; None where it is none."""
    try:
        return from_json(body)
    except ValueError:
        return None


def said(body: bytes) -> str:
    """The server's own message, wherever its error document keeps it, shortened to one line."""
    document = parse(body)
    message: Any = None
    if isinstance(document, Mapping):
        error = document.get("error")
        message = error.get("message") if isinstance(error, Mapping) else error
        message = message or document.get("message") or document.get("detail")
    text = message if isinstance(message, str) else body.decode("utf-8", "replace")
    text = " ".join(text.split()).removesuffix(".")
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]}..."


def is_final(body: bytes) -> bool:
    """Whether a 429 is about money, which waiting does not cure."""
    return _FINAL.search(body.decode("utf-8", "replace")) is not None


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """The pause that the server asks for, in seconds; None where it asks for none."""
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000.0)
        value = headers.get("retry-after", "")
        if not value:
            return None
        if value.replace(".", "", 1).isdigit():
            return float(value)
        moment = parsedate_to_datetime(value)
    except (ValueError, TypeError):
        return None
    return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def refusal(
    label: str, status: int, body: bytes, *, served: Sequence[str] = (), max_model_len: int = 0, location: str = ""
) -> EngineError:
    """The error for a response that is not an answer; `label` names the engine and its model.

    `served` are the models that the server lists, `max_model_len` its context in tokens (0: unknown), `location`
    where a redirect points.
    """
    message = said(body)
    text = f"{label} answered {status}: {message or 'no message'}"
    if status >= 500 and _ENGINE_DEAD.search(message):
        return EngineDiedError(f"{text}. The server's engine is gone; it must be restarted", status=status, body=body)
    if status in (400, 413, 422, 500) and _TOO_LONG.search(body.decode("utf-8", "replace")):
        context = f" (its context is {max_model_len} tokens)" if max_model_len else ""
        cure = f". Shorten the prompt, lower max_tokens, or use a model with a longer context{context}"
        return PromptTooLongError(text + cure, status=status, body=body)
    return EngineError(f"{text}{_cure(status, served, location)}", status=status, body=body)


def _cure(status: int, served: Sequence[str], location: str) -> str:
    if status in (301, 302, 303, 307, 308):
        return f". The server points to {location or 'another address'}: use that as the URL"
    if status == 401:
        return ". Give the server's key as api_key (api_key_env in halo.toml)"
    if status == 403:
        return ". The key may not use this model: use another key or another model"
    if status == 404:
        listed = f": it serves {', '.join(served[:20])}" if served else ""
        return f". Check the model's name{listed}, and that the URL is the API's root (http://host:port/v1)"
    if status in (400, 422):
        return ". The request has a field that this server does not take"
    if status == 429:
        return ". Lower the engine's slots, raise max_retries, or raise the server's limit"
    if status == 503:
        return ". The server is overloaded or still loading: lower the engine's slots, or try later"
    if status >= 500:
        return ". The server failed: its log says why"
    return ""
