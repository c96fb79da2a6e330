"""HTTP as a tool: equal GETs of a batch are one request, and a host gets no more of them than it bears."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit
from weakref import WeakKeyDictionary

from halo_core.errors import HaloError
from halo_core.plan import Effect
from halo_core.runtime import SESSION, ToolCall
from halo_core.tools.signature import signature_of

if TYPE_CHECKING:
    import httpx

_READS = frozenset({"GET", "HEAD", "OPTIONS"})
"""Safe methods (RFC 9110, 9.2.1); every other is taken to write."""
_PORTS = {"http": 80, "https": 443}
_closing: set[asyncio.Task[None]] = set()
"""A loop keeps only weak references to its tasks."""
MATTERING = ("accept", "accept-language", "authorization", "cookie", "range")
"""Request headers that may decide the answer; two GETs that differ in one of them are not equal."""


class HttpError(HaloError):
    """A request that got no answer, or one that says that it failed."""

    in_doubt = False
    """Whether the server may have done what it was asked."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server said."""

    url: str
    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def text(self) -> str:
        """The body as UTF-8."""
        return self.content.decode("utf-8", "replace")

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.content)

    def raise_for_status(self) -> Answer:
        """Raise `HttpError` unless the status says that it went well."""
        if self.status >= 400:
            raise HttpError(f"{self.url} answered {self.status}: {self.text[:200]}")
        return self


def canonical_url(url: str) -> str:
    """The URL by which equal requests are known: without default port and fragment, its parameters sorted by name.

    Parameters of one name keep their order, since servers may care.
    """
    parts = urlsplit(url)
    scheme, host = parts.scheme.lower(), (parts.hostname or "").lower()
    port = f":{parts.port}" if parts.port and parts.port != _PORTS.get(scheme) else ""
    user = f"{parts.username or ''}:{parts.password or ''}@" if parts.username or parts.password else ""
    pairs = parts.query.split("&")  # as they are: decoded, two that differ might become one
    query = "&".join(sorted(pairs, key=lambda pair: pair.partition("=")[0]))
    return urlunsplit((scheme, f"{user}{host}{port}", parts.path or "/", query, ""))


class Http:
    """Servers whose requests are tools. Make one with `halo_core.http` and keep it."""

    def __init__(
        self,
        base_url: str,
        name: str,
        max_inflight: int | None,
        mattering: tuple[str, ...],
        retries: int,
        timeout_s: float,
    ) -> None:
        self.base_url = base_url
        self.name = name
        self.max_inflight = max_inflight
        self._mattering = mattering
        self._retries = retries
        self._timeout_s = timeout_s
        self._client: httpx.Client | None = None
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = WeakKeyDictionary()

    def get(self, url: str, **options: Any) -> Answer:
        """GET `url`, relative to the base; options as of `request`."""
        return self.request("GET", url, **options)

    async def aget(self, url: str, **options: Any) -> Answer:
        """The same from a task."""
        return await self.arequest("GET", url, **options)

    def request(self, method: str, url: str, **options: Any) -> Answer:
        """One request; options are httpx's (`params`, `headers`, `json`, `content`, ...). Raises `HttpError`."""
        request = self._request(method, url, options)

        def make() -> Answer:
            import httpx

            if self._client is None:
                self._client = httpx.Client(timeout=self._timeout_s, limits=_limits())
            try:
                return _answer(self._client.send(request))
            except httpx.HTTPError as error:
                raise _failed(request, error) from error

        run = SESSION.get()
        return make() if run is None else run.batch.desk.call(self._call(request), make)

    async def arequest(self, method: str, url: str, **options: Any) -> Answer:
        """The same from a task."""
        request = self._request(method, url, options)

        async def make() -> Answer:
            import httpx

            loop = asyncio.get_running_loop()  # a client belongs to one event loop, an app may have several
            client = self._clients.get(loop)
            if client is None:
                for ended in [other for other in self._clients if other.is_closed()]:
                    del self._clients[ended]  # its connections go with it
                client = httpx.AsyncClient(timeout=self._timeout_s, limits=_limits())
                self._clients[loop] = client
            try:
                return _answer(await client.send(request))
            except httpx.HTTPError as error:
                raise _failed(request, error) from error

        run = SESSION.get()
        return await (make() if run is None else run.batch.desk.acall(self._call(request), make))

    def close(self) -> None:
        """Close the connections; those of tasks go as their event loops get to it."""
        if self._client is not None:
            self._client.close()
            self._client = None
        clients, self._clients = dict(self._clients), WeakKeyDictionary()
        for loop, client in clients.items():
            with contextlib.suppress(RuntimeError):  # a closed loop's connections went with it
                loop.call_soon_threadsafe(_close, loop, client)

    async def aclose(self) -> None:
        """The same from a task, which then knows that its loop's connections are closed."""
        if (client := self._clients.pop(asyncio.get_running_loop(), None)) is not None:
            await client.aclose()
        self.close()

    def _request(self, method: str, url: str, options: Mapping[str, Any]) -> httpx.Request:
        try:
            import httpx
        except ImportError as missing:
            raise HttpError("HTTP tools need httpx: pip install httpx") from missing
        target = str(httpx.URL(self.base_url).join(url)) if self.base_url else url
        try:
            return httpx.Request(method.upper(), target, **options)
        except (httpx.InvalidURL, TypeError) as error:
            raise HttpError(f"{method} {target!r} is no request: {error}") from error

    def _call(self, request: httpx.Request) -> ToolCall:
        effect = Effect.READ if request.method in _READS else Effect.WRITE
        host = request.url.host
        headers = {name: request.headers[name] for name in self._mattering if name in request.headers}
        url, content = str(request.url), request.read()
        return ToolCall(
            self.name or host,
            effect,
            signature_of([request.method, canonical_url(url), headers, content]),
            (host,),
            f"http {host}",
            self.max_inflight,
            self._retries,
            arguments={"request": [request.method, url, content.decode("utf-8", "backslashreplace")]},
        )


def http(
    base_url: str = "",
    *,
    name: str = "",
    max_inflight: int | None = None,
    headers: tuple[str, ...] = MATTERING,
    retries: int = 0,
    timeout_s: float = 60.0,
) -> Http:
    """Servers as a tool: `http("https://api.example.com").get("/items", params={"q": "tea"}).json()`.

    max_inflight: requests at a time to each host, over all rows of the process.
    headers: names of request headers that may decide the answer.
    retries: further attempts after a request that got no answer.
    GET, HEAD and OPTIONS read, every other method writes.
    """
    if max_inflight is not None and max_inflight < 1:
        raise HttpError(f"max_inflight is {max_inflight}; give 1 or more")
    lowered = tuple(header.lower() for header in headers)
    return Http(base_url, name, max_inflight, lowered, retries, timeout_s)


def _close(loop: asyncio.AbstractEventLoop, client: httpx.AsyncClient) -> None:
    task = loop.create_task(client.aclose())
    _closing.add(task)
    task.add_done_callback(_closing.discard)


def _failed(request: Any, error: Exception) -> HttpError:
    import httpx

    failure = HttpError(f"{request.method} {request.url} failed: {str(error) or type(error).__name__}")
    never_sent = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)
    failure.in_doubt = not isinstance(error, never_sent)
    return failure


def _limits() -> Any:
    import httpx

    return httpx.Limits(max_connections=None, max_keepalive_connections=64)


def _answer(response: Any) -> Answer:
    return Answer(str(response.url), response.status_code, dict(response.headers), response.content)
