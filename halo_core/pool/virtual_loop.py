"""An event loop whose time stands still while anything can run, and then jumps to the next timer.

Everything that takes its time from the loop (`loop.time()`, `call_later`, `asyncio.sleep`) runs on it unchanged: hours
of simulated time are over as soon as their computing is, and every run is the same. Real I/O and other threads do not
hold it back.
"""

from __future__ import annotations

import asyncio
import selectors


class _Selector(selectors.DefaultSelector):
    """Where the loop would wait for its next timer, time moves on instead."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:  # nothing is planned: only another thread can have something to say
            return super().select(None)
        self.now_s += max(timeout, 0.0)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop on virtual time, which begins at 0."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        """Simulated seconds."""
        return self._virtual.now_s
