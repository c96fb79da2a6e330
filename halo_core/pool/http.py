"""A lean HTTP/1.1 client on asyncio: connections kept alive, bodies whole or streamed, TCP, TLS and Unix sockets."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from halo_core.errors import ConfigError
from halo_core.pool.http_connection import Connection, ConnectionLostError, HttpTimeoutError
from halo_core.pool.http_wire import BadResponseError, EventDecoder, HttpError, ResponseParser

__all__ = [
    "BadResponseError",
    "ConnectError",
    "ConnectionLostError",
    "HttpClient",
    "HttpError",
    "HttpTimeoutError",
    "Origin",
    "Response",
    "ResponseStream",
]

# How long the end of a body may come after its [DONE] event, in seconds, before its connection is given up.
_DONE_GRACE_S = 1.0


class ConnectError(HttpError):
    """No connection could be opened; nothing was sent."""


@dataclass(slots=True, frozen=True)
class Origin:
    """Where requests go: a host and port, or a Unix socket."""

    host: str
    port: int = 0
    tls: bool = False
    socket_path: str = ""

    @classmethod
    def split(cls, url: str) -> tuple[Origin, str]:
        """The origin of a URL and what follows it (path and query, without a trailing slash).

        Takes `http://host[:port]/path`, `https://...` and `unix:/path/of/socket[/v1]`. Raises `ConfigError`.
        """
        if url.startswith("unix:"):
            path = "/" + url.removeprefix("unix:").strip("/")
            socket_path, rest = (path[:-3], "/v1") if path.endswith("/v1") else (path, "")
            if len(socket_path.encode()) > 107:
                raise ConfigError(f"the socket path in {url!r} is longer than the 107 bytes that the system allows")
            return cls("localhost", socket_path=socket_path), rest
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"{url!r} has no valid port: {error}") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{url!r} is not a server's URL: write http://host:port, https://host or unix:/path")
        if parts.username or parts.password:
            raise ConfigError(f"the URL of {parts.hostname!r} contains a user name: give the key as api_key or headers")
        tls = parts.scheme == "https"
        rest = parts.path.rstrip("/") + (f"?{parts.query}" if parts.query else "")
        return cls(parts.hostname, port or (443 if tls else 80), tls), rest

    @property
    def authority(self) -> str:
        """The value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port in (0, 443 if self.tls else 80) else f"{host}:{self.port}"

    def __str__(self) -> str:
        return (
            f"unix:{self.socket_path}" if self.socket_path else f"{'https' if self.tls else 'http'}://{self.authority}"
        )


@dataclass(slots=True, frozen=True)
class Response:
    """A whole response."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes


class ResponseStream:
    """A response whose head has arrived and whose body is read as it comes. Close it, or read it to its end."""

    __slots__ = ("_client", "_connection", "_parser", "_timeout_s", "headers", "status")

    def __init__(self, client: HttpClient, connection: Connection, timeout_s: float | None) -> None:
        assert connection.parser is not None
        self._client = client
        self._connection = connection
        self._parser = connection.parser
        self._timeout_s = timeout_s
        self.status = self._parser.status
        self.headers: Mapping[str, str] = self._parser.headers

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it arrives. Raises `HttpError`; a truncated body is a `ConnectionLostError`."""
        try:
            while True:
                if piece := self._parser.take():
                    self._connection.transport.resume_reading()
                    yield piece
                elif self._parser.complete:
                    return
                else:
                    await self._connection.wait(self._timeout_s)
        finally:
            self.close()

    async def read(self) -> bytes:
        """The rest of the body."""
        return b"".join([piece async for piece in self.pieces()])

    async def events(self) -> AsyncIterator[bytes]:
        """The `data` of each server-sent event, up to `[DONE]` or the end of the body. Raises `HttpError`."""
        decoder = EventDecoder()
        try:
            async for piece in self.pieces():
                for data in decoder.feed(piece):
                    if data == b"[DONE]":
                        await self._drain()
                        return
                    yield data
            for data in decoder.flush():
                if data == b"[DONE]":
                    return
                yield data
            if not self._parser.delimited:
                # Such a body is only known to be whole by its [DONE].
                raise ConnectionLostError(f"{self._client.origin} closed the connection in a stream", received=True)
        finally:
            self.close()

    async def _drain(self) -> None:
        """Read the few bytes after `[DONE]`, so that the connection can carry the next request."""
        with contextlib.suppress(HttpError, TimeoutError):
            async with asyncio.timeout(_DONE_GRACE_S):
                while not self._parser.complete:
                    self._parser.take()
                    await self._connection.wait(None)

    def close(self) -> None:
        """Give the connection back; in the middle of a body, close it, so that the server aborts the request."""
        self._client._release(self._connection, self._parser)


