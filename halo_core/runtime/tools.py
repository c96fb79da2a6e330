"""Tool calls of a batch: equal reads are made once, writes in order, and no backend gets more than it is said to bear.

Whoever asks first makes the call, in its own thread or task and context; those who ask the same meanwhile or later get
copies of its result. Everything here may be used from any thread.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import copy
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from halo_core.plan import Effect
from halo_core.runtime.current import LOOKING, SESSION, not_ahead
from halo_core.runtime.loops import on_event_loop
from halo_core.runtime.stats import ToolStats
from halo_core.runtime.writes import WriteRecord

if TYPE_CHECKING:
    from halo_core.runtime.journal import Journal

T = TypeVar("T")

_ANYTHING = "*"
"""Written by a write that does not say what it writes."""
_SOMETHING = "+"
"""Written by every write; watched by reads that do not say what they read."""
MAX_RESULTS = 4096
"""Results kept for equal calls that come later; beyond it the least recently used are asked again."""
SHOWN = 300
"""Characters of a call's arguments in an error."""
FIRST_PAUSE_S = 0.1
"""Before a declared retry; doubled for every further one."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a tool, and what decides how it is made."""

    tool: str
    effect: Effect = Effect.WRITE
    signature: str | None = None
    """Equal for equal calls; None = never shared. Of a write it only tells the journal which call this is."""
    sources: tuple[str, ...] = ()
    """What it reads or writes; () for a write = anything."""
    backend: str = ""
    max_inflight: int | None = None
    retries: int = 0
    timeout_s: float | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """What it is asked, for those who watch."""

    def __str__(self) -> str:
        asked = self.signature or "arguments that have no text"
        return f"tool {self.tool!r} called with {asked if len(asked) <= SHOWN else f'{asked[:SHOWN]}...'}"


Observer = Callable[[ToolCall], object]

OBSERVERS: list[Observer] = []
"""Hear of every write, and other calls that no equal one answers, before it is made, in the caller's context.

What they raise, the caller gets instead of a result.
"""


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


class _AloneError(Exception):
    """The call that was waited for did not end with a result that can be shared."""


class ToolMemo:
    """Results of one batch's pure and read calls, by signature and by the state of what they read."""

    def __init__(self, *, keep_reads: bool = True) -> None:
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
            key = (call.tool, call.signature, *(self._writes[source] for source in watched))
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


