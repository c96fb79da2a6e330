"""The HTTP tools of the workloads: a real local server that waits as the paper's do, then answers from the database.

Latency is drawn Gamma(mean/2, scale 2) seconds (`workloads.md`), times a factor, drawn by the URL: equal requests
wait equally.
"""

from __future__ import annotations

import importlib
import json
import random
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from subprocess import PIPE, Popen
from types import ModuleType
from typing import Any
from urllib.parse import parse_qs, urlsplit


def latency_s(url: str, mean_s: float, scale: float) -> float:
    """How long the request takes."""
    return random.Random(url).gammavariate(mean_s / 2, 2) * scale


@contextmanager
def running(data: ModuleType, latency_scale: float) -> Iterator[str]:
    """A server in a process of its own; yields its address.

    data: has `database()`, QUERIES, and MEAN_S, the mean latency before the factor.
    """
    command = [sys.executable, "-m", __name__, data.__name__, str(data.database()), str(latency_scale)]
    with Popen(command, stdin=PIPE, stdout=PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        if not address:
            raise RuntimeError(f"the tool server did not start: {' '.join(command)}")
        try:
            yield address
        finally:
            process.terminate()


class Handler(BaseHTTPRequestHandler):
    """GET /QUERY?parameter=value -> rows as JSON; GET /count -> requests so far."""

    protocol_version = "HTTP/1.1"
    connection_: Any = None
    queries: Mapping[str, tuple[str, tuple[str, ...]]]
    mean_s: float
    scale: float
    count = 0
    lock = threading.Lock()

    def do_GET(self) -> None:
        """Wait, then answer."""
        url = urlsplit(self.path)
        name = url.path.strip("/")
        if name == "count":
            self._say(200, Handler.count)
            return
        if name not in self.queries:
            self._say(404, f"no query {name}")
            return
        with Handler.lock:
            Handler.count += 1
        text, names = self.queries[name]
        given = {key: values[0] for key, values in parse_qs(url.query).items()}
        values = {key: int(given[key]) if key == "year" else given[key] for key in names}
        time.sleep(latency_s(self.path, self.mean_s, self.scale))
        cursor = self.connection_.cursor()
        cursor.execute(text, values)
        columns = [column[0] for column in cursor.description]
        self._say(200, [dict(zip(columns, row, strict=True)) for row in cursor.fetchall()])

    def _say(self, status: int, value: Any) -> None:
        content = json.dumps(value, default=str).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """Takes a whole batch's connections at once."""

    request_queue_size = 512
    daemon_threads = True


def main() -> None:
    """Serve until the parent is gone."""
    import duckdb

    name, database, scale = sys.argv[1:]
    data = importlib.import_module(name)
    Handler.connection_ = duckdb.connect(database, read_only=True)
    Handler.queries, Handler.mean_s, Handler.scale = data.QUERIES, data.MEAN_S, float(scale)
    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
