"""An OpenAI-compatible stub server for tests and benchmarks: `python -m tests.stub_server --port 8000`.

Answers are those of `halo_core.pool.simulated_model` (a hash of the request): a row has the same answers here and from
the simulated engine. What goes wrong is told by a directive in the model's name or in the last message,
`stub:KEY=VALUE,KEY=VALUE...`:

    fail=STATUS        answer with that status         times=N       only to the first N equal requests
    retry-after=S      send that header with it        message=context   say that the context is exceeded
    delay=S            answer S seconds late           hang          never answer
    drop               close without an answer         truncate      close in the middle of the answer
    stream-error       an error event in the middle of a stream
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import re
import threading
from collections import Counter
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from halo_core.pool import simulated_model

_DIRECTIVE = re.compile(r"stub:([\w=.,-]+)")
_PHRASES = {200: "OK", 400: "Bad Request", 404: "Not Found", 429: "Too Many Requests", 500: "Internal Server Error"}


class StubServer:
    """The server; `async with StubServer() as stub`, or `with StubServer().threaded()` for blocking tests."""

    def __init__(
        self,
        *,
        models: tuple[str, ...] = (),
        delay_s: float = 0.0,
        limit: int | None = None,
        dev_mode: bool = True,
        health: bool = True,
        max_model_len: int = 4096,
        keep_alive: bool = True,
        record: bool = True,
    ) -> None:
        """No `models` serves any name; `limit` answers 429 above that many requests at once."""
        self.models = models
        self.delay_s = delay_s
        self.limit = limit
        self.dev_mode = dev_mode
        self.health = health
        self.max_model_len = max_model_len
        self.keep_alive = keep_alive
        self.record = record
        self.requests: Counter[str] = Counter()
        """Requests by path."""
        self.bodies: list[dict[str, Any]] = []
        """Parsed bodies of the chat completions, in order of arrival (if `record`)."""
        self.headers: list[dict[str, str]] = []
        self.statuses: Counter[int] = Counter()
        self.tokens: Counter[str] = Counter()
        """Of all answers, by the names of vLLM's counters."""
        self.connections = 0
        self.aborted = 0
        """Requests whose client went away before the answer was sent."""
        self.in_flight = 0
        self.max_in_flight = 0
        self.changed = asyncio.Event()
        """Set whenever a chat completion arrives or is aborted; tests wait on it."""
        self.url = ""
        self._seen: Counter[str] = Counter()
        self._cached: set[str] = set()
        self._server: asyncio.Server | None = None
        self._open: set[_Exchange] = set()

    @property
    def chats(self) -> int:
        """Chat completions asked for."""
        return self.requests["/v1/chat/completions"]

    async def start(self, host: str = "127.0.0.1", port: int = 0, *, unix: str = "") -> StubServer:
        loop = asyncio.get_running_loop()
        if unix:
            self._server = await loop.create_unix_server(lambda: _Exchange(self), unix)
            self.url = f"unix:{unix}"
        else:
            self._server = await loop.create_server(lambda: _Exchange(self), host, port)
            self.url = f"http://{host}:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def stop(self) -> None:
        """Stop listening and drop all connections, as a killed server does."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for exchange in list(self._open):
            exchange.transport.abort()
        await asyncio.sleep(0)

    async def __aenter__(self) -> StubServer:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @contextmanager
    def threaded(self, port: int = 0) -> Iterator[StubServer]:
        """Run in a thread of its own, for tests and scripts without a loop."""
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="stub-server", daemon=True)
        thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self.start(port=port), loop).result(10)
            yield self
        finally:
            asyncio.run_coroutine_threadsafe(self.stop(), loop).result(10)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(10)
            loop.close()

    # -- answers -------------------------------------------------------------------------------------------------

    def directives(self, body: dict[str, Any]) -> dict[str, str]:
        """What the model's name and the last message tell the stub to do wrong, this time."""
        last = (body.get("messages") or [{}])[-1].get("content")
        found: dict[str, str] = {}
        for text in (body.get("model"), last):
            for match in _DIRECTIVE.finditer(text if isinstance(text, str) else ""):
                found |= {key: value for key, _, value in (item.partition("=") for item in match[1].split(","))}
        if "times" in found:
            key = json.dumps(body, sort_keys=True)
            self._seen[key] += 1
            if self._seen[key] > int(found["times"]):
                return {}
        return found

    def usage(self, answered: simulated_model.Answer) -> Any:
        """A prompt seen before counts as cached up to its last whole block of 16 tokens."""
        prompt_tokens = simulated_model.count_tokens(answered.prompt)
        cached = (prompt_tokens - 1) // 16 * 16 if answered.prompt in self._cached else 0
        self._cached.add(answered.prompt)
        used = answered.usage(prompt_tokens, cached)
        self.tokens.update(prompt_tokens=prompt_tokens, prefix_cache_hits=cached, request_success=1)
        self.tokens["generation_tokens"] += used.generated_tokens
        return used

    def metrics(self) -> str:
        """What vLLM's `/metrics` would say of the answers so far."""
        names = ("prompt_tokens", "prefix_cache_hits", "generation_tokens", "request_success")
        return "".join(f"vllm:{name}_total{{}} {self.tokens[name]}\n" for name in names)

    def forget(self) -> None:
        """Empty the prefix cache."""
        self._cached.clear()


