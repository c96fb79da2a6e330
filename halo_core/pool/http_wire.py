"""HTTP/1.1 responses and server-sent events, parsed as they arrive, in pieces of any size."""

from __future__ import annotations

import re

from halo_core.errors import HaloError

_MAX_HEAD = 65536
_MAX_LINE = 4096
_CHUNK_SIZE = re.compile(rb"[0-9a-fA-F]{1,16}")

# What the parser expects next.
_HEAD, _SIZED, _CHUNK_LINE, _CHUNK_END, _TRAILER, _TO_EOF = range(6)


class HttpError(HaloError):
    """A request got no usable HTTP response."""


class BadResponseError(HttpError):
    """What the server sent is not HTTP/1.1 as this client reads it."""


class ResponseParser:
    """Parses one response: `feed` it what arrives, `take` the body so far; `complete` tells when it is whole."""

    __slots__ = (
        "_body",
        "_buffer",
        "_chunked",
        "_left",
        "_no_body",
        "_state",
        "complete",
        "headers",
        "keep_alive",
        "status",
    )

    def __init__(self, *, no_body: bool = False) -> None:
        self.status = 0
        """0 until the head has arrived."""
        self.headers: dict[str, str] = {}
        """Names in lower case; repeated fields are joined with a comma."""
        self.complete = False
        self.keep_alive = True
        self._no_body = no_body
        self._buffer = bytearray()
        self._body = bytearray()
        self._chunked = False
        self._left = 0
        self._state = _HEAD

    @property
    def started(self) -> bool:
        """Whether any byte of the response has arrived."""
        return self.status != 0 or bool(self._buffer)

    @property
    def delimited(self) -> bool:
        """False where only the end of the connection ends the body, so that truncation cannot be seen."""
        return self._state != _TO_EOF

    @property
    def buffered(self) -> int:
        """Body bytes waiting to be taken."""
        return len(self._body)

    def feed(self, data: bytes) -> None:
        """Parse what has arrived. Raises `BadResponseError`."""
        self._buffer += data
        while self._buffer and not self.complete and self._advance():
            pass
        if self.complete and self._buffer:
            self.keep_alive = False  # bytes that nobody asked for: the next response could not be told from them

    def eof(self) -> bool:
        """The connection has ended: whether the response is whole."""
        if self._state == _TO_EOF:
            self.complete = True
        self.keep_alive = False
        return self.complete

    def take(self) -> bytes:
        """The body bytes that have arrived since the last `take`."""
        if not self._body:
            return b""
        body = bytes(self._body)
        self._body.clear()
        return body

    def _advance(self) -> bool:
        """Consume one element of the message; False when it needs more bytes."""
        buffer, state = self._buffer, self._state
        if state == _SIZED:
            piece = buffer[: self._left]
            del buffer[: len(piece)]
            self._body += piece
            self._left -= len(piece)
            if self._left == 0:
                if self._chunked:
                    self._state = _CHUNK_END
                else:
                    self.complete = True
            return True
        if state == _TO_EOF:
            self._body += buffer
            buffer.clear()
            return True
        if state == _HEAD:
            return self._read_head()
        line = self._line()
        if line is None:
            return False
        if state == _CHUNK_LINE:
            size = line.partition(b";")[0].strip()
            if not _CHUNK_SIZE.fullmatch(size):
                raise BadResponseError(f"the server sent {bytes(line[:40])!r} where a chunk size was due")
            self._left = int(size, 16)
            self._state = _SIZED if self._left else _TRAILER
        elif state == _CHUNK_END:
            if line:
                raise BadResponseError("the server sent a chunk longer than the size it had announced")
            self._state = _CHUNK_LINE
        elif not line:  # the empty line after the trailers
            self.complete = True
        return True

    def _line(self) -> bytearray | None:
        end = self._buffer.find(b"\r\n")
        if end < 0:
            if len(self._buffer) > _MAX_LINE:
                raise BadResponseError(f"the server sent a line of more than {_MAX_LINE} bytes inside a chunked body")
            return None
        line = self._buffer[:end]
        del self._buffer[: end + 2]
        return line

    def _read_head(self) -> bool:
        buffer = self._buffer
        start = bytes(buffer[:7])
        if not b"HTTP/1.".startswith(start):
            raise BadResponseError(f"the server does not speak HTTP/1 (its answer starts with {start!r})")
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(buffer) > _MAX_HEAD:
                raise BadResponseError(f"the server sent more than {_MAX_HEAD} bytes of headers")
            return False
        lines = buffer[:end].decode("latin-1").split("\r\n")
        del buffer[: end + 4]
        version, _, rest = lines[0].partition(" ")
        if not (rest[:3].isascii() and rest[:3].isdigit()):
            raise BadResponseError(f"the server sent the status line {lines[0][:80]!r}")
        status = int(rest[:3])
        headers: dict[str, str] = {}
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if not colon or not name or name[0] in " \t":
                raise BadResponseError(f"the server sent the header line {line[:80]!r}")
            name, value = name.lower(), value.strip()
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        if 100 <= status < 200:
            return True  # an interim response: the real one follows
        self.status, self.headers = status, headers
        connection = headers.get("connection", "").lower()
        self.keep_alive = "close" not in connection and (version != "HTTP/1.0" or "keep-alive" in connection)
        self._frame_body()
        return True

    def _frame_body(self) -> None:
        """Decide where the body ends (RFC 9112, section 6.3)."""
        coding = self.headers.get("content-encoding", "identity").lower()
        if coding != "identity":
            raise BadResponseError(f"the server compressed its answer ({coding}), which it was not asked for")
        length = self.headers.get("content-length")
        if self._no_body or self.status in (204, 304):
            self.complete = True
        elif "transfer-encoding" in self.headers:
            self._chunked = self.headers["transfer-encoding"].lower().endswith("chunked")
            self._state = _CHUNK_LINE if self._chunked else _TO_EOF
        elif length is not None:
            if not (length.isascii() and length.isdigit()):
                raise BadResponseError(f"the server sent Content-Length {length[:40]!r}")
            self._left = int(length)
            self._state = _SIZED
            self.complete = self._left == 0
        else:
            self._state = _TO_EOF


class EventDecoder:
    """Splits a `text/event-stream` body into the `data` of its events; other fields are dropped."""

    __slots__ = ("_buffer", "_data")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of the events that this piece completes."""
        self._buffer += piece
        # A carriage return at the very end may be half of a line end: it waits for what follows.
        end = max(self._buffer.rfind(b"\n"), self._buffer.rfind(b"\r", 0, -1)) + 1
        if not end:
            return []
        block = bytes(self._buffer[:end])
        del self._buffer[:end]
        if block[-1:] == b"\r" and self._buffer[:1] == b"\n":  # the line end that the cut went through
            block += b"\n"
            del self._buffer[:1]
        return self._events(block)

    def flush(self) -> list[bytes]:
        """The data of a last event that no empty line ended."""
        block = bytes(self._buffer)
        self._buffer.clear()
        return self._events(block + b"\n\n")

    def _events(self, block: bytes) -> list[bytes]:
        events: list[bytes] = []
        for line in block.splitlines():
            if line.startswith(b"data:"):
                self._data.append(line[6:] if line[5:6] == b" " else line[5:])
            elif not line and self._data:
                events.append(self._data[0] if len(self._data) == 1 else b"\n".join(self._data))
                self._data.clear()
        return events
