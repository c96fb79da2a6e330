"""One HTTP/1.1 connection: carries one request at a time and wakes the one task that waits for the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from halo_core.pool.http_wire import BadResponseError, HttpError, ResponseParser

# A streamed body that its reader does not take is left in the kernel (and so slows the server) above this many bytes.
_HIGH_WATER = 1 << 20


class ConnectionLostError(HttpError):
    """The connection ended before the response was whole."""

    def __init__(self, message: str, *, received: bool) -> None:
        super().__init__(message)
        self.received = received
        """Whether a part of the response had arrived."""


class HttpTimeoutError(HttpError):
    """The server stayed silent for longer than the read timeout."""


class Connection(asyncio.Protocol):
    """One connection: carries one request at a time and wakes its one reader."""

    __slots__ = (
        "_heard_at",
        "_loop",
        "_on_lost",
        "_origin",
        "_timer",
        "_waiter",
        "_whole",
        "error",
        "idle_since",
        "leased",
        "parser",
        "transport",
    )

    transport: asyncio.Transport

    def __init__(self, loop: asyncio.AbstractEventLoop, origin: str, on_lost: Callable[[Connection], None]) -> None:
        """`origin` names the server in errors; `on_lost` is called once, when the connection has ended."""
        self._loop = loop
        self._origin = origin
        self._on_lost = on_lost
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._heard_at = 0.0
        self._whole = True
        self.parser: ResponseParser | None = None
        """Of the response under way; None while idle."""
        self.error: HttpError | None = None
        self.idle_since = 0.0
        """When its last exchange ended, in loop time; 0 while it has carried none."""
        self.leased = True
        """Whether a request holds it (and its place under `max_connections`)."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        parser = self.parser
        if parser is None:  # nothing was asked: what comes cannot be the answer to the next request
            self.fail(ConnectionLostError("the server spoke out of turn", received=False))
            return
        try:
            parser.feed(data)
        except BadResponseError as error:
            self.fail(BadResponseError(f"{self._origin}: {error}"))
            return
        if parser.complete or not (self._whole or parser.status == 0):
            self._wake()
        elif self._timer is not None:
            self._heard_at = self._loop.time()
        if not self._whole and parser.buffered > _HIGH_WATER:
            self.transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        parser = self.parser
        self._on_lost(self)
        if self.error is not None:
            return  # closed by this side: the end of the connection is not the end of a body
        if parser is not None and parser.complete:
            parser.keep_alive = False
        elif parser is not None and exc is None and parser.eof():
            self._wake()
        else:
            received = parser is not None and parser.started
            what = "in the middle of its answer" if received else "before it answered"
            cause = f" ({exc})" if exc else ""
            self.fail(ConnectionLostError(f"{self._origin} closed the connection {what}{cause}", received=received))

    def fail(self, error: HttpError) -> None:
        """Close at once; whoever waits gets the error. The first error stays."""
        if self.error is None:
            self.error = error
        self.transport.abort()
        self._wake()

    def send(self, request: bytes, *, whole: bool, no_body: bool) -> None:
        """Start an exchange; `whole` wakes the reader only at the end of the response."""
        self._whole = whole
        self.parser = ResponseParser(no_body=no_body)
        self.transport.write(request)

    async def wait(self, timeout_s: float | None) -> ResponseParser:
        """Sleep until the response is whole, or (streamed) until more of it is there. Cancelling closes."""
        parser = self.parser
        assert parser is not None
        if self.error is not None:
            raise self.error
        if parser.complete:
            return parser
        loop = self._loop
        self._waiter = waiter = loop.create_future()
        if timeout_s is not None:
            self._heard_at = loop.time()
            self._timer = loop.call_later(timeout_s, self._expire, timeout_s)
        try:
            await waiter
        except asyncio.CancelledError:
            self.fail(ConnectionLostError("the request was cancelled", received=True))
            raise
        finally:
            self._waiter = None
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        if self.error is not None and not parser.complete and (self._whole or not parser.buffered):
            raise self.error
        return parser

    def _expire(self, timeout_s: float) -> None:
        left = self._heard_at + timeout_s - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._expire, timeout_s)
        else:
            self.fail(HttpTimeoutError(f"{self._origin} sent nothing for {timeout_s:g} s"))

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
