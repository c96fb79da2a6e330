"""The hook in the OpenAI SDK: its chat-completion requests are answered by the pool instead of a server.

It sits where the SDK sends a finished HTTP request, so that parsing, streaming, raw responses and errors stay the
SDK's own. It acts for code inside a Halo run only: always for the streams of ChatOpenAI, and for direct users of the
SDK when they opt in with `install(openai_sdk=True)`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from typing import Any

from halo_adapters.langgraph.intercept import INSIDE
from halo_adapters.langgraph.session import origin_of
from halo_adapters.langgraph.wire import call_from_payload, name_of, resolve, unroutable
from halo_core.errors import ConfigError, EngineDiedError, EngineError, EngineStartError, PromptTooLongError
from halo_core.pool import LLMCall
from halo_core.runtime import SESSION, Run, get_executor, on_event_loop

_FORCED: ContextVar[bool] = ContextVar("halo_sdk_forced", default=False)
_installed: list[tuple[type, Any]] = []
_direct = False
_PATH = "/chat/completions"


def install(*, direct: bool) -> None:
    """Put the hook into the SDK; idempotent. With `direct`, requests that the app makes with the SDK are routed too.

    Raises `ConfigError` for a version of the SDK that has no such place.
    """
    global _direct
    _direct = _direct or direct
    if _installed:
        return
    from openai._base_client import AsyncAPIClient, SyncAPIClient

    for cls in (SyncAPIClient, AsyncAPIClient):
        if not hasattr(cls, "_send_request"):
            import openai

            raise ConfigError(
                f"openai {openai.__version__} has no {cls.__name__}._send_request: streams and direct use of the SDK "
                "cannot be routed with it; install openai>=3"
            )
    _patch(SyncAPIClient, _send)
    _patch(AsyncAPIClient, _asend)


def uninstall() -> None:
    """Restore the SDK."""
    global _direct
    _direct = False
    while _installed:
        cls, original = _installed.pop()
        cls._send_request = original  # type: ignore[attr-defined]


def _patch(cls: Any, wrap: Callable[[Any], Any]) -> None:
    _installed.append((cls, cls._send_request))
    cls._send_request = wrap(cls._send_request)


def forced_iterator(inner: Iterator[Any]) -> Iterator[Any]:
    """Step through `inner` with the hook acting on requests that it makes."""
    install(direct=False)
    while True:
        token = _FORCED.set(True)
        try:
            item = next(inner)
        except StopIteration:
            return
        finally:
            _FORCED.reset(token)
        yield item


async def forced_async_iterator(inner: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """Step through `inner` with the hook acting on requests that it makes."""
    install(direct=False)
    while True:
        token = _FORCED.set(True)
        try:
            item = await anext(inner)
        except StopAsyncIteration:
            return
        finally:
            _FORCED.reset(token)
        yield item


def _routed(client: Any, request: Any) -> tuple[Run, LLMCall, bool] | None:
    """The run, the call, and whether its stream is to end with the tokens used; None where it is not for the pool."""
    run = SESSION.get()
    if run is None or not (_FORCED.get() or (_direct and not INSIDE.get())):
        return None
    if request.method != "POST" or not request.url.path.endswith(_PATH):
        return None
    payload = json.loads(request.content)
    reason = unroutable(payload)
    served: str | None = None
    if reason is None:
        own = "a query in its URL" if request.url.query else ""
        headers = client._custom_headers
        served, reason = resolve(name_of(payload), str(client.base_url), client.api_key, headers, own=own)
    if served is None:
        run.batch.stats.leave_alone(reason or "not routable")
        return None
    call = call_from_payload(payload, served, origin_of(run), stream=bool(payload.get("stream")))
    return run, call, bool((payload.get("stream_options") or {}).get("include_usage"))


def _send(original: Any) -> Any:
    def send(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        routed = None if on_event_loop() else _routed(self, request)
        if routed is None:
            return original(self, request, *args, **kwargs)
        run, call, usage = routed
        executor = get_executor()
        try:
            if not call.stream:
                return _response(request, 200, executor.call_blocking(run, call).raw)
            chunks = executor.stream_blocking(run, call)
            first = next(chunks, None)  # an error before the first byte must become an HTTP status
        except EngineError as error:
            return _error_response(request, error)
        return _response(request, 200, _SyncEvents(_sse(first, chunks, usage)), stream=True)

    return send


def _asend(original: Any) -> Any:
    async def send(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        routed = _routed(self, request)
        if routed is None:
            return await original(self, request, *args, **kwargs)
        run, call, usage = routed
        executor = get_executor()
        try:
            if not call.stream:
                return _response(request, 200, (await executor.call(run, call)).raw)
            chunks = executor.stream(run, call)
            first = await anext(chunks, None)
        except EngineError as error:
            return _error_response(request, error)
        return _response(request, 200, _AsyncEvents(_asse(first, chunks, usage)), stream=True)

    return send


def _event(chunk: bytes, usage: bool) -> bytes:
    """A chunk as the server's event; without `usage`, what was asked for only by Halo is left out."""
    if not usage and b'"usage"' in chunk:
        said = json.loads(chunk)
        if said.pop("usage", None) is not None and not said.get("choices"):
            return b""
        chunk = json.dumps(said, ensure_ascii=False).encode()
    return b"data: " + chunk + b"\n\n"


