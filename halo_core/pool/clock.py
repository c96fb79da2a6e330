"""Clocks for simulated engines: real time, and virtual time that jumps from event to event."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from typing import Protocol

from halo_core.errors import ConfigError


class Alarm(Protocol):
    """A callback that is due at a moment."""

    def cancel(self) -> None:
        """Do not call it; idempotent."""


class Clock(Protocol):
    """Where a simulated engine (and a simulated tool) takes its time from. Used on the running event loop."""

    def now(self) -> float:
        """Seconds since some fixed moment."""

    def call_at(self, when: float, callback: Callable[[], None]) -> Alarm:
        """Call `callback` at `when`, in seconds of this clock."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""


class RealClock:
    """The event loop's own time."""

    def now(self) -> float:
        """Seconds of the running loop."""
        return asyncio.get_running_loop().time()

    def call_at(self, when: float, callback: Callable[[], None]) -> Alarm:
        """Call `callback` at `when`."""
        return asyncio.get_running_loop().call_at(when, callback)

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)


class _VirtualAlarm:
    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def ring(self) -> None:
        if self.callback is not None:
            self.callback()

    def cancel(self) -> None:
        self.callback = None


class VirtualClock:
    """Time that stands still while anything on the loop can run, and then jumps to the next alarm.

    A whole run over hours of simulated time is over as soon as its computing is, and every run is the same. One loop
    has one virtual clock, shared by all engines and tools of a simulation. Real timers, I/O and other threads do not
    hold it back; nothing on the loop may poll (`while ...: await asyncio.sleep(0)`), which would stop it for ever. It
    needs asyncio's own event loop, not uvloop.
    """

    def __init__(self, start: float = 0.0) -> None:
        self._now = start
        self._sequence = 0
        self._alarms: list[tuple[float, int, _VirtualAlarm]] = []
        self._scheduled = False

    def now(self) -> float:
        """Simulated seconds since the start."""
        return self._now

    def call_at(self, when: float, callback: Callable[[], None]) -> Alarm:
        """Call `callback` at `when`; alarms of one moment ring in the order in which they were set."""
        alarm = _VirtualAlarm(callback)
        self._sequence += 1
        heapq.heappush(self._alarms, (max(when, self._now), self._sequence, alarm))
        if not self._scheduled:
            self._scheduled = True
            loop = asyncio.get_running_loop()
            if not hasattr(loop, "_ready"):
                raise ConfigError(f"virtual time needs asyncio's own event loop, not {type(loop).__module__}'s")
            loop.call_soon(self._advance, loop)
        return alarm

    async def sleep(self, seconds: float) -> None:
        """Wait until simulated time has moved on."""
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not woken.done():
                woken.set_result(None)

        alarm = self.call_at(self._now + seconds, wake)
        try:
            await woken
        finally:
            alarm.cancel()

    def _advance(self, loop: asyncio.AbstractEventLoop) -> None:
        """Ring the alarms of the next moment, once nothing else on the loop is runnable."""
        alarms = self._alarms
        while alarms and alarms[0][2].callback is None:
            heapq.heappop(alarms)
        if not alarms:
            self._scheduled = False
            return
        # asyncio's queue is the only place to see that nothing is runnable; another clock that looks does not count.
        ready = loop._ready  # type: ignore[attr-defined]
        if all(getattr(handle._callback, "__func__", None) is VirtualClock._advance for handle in ready):
            self._now = alarms[0][0]
            while alarms and alarms[0][0] == self._now:
                loop.call_soon(heapq.heappop(alarms)[2].ring)
        loop.call_soon(self._advance, loop)
