"""Dispatch: which ready call goes to which engine, and when.

Calls wait here, not in the engines: each engine is given little more than it decodes at once, so that our order
survives its first-come-first-served queue. Among free engines a call goes where the sum of outstanding work and its own
uncached prompt is least. Calls that share a long prefix that no engine holds wait while one of them warms it.
"""

from __future__ import annotations

import asyncio
import bisect
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from halo_core.errors import EngineDiedError, EngineError, HaloError
from halo_core.pool.call import Completion, LLMCall, Usage
from halo_core.pool.engine import Engine
from halo_core.pool.pool import EngineGroup, EnginePool
from halo_core.runtime.flight import Flight
from halo_core.runtime.prefix import CHUNK_CHARS, Chain, PrefixIndex

logger = logging.getLogger(__name__)

CHARS_PER_TOKEN = 4.0
CHUNK_TOKENS = CHUNK_CHARS / CHARS_PER_TOKEN
MIN_WARM_CHUNKS = 3
"""A shared prefix below this (about 200 tokens) is cheaper to compute twice than to wait for."""
LOOK_AHEAD = 16
"""Calls that are considered for an engine at a time: order may be broken by so many places, not more."""
MAX_TRIES = 4
DEFAULT_ANSWER_TOKENS = 64.0


@dataclass(slots=True, eq=False)
class Station:
    """What the dispatcher knows of one engine."""

    engine: Engine
    sent: PrefixIndex
    """Prefixes that it was sent: where to place calls."""
    held: PrefixIndex
    """Prefixes that it has certainly computed: calls sent before that may compute them a second time."""
    computing: Counter[bytes] = field(default_factory=Counter)
    """Chunks of prompts that it was sent and has not answered yet."""
    in_flight: set[Flight] = field(default_factory=set)
    load_units: float = 0.0
    """Outstanding work in prompt-token equivalents."""
    warming: dict[bytes, list[Flight]] = field(default_factory=dict)
    """Last chunk of a prefix that is being computed -> the calls that wait for it."""

    def forget(self) -> None:
        """The engine's cache is empty."""
        self.sent.clear()
        self.held.clear()

    @property
    def free(self) -> bool:
        """Whether the engine takes another call now."""
        held = sum(map(len, self.warming.values())) if self.warming else 0
        return self.engine.health.state == "ready" and len(self.in_flight) + held < self.engine.capacity.slots


