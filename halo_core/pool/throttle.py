"""The throttle of an endpoint that says "too many requests": one backoff for all its calls, then a slow start."""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque

_LONGEST_BACKOFF_S = 60.0


class Throttle:
    """Bounds the calls in flight once the server has refused one (TCP Tahoe's window); free until then.

    A refusal stops new calls for the backoff, then lets one through; every success doubles (later: widens) the window.
    Bound to one event loop.
    """

    __slots__ = (
        "_backoff_s",
        "_epoch",
        "_free_at",
        "_random",
        "_refusals",
        "_resume_at",
        "_threshold",
        "_timer",
        "_waiters",
        "in_flight",
        "window",
    )

    def __init__(self, backoff_s: float = 0.5, *, seed: int | None = None) -> None:
        """`backoff_s` is the first pause; it doubles with every further refusal in a row."""
        self._backoff_s = backoff_s
        self._random = random.Random(seed)
        self._refusals = 0
        self._epoch = 0
        self._resume_at = 0.0
        self._threshold = 1.0
        self._free_at = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._waiters: deque[asyncio.Future[int]] = deque()
        self.in_flight = 0
        self.window = math.inf
        """Calls that may be in flight."""

    @property
    def waiting(self) -> int:
        """Calls held back now."""
        return len(self._waiters)

    def delay_s(self, attempt: int) -> float:
        """A jittered exponential pause before try `attempt` (from 1), in seconds."""
        return min(_LONGEST_BACKOFF_S, self._backoff_s * 2.0 ** (attempt - 1)) * self._random.uniform(0.5, 1.0)

    async def enter(self, *, again: bool = False) -> int:
        """Wait until a call may be sent, a repeated one first; returns the ticket for `leave` or `refused`."""
        if self.window == math.inf:
            self.in_flight += 1
            return self._epoch
        waiter: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if again:  # it has been refused before: it goes while the window is narrow, when it is safest
            self._waiters.appendleft(waiter)
        else:
            self._waiters.append(waiter)
        self._admit()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.leave(waiter.result(), ok=False)
            else:
                self._waiters.remove(waiter)
            raise

    def leave(self, ticket: int, *, ok: bool) -> None:
        """The call has ended; `ok` where the server answered it."""
        self.in_flight -= 1
        if ok and ticket == self._epoch and self.window < math.inf:
            self._refusals = 0
            self.window += 1.0 if self.window < self._threshold else 1.0 / self.window
            if self.window >= self._free_at:
                self.window = math.inf
        if self._waiters:
            self._admit()

    def refused(self, ticket: int, retry_after_s: float | None = None) -> None:
        """The call has ended with 429 or 503. All further calls wait for the backoff, or what the server asks for."""
        now = asyncio.get_running_loop().time()
        if ticket == self._epoch:  # calls sent before an earlier refusal say nothing new
            self._epoch += 1
            self._refusals += 1
            self._threshold = max(1.0, self.in_flight / 2)
            self._free_at = 2.0 * self.in_flight + 1.0
            self.window = 1.0
            self._resume_at = max(self._resume_at, now + self.delay_s(self._refusals))
        if retry_after_s is not None:
            self._resume_at = max(self._resume_at, now + retry_after_s * self._random.uniform(1.0, 1.1))
        self.in_flight -= 1
        self._admit()

    def _admit(self) -> None:
        if self._timer is not None or not self._waiters:
            return
        loop = asyncio.get_running_loop()
        if (left := self._resume_at - loop.time()) > 0:
            self._timer = loop.call_later(left, self._resume)
            return
        while self._waiters and self.in_flight < max(1, int(min(self.window, 1e9))):
            waiter = self._waiters.popleft()
            if not waiter.done():
                self.in_flight += 1
                waiter.set_result(self._epoch)

    def _resume(self) -> None:
        self._timer = None
        self._admit()