class ToolDesk:
    """Makes the tool calls of one batch."""

    def __init__(self, stats: Callable[[str], ToolStats], *, share: bool = True, keep_reads: bool = True) -> None:
        """`share`: whether equal calls may be one at all; `keep_reads`: see `ToolMemo`."""
        self._share = share
        self.memo = ToolMemo(keep_reads=keep_reads)
        self._stats = stats
        self._counting = threading.Lock()
        self._unclaimed: set[tuple[Any, ...]] = set()
        """Results got by looking ahead that no real call has asked for yet."""
        self.journal: Journal | None = None
        """Where finished writes are kept, so that a resumed row does not make them again."""
        self._repeats: Counter[tuple[str, str, str]] = Counter()
        self._met: dict[tuple[Any, ...], Exception] = {}
        """(run, tool, signature) -> what looking ahead met there."""

    def close(self) -> None:
        """Drop all that is kept."""
        self.memo.clear()
        self._unclaimed.clear()
        self._met.clear()

    # Two of each: the rules are the same, but a thread waits in another way than a task does.

    async def acall(self, call: ToolCall, make: Callable[[], Awaitable[T]]) -> T:
        """Make the call, or wait for an equal one; from a task. Raises what the tool raises."""
        self._meet(call)
        while self._shares(call) and (joined := self.memo.join(call)) is not None:
            key, future, mine = joined
            if mine:
                with self._lead(key, call, future) as lead:
                    async with self._passed(call):
                        result = await self._amake(call, make)
                    lead.append(result)
                return result
            try:
                shared: T = await asyncio.shield(asyncio.wrap_future(future))
            except _AloneError:
                self._meet(call)
                break
            except _Abandoned:
                continue
            self._claim(key, call)
            return copy.deepcopy(shared)
        not_ahead()
        _observe(call)
        record = self._record(call)
        if record is not None and record.known:
            return record.result  # type: ignore[no-any-return]
        with self._writing(call):
            async with self._passed(call):
                if record is None:
                    return await self._amake(call, make)
                await asyncio.wrap_future(record.begins())
                with record.failing():
                    result = await self._amake(call, make)
                await asyncio.wrap_future(record.ends(result))
                return result

    def call(self, call: ToolCall, make: Callable[[], T]) -> T:
        """Make the call, or wait for an equal one, blocking the thread. Raises what the tool raises.

        On the thread of an event loop nobody is waited for: the loop may be what the other call needs.
        """
        may_wait = not on_event_loop()
        self._meet(call)
        while self._shares(call) and (joined := self.memo.join(call)) is not None:
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
            except _AloneError:
                self._meet(call)
                break
            except _Abandoned:
                continue
            self._claim(key, call)
            return copy.deepcopy(shared)
        not_ahead()
        _observe(call)
        record = self._record(call)
        if record is not None and record.known:
            return record.result  # type: ignore[no-any-return]
        with self._writing(call), self._entered(call, may_wait):
            if record is None:
                return self._make(call, make)
            record.begins().result()
            with record.failing():
                result = self._make(call, make)
            record.ends(result).result()
            return result

    def _shares(self, call: ToolCall) -> bool:
        return self._share and call.signature is not None and call.effect is not Effect.WRITE

    def _record(self, call: ToolCall) -> WriteRecord | None:
        """The journal's record of a write. Raises `InDoubtError` where nobody knows whether it was made."""
        run = SESSION.get()
        if self.journal is None or run is None or call.effect is not Effect.WRITE:
            return None
        signature = call.signature or ""
        with self._counting:
            n = self._repeats[run.key, call.tool, signature]
            self._repeats[run.key, call.tool, signature] = n + 1
        record = WriteRecord(self.journal, (run.key, call.tool, signature, n), call)
        if record.known:
            self._count(call, "replayed")
        return record

    # -- looking ahead -------------------------------------------------------------------------------------------

    @property
    def looks_ahead(self) -> bool:
        """Whether a result that is got before it is asked for is kept until then."""
        return self._share and self.memo.keep_reads

    def _meet(self, call: ToolCall) -> None:
        """Raise what this row's own look ahead met: a failed call is not made again because it was begun early."""
        if LOOKING.get() is None and self._met:
            error = self._met.pop((SESSION.get(), call.tool, call.signature), None)
            if error is not None:
                raise error

    def _claim(self, key: tuple[Any, ...], call: ToolCall) -> None:
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
    def _lead(
        self, key: tuple[Any, ...], call: ToolCall, future: concurrent.futures.Future[Any]
    ) -> Iterator[list[Any]]:
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
            self.memo.drop(key, future, _AloneError())
            raise
        except BaseException:  # cancelled: one of the others makes it
            self.memo.drop(key, future, _Abandoned())
            raise
        try:
            kept = copy.deepcopy(lead[0])
        except Exception:
            self.memo.drop(key, future, _AloneError())
        else:
            if look is not None:
                self._unclaimed.add(key)
            self.memo.settle(key, call, future, kept)

    def _writing(self, call: ToolCall) -> AbstractContextManager[None]:
        return self.memo.written(call.sources) if call.effect is Effect.WRITE else nullcontext()

    @contextmanager
    def _through(self, call: ToolCall) -> Iterator[tuple[list[Gate], list[Gate]]]:
        """The gates that the call has to pass, and a list for those that it is inside of; it leaves them in the end."""
        gates, inside = GATES.of(call), list[Gate]()
        token = _HELD.set(_HELD.get() | set(gates))
        try:
            yield gates, inside
        finally:
            for gate in reversed(inside):
                gate.leave()
            _HELD.reset(token)

    @asynccontextmanager
    async def _passed(self, call: ToolCall) -> AsyncIterator[None]:
        begun = time.monotonic()
        with self._through(call) as (gates, inside):
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
        with self._through(call) as (gates, inside):
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
                return make() if call.timeout_s is None else _within(call.timeout_s, make)
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


def _observe(call: ToolCall) -> None:
    for observer in tuple(OBSERVERS):
        observer(call)


def _cause(error: Exception, call: ToolCall) -> str:
    if isinstance(error, TimeoutError) and call.timeout_s is not None:
        return f"no answer within {call.timeout_s:g} s from "
    return "raised by "


def _within(seconds: float, make: Callable[[], T]) -> T:
    """The result of `make`, called in a thread of its own that is left behind if it takes too long."""
    future: concurrent.futures.Future[T] = concurrent.futures.Future()
    context = copy_context()

    def call() -> None:
        try:
            future.set_result(context.run(make))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=call, name="halo-tool", daemon=True).start()
    return future.result(seconds)


class _Abandoned(Exception):
    """The caller that made the call for all was cancelled."""
