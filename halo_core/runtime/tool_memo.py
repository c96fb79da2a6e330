"""Results of tool calls that equal ones may share. May be used from any thread."""

from __future__ import annotations

import concurrent.futures
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from halo_core.plan import Effect
from halo_core.runtime.tool_call import ToolCall

_ANYTHING = "*"
"""Written by a write that does not say what it writes."""
_SOMETHING = "+"
"""Written by every write; watched by reads that do not say what they read."""
MAX_RESULTS = 4096
"""Results kept for equal calls that come later; beyond it the least recently used are asked again."""


class AloneError(Exception):
    """The call that was waited for did not end with a result that can be shared."""


class AbandonedError(Exception):
    """The caller that made the call for all was cancelled."""


Key = tuple[Any, ...]
"""Of a result: its scope, what was called, and how often what it reads had been written by then."""


class ToolMemo:
    """Results of pure and read calls, by signature and by the state of what they read.

    A batch and those that its rows' code runs have one memo, so that each hears of the others' writes.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._results: OrderedDict[Key, concurrent.futures.Future[Any]] = OrderedDict()
        self._writes: Counter[str] = Counter()
        """Beginnings and ends of writes, by source."""
        self._under_way: Counter[str] = Counter()

    def join(self, call: ToolCall, scope: int) -> tuple[Key, concurrent.futures.Future[Any], bool] | None:
        """The key and the future result of a call that is shared in `scope`, and whether the caller has to make it.

        None where it must be made alone: what it reads is being written.
        """
        with self._lock:
            watched = self._watched(call)
            if any(self._under_way[source] for source in watched):
                return None
            key = (scope, call.tool, call.identity, call.signature, *(self._writes[source] for source in watched))
            future = self._results.get(key)
            if future is not None:
                self._results.move_to_end(key)
                return key, future, False
            future = self._results[key] = concurrent.futures.Future()
            while len(self._results) > MAX_RESULTS:
                self._results.popitem(last=False)
            return key, future, True

    def settle(self, key: Key, future: concurrent.futures.Future[Any], result: Any, *, keep: bool) -> None:
        """The call was made; `keep` its result for those who ask later, not only for those who wait already."""
        if not keep:
            self._forget(key, future)
        future.set_result(result)

    def drop(self, key: Key, future: concurrent.futures.Future[Any], reason: BaseException) -> None:
        """The call ended without a result that can be shared: whoever waits for it hears `reason`."""
        self._forget(key, future)
        future.set_exception(reason)

    def _forget(self, key: Key, future: concurrent.futures.Future[Any]) -> None:
        with self._lock:
            if self._results.get(key) is future:
                del self._results[key]

    @contextmanager
    def written(self, sources: tuple[str, ...]) -> Iterator[None]:
        """Something is written in the block: what was read before is not what would be read now.

        Reads that begin meanwhile are not shared, for they may see the old or the new; () = it may be anything.
        """
        touched = sources or (_ANYTHING,)
        with self._lock:
            self._under_way.update((*touched, _SOMETHING))
            self._writes.update((*touched, _SOMETHING))
        try:
            yield
        finally:
            with self._lock:
                self._under_way.subtract((*touched, _SOMETHING))
                self._writes.update((*touched, _SOMETHING))

    def _watched(self, call: ToolCall) -> tuple[str, ...]:
        """Whose writes change what the call reads."""
        if call.effect is not Effect.READ:
            return ()
        return (*call.sources, _ANYTHING) if call.sources else (_SOMETHING,)

    def clear(self, scope: int) -> None:
        """Drop the results of `scope`."""
        with self._lock:
            for key in [key for key in self._results if key[0] == scope]:
                del self._results[key]