class Dispatcher:
    """The ready queue of one served model and the engines behind it. Runs on the pool's loop only."""

    def __init__(
        self,
        pool: EnginePool,
        group: EngineGroup,
        land: Callable[[Flight, Completion | None, BaseException | None], None],
    ) -> None:
        self._pool = pool
        self._group = group
        self._land = land
        self._ready: list[Flight] = []
        self._ready_chunks: Counter[bytes] = Counter()
        self._stations: dict[str, Station] = {}
        self._starting: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._answer_tokens: dict[str, float] = {}
        self._decode_units = 2.0
        """Cost of a generated token in prompt tokens; corrected from what engines report is left to the planner."""
        self._pumping = False
        self.warmups = 0
        self.warmup_usage = Usage()
        group.on_change.append(self._on_change)

    # -- in ------------------------------------------------------------------------------------------------------

    def add(self, flight: Flight) -> None:
        """Take charge of a flight; `land` is called exactly once with its outcome unless it is cancelled."""
        bisect.insort(self._ready, flight)
        _add(self._ready_chunks, flight.chain)
        self._pump_soon()

    def cancel(self, flight: Flight) -> None:
        """Nobody waits for the flight any more."""
        flight.abandoned = True
        if flight.task is not None:
            flight.task.cancel()
        elif flight in self._ready:
            self._ready.remove(flight)
            _remove(self._ready_chunks, flight.chain)

    @property
    def backlog(self) -> int:
        """Calls that wait for an engine."""
        return len(self._ready) + sum(len(calls) for s in self._stations.values() for calls in s.warming.values())

    @property
    def in_flight(self) -> int:
        """Calls that engines work on."""
        return sum(len(station.in_flight) for station in self._stations.values())

    @property
    def slots(self) -> int:
        """Calls that the running engines decode at once; 0 before they are up."""
        return sum(engine.capacity.slots for engine in self._group.ready)

    def forget_prefixes(self) -> None:
        """The engines' caches were reset."""
        for station in self._stations.values():
            station.forget()

    # -- placing -------------------------------------------------------------------------------------------------

    def _on_change(self, failure: HaloError | None) -> None:
        if failure is not None:
            self._fail_all(failure)
        self._pump_soon()

    def _pump_soon(self) -> None:
        if not self._pumping:  # calls that become ready in the same turn of the loop are placed together
            self._pumping = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = False
        if not self._ready:
            return
        stations = self._sync_stations()
        if not stations:
            if self._starting is None or self._starting.done():
                self._starting = self._spawn(self._start())
            return
        while self._ready:
            free = [station for station in stations if station.free]
            if not free:
                return
            flight, station = self._next(free)
            if not self._hold_or_warm(flight, station):
                self._send(flight, station)

    def _next(self, free: list[Station]) -> tuple[Flight, Station]:
        """Of the first calls in order, the pair of call and engine that is expected to end first.

        So an engine takes the calls whose prefix it holds, and another's only when that one is far enough behind to
        make up for computing the prefix a second time.
        """
        best = min(
            ((s.load_units + self._cost(f, s), i, s) for i, f in enumerate(self._ready[:LOOK_AHEAD]) for s in free),
            key=lambda entry: entry[:2],
        )
        flight = self._ready.pop(best[1])
        _remove(self._ready_chunks, flight.chain)
        return flight, best[2]

    def _sync_stations(self) -> list[Station]:
        for engine in self._group.ready:
            station = self._stations.get(engine.name)
            if station is None or station.engine is not engine:
                capacity = engine.capacity.kv_tokens or 200_000
                chunks = int(capacity / CHUNK_TOKENS)
                self._stations[engine.name] = Station(engine, PrefixIndex(chunks), PrefixIndex(chunks))
        return [self._stations[engine.name] for engine in self._group.ready]

    def _cost(self, flight: Flight, station: Station) -> float:
        cached = station.sent.depth(flight.chain) * CHUNK_TOKENS
        answer = self._answer_tokens.get(flight.call.origin.operator, DEFAULT_ANSWER_TOKENS)
        limit = flight.call.body.get("max_completion_tokens") or flight.call.body.get("max_tokens")
        if limit:
            answer = min(answer, float(limit))
        return max(flight.prompt_units - cached, 1.0) + self._decode_units * answer

    def _hold_or_warm(self, flight: Flight, station: Station) -> bool:
        """Let `flight` wait for a prefix that is being computed on `station`, or begin to compute a shared one."""
        chain = flight.chain
        for chunk in reversed(chain):
            if chunk in station.warming:
                self._hold(flight, station, chunk)
                return True
        shared = max(self._shared_depth(chain, station), min(flight.static_chunks, len(chain)))
        if shared - station.held.depth(chain) < MIN_WARM_CHUNKS:
            return False
        self._warm(flight, station, chain[:shared])
        return True

    def _shared_depth(self, chain: Chain, station: Station) -> int:
        """Leading chunks that another ready call, or one that the engine has not answered yet, has as well."""
        depth = 0
        for chunk in chain:  # `flight` itself is already out of the queue
            if chunk not in self._ready_chunks and chunk not in station.computing:
                break
            depth += 1
        return depth

    def _warm(self, flight: Flight, station: Station, prefix: Chain) -> None:
        # The warm-up is the first call's own prompt with one token to generate: exactly its prefix, no template guess.
        station.warming[prefix[-1]] = []
        station.load_units += len(prefix) * CHUNK_TOKENS
        station.sent.insert(flight.chain)
        self._hold(flight, station, prefix[-1])
        self._spawn(self._warm_up(flight, station, prefix))

    def _hold(self, flight: Flight, station: Station, chunk: bytes) -> None:
        """Let a call wait for a prefix; its own work counts as the engine's already."""
        flight.load_units = self._cost(flight, station)
        station.load_units += flight.load_units
        station.warming[chunk].append(flight)

    async def _warm_up(self, flight: Flight, station: Station, prefix: Chain) -> None:
        body = {k: v for k, v in flight.call.body.items() if k in _PROMPT_FIELDS}
        call = LLMCall(station.engine.model, {**body, "max_tokens": 1, "temperature": 0}, origin=flight.call.origin)
        try:
            completion = await station.engine.complete(call)
            self.warmups += 1
            usage = completion.usage
            self.warmup_usage = Usage(
                self.warmup_usage.prompt_tokens + usage.prompt_tokens,
                self.warmup_usage.cached_tokens + usage.cached_tokens,
                self.warmup_usage.generated_tokens + usage.generated_tokens,
            )
        except HaloError as error:
            # The calls themselves will meet the same error and report it to their callers.
            logger.debug("warm-up on %s failed: %s", station.engine.name, error)
        finally:
            # Also after a failure: otherwise the same warm-up would be tried for ever.
            station.held.insert(flight.chain)
            station.load_units -= len(prefix) * CHUNK_TOKENS
            for waiting in station.warming.pop(prefix[-1], ()):
                station.load_units -= waiting.load_units
                if not waiting.abandoned:
                    self.add(waiting)

    # -- sending -------------------------------------------------------------------------------------------------

    def _send(self, flight: Flight, station: Station) -> None:
        flight.load_units = self._cost(flight, station)
        station.load_units += flight.load_units
        station.sent.insert(flight.chain)
        _add(station.computing, flight.chain)
        station.in_flight.add(flight)
        flight.on_engine = station.engine.name
        flight.tries += 1
        flight.task = self._spawn(self._fly(flight, station))

    async def _fly(self, flight: Flight, station: Station) -> None:
        engine = station.engine
        # Where the engine has priorities, its own queue keeps our order too.
        call = replace(flight.call, model=engine.model, priority=flight.call.priority + flight.order[0])
        completion: Completion | None = None
        error: BaseException | None = None
        try:
            completion = await (self._stream(flight, engine, call) if call.stream else engine.complete(call))
        except asyncio.CancelledError:
            self._leave(flight, station)
            if not flight.abandoned:
                self._land(flight, None, EngineError(f"call on {engine.name} was cancelled by the pool"))
            return
        except EngineDiedError as died:
            error = died
        except Exception as failure:
            error = failure
        self._leave(flight, station)
        if isinstance(error, EngineDiedError):
            self._requeue(flight, station, error)
            return
        if completion is not None:
            station.held.insert(flight.chain)
            self._learn(call, completion)
        self._land(flight, completion, error)

    async def _stream(self, flight: Flight, engine: Engine, call: LLMCall) -> Completion:
        usage = Usage()
        async for data in engine.stream(call):
            if b'"usage"' in data:
                usage = _chunk_usage(data) or usage
            flight.chunk(data)
        return Completion(b"[" + b",".join(flight.chunks) + b"]", usage, engine.name)

    def _leave(self, flight: Flight, station: Station) -> None:
        station.in_flight.discard(flight)
        _remove(station.computing, flight.chain)
        station.load_units -= flight.load_units
        flight.task = None
        self._pump_soon()

    def _requeue(self, flight: Flight, station: Station, error: EngineDiedError) -> None:
        if station.engine.health.state != "ready":
            station.forget()
            self._pool.report_dead(self._group, station.engine)
        hopeless = self._pool.hopeless(self._group)
        if flight.chunks or flight.tries >= MAX_TRIES or hopeless:
            # A stream that has begun cannot be begun again without its reader noticing.
            self._land(flight, None, error)
            if hopeless:
                self._fail_all(error)
            return
        self.add(flight)

    def _fail_all(self, error: BaseException) -> None:
        ready, self._ready = self._ready, []
        self._ready_chunks.clear()
        for flight in ready:
            if not flight.abandoned:
                self._land(flight, None, error)

    async def _start(self) -> None:
        try:
            restarting = any(count < 0 for count in self._group.restarts.values())
            if restarting:
                return  # the restart's end calls `on_change`, which pumps
            await self._pool.start(self._group.model)
        except Exception as error:
            self._fail_all(error)
            return
        self._pump_soon()

    def _learn(self, call: LLMCall, completion: Completion) -> None:
        operator = call.origin.operator
        known = self._answer_tokens.get(operator)
        seen = float(completion.usage.generated_tokens)
        self._answer_tokens[operator] = seen if known is None else 0.8 * known + 0.2 * seen

    def _spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _add(counts: Counter[bytes], chain: Chain) -> None:
    for chunk in chain:
        counts[chunk] += 1


def _remove(counts: Counter[bytes], chain: Chain) -> None:
    for chunk in chain:
        if counts[chunk] > 1:
            counts[chunk] -= 1
        else:
            del counts[chunk]


_PROMPT_FIELDS = frozenset({"messages", "tools", "tool_choice", "chat_template_kwargs", "chat_template", "documents"})


def _chunk_usage(data: bytes) -> Usage | None:
    from pydantic_core import from_json

    usage = from_json(data).get("usage")
    return Usage.from_wire(usage) if usage else None
