"""The endpoint engine: any server that speaks the OpenAI chat-completions protocol, run by somebody else."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

from pydantic_core import PydanticSerializationError, to_json

from halo_core.errors import EngineDiedError, EngineError, EngineStartError
from halo_core.pool.call import Completion, LLMCall, Usage
from halo_core.pool.endpoint_refusal import is_final, parse, refusal, retry_after_s
from halo_core.pool.engine import CacheEvent, Capacity, EngineCounters, Health, Sharing
from halo_core.pool.http import (
    ConnectError,
    ConnectionLostError,
    HttpClient,
    HttpError,
    HttpTimeoutError,
    Origin,
    Response,
    ResponseStream,
)
from halo_core.pool.throttle import Throttle

logger = logging.getLogger(__name__)

AnyResponse = TypeVar("AnyResponse", Response, ResponseStream)

_CHECK_TIMEOUT_S = 5.0
# vLLM refuses to forget its cache while blocks are held, which they are for a moment after the last answer.
_RESET_ATTEMPTS = 10
_RESET_PAUSE_S = 0.1


class EndpointEngine:
    """One OpenAI-compatible server. Bound to the event loop that first uses it."""

    def __init__(
        self,
        name: str,
        model: str,
        base_url: str,
        *,
        api_key: str | None = None,
        slots: int = 64,
        headers: Mapping[str, str] | None = None,
        request_timeout_s: float = 600.0,
        connect_timeout_s: float = 10.0,
        max_retries: int = 2,
        backoff_s: float = 0.5,
        max_connections: int | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        """`base_url` is `http(s)://host:port`, with or without `/v1`, another API root, or `unix:/path/of/socket`.

        `request_timeout_s` bounds the server's silence: for a call that is not streamed, the whole wait.
        `max_retries` counts the further tries after 429, 503 and lost connections. Raises `ConfigError`.
        """
        self.name = name
        self.model = model
        self.counters = EngineCounters()
        self.max_retries = max_retries
        self._headers = {"Content-Type": "application/json", **(headers or {})}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._request_timeout_s = request_timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._max_connections = max_connections
        self._ssl = ssl_context
        self._capacity = Capacity(slots=slots)
        self._health = Health("new")
        self._throttle = Throttle(backoff_s)
        self._starting = asyncio.Lock()
        self._served: tuple[str, ...] = ()
        self._connect_to(base_url)

    def _connect_to(self, base_url: str) -> None:
        """Send what follows to another server (a subclass learns its port only once the server is up)."""
        origin, path = Origin.split(base_url)
        path, _, query = path.partition("?")
        self.base_url = base_url
        self._query = f"?{query}" if query else ""
        self._api = path or "/v1"
        self._root = self._api.removesuffix("/v1")
        self._client = HttpClient(
            origin,
            headers=self._headers,
            max_connections=self._max_connections,
            connect_timeout_s=self._connect_timeout_s,
            read_timeout_s=self._request_timeout_s,
            ssl_context=self._ssl,
        )

    def __repr__(self) -> str:
        return f"EndpointEngine({self.name!r}, {self.model!r}, {self.base_url!r})"

    @property
    def capacity(self) -> Capacity:
        """`max_model_len` is what the server says of the model in `/v1/models` (vLLM does)."""
        return self._capacity

    @property
    def health(self) -> Health:
        """The state as last seen."""
        return self._health

    @property
    def sharing(self) -> Sharing | None:
        """None: what somebody else's server does with its KV is not ours to say."""
        return None

    # -- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """See that the server answers, and learn what it says of the model. Raises `EngineStartError`."""
        async with self._starting:
            if self._health.state == "ready":
                return
            if self._health.state == "closed":
                raise EngineStartError(f"{self._label} was closed; make a new engine")
            self._health = Health("starting")
            try:
                response = await self._attempt(lambda: self._client.request("GET", self._path("/models")))
                if response.status in (401, 403):
                    raise self._refusal(response.status, response.body)
            except EngineError as error:
                self._health = Health("dead", str(error))
                cure = "" if error.status else ". Start the server, or correct its URL"
                raise EngineStartError(f"{error}{cure}", status=error.status, body=error.body) from error
            except BaseException:
                self._health = Health("new")
                raise
            self._learn(response)
            self._health = Health("ready")

    def _learn(self, response: Response) -> None:
        """Take the model's context from the server's model list; gateways often have none, or an incomplete one."""
        listed = parse(response.body) if response.status == 200 else None
        cards = listed.get("data") if isinstance(listed, dict) else None
        cards = [card for card in cards if isinstance(card, dict)] if isinstance(cards, list) else []
        self._served = tuple(str(card.get("id")) for card in cards)
        for card in cards:
            length = card.get("max_model_len")
            if card.get("id") == self.model and isinstance(length, int):
                old = self._capacity
                self._capacity = Capacity(old.slots, old.kv_tokens, old.block_size, max_model_len=length)
        if self._served and self.model not in self._served:
            logger.warning("%s does not list its model; it lists %s", self._label, ", ".join(self._served[:20]))

    async def check(self) -> Health:
        """Ask `/health`, and where the server has none, for its models."""
        if self._health.state == "closed":
            return self._health
        try:
            response = await self._client.request("GET", f"{self._root}/health", read_timeout_s=_CHECK_TIMEOUT_S)
            if response.status in (404, 405):
                response = await self._client.request("GET", self._path("/models"), read_timeout_s=_CHECK_TIMEOUT_S)
        except HttpError as error:
            self._health = Health("dead", str(error))
        else:
            alive = response.status < 500
            self._health = Health("ready") if alive else Health("dead", f"its health check says {response.status}")
        return self._health

    async def reset_cache(self) -> None:
        """Forget all cached prefixes, where the server can (vLLM in dev mode). Raises `EngineError`."""
        path = f"{self._root}/reset_prefix_cache"
        for attempt in range(_RESET_ATTEMPTS):
            if attempt:
                await asyncio.sleep(_RESET_PAUSE_S)
            response = await self._attempt(lambda: self._client.request("POST", path, b""))
            if response.status in (404, 405):
                raise EngineError(
                    f"{self._label} cannot reset its prefix cache (no /reset_prefix_cache); start vLLM with "
                    "VLLM_SERVER_DEV_MODE=1, or restart the server for a cold cache",
                    status=response.status,
                    body=response.body,
                )
            if response.status != 200:
                raise self._refusal(response.status, response.body)
            said = parse(response.body)
            if not (isinstance(said, dict) and said.get("success") is False):
                return
        raise EngineError(f"{self._label} did not reset its prefix cache: calls still run; reset it when it is idle")

    async def cache_events(self) -> AsyncIterator[CacheEvent]:
        """Ends at once: the protocol has no cache events."""
        return
        yield

    async def count_tokens(self, body: Mapping[str, Any]) -> int | None:
        """Ask `/tokenize`, which vLLM has; None where the server has none. Raises `EngineError`."""
        kept = ("messages", "tools", "chat_template_kwargs")
        wire = {"model": self.model, "add_generation_prompt": True} | {k: body[k] for k in kept if body.get(k)}
        data = self._encode(wire)
        response = await self._attempt(lambda: self._client.request("POST", f"{self._root}/tokenize", data))
        if response.status in (404, 405):
            return None
        if response.status != 200:
            raise self._refusal(response.status, response.body)
        said = parse(response.body)
        count = said.get("count") if isinstance(said, dict) else None
        return count if isinstance(count, int) else None

    async def close(self) -> None:
        """Close the connections; calls under way get `EngineDiedError`."""
        self._health = Health("closed")
        self._client.close()

    # -- calls ---------------------------------------------------------------------------------------------------

    async def complete(self, call: LLMCall) -> Completion:
        """Answer `call`. Raises `EngineDiedError`, `PromptTooLongError`, `EngineError`."""
        body = self._body(call)
        response = await self._attempt(lambda: self._client.request("POST", self._path("/chat/completions"), body))
        if response.status != 200:
            raise self._refusal(response.status, response.body, response.headers.get("location", ""))
        document = parse(response.body)
        if not isinstance(document, dict) or not isinstance(document.get("choices"), list):
            raise self._no_completion(document, response.body)
        completion = self._completion(document, response.body)
        self.counters.count(completion.usage)
        return completion

    async def stream(self, call: LLMCall) -> AsyncIterator[bytes]:
        """Answer `call` chunk by chunk. Raises as `complete` does, also after some chunks."""
        body = self._body(call)

        async def send() -> ResponseStream:
            return await self._client.open("POST", self._path("/chat/completions"), body)

        response, ticket = await self._admitted(send)
        usage = Usage()
        ok = False
        try:
            if response.status != 200:
                location = response.headers.get("location", "")
                raise self._refusal(response.status, await response.read(), location)
            if response.headers.get("content-type", "").startswith("application/json"):
                document = await response.read()
                raise self._no_completion(parse(document), document)
            async for event in response.events():
                if b'"usage"' in event or b'"error"' in event:
                    chunk = parse(event)
                    if isinstance(chunk, dict):
                        if chunk.get("error") and not chunk.get("choices"):
                            raise self._no_completion(chunk, event)
                        usage = Usage.from_wire(chunk["usage"]) if chunk.get("usage") else usage
                yield event
            ok = True
        except HttpError as error:
            raise self._failed(error) from error
        finally:
            response.close()
            self._throttle.leave(ticket, ok=ok)
        self.counters.count(usage)

    def _body(self, call: LLMCall) -> bytes:
        """The request body. Subclasses add what only their server understands (priority, request id)."""
        wire = call.wire()
        wire["model"] = self.model
        return self._encode(wire)

    def _encode(self, wire: Mapping[str, Any]) -> bytes:
        try:
            return to_json(wire, inf_nan_mode="constants")
        except (PydanticSerializationError, UnicodeError, ValueError):
            pass  # lone surrogates, for one, which the standard library escapes
        try:
            return json.dumps(wire).encode()
        except (TypeError, ValueError) as error:
            raise EngineError(f"the call to model {self.model!r} cannot be written as JSON: {error}") from error

    def _completion(self, document: Mapping[str, Any], body: bytes) -> Completion:
        """An answer, read. Subclasses take out what their server says to Halo alone."""
        return Completion(body, Usage.from_wire(document.get("usage")), self.name)

    # -- requests ------------------------------------------------------------------------------------------------

    def _path(self, path: str) -> str:
        return f"{self._api}{path}{self._query}"

    async def _attempt(self, send: Callable[[], Awaitable[Response]]) -> Response:
        """Send a request until it gets a response that is final. Raises `EngineDiedError`, `EngineError`."""
        response, ticket = await self._admitted(send)
        self._throttle.leave(ticket, ok=response.status < 500)
        return response

    async def _admitted(self, send: Callable[[], Awaitable[AnyResponse]]) -> tuple[AnyResponse, int]:
        """Send as the throttle allows, again after 429, 503 and lost connections; the caller leaves the throttle."""
        attempt = 0
        while True:
            ticket = await self._throttle.enter(again=attempt > 0)
            pause_s = 0.0
            try:
                response = await send()
                if response.status not in (429, 503):
                    return response, ticket
                body = response.body if isinstance(response, Response) else await response.read()
            except HttpError as error:
                self._throttle.leave(ticket, ok=False)
                # Once a part of the answer has come, repeating the call is the pool's decision, not this engine's.
                unanswered = isinstance(error, ConnectError) or (
                    isinstance(error, ConnectionLostError) and not error.received
                )
                if not unanswered or attempt >= self.max_retries or self._health.state == "closed":
                    raise self._failed(error) from error
                pause_s = self._throttle.delay_s(attempt + 1)
            except BaseException:
                self._throttle.leave(ticket, ok=False)
                raise
            else:
                asked_s = retry_after_s(response.headers)
                final = is_final(body) or (asked_s or 0.0) > self._request_timeout_s
                if final:
                    self._throttle.leave(ticket, ok=False)
                else:
                    self._throttle.refused(ticket, asked_s)
                    self._note("throttled")
                if final or attempt >= self.max_retries:
                    raise self._refusal(response.status, body)
            attempt += 1
            self._note("retries")
            if pause_s:
                await asyncio.sleep(pause_s)

    def _note(self, key: str) -> None:
        self.counters.extra[key] = self.counters.extra.get(key, 0.0) + 1.0

    # -- errors --------------------------------------------------------------------------------------------------

    @property
    def _label(self) -> str:
        return f"engine {self.name!r} (model {self.model!r} at {self.base_url})"

    def _refusal(self, status: int, body: bytes, location: str = "") -> EngineError:
        error = refusal(
            self._label,
            status,
            body,
            served=self._served,
            max_model_len=self._capacity.max_model_len,
            location=location,
        )
        return self._died(error) if isinstance(error, EngineDiedError) else error

    def _no_completion(self, document: Any, body: bytes) -> EngineError:
        """The error for an answer with status 200 (or an event of a stream) that holds no completion."""
        error = document.get("error") if isinstance(document, dict) else None
        if error:
            code = error.get("code") if isinstance(error, dict) else None
            return self._refusal(code if isinstance(code, int) and 400 <= code < 600 else 500, body)
        return EngineError(
            f"{self._label} answered with something that is not a chat completion: {body[:200]!r}. "
            "Check that the URL is the root of an OpenAI-compatible API",
            status=200,
            body=body,
        )

    def _failed(self, error: HttpError) -> EngineError:
        """The error for a request without a response."""
        if isinstance(error, ConnectError | ConnectionLostError):
            if self._health.state == "closed":
                return EngineDiedError(f"{self._label} was closed while calls were under way")
            return self._died(EngineDiedError(f"{self._label} is gone: {error}"))
        if isinstance(error, HttpTimeoutError):
            return EngineError(f"{self._label} is silent: {error}. Raise request_timeout_s if its answers take longer")
        return EngineError(f"{self._label}: {error}. Check that the URL is that of an HTTP API, and its scheme")

    def _died(self, error: EngineDiedError) -> EngineDiedError:
        if self._health.state not in ("closed", "starting"):  # a start is not undone by calls from before it
            self._health = Health("dead", str(error))
        return error
