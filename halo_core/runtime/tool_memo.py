"""Results of tool calls that equal ones may share. May be used from any thread."""

from __future__ import annotations

import concurrent.futures
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
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


class ToolMemo:
    """Results of one batch's pure and read calls, by signature and by the state of what they read."""

    def __init__(self, *, keep_reads: bool = True, outer: ToolMemo | None = None) -> None:
        """`outer` is of the batch inside whose row this one runs: what is written here is written for that one too."""
        self._outer = outer
        self.keep_reads = keep_reads
        """Whether a finished read serves later ones; without it only those that ask while it is under way."""
        self._lock = threading.Lock()
        self._results: OrderedDict[tuple[Any, ...], concurrent.futures.Future[Any]] = OrderedDict()
        self._writes: Counter[str] = Counter()
        """Beginnings and ends of writes, by source."""
        self._under_way: Counter[str] = Counter()

    def join(self, call: ToolCall) -> tuple[tuple[Any, ...], concurrent.futures.Future[Any], bool] | None:
        """The key and the future result of a call that is shared, and whether the caller has to make it.

        None where it must be made alone: what it reads is being written.
        """
        with self._lock:
            watched = self._watched(call)
            if any(self._under_way[source] for source in watched):
                return None
            key = (call.tool, call.identity, call.signature, *(self._writes[source] for source in watched))
            future = self._results.get(key)
            if future is not None:
                self._results.move_to_end(key)
                return key, future, False
            future = self._results[key] = concurrent.futures.Future()
            while len(self._results) > MAX_RESULTS:
                self._results.popitem(last=False)
            return key, future, True

    def settle(self, key: tuple[Any, ...], call: ToolCall, future: concurrent.futures.Future[Any], result: Any) -> None:
        """The call was made."""
        if call.effect is not Effect.PURE and not self.keep_reads:
            self._forget(key, future)
        future.set_result(result)

    def drop(self, key: tuple[Any, ...], future: concurrent.futures.Future[Any], reason: BaseException) -> None:
        """The call ended without a result that can be shared: whoever waits for it hears `reason`."""
        self._forget(key, future)
        future.set_exception(reason)

    def _forget(self, key: tuple[Any, ...], future: concurrent.futures.Future[Any]) -> None:
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
            with self._outer.written(sources) if self._outer is not None else nullcontext():
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

    def clear(self) -> None:
        """Drop all results."""
        with self._lock:
            self._results.clear()
