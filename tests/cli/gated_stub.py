"""A stub server that holds some calls back, so that tests can stop a run at an exact point."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from tests.stub_server import StubServer, _Exchange


class GatedStub(StubServer):
    """Calls whose last message `holds` says so wait at the gate, which opens by itself when `enough` are there."""

    def __init__(self, holds: Callable[[str], bool] = lambda text: False, *, enough: int | None = None) -> None:
        super().__init__(
            models=("small",), delay_s=1.0
        )  # any delay sends a call the way of `_answer_late`, where the gate is
        self.holds = holds
        self.enough = enough
        self.held = 0
        self._opened = asyncio.Event()
        self._count = threading.Condition()

    async def start(self, host: str = "127.0.0.1", port: int = 0, *, unix: str = "") -> GatedStub:
        self._server = await asyncio.get_running_loop().create_server(lambda: _GatedExchange(self), host, port)
        self.url = f"http://{host}:{self._server.sockets[0].getsockname()[1]}"
        return self

    def open(self) -> None:
        """Let every later call through (calls that are held already belong to a client that is gone)."""
        self.holds = lambda text: False

    def wait_held(self, calls: int) -> None:
        """Block until so many calls are held at the gate."""
        with self._count:
            assert self._count.wait_for(lambda: self.held >= calls, timeout=120), f"only {self.held} calls were held"

    async def pass_gate(self, request: dict[str, Any]) -> None:
        if self._opened.is_set() or not self.holds(last_message(request)):
            return
        with self._count:
            self.held += 1
            self._count.notify_all()
        if self.enough is not None and self.held >= self.enough:
            self._opened.set()
        await self._opened.wait()


class _GatedExchange(_Exchange):
    async def _answer_late(self, request: dict[str, Any], told: dict[str, str], delay_s: float, ahead: int) -> None:
        assert isinstance(self._server, GatedStub)
        await self._server.pass_gate(request)
        self._answer(request, told)


def last_message(request: dict[str, Any]) -> str:
    """The text of a chat's last message."""
    return str(request["messages"][-1]["content"])
