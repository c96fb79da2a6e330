"""Other processes of a benchmark: the stub server, and one system by itself."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measure import RunRecord


@contextmanager
def stub_server(model: str) -> Iterator[str]:
    """The stub server, serving `model`; gives its base URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "tests.stub_server", "--port", str(port), "--model", model])
    try:
        _wait_for(port)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


def _wait_for(port: int) -> None:
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), 0.2).close()
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError("the stub server did not start")


def spawn(module: str, *arguments: str) -> RunRecord:
    """Run a benchmark's module in a process of its own; it writes its record to the file that `--out` names."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "record.json"
        subprocess.run([sys.executable, "-m", module, *arguments, "--out", str(out)], check=True)
        return RunRecord(**json.loads(out.read_text("utf-8")))