class _Exchange(asyncio.Protocol):
    """One connection: requests in, answers out, one after the other."""

    transport: asyncio.Transport

    def __init__(self, server: StubServer) -> None:
        self._server = server
        self._buffer = bytearray()
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._server.connections += 1
        self._server._open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server._open.discard(self)
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        lines = self._buffer[:end].decode("latin-1").split("\r\n")
        method, path, _ = lines[0].split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        length = int(headers.get("content-length", "0"))
        if len(self._buffer) < end + 4 + length:
            return
        body = bytes(self._buffer[end + 4 : end + 4 + length])
        del self._buffer[: end + 4 + length]
        path = path.partition("?")[0]
        self._server.requests[path] += 1
        self._route(method, path, headers, body)

    def _route(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        server = self._server
        route = (method, path)
        if route == ("POST", "/v1/chat/completions"):
            try:
                request = json.loads(body)
            except ValueError:
                return self._error(400, "the body is not JSON")
            if server.record:
                server.bodies.append(request)
                server.headers.append(headers)
            self._chat(request)
        elif route == ("GET", "/v1/models"):
            names = server.models or ("stub-model",)
            self._json(
                {
                    "object": "list",
                    "data": [{"id": name, "object": "model", "max_model_len": server.max_model_len} for name in names],
                }
            )
        elif route == ("GET", "/health") and server.health:
            self._send(200, b"")
        elif route == ("GET", "/metrics"):
            self._send(200, server.metrics().encode())
        elif route == ("POST", "/reset_prefix_cache") and server.dev_mode:
            server.forget()
            self._json({"success": True})
        else:
            self._error(404, "Not Found")

    def _chat(self, request: dict[str, Any]) -> None:
        server = self._server
        server.in_flight += 1
        server.max_in_flight = max(server.max_in_flight, server.in_flight)
        server.changed.set()
        told = server.directives(request)
        delay_s = float(told.get("delay", server.delay_s))
        if "hang" in told:
            self._later(asyncio.Event().wait())
        elif delay_s or server.limit is not None:
            self._later(self._answer_late(request, told, delay_s, server.in_flight))
        else:
            self._answer(request, told)
            server.in_flight -= 1

    def _later(self, work: Coroutine[Any, Any, Any]) -> None:
        async def run() -> None:
            try:
                await work
            except asyncio.CancelledError:
                self._server.aborted += 1
                self._server.changed.set()
            finally:
                self._server.in_flight -= 1
                self._task = None

        self._task = asyncio.ensure_future(run())

    async def _answer_late(self, request: dict[str, Any], told: dict[str, str], delay_s: float, ahead: int) -> None:
        if self._server.limit is not None and ahead > self._server.limit:
            return self._error(429, "too many requests at once")
        await asyncio.sleep(delay_s)
        self._answer(request, told)

    def _answer(self, request: dict[str, Any], told: dict[str, str]) -> None:
        server, model = self._server, request.get("model", "")
        if server.models and model not in server.models:
            return self._error(404, f"The model `{model}` does not exist.", kind="NotFoundError")
        if "fail" in told:
            message = "told to fail"
            if told.get("message") == "context":
                message = f"This model's maximum context length is {server.max_model_len} tokens. However, ..."
            extra = {"Retry-After": told["retry-after"]} if "retry-after" in told else {}
            return self._error(int(told["fail"]), message, extra=extra)
        if "drop" in told:
            return self.transport.abort()
        answered = simulated_model.answer(model, request)
        usage = server.usage(answered)
        if request.get("stream"):
            asked = bool((request.get("stream_options") or {}).get("include_usage"))
            return self._stream(simulated_model.ChunkWriter(answered, model), usage, told, asked=asked)
        raw = simulated_model.completion_json(answered, model, usage)
        if "truncate" in told:
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(raw) + raw[:50])
            return self.transport.close()
        self._send(200, raw)

    def _stream(
        self, writer: simulated_model.ChunkWriter, usage: Any, told: dict[str, str], *, asked: bool = True
    ) -> None:
        """`asked`: whether the stream is to end with the tokens used."""
        bounds = simulated_model.chunk_bounds(writer.answered.steps)
        events = list(writer.opening())
        for start, stop in itertools.pairwise(bounds):
            events.extend(writer.tokens(start, stop))
        if "stream-error" in told:
            events.append(b'{"error":{"message":"told to fail","type":"InternalServerError","code":500}}')
        else:
            events.extend(list(writer.closing(usage))[: None if asked else -1])
        self._server.statuses[200] += 1
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        chunks = [b"data: %s\n\n" % event for event in (*events, b"[DONE]")]
        if "truncate" in told:
            chunks = chunks[: len(chunks) // 2]
        self.transport.write(head + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks))
        if "truncate" in told:
            return self.transport.close()
        self.transport.write(b"0\r\n\r\n")

    def _json(self, document: Any, status: int = 200, extra: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(document).encode(), extra)

    def _error(
        self, status: int, message: str, *, kind: str = "BadRequestError", extra: dict[str, str] | None = None
    ) -> None:
        self._json({"error": {"message": message, "type": kind, "param": None, "code": status}}, status, extra)

    def _send(self, status: int, body: bytes, extra: dict[str, str] | None = None) -> None:
        self._server.statuses[status] += 1
        fields = "".join(f"{name}: {value}\r\n" for name, value in (extra or {}).items())
        if not self._server.keep_alive:
            fields += "Connection: close\r\n"
        head = (
            f"HTTP/1.1 {status} {_PHRASES.get(status, 'Status')}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n{fields}\r\n"
        )
        self.transport.write(head.encode() + body)
        if not self._server.keep_alive:
            self.transport.close()


async def _serve(arguments: argparse.Namespace) -> None:
    server = StubServer(models=tuple(arguments.model), delay_s=arguments.delay, limit=arguments.limit, record=False)
    await server.start(arguments.host, arguments.port, unix=arguments.unix)
    print(f"stub server at {server.url}", flush=True)
    await asyncio.Event().wait()


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description="An OpenAI-compatible stub server.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--unix", default="", help="path of a Unix socket, instead of host and port")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before every answer")
    parser.add_argument("--limit", type=int, default=None, help="answer 429 above this many requests at once")
    parser.add_argument("--model", action="append", default=[], help="serve only this name (may be repeated)")
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