class HttpClient:
    """Sends requests to one origin over kept-alive connections. Bound to the event loop that first uses it.

    A request that a kept connection lost before any byte of its answer came is sent once more on a fresh connection:
    the server had closed it as idle.
    """

    def __init__(
        self,
        origin: Origin | str,
        *,
        headers: Mapping[str, str] | None = None,
        max_connections: int | None = None,
        connect_timeout_s: float = 10.0,
        read_timeout_s: float | None = 600.0,
        idle_s: float = 60.0,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        """`read_timeout_s` bounds the server's silence, not the whole answer; `idle_s` the age of a kept connection."""
        self.origin = Origin.split(origin)[0] if isinstance(origin, str) else origin
        self._headers = _header_block({"Host": self.origin.authority, "Accept-Encoding": "identity", **(headers or {})})
        self._connect_timeout_s = connect_timeout_s
        self._read_timeout_s = read_timeout_s
        self._idle_s = idle_s
        self._ssl = (ssl_context or ssl.create_default_context()) if self.origin.tls else None
        self._places = asyncio.Semaphore(max_connections) if max_connections else None
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self._closed = False

    @property
    def connections(self) -> int:
        """Connections that are open now."""
        return len(self._open)

    async def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        read_timeout_s: float | None = None,
    ) -> Response:
        """Send a request and read its whole response. Raises `HttpError`; cancelling closes the connection."""
        timeout_s = read_timeout_s or self._read_timeout_s
        connection = await self._exchange(method, path, body, headers, timeout_s, whole=True)
        parser = connection.parser
        assert parser is not None
        response = Response(parser.status, parser.headers, parser.take())
        self._release(connection, parser)
        return response

    async def open(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        read_timeout_s: float | None = None,
    ) -> ResponseStream:
        """Send a request and read the head of its response. Raises `HttpError`."""
        timeout_s = read_timeout_s or self._read_timeout_s
        connection = await self._exchange(method, path, body, headers, timeout_s, whole=False)
        return ResponseStream(self, connection, timeout_s)

    def close(self) -> None:
        """Close all connections; requests under way get `ConnectionLostError`. Idempotent."""
        self._closed = True
        for connection in list(self._open):
            connection.fail(ConnectionLostError(f"the client of {self.origin} was closed", received=False))

    async def _exchange(
        self,
        method: str,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str] | None,
        timeout_s: float | None,
        *,
        whole: bool,
    ) -> Connection:
        """Send a request and wait for its response (`whole`) or its head, on a kept connection where there is one."""
        extra = _header_block(headers) if headers else b""
        length = b"" if body is None and method in ("GET", "HEAD") else b"Content-Length: %d\r\n" % len(body or b"")
        head = f"{method} {path} HTTP/1.1\r\n".encode()
        request = b"".join((head, self._headers, extra, length, b"\r\n", body or b""))
        fresh = False
        while True:
            connection = await self._lease(fresh)
            reused = connection.idle_since > 0.0
            connection.send(request, whole=whole, no_body=method == "HEAD")
            parser = connection.parser
            assert parser is not None
            try:
                await connection.wait(timeout_s)
                return connection
            except BaseException as error:
                self._release(connection, parser)
                stale = reused and isinstance(error, ConnectionLostError) and not error.received
                if not stale or self._closed:
                    raise
                fresh = True

    async def _lease(self, fresh: bool) -> Connection:
        if self._places is not None:
            await self._places.acquire()
        try:
            if self._closed:
                raise ConnectError(f"the client of {self.origin} was closed")
            loop = asyncio.get_running_loop()
            oldest = loop.time() - self._idle_s
            while self._idle and not fresh:
                # The connection used last is the least likely to be stale.
                connection = self._idle.pop()
                if not connection.transport.is_closing() and connection.idle_since >= oldest:
                    connection.leased = True
                    return connection
                connection.transport.abort()
            return await self._connect(loop)
        except BaseException:
            if self._places is not None:
                self._places.release()
            raise

    async def _connect(self, loop: asyncio.AbstractEventLoop) -> Connection:
        origin, name = self.origin, str(self.origin)

        def protocol() -> Connection:
            return Connection(loop, name, self._forget)

        try:
            async with asyncio.timeout(self._connect_timeout_s):
                if origin.socket_path:
                    _, connection = await loop.create_unix_connection(protocol, origin.socket_path)
                else:
                    _, connection = await loop.create_connection(protocol, origin.host, origin.port, ssl=self._ssl)
        except TimeoutError as error:
            raise ConnectError(f"{origin} did not accept a connection in {self._connect_timeout_s:g} s") from error
        except OSError as error:  # also ssl.SSLError
            raise ConnectError(f"cannot connect to {origin}: {error.strerror or error}") from error
        self._open.add(connection)
        return connection

    def _release(self, connection: Connection, parser: ResponseParser) -> None:
        """End an exchange: keep the connection if it can carry another one, else close it. Idempotent."""
        if not connection.leased or connection.parser is not parser:
            return
        connection.leased = False
        connection.parser = None
        transport = connection.transport
        # An answer may come before the request was sent in full (413): such a connection is of no further use.
        sent = transport.is_closing() or transport.get_write_buffer_size() == 0
        if parser.complete and parser.keep_alive and sent and not transport.is_closing() and not self._closed:
            connection.idle_since = asyncio.get_running_loop().time()
            transport.resume_reading()
            self._idle.append(connection)
        else:
            transport.abort()
        if self._places is not None:
            self._places.release()

    def _forget(self, connection: Connection) -> None:
        self._open.discard(connection)
        if not connection.leased and connection in self._idle:
            self._idle.remove(connection)


def _header_block(headers: Mapping[str, str]) -> bytes:
    for name, value in headers.items():
        # The value may be a key: it stays out of the message.
        if any(c in name + value for c in "\r\n\0") or ":" in name or not (name + value).isascii():
            raise ConfigError(f"the HTTP header {name!r} has characters that a header cannot have")
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode("ascii")
