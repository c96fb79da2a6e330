"""One engine program as the operating system sees it: started with a pipe, watched, and never left behind."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_LOGS_KEPT = 40
_TAIL_BYTES = 64 * 1024
_STRAGGLERS_S = 5.0

_running: set[EngineProcess] = set()


class EngineProcess:
    """A program that leads its own process group, which dies as a whole: with it, with this process, or on demand.

    Create and use it on an event loop. `scratch` is its private temporary folder, removed with it.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        log: Path,
        listen: socket.socket,
        scratch: Path,
        on_exit: Callable[[EngineProcess], None],
    ) -> None:
        """Start `command`; it inherits the bound socket `listen` under the same descriptor number.

        `on_exit` is called once on the loop, when the whole group is gone. Raises `OSError` where it cannot be started.
        """
        self.log = log
        self.scratch = scratch
        self.exited = asyncio.Event()
        self.returncode: int | None = None
        self._loop = asyncio.get_running_loop()
        self._on_exit = on_exit
        self._owner = os.getpid()
        _prune(log.parent)
        with log.open("wb") as out:
            self._popen = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=dict(env),
                pass_fds=[listen.fileno()],
                start_new_session=True,
            )
        self.pid = self._popen.pid
        _running.add(self)
        threading.Thread(target=self._watch, name=f"halo-engine-{self.pid}", daemon=True).start()

    def _watch(self) -> None:
        # The zombie keeps the group's id from being used again, so stragglers are killed before it is reaped.
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._await_stragglers()
        self.returncode = self._popen.wait()
        _running.discard(self)
        shutil.rmtree(self.scratch, ignore_errors=True)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._exited)

    def _await_stragglers(self) -> None:
        """Wait, for a bounded time, until the killed rest of the group has given up its port and its memory."""
        deadline = time.monotonic() + _STRAGGLERS_S
        while time.monotonic() < deadline and any(_alive_in_group(pid, self.pid) for pid in _all_pids()):
            time.sleep(0.01)

    def _exited(self) -> None:
        if self._popen.stdin is not None:
            with contextlib.suppress(OSError):
                self._popen.stdin.close()
        self.exited.set()
        self._on_exit(self)

    def kill(self) -> None:
        """Kill the whole group now; safe from any thread and after its end."""
        if self.returncode is None and os.getpid() == self._owner:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    async def stop(self, grace_s: float) -> None:
        """Ask the program to end, kill the group after `grace_s` seconds, and wait until it is gone."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)
        try:
            await asyncio.wait_for(self.exited.wait(), grace_s)
        except BaseException as error:
            self.kill()
            if not isinstance(error, TimeoutError):
                raise
            await self.exited.wait()

    @property
    def ending(self) -> str:
        """How it ended, in words; empty while it runs."""
        code = self.returncode
        if code is None:
            return ""
        if code >= 0:
            return f"exit status {code}"
        try:
            return f"signal {signal.Signals(-code).name}"
        except ValueError:
            return f"signal {-code}"

    def log_tail(self, lines: int = 25) -> str:
        """The last lines of its log that say something."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(0, self.log.stat().st_size - _TAIL_BYTES))
                text = log.read().decode("utf-8", "replace")
        except OSError as error:
            return f"(the log {self.log} cannot be read: {error})"
        return "\n".join([line for line in text.splitlines() if line.strip() and not _NOISE.search(line)][-lines:])


def _all_pids() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []


def _alive_in_group(pid: int, group: int) -> bool:
    if pid == group:
        return False
    try:
        # After the command's name, which may contain anything: state, parent, group.
        state, _, found = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:3]
    except (OSError, ValueError):
        return False
    return int(found) == group and state not in "ZX"


# What vLLM prints at every start or end and never explains a failure.
_NOISE = re.compile(r"nanobind|^ - (leaked|\.\.\. skipped)|Route: /|refleaks\.html|leaked .* (objects|semaphore)")


def _prune(folder: Path) -> None:
    """Make the folder for logs and keep the latest ones only."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):
        logs = sorted(folder.glob("*.log"), key=lambda log: log.stat().st_mtime)
        for old in logs[:-_LOGS_KEPT]:
            old.unlink(missing_ok=True)


def scratch_folder() -> Path:
    """A new private folder with a short name: Unix sockets in it must fit into 107 bytes."""
    root = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="halo-", dir=root if len(root) < 40 else "/tmp"))


@atexit.register
def _kill_all() -> None:
    for process in list(_running):
        process.kill()
        shutil.rmtree(process.scratch, ignore_errors=True)
