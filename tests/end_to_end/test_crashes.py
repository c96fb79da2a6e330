"""Crashes on the real engine: an engine is killed in the middle of a batch, and a whole run is killed and resumed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from examples.reading_desk.app import build
from halo_core.pool import EnginePool, LLMCall
from halo_core.runtime import Executor
from tests.conftest import MODEL

pytestmark = pytest.mark.engine

CHECKOUT = Path(__file__).parents[2]
ROWS = CHECKOUT / "examples" / "reading_desk" / "rows.jsonl"


def requests_served(urls: list[str]) -> int:
    """Chat completions that the engines have finished, by their own counters."""
    served = 0.0
    for url in urls:
        text = urllib.request.urlopen(url.removesuffix("/v1") + "/metrics", timeout=10).read().decode()
        served += sum(
            float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith("vllm:request_success_total")
        )
    return int(served)


def test_kill_9_of_an_engine_in_the_middle_of_a_batch(real_pool: EnginePool) -> None:
    """All calls are answered, as they are without the crash, and the engine is there again afterwards."""
    executor = Executor(real_pool)
    victim: Any = real_pool.group(MODEL).engines[0]
    assert victim.pid is not None

    def call(n: int) -> LLMCall:
        messages = [{"role": "user", "content": f"Write about the number {n}."}]
        return LLMCall(MODEL, {"messages": messages, "temperature": 0, "max_tokens": 48, "ignore_eos": True})

    async def ask_all(kill: bool) -> list[str]:
        batch = executor.open_batch("crash", merge=False)
        tasks = [asyncio.create_task(executor.call(executor.begin(batch, str(n)), call(n))) for n in range(12)]
        if kill:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED, timeout=2)
            os.kill(victim.pid, signal.SIGKILL)
        done = await asyncio.gather(*tasks)
        assert batch.stats.total.failed == 0
        return [completion.parse()["choices"][0]["message"]["content"] for completion in done]

    expected = asyncio.run(ask_all(kill=False))
    first_pid = victim.pid
    assert asyncio.run(ask_all(kill=True)) == expected
    until = time.monotonic() + 120
    while victim.health.state != "ready" and time.monotonic() < until:
        time.sleep(0.2)
    assert victim.health.state == "ready" and victim.pid != first_pid
    assert victim.counters.restarts >= 1


def test_kill_9_of_the_whole_run_and_resume(real_urls: list[str], tmp_path: Path) -> None:
    rows = [json.loads(line) for line in ROWS.read_text("utf-8").splitlines()][:8]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    engines = "".join(f'[[engines]]\nkind = "endpoint"\nmodel = "{MODEL}"\nurl = "{url}"\n' for url in real_urls)
    (tmp_path / "halo.toml").write_text(f'[models]\n"*" = "{MODEL}"\n{engines}', "utf-8")
    command = [
        *(sys.executable, "-m", "halo_core.cli", "run", "examples.reading_desk.app:graph", "--quiet"),
        *("--config", str(tmp_path / "halo.toml"), "--input", str(tmp_path / "rows.jsonl")),
        *("--output", str(tmp_path / "out.jsonl"), "--concurrency", "3"),
    ]
    environment = {**os.environ, "READING_DESK_TOKENS": "24"}

    journal = tmp_path / "out.jsonl.halo.db"
    process = subprocess.Popen(command, cwd=CHECKOUT, env=environment)
    try:
        until = time.monotonic() + 120
        while finished(journal, "calls") < 6 and process.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        assert process.poll() is None, "the run was over before it could be killed"
    finally:
        process.kill()
        process.wait()
    calls_before = finished(journal, "calls")
    assert 6 <= calls_before < 4 * len(rows) and not (tmp_path / "out.jsonl").exists()
    wait_until_idle(real_urls)

    served = requests_served(real_urls)
    subprocess.run([*command, "--resume"], cwd=CHECKOUT, env=environment, check=True, timeout=240)
    executed = requests_served(real_urls) - served
    distinct = 4 * len({json.dumps(row) for row in rows})
    warmed = 2 * 4  # at most one warm-up per role and engine
    assert distinct - calls_before <= executed <= distinct - calls_before + warmed
    assert finished(journal, "calls") == distinct

    from benchmarks.balanced import BalancedChatOpenAI

    settings: dict[str, Any] = {"temperature": 0, "max_tokens": 24, "api_key": "unused", "model": MODEL}
    plain = asyncio.run(build(BalancedChatOpenAI.over(real_urls, **settings)).compile().abatch(rows))  # type: ignore[arg-type]
    outs = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    assert outs == plain


def finished(journal: Path, table: str) -> int:
    """Rows of a table of a journal that another process writes."""
    if not journal.exists():
        return 0
    try:
        with sqlite3.connect(f"file:{journal}?mode=ro", uri=True) as db:
            return int(db.execute(f"select count(*) from {table}").fetchone()[0])
    except sqlite3.OperationalError:
        return 0  # not yet created


def wait_until_idle(urls: list[str]) -> None:
    """Until the engines have noticed that the killed run's connections are gone."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        running = 0.0
        for url in urls:
            text = urllib.request.urlopen(url.removesuffix("/v1") + "/metrics", timeout=10).read().decode()
            running += sum(
                float(line.rsplit(" ", 1)[1])
                for line in text.splitlines()
                if line.startswith(("vllm:num_requests_running", "vllm:num_requests_waiting{"))
            )
        if not running:
            return
        time.sleep(0.2)
    raise AssertionError("the engines never became idle")
