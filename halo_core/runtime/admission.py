"""Admission of runs: few enough at a time that rows finish early, enough that no engine waits.

A window in rows would starve the engines whenever rows wait for calls of other rows, or for tools. So runs are admitted
against the work they have on its way: a run counts with its executed calls, one when it is between calls for a moment,
and nothing while it only follows others or has been away (in a tool) for longer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from halo_core.pool.loop import now_s
from halo_core.runtime.batch import Batch, Run

GAP_S = 0.05
"""A run that was between calls for longer than this is taken to wait for something else than itself."""
TICK_S = 0.02
MAX_ACTIVE_FACTOR = 8
"""Never more active runs than this many times the target, whatever they wait for (bounds memory)."""
FIRST_SHARE = 4
"""One in so many of the target is let in at once; how many calls a run makes at a time is seen from these."""
STALL_TICKS = 25
"""After so many ticks without any call under way one run is let in anyway: it may be what the others wait for."""


MAX_PARKED = 4096
"""Runs that only wait for a model that is not loaded are not counted, up to so many (bounds memory)."""


class Admission:
    """Lets runs begin. Runs on the pool's loop only."""

    def __init__(
        self, target: Callable[[], int], busy: Callable[[], bool], parked: Callable[[], int] = lambda: 0
    ) -> None:
        """`parked`: calls that keep no engine busy, since their model is not loaded."""
        self._target = target
        self._parked = parked
        self._busy = busy
        self._active: set[Run] = set()
        self._waiting: deque[tuple[Run, Callable[[], None], int | None]] = deque()
        self._ticker: asyncio.TimerHandle | None = None
        self._stalled_ticks = 0
        self._serial = 0
        self._closed = False
        self._fan_out = 1.0

    @property
    def active(self) -> int:
        """Runs that have begun and not ended."""
        return len(self._active)

    @property
    def waiting(self) -> int:
        """Runs that wait to begin."""
        return len(self._waiting)

    @property
    def crowd(self) -> float:
        """How many times the active runs all runs are, with those that wait."""
        return 1.0 + len(self._waiting) / max(len(self._active), 1)

    def enter(self, run: Run, begin: Callable[[], None], limit: int | None = None) -> None:
        """Call `begin` when `run` may start; `limit` is the caller's own upper bound on active runs."""
        if self._closed:
            self._begin(run, begin)
            return
        self._waiting.append((run, begin, limit))
        self._admit()

    def leave(self, run: Run) -> None:
        """`run` has ended (or gave up waiting)."""
        if run in self._active:
            self._active.discard(run)
        else:
            self._waiting = deque(entry for entry in self._waiting if entry[0] is not run)
        self._admit()

    def _load(self) -> int:
        """Calls on their way or about to be made, and the number of calls that a calling run makes at a time."""
        now = now_s()
        load, calls, callers = 0, 0, 0
        for run in self._active:
            if run.calling:
                calls += run.calling
                callers += 1
            elif not run.following and now - run.idle_since < GAP_S:
                load += 1
        if callers:
            self._fan_out = max(calls / callers, 0.9 * self._fan_out)
        return calls + load

    def _admit(self) -> None:
        if not self._waiting:
            return
        target = max(self._target(), 1)
        room = target // FIRST_SHARE - len(self._active)  # the cheap bound first: below it nothing needs counting
        if room <= 0:
            parked = self._parked()
            room = int((target - self._load() + parked) / self._fan_out)
            parked_runs = min(int(parked / self._fan_out), MAX_PARKED)
            room = min(room, MAX_ACTIVE_FACTOR * target + parked_runs - len(self._active))
        if not self._active:
            room = max(room, 1)
        while self._waiting and room > 0:
            if not self._begin_next():
                break
            room -= 1
        if self._waiting and self._ticker is None:
            self._ticker = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _begin_next(self) -> bool:
        """Let in the first run whose batch may have one more; others may be what it waits for (a batch in a node)."""
        full: set[Batch] = set()
        for i, (run, begin, limit) in enumerate(self._waiting):
            if run.batch in full:
                continue
            if limit is not None and sum(1 for other in self._active if other.batch is run.batch) >= limit:
                full.add(run.batch)
                continue
            del self._waiting[i]
            self._begin(run, begin)
            return True
        return False

    def _begin(self, run: Run, begin: Callable[[], None]) -> None:
        self._serial += 1
        run.order = self._serial
        run.idle_since = run.begun_s = now_s()
        self._active.add(run)
        begin()

    def close(self) -> None:
        """Let all in that wait: the pool is closed, so that their first call tells them."""
        self._closed = True
        waiting, self._waiting = self._waiting, deque()
        for run, begin, _ in waiting:
            self._begin(run, begin)

    def _tick(self) -> None:
        self._ticker = None
        if self._busy():
            self._stalled_ticks = 0
        else:
            self._stalled_ticks += 1
            if self._stalled_ticks >= STALL_TICKS and self._waiting:
                self._stalled_ticks = 0
                self._begin_next()
        self._admit()
