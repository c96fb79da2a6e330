"""Tool calls of a batch: equal reads are made once, writes in order, and no backend gets more than it is said to bear.

Whoever asks first makes the call, in its own thread or task and context; those who ask the same meanwhile or later get
copies of its result. Everything here may be used from any thread.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import copy
import heapq
import itertools
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from halo_core.errors import InDoubtError
from halo_core.plan import Effect
from halo_core.runtime.current import LOOKING, SESSION, not_ahead
from halo_core.runtime.gates import passing
from halo_core.runtime.loops import on_event_loop
from halo_core.runtime.stats import ToolStats
from halo_core.runtime.tool_call import ToolCall
from halo_core.runtime.tool_memo import AbandonedError, AloneError, Key, ToolMemo
from halo_core.runtime.within import within
from halo_core.runtime.writes import WriteRecord, row_of

if TYPE_CHECKING:
    from halo_core.runtime.journal import Journal

T = TypeVar("T")

FIRST_PAUSE_S = 0.1
"""Before a declared retry; doubled for every further one."""

_scopes = itertools.count()

Observer = Callable[[ToolCall], object]

OBSERVERS: list[Observer] = []
"""Hear of every write, and other calls that no equal one answers, before it is made, in the caller's context.

What they raise, the caller gets instead of a result.
"""


class ToolDesk:
    """Makes the tool calls of one batch."""

    def __init__(
        self,
        stats: Callable[[str], ToolStats],
        *,
        share: bool = True,
        keep_reads: bool = True,
        outer: ToolDesk | None = None,
    ) -> None:
        """`share`: whether equal calls may be one at all; `keep_reads`: whether a finished read serves later ones, too,
        not only those that ask while it is under way. `outer` is of the batch inside whose row this one's runs."""
        self._share = share
        self._keep_reads = keep_reads
        self._memo: ToolMemo = outer._memo if outer is not None else ToolMemo()
        joins = outer is not None and (outer._share, outer._keep_reads) == (share, keep_reads)
        self._scope: int = outer._scope if outer is not None and joins else next(_scopes)
        """Of the results in the memo, those that this desk's calls may share."""
        self._owns_scope = not joins
        self._stats = stats
        self._counting = threading.Lock()
        self._unclaimed: set[Key] = set()
        """Results got by looking ahead that no real call has asked for yet."""
        self.journal: Journal | None = None
        """Where finished writes are kept, so that a resumed row does not make them again."""
        self._repeats: Counter[tuple[str, str, str]] = Counter()
        self._freed: dict[tuple[str, str, str], list[tuple[int, bool]]] = {}
        """Numbers of writes that failed, a heap of each, and whether this run made them (it dropped their records)."""
        self._met: dict[tuple[Any, ...], Exception] = {}
        """(run, tool, signature) -> what looking ahead met there."""

    def close(self) -> None:
        """Drop all that is kept."""
        if self._owns_scope:
            self._memo.clear(self._scope)
        self._unclaimed.clear()
        self._met.clear()

    # Two of each: the rules are the same, but a thread waits in another way than a task does.

    async def acall(self, call: ToolCall, make: Callable[[], Awaitable[T]]) -> T:
        """Make the call, or wait for an equal one; from a task. Raises what the tool raises."""
        with _spent(call):
            return await self._acall(call, make)

    async def _acall(self, call: ToolCall, make: Callable[[], Awaitable[T]]) -> T:
        self._meet(call)
        while self._shares(call) and (joined := self._memo.join(call, self._scope)) is not None:
            key, future, mine = joined
            if mine:
                with self._lead(key, call, future) as lead:
                    async with self._passed(call):
                        result = await self._amake(call, make)
                    lead.append(result)
                return result
            try:
                shared: T = await asyncio.shield(asyncio.wrap_future(future))
            except AloneError:
                self._meet(call)
                break
            except AbandonedError:
                continue
            self._claim(key, call)
            return copy.deepcopy(shared)
        record = self._alone(call)
        if record is not None and record.known:
            return record.result  # type: ignore[no-any-return]
        with self._writing(call):
            async with self._passed(call):
                if record is None:
                    return await self._amake(call, make)
                await asyncio.wrap_future(record.begins())
                with record.making():
                    result = await self._amake(call, make)
                await asyncio.wrap_future(record.ends(result))
                return result

    def call(self, call: ToolCall, make: Callable[[], T]) -> T:
        """Make the call, or wait for an equal one, blocking the thread. Raises what the tool raises.

        On the thread of an event loop nobody is waited for: the loop may be what the other call needs.
        """
        with _spent(call):
            return self._call(call, make)

    def _call(self, call: ToolCall, make: Callable[[], T]) -> T:
        may_wait = not on_event_loop()
        self._meet(call)
        while self._shares(call) and (joined := self._memo.join(call, self._scope)) is not None:
            key, future, mine = joined
            if mine:
                with self._lead(key, call, future) as lead:
                    with self._entered(call, may_wait):
                        result = self._make(call, make)
                    lead.append(result)
                return result
            if not may_wait and not future.done():
                break
            try:
                shared: T = future.result()
            except AloneError:
                self._meet(call)
                break
            except AbandonedError:
                continue
            self._claim(key, call)
            return copy.deepcopy(shared)
        record = self._alone(call)
        if record is not None and record.known:
            return record.result  # type: ignore[no-any-return]
        with self._writing(call), self._entered(call, may_wait):
            if record is None:
                return self._make(call, make)
            record.begins().result()
            with record.making():
                result = self._make(call, make)
            record.ends(result).result()
            return result

    def _shares(self, call: ToolCall) -> bool:
        return self._share and call.signature is not None and call.effect is not Effect.WRITE

    def _alone(self, call: ToolCall) -> WriteRecord | None:
        """Before a call that no equal one answers: only its real run may make it, and observers hear of it."""
        not_ahead()
        for observer in tuple(OBSERVERS):
            observer(call)
        return self._record(call)

    def _record(self, call: ToolCall) -> WriteRecord | None:
        """The journal's record of a write. Raises `InDoubtError` where nobody knows whether it was made."""
        run = SESSION.get()
        if self.journal is None or run is None or call.effect is not Effect.WRITE:
            return None
        signature = call.signature or ""
        what = row_of(run), call.tool, signature
        with self._counting:
            if freed := self._freed.get(what):
                n, fresh = heapq.heappop(freed)
            else:
                n, fresh = self._repeats[what], False
                self._repeats[what] = n + 1
        try:
            record = WriteRecord(self.journal, (*what, n), call, lambda: self._free(what, n, fresh=True), fresh=fresh)
        except InDoubtError as doubt:  # many frameworks tell a model of it, and go on: the row must fail all the same
            run.fail(doubt)
            self._free(what, n, fresh=False)
            raise
        if record.known:
            self._count(call, "replayed")
        return record

    def _free(self, what: tuple[str, str, str], n: int, *, fresh: bool) -> None:
        """The n-th such write failed: the next one, a retry perhaps, is the n-th. A resumed run must find it there."""
        with self._counting:
            heapq.heappush(self._freed.setdefault(what, []), (n, fresh))

    # -- looking ahead -------------------------------------------------------------------------------------------

    @property
    def looks_ahead(self) -> bool:
        """Whether a result that is got before it is asked for is kept until then."""
        return self._share and self._keep_reads

    def _meet(self, call: ToolCall) -> None:
        """Raise what this row's own look ahead met: a failed call is not made again because it was begun early."""
        if LOOKING.get() is None and self._met:
            error = self._met.pop((SESSION.get(), call.tool, call.signature), None)
            if error is not None:
                raise error

    def _claim(self, key: Key, call: ToolCall) -> None:
        """Count a result that somebody else's call got, unless it was got for nobody in particular yet."""
        if LOOKING.get() is not None:
            return
        if key in self._unclaimed:
            self._unclaimed.discard(key)
            self._count(call, "ahead")
        else:
            self._count(call, "shared")

    # -- rules ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _lead(self, key: Key, call: ToolCall, future: concurrent.futures.Future[Any]) -> Iterator[list[Any]]:
        """Make a call that others may wait for; the result is put into the list."""
        lead: list[Any] = []
        look = LOOKING.get()
        if look is not None:
            look.calls += 1
        try:
            yield lead
        except Exception as error:  # each of the others meets the failure, or not, by itself
            if look is not None:
                self._met[SESSION.get(), call.tool, call.signature] = error
            self._memo.drop(key, future, AloneError())
            raise
        except BaseException:  # cancelled: one of the others makes it
            self._memo.drop(key, future, AbandonedError())
            raise
        try:
            kept = copy.deepcopy(lead[0])
        except Exception:
            self._memo.drop(key, future, AloneError())
        else:
            if look is not None:
                self._unclaimed.add(key)
            keep = call.effect is Effect.PURE or self._keep_reads
            self._memo.settle(key, future, kept, keep=keep)

    def _writing(self, call: ToolCall) -> AbstractContextManager[None]:
        return self._memo.written(call.sources) if call.effect is Effect.WRITE else nullcontext()

    @asynccontextmanager
    async def _passed(self, call: ToolCall) -> AsyncIterator[None]:
        begun = time.monotonic()
        with passing(call) as (gates, inside):
            for gate in gates:
                place = gate.ask()
                try:
                    await asyncio.shield(asyncio.wrap_future(place))
                except BaseException:
                    gate.give_up(place)
                    raise
                inside.append(gate)
            self._waited(call, time.monotonic() - begun)
            yield

    @contextmanager
    def _entered(self, call: ToolCall, may_wait: bool) -> Iterator[None]:
        begun = time.monotonic()
        with passing(call) as (gates, inside):
            for gate in gates:
                place = gate.ask()
                if not may_wait and not place.done():
                    gate.give_up(place)
                    continue
                try:
                    place.result()
                except BaseException:
                    gate.give_up(place)
                    raise
                inside.append(gate)
            self._waited(call, time.monotonic() - begun)
            yield

    async def _amake(self, call: ToolCall, make: Callable[[], Awaitable[T]]) -> T:
        for attempt in range(call.retries + 1):
            with self._timed(call, attempt == call.retries) as failed:
                async with asyncio.timeout(call.timeout_s):
                    return await make()
            if failed:
                await asyncio.sleep(FIRST_PAUSE_S * 2**attempt)
        raise AssertionError("unreachable")

    def _make(self, call: ToolCall, make: Callable[[], T]) -> T:
        for attempt in range(call.retries + 1):
            with self._timed(call, attempt == call.retries) as failed:
                return make() if call.timeout_s is None else within(call.timeout_s, make, "halo-tool")
            if failed:
                time.sleep(FIRST_PAUSE_S * 2**attempt)
        raise AssertionError("unreachable")

    # -- counting ------------------------------------------------------------------------------------------------

    @contextmanager
    def _timed(self, call: ToolCall, last: bool) -> Iterator[list[BaseException]]:
        """Count one attempt; its failure is raised only where it is the last."""
        begun = time.monotonic()
        failed: list[BaseException] = []
        try:
            yield failed
        except Exception as error:
            self._count(call, "failed" if last else "retried", time.monotonic() - begun)
            if last:
                error.add_note(f"Halo: {_cause(error, call)}{call}")
                raise
            failed.append(error)
        except BaseException:
            if LOOKING.get() is None:
                self._count(call, "cancelled", time.monotonic() - begun)
            raise
        else:
            self._count(call, "executed", time.monotonic() - begun)

    def _count(self, call: ToolCall, how: str, seconds: float = 0.0) -> None:
        with self._counting:
            stats = self._stats(call.tool)
            setattr(stats, how, getattr(stats, how) + 1)
            stats.busy_s += seconds

    def _waited(self, call: ToolCall, seconds: float) -> None:
        with self._counting:
            self._stats(call.tool).queued_s += seconds


@contextmanager
def _spent(call: ToolCall) -> Iterator[None]:
    """Note how long the row was in the call, whoever made it; what passed in calls inside it is theirs."""
    run = SESSION.get()
    if run is None or run.noted is None or LOOKING.get() is not None:
        yield
        return
    around, inside = _INSIDE.get(), [0.0]
    token = _INSIDE.set(inside)
    begun = time.monotonic()
    try:
        yield
    finally:
        _INSIDE.reset(token)
        seconds = time.monotonic() - begun
        own_s = max(seconds - inside[0], 0.0)
        run.tools_s[call.tool] = run.tools_s.get(call.tool, 0.0) + own_s
        if around is not None:
            around[0] += seconds


_INSIDE: ContextVar[list[float] | None] = ContextVar("halo_inside", default=None)
"""Seconds of the calls inside the one that the current code belongs to."""


def _cause(error: Exception, call: ToolCall) -> str:
    if isinstance(error, TimeoutError) and call.timeout_s is not None:
        return f"no answer within {call.timeout_s:g} s from "
    return "raised by "
