"""The HTTP client against servers that misbehave in every way that real ones do."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from halo_core.errors import ConfigError
from halo_core.pool.http import (
    BadResponseError,
    ConnectError,
    ConnectionLostError,
    HttpClient,
    HttpTimeoutError,
    Origin,
)
from tests.stub_server import StubServer

Script = Callable[[int, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
    return head + await reader.readexactly(length)


@asynccontextmanager
async def nasty(script: Script) -> AsyncIterator[str]:
    """A server that runs `script(connection number, reader, writer)` on every connection."""
    count = 0
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        count += 1
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await script(count, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def reply(data: bytes) -> Script:
    async def script(_: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(data)
        await writer.drain()

    return script


async def test_connections_are_kept_and_reused() -> None:
    async with StubServer() as stub:
        client = HttpClient(stub.url)
        for _ in range(5):
            assert (await client.request("GET", "/health")).status == 200
        assert stub.connections == 1
        await asyncio.gather(*(client.request("GET", "/v1/models") for _ in range(7)))
        assert stub.connections == client.connections == 7
        client.close()


async def test_connections_are_limited() -> None:
    async with StubServer() as stub:
        client = HttpClient(stub.url, max_connections=2)
        responses = await asyncio.gather(*(client.request("GET", "/v1/models") for _ in range(20)))
        assert {response.status for response in responses} == {200}
        assert stub.connections == 2
        client.close()


async def test_a_cancelled_wait_for_a_connection_does_not_leak_its_place() -> None:
    async with StubServer() as stub:
        client = HttpClient(stub.url, max_connections=1)
        body = b'{"model":"stub:hang","messages":[]}'
        first = asyncio.ensure_future(client.request("POST", "/v1/chat/completions", body))
        await stub.changed.wait()
        second = asyncio.ensure_future(client.request("GET", "/health"))
        await asyncio.sleep(0)
        second.cancel()
        first.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        assert (await client.request("GET", "/health")).status == 200
        client.close()


async def test_a_unix_socket_works_as_an_origin(tmp_path: Path) -> None:
    stub = await StubServer().start(unix=str(tmp_path / "s"))
    client = HttpClient(stub.url)
    assert (await client.request("GET", "/health")).status == 200
    client.close()
    await stub.stop()


async def test_a_connection_closed_between_requests_is_replaced_unseen() -> None:
    async def one_answer_each(_: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK)  # promises keep-alive, then closes

    async with nasty(one_answer_each) as url:
        client = HttpClient(url)
        for _ in range(20):
            assert (await client.request("POST", "/", b"x")).body == b"ok"
        client.close()


async def test_a_stale_connection_is_retried_once_on_a_fresh_one() -> None:
    served: list[int] = []

    async def dies_on_second_request(number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        served.append(number)
        writer.write(OK)
        await read_request(reader)
        served.append(number)
        writer.transport.abort()

    async with nasty(dies_on_second_request) as url:
        client = HttpClient(url)
        assert (await client.request("POST", "/", b"x")).body == b"ok"
        assert (await client.request("POST", "/", b"x")).body == b"ok"
        assert served == [1, 1, 2]
        client.close()


async def test_a_fresh_connection_that_dies_is_not_retried() -> None:
    served: list[int] = []

    async def dies(number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        served.append(number)
        writer.transport.abort()

    async with nasty(dies) as url:
        client = HttpClient(url)
        with pytest.raises(ConnectionLostError, match="before it answered") as caught:
            await client.request("POST", "/", b"x")
        assert not caught.value.received
        assert served == [1]
        client.close()


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"HTTP/1.1 200",
    ],
)
async def test_a_truncated_answer_is_an_error(data: bytes) -> None:
    async with nasty(reply(data)) as url:
        client = HttpClient(url)
        with pytest.raises(ConnectionLostError, match="in the middle") as caught:
            await client.request("GET", "/")
        assert caught.value.received
        with pytest.raises(ConnectionLostError):
            await (await client.open("GET", "/")).read()
        client.close()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    body=st.binary(max_size=200),
    points=st.lists(st.integers(0, 500), max_size=6),
    chunks=st.lists(st.integers(1, 50), max_size=10),
    streamed=st.booleans(),
)
def test_any_framing_in_any_pieces_gives_the_body(
    body: bytes, points: list[int], chunks: list[int], streamed: bool
) -> None:
    rest, framed = body, b""
    for size in chunks:
        if rest:
            framed += b"%X\r\n%s\r\n" % (len(rest[:size]), rest[:size])
            rest = rest[size:]
    framed += (b"%x\r\n%s\r\n" % (len(rest), rest) if rest else b"") + b"0\r\n\r\n"
    data = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + framed
    bounds = [0, *sorted(point % len(data) for point in points), len(data)]

    async def in_pieces(_: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            for start, stop in itertools.pairwise(bounds):
                writer.write(data[start:stop])
                await asyncio.sleep(0)

    async def main() -> None:
        async with nasty(in_pieces) as url:
            client = HttpClient(url)
            for _ in range(2):
                if streamed:
                    assert await (await client.open("GET", "/")).read() == body
                else:
                    assert (await client.request("GET", "/")).body == body
            assert client.connections == 1
            client.close()

    asyncio.run(main())


async def test_events_are_yielded_as_they_come_and_the_connection_is_kept() -> None:
    proceed = asyncio.Event()

    async def two_events(_: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\ndata: 1\n\n\n\r\n")
            await proceed.wait()
            writer.write(b"5\r\ndata:\r\n11\r\n 2\n\ndata: [DONE]\n\r\n1\r\n\n\r\n0\r\n\r\n")

    async with nasty(two_events) as url:
        client = HttpClient(url)
        for _ in range(2):
            stream = await client.open("GET", "/")
            events = stream.events()
            assert await anext(events) == b"1"
            proceed.set()
            assert [event async for event in events] == [b"2"]
        assert client.connections == 1
        client.close()


async def test_a_stream_of_unknown_length_is_whole_only_with_done() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n"
    async with nasty(reply(head + b"data: [DONE]\n\n")) as url:
        client = HttpClient(url)
        assert [event async for event in (await client.open("GET", "/")).events()] == [b"1"]
        client.close()
    async with nasty(reply(head)) as url:
        client = HttpClient(url)
        with pytest.raises(ConnectionLostError):
            assert [event async for event in (await client.open("GET", "/")).events()]
        client.close()


@pytest.mark.parametrize("streamed", [False, True])
async def test_silence_is_a_timeout_and_closes_the_connection(streamed: bool) -> None:
    gone = asyncio.Event()

    async def half(_: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nhalf")  # ended by the connection only: a timeout must not look like it
        await reader.read()
        gone.set()

    async with nasty(half) as url:
        client = HttpClient(url, read_timeout_s=0.05)
        with pytest.raises(HttpTimeoutError, match=r"nothing for 0\.05 s"):
            if streamed:
                await (await client.open("GET", "/")).read()
            else:
                await client.request("GET", "/")
        await asyncio.wait_for(gone.wait(), 10)
        client.close()


async def test_cancelling_closes_the_connection_so_that_the_server_aborts() -> None:
    async with StubServer() as stub:
        client = HttpClient(stub.url)
        body = b'{"model":"stub:hang","messages":[]}'
        task = asyncio.ensure_future(client.request("POST", "/v1/chat/completions", body))
        await asyncio.wait_for(stub.changed.wait(), 10)
        stub.changed.clear()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(stub.changed.wait(), 10)
        assert (stub.aborted, stub.in_flight, client.connections) == (1, 0, 0)
        client.close()


async def test_leaving_a_stream_early_closes_its_connection() -> None:
    gone = asyncio.Event()

    async def endless(_: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n")
        await reader.read()
        gone.set()

    async with nasty(endless) as url:
        client = HttpClient(url)
        stream = await client.open("GET", "/")
        async for event in stream.events():
            assert event == b"1"
            break
        stream.close()
        stream.close()
        await asyncio.wait_for(gone.wait(), 10)
        client.close()


async def test_a_slow_reader_slows_the_server() -> None:
    sent = 0
    body = 64 << 20

    async def flood(_: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % body)
        while sent < body:
            writer.write(bytes(1 << 20))
            sent += 1 << 20
            await writer.drain()

    async with nasty(flood) as url:
        client = HttpClient(url)
        stream = await client.open("GET", "/")
        for _ in range(2000):
            await asyncio.sleep(0)
        assert sent < body
        assert len(await stream.read()) == body
        client.close()


async def test_an_answer_before_the_request_was_sent_does_not_reuse_the_connection() -> None:
    async def too_large(_: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        await asyncio.Event().wait()

    async with nasty(too_large) as url:
        client = HttpClient(url)
        response = await client.request("POST", "/", bytes(32 << 20))
        assert response.status == 413
        await asyncio.sleep(0)
        assert client.connections == 0
        client.close()


async def test_nobody_listening_is_a_connect_error() -> None:
    async with StubServer() as stub:
        url = stub.url
    client = HttpClient(url)
    with pytest.raises(ConnectError, match="cannot connect to http://127"):
        await client.request("GET", "/")
    client = HttpClient("unix:/nonexistent/socket")
    with pytest.raises(ConnectError, match="No such file"):
        await client.request("GET", "/")


async def test_a_server_of_another_protocol_is_named_as_such() -> None:
    async with nasty(reply(b"220 mail.example.org ESMTP\r\n")) as url:
        client = HttpClient(url)
        with pytest.raises(BadResponseError, match="does not speak HTTP/1"):
            await client.request("GET", "/")
        client.close()


async def test_closing_the_client_ends_its_requests() -> None:
    async with StubServer() as stub:
        client = HttpClient(stub.url)
        body = b'{"model":"stub:hang","messages":[]}'
        task = asyncio.ensure_future(client.request("POST", "/v1/chat/completions", body))
        await stub.changed.wait()
        client.close()
        with pytest.raises(ConnectionLostError, match="was closed"):
            await task
        with pytest.raises(ConnectError, match="was closed"):
            await client.request("GET", "/")


@pytest.mark.parametrize(
    ("url", "origin", "path"),
    [
        ("http://h:8000/v1/", "http://h:8000", "/v1"),
        ("https://h", "https://h", ""),
        ("http://[::1]:80/a?b=c", "http://[::1]", "/a?b=c"),
        ("unix:/run/s.sock", "unix:/run/s.sock", ""),
        ("unix:///run/s.sock/v1", "unix:/run/s.sock", "/v1"),
    ],
)
def test_urls_are_split_into_origin_and_path(url: str, origin: str, path: str) -> None:
    got, rest = Origin.split(url)
    assert (str(got), rest) == (origin, path)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://h", "http://u:p@h", "http://h:99999", "unix:/" + "x" * 200])
def test_urls_that_cannot_work_are_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        Origin.split(url)


def test_a_header_cannot_smuggle_another_and_its_value_stays_secret() -> None:
    with pytest.raises(ConfigError, match="'X-Key'") as caught:
        HttpClient("http://h", headers={"X-Key": "secret\r\nEvil: 1"})
    assert "secret" not in str(caught.value)