def _sse(first: bytes | None, rest: Iterator[bytes], usage: bool) -> Iterator[bytes]:
    if first is not None:
        yield _event(first, usage)
    try:
        for chunk in rest:
            yield _event(chunk, usage)
    except EngineError as error:  # in the middle of a stream: as an event, which the SDK raises as its own error
        yield b"data: " + error_body(error) + b"\n\n"
        return
    yield b"data: [DONE]\n\n"


async def _asse(first: bytes | None, rest: AsyncIterator[bytes], usage: bool) -> AsyncIterator[bytes]:
    if first is not None:
        yield _event(first, usage)
    try:
        async for chunk in rest:
            yield _event(chunk, usage)
    except EngineError as error:
        yield b"data: " + error_body(error) + b"\n\n"
        return
    yield b"data: [DONE]\n\n"


def _http() -> Any:
    import httpx2  # what openai 3 is built on; patching httpx would miss it

    return httpx2


class _SyncEvents:
    """A byte stream over server-sent events, in the shape that httpx takes as `stream=`."""

    def __init__(self, events: Iterator[bytes]) -> None:
        self._events = events

    def __iter__(self) -> Iterator[bytes]:
        return self._events

    def close(self) -> None:
        getattr(self._events, "close", lambda: None)()


class _AsyncEvents:
    def __init__(self, events: AsyncIterator[bytes]) -> None:
        self._events = events

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._events

    async def aclose(self) -> None:
        aclose = getattr(self._events, "aclose", None)
        if aclose is not None:
            await aclose()


def _response(request: Any, status: int, content: Any, *, stream: bool = False) -> Any:
    http = _http()
    if not stream:
        headers = {"content-type": "application/json"}
        return http.Response(status, headers=headers, content=content, request=request)
    base = http.SyncByteStream if isinstance(content, _SyncEvents) else http.AsyncByteStream
    body = type("Events", (type(content), base), {})(content._events)
    return http.Response(status, headers={"content-type": "text/event-stream"}, stream=body, request=request)


def _error_response(request: Any, error: EngineError) -> Any:
    # `x-should-retry`: the pool has retried already, the SDK must not do it again.
    http = _http()
    headers = {"content-type": "application/json", "x-should-retry": "false"}
    return http.Response(status_of(error), headers=headers, content=error_body(error), request=request)


def status_of(error: EngineError) -> int:
    """The HTTP status that stands for an engine's failure."""
    return error.status or (400 if isinstance(error, PromptTooLongError) else 503)


def error_body(error: EngineError) -> bytes:
    """The error document, in OpenAI's form, with the code that clients look for."""
    text, code = str(error), type(error).__name__
    if isinstance(error, PromptTooLongError):
        code = "context_length_exceeded"  # LangChain looks for it in the text
        text = f"{text} ({code})"
    return json.dumps({"error": {"message": text, "type": "halo_engine_error", "code": code}}).encode()


def as_openai_error(error: EngineError) -> Exception:
    """The exception that the SDK would raise for an engine's failure."""
    import openai

    http = _http()
    request = http.Request("POST", "http://halo.invalid/v1/chat/completions")
    if error.status is None and isinstance(error, EngineDiedError | EngineStartError):
        return openai.APIConnectionError(message=str(error), request=request)
    response = http.Response(
        status_of(error), headers={"content-type": "application/json"}, content=error_body(error), request=request
    )
    client = openai.OpenAI(api_key="unused", base_url="http://halo.invalid/v1")
    return client._make_status_error_from_response(response)
