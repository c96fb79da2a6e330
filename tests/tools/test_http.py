"""HTTP tools against a real server."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from halo_core import http
from halo_core.runtime import SESSION, Run
from halo_core.runtime.batch import Batch
from halo_core.tools.http import HttpError, _failed, canonical_url


class Server:
    """Answers with what it was asked, a little later, and counts."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.now = self.peak = 0
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                with lock:
                    outer.seen.append(f"{self.command} {self.path}")
                    outer.now += 1
                    outer.peak = max(outer.peak, outer.now)
                body = self.rfile.read(int(self.headers.get("content-length", 0))).decode()
                time.sleep(0.02)
                said = {"path": self.path, "body": body, "language": self.headers.get("accept-language")}
                content = json.dumps(said).encode()
                with lock:
                    outer.now -= 1
                self.send_response(503 if self.path.startswith("/busy") else 200)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = _answer

            def log_message(self, *args: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture
def batch() -> Iterator[Batch]:
    batch = Batch("b")
    token = SESSION.set(Run(batch, "row", 0))
    yield batch
    SESSION.reset(token)


async def test_equal_gets_are_one(server: Server, batch: Batch) -> None:
    api = http(server.url)
    urls = ["/a?x=1&y=2", "/a?y=2&x=1", f"{server.url.upper().replace('HTTP', 'http')}/a?x=1&y=2#here", "/b"]
    answers = await asyncio.gather(*(api.aget(url) for url in urls))
    assert len({answer.json()["path"] for answer in answers[:3]}) == 1 and answers[3].json()["path"] == "/b"
    assert len(server.seen) == 2
    assert api.get("/b").json() == answers[3].json() and len(server.seen) == 2
    stats = batch.stats.tool_total
    assert (stats.executed, stats.shared) == (2, 3)


async def test_headers_that_matter_tell_gets_apart(server: Server, batch: Batch) -> None:
    api = http(server.url)
    asked = [{"accept-language": "de"}, {"accept-language": "fr"}, {"accept-language": "de", "x-request-id": "7"}]
    answers = await asyncio.gather(*(api.aget("/a", headers=headers) for headers in asked))
    assert [answer.json()["language"] for answer in answers] == ["de", "fr", "de"] and len(server.seen) == 2


async def test_posts_are_all_made_and_end_the_sharing_of_gets(server: Server, batch: Batch) -> None:
    api = http(server.url)
    await api.aget("/a")
    answers = await asyncio.gather(*(api.arequest("POST", "/a", json={"n": 1}) for _ in range(3)))
    assert [json.loads(answer.json()["body"]) for answer in answers] == [{"n": 1}] * 3
    await api.aget("/a")
    assert sorted(server.seen) == ["GET /a"] * 2 + ["POST /a"] * 3


async def test_a_host_gets_no_more_than_it_bears(server: Server, batch: Batch) -> None:
    api = http(server.url, max_inflight=3)
    await asyncio.gather(*(api.aget(f"/{n}") for n in range(12)))
    assert server.peak == 3 and len(server.seen) == 12


async def test_answers_that_say_no_are_answers(server: Server, batch: Batch) -> None:
    answer = await http(server.url).aget("/busy")
    assert answer.status == 503
    with pytest.raises(HttpError, match="/busy answered 503"):
        answer.raise_for_status()


def test_a_server_that_is_not_there(batch: Batch) -> None:
    with pytest.raises(HttpError, match=r"GET http://127.0.0.1:9/a failed: .*refused"):
        http("http://127.0.0.1:9").get("/a")


def test_bad_requests(batch: Batch) -> None:
    with pytest.raises(HttpError, match="max_inflight is 0"):
        http(max_inflight=0)
    with pytest.raises(HttpError, match=r"GET 'http://[^']*' is no request"):
        http().get("http://host:port/")
    with pytest.raises(HttpError, match=r"is no request.*colour"):
        http().get("http://host/", colour="red")


@pytest.mark.parametrize(
    ("url", "canonical"),
    [
        ("HTTP://Example.com:80", "http://example.com/"),
        ("https://example.com:443/A?b=2&a=1#top", "https://example.com/A?a=1&b=2"),
        ("http://h:81/?b=2&a=2&a=1&c=", "http://h:81/?a=2&a=1&b=2&c="),
        ("http://u:p@h/x", "http://u:p@h/x"),
    ],
)
def test_canonical_urls(url: str, canonical: str) -> None:
    assert canonical_url(url) == canonical


def test_urls_that_differ_are_not_equal() -> None:
    base = "http://host/p"
    assert canonical_url(f"{base}?city=M%FCnchen") != canonical_url(f"{base}?city=M%F6nchen")
    assert canonical_url(f"{base}?a") != canonical_url(f"{base}?a=")
    assert canonical_url("http://:one@host/") != canonical_url("http://:two@host/")
    assert canonical_url(f"{base}?b=1&a=2&a=1") == canonical_url(f"{base}?a=2&b=1&a=1")


def test_a_request_that_was_sent_and_not_answered_is_in_doubt() -> None:
    request = httpx.Request("POST", "http://host/orders")
    sent = (httpx.ReadTimeout("slow"), httpx.ReadError("gone"), httpx.RemoteProtocolError("no answer"))
    assert all(_failed(request, error).in_doubt for error in sent)
    assert not any(_failed(request, error).in_doubt for error in (httpx.ConnectError("no"), httpx.ConnectTimeout("no")))


async def test_closing_closes_the_connections_of_every_loop(server: Server) -> None:
    api = http(server.url)
    loop = asyncio.new_event_loop()
    other = threading.Thread(target=loop.run_forever)
    other.start()
    try:
        await api.aget("/here")
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(api.aget("/there"), loop))
        api.get("/sync")
        clients = list(api._clients.values())
        assert len(clients) == 2
        await api.aclose()
        for _ in range(200):
            if all(client.is_closed for client in clients):
                break
            await asyncio.sleep(0.01)
        assert all(client.is_closed for client in clients)
        assert (await api.aget("/again")).status == 200, "it may be used again"
        api.close()
        await asyncio.sleep(0.05)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        await asyncio.to_thread(other.join)
        loop.close()


def test_closing_after_the_loop_has_ended(server: Server) -> None:
    api = http(server.url)
    assert asyncio.run(api.aget("/a")).status == 200
    api.close()
    api.close()
