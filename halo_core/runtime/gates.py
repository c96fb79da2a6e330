"""Gates: no backend of tools gets more calls at a time than it is said to bear, and a source one write at a time."""

from __future__ import annotations

import concurrent.futures
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from halo_core.plan import Effect
from halo_core.runtime.tool_call import ToolCall


class Gate:
    """Lets a limited number in, first come, first served, from threads and event loops alike."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._inside = 0
        self._waiting: deque[concurrent.futures.Future[None]] = deque()
        self._lock = threading.Lock()

    def ask(self) -> concurrent.futures.Future[None]:
        """A future that is done when the caller is in. Give it back with `leave` or, while waiting, `give_up`."""
        place: concurrent.futures.Future[None] = concurrent.futures.Future()
        with self._lock:
            if self._inside < self.limit and not self._waiting:
                self._inside += 1
                place.set_result(None)
            else:
                self._waiting.append(place)
        return place

    def leave(self) -> None:
        """The caller is out; the next one is let in."""
        with self._lock:
            self._inside -= 1
            let_in = self._next()
        for place in let_in:
            place.set_result(None)

    def give_up(self, place: concurrent.futures.Future[None]) -> None:
        """The caller waits no longer, or was let in meanwhile and leaves at once."""
        with self._lock:
            waits = place in self._waiting
            if waits:
                self._waiting.remove(place)
        if not waits:
            self.leave()

    def narrow(self, limit: int) -> None:
        """From now on at most `limit`, if that is less."""
        with self._lock:
            self.limit = min(self.limit, limit)

    def _next(self) -> list[concurrent.futures.Future[None]]:
        let_in = []
        while self._waiting and self._inside < self.limit:
            self._inside += 1
            let_in.append(self._waiting.popleft())
        return let_in


class Gates:
    """The gates of a process by backend: a limit holds for all rows and batches together."""

    def __init__(self) -> None:
        self._gates: dict[str, Gate] = {}
        self._lock = threading.Lock()

    def of(self, call: ToolCall) -> list[Gate]:
        """The gates that the call has to pass, always in the same order, so that calls cannot block each other."""
        wanted: dict[str, int] = {}
        if call.effect is Effect.WRITE:
            wanted |= {f"write {source}": 1 for source in sorted(call.sources)}
        if call.max_inflight is not None:
            wanted[f"backend {call.backend or call.tool}"] = call.max_inflight
        gates = [self._gate(name, limit) for name, limit in wanted.items()]
        held = _HELD.get()
        return [gate for gate in gates if gate not in held]

    def _gate(self, name: str, limit: int) -> Gate:
        with self._lock:
            gate = self._gates.get(name)
            if gate is None:
                gate = self._gates[name] = Gate(limit)
        gate.narrow(limit)
        return gate


GATES = Gates()

_HELD: ContextVar[frozenset[Gate]] = ContextVar("halo_gates", default=frozenset())
"""Gates that the current code is inside of: a tool that calls another of its backend must not wait for itself."""


@contextmanager
def passing(call: ToolCall) -> Iterator[tuple[list[Gate], list[Gate]]]:
    """The gates that the call has to pass, and a list for those that it is inside of; it leaves them in the end."""
    gates, inside = GATES.of(call), list[Gate]()
    token = _HELD.set(_HELD.get() | set(gates))
    try:
        yield gates, inside
    finally:
        for gate in reversed(inside):
            gate.leave()
        _HELD.reset(token)
