"""Dispatch: which ready call goes to which engine, and when.

Calls wait here, not in the engines: each engine is given little more than it decodes at once, so that our order
survives its first-come-first-served queue. Where each goes is `placement`'s matter. Where engines share KV, calls that
share a long prefix wait while one engine computes it for all.
"""

from __future__ import annotations

import asyncio
import bisect
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from halo_core.errors import EngineDiedError, EngineError, HaloError
from halo_core.kv import ALL, BlockIndex
from halo_core.pool.call import Completion, LLMCall, Usage
from halo_core.pool.engine import Engine
from halo_core.pool.loop import now_s
from halo_core.pool.pool import EngineGroup, EnginePool
from halo_core.runtime.affinity import MIN_SHARED_CHUNKS, group_of, static_prefix
from halo_core.runtime.flight import Flight
from halo_core.runtime.group_kv import UNKNOWN_KV_TOKENS, GroupKV
from halo_core.runtime.placement import Placement
from halo_core.runtime.prefix import CHUNK_TOKENS, Chain, PrefixIndex, common_depth
from halo_core.runtime.station import Station, smoothed

logger = logging.getLogger(__name__)

LOOK_AHEAD = 128
"""Calls that are considered at a time when the first ones wait for an engine that is busy."""
WORTH_WAITING = 16
"""Chunks (about 1,000 tokens) that a warm-up must save: while calls wait for it, an engine's batch is not full."""
SETTLE_S = 0.03
"""How long calls that come together are collected while nothing is known of the engines' steps."""
MAX_SETTLE_S = 0.1
QUIET = 1 / 3
"""Of that time: nothing has arrived for so long, so nothing more is expected."""
TIGHT = 0.5
"""Share of the engines' KV: beyond it, what was computed may soon be evicted."""
MAX_TRIES = 4
DEFAULT_ANSWER_TOKENS = 64.0


class Dispatcher:
    """The ready queue of one served model and the engines behind it. Runs on the pool's loop only."""

    def __init__(
        self,
        pool: EnginePool,
        group: EngineGroup,
        land: Callable[[Flight, Completion | None, BaseException | None], None],
        on_parked: Callable[[], None] | None = None,
    ) -> None:
        """`on_parked` is told that calls wait and no engine is up, where somebody else decides what is loaded."""
        self._pool = pool
        self._group = group
        self._land = land
        self._on_parked = on_parked
        self._ready: list[Flight] = []
        self._ready_chunks: Counter[bytes] = Counter()
        self._placement = Placement(self._cost)
        self._stations: dict[str, Station] = {}
        self._starting: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._answer_tokens: dict[str, float] = {}
        self._decode_units = 2.0
        """Cost of a generated token in prompt tokens; corrected from what engines report is left to the planner."""
        self._pumping = False
        self._arrived_s = 0.0
        self.waiting_units = 0.0
        """Work of the ready calls, in prompt-token equivalents."""
        self.waiting: Counter[str] = Counter()
        """Operator -> its ready calls."""
        self._settling_s = 0.0
        self._kv = GroupKV(pool, group)
        self.warmups = 0
        self.warmup_usage = Usage()
        group.on_change.append(self._on_change)

    # -- in ------------------------------------------------------------------------------------------------------

    def add(self, flight: Flight) -> None:
        """Take charge of a flight; `land` is called exactly once with its outcome unless it is cancelled."""
        flight.answer_units = self._decode_units * self._answer(flight)
        if self._kv.shared or not self._stations:  # before engines are up, who knows
            self._kv.see(flight)
        bisect.insort(self._ready, flight)
        self.waiting[flight.call.origin.operator] += 1
        self.waiting_units += flight.prompt_units + flight.answer_units
        _add(self._ready_chunks, flight.chain)
        self._placement.add(flight)
        self._arrived_s = now_s()
        self._pump_soon()

    def cancel(self, flight: Flight) -> None:
        """Nobody waits for the flight any more."""
        flight.abandoned = True
        if flight.task is not None:
            flight.task.cancel()
        elif flight in self._ready:
            self._ready.remove(flight)
            self._forget(flight)

    def _forget(self, flight: Flight) -> None:
        """`flight` has left the ready queue."""
        self.waiting[flight.call.origin.operator] -= 1
        self.waiting_units -= flight.prompt_units + flight.answer_units
        _remove(self._ready_chunks, flight.chain)
        self._placement.remove(flight)

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

    @property
    def units_per_s(self) -> float:
        """How fast one engine gets on with such work, in prompt-token equivalents; 0 while nothing is known."""
        return max((station.pace.units_per_s for station in self._stations.values()), default=0.0)

    def forget_prefixes(self) -> None:
        """The engines' caches were reset."""
        for station in self._stations.values():
            station.forget()
        self._kv.forget()

    # -- placing -------------------------------------------------------------------------------------------------

    def _on_change(self, failure: HaloError | None) -> None:
        if failure is not None:
            self.fail_all(failure)
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
            if self._on_parked is not None:
                self._on_parked()
            elif self._starting is None or self._starting.done():
                self._starting = self._spawn(self._start())
            return
        if self._settling(stations):
            return
        while self._ready and (chosen := self._next(stations)) is not None:
            self._place(*chosen)
        for station in stations:
            self._begin(station)

    def _settling(self, stations: list[Station]) -> bool:
        """Whether to look again in a moment, when the calls that come now are all here.

        Rows make their first calls within milliseconds of each other, one by one, and their next ones too when an
        engine has answered them in one step. Together they are divided better.
        An engine that works would take a call only at the end of its step anyway.
        """
        now = now_s()
        if group_of(self._ready[0]) is None:
            self._settling_s = 0.0
            return False
        self._settling_s = self._settling_s or now
        steps = [station.step_s for station in stations if station.step_s is not None]
        patience = min(min(steps) / 2, MAX_SETTLE_S) if steps else SETTLE_S
        if now - self._arrived_s > QUIET * patience or now - self._settling_s > patience:
            self._settling_s = 0.0
            return False
        self._pumping = True
        asyncio.get_running_loop().call_later(QUIET * patience, self._pump)
        return True

    def _next(self, stations: list[Station]) -> tuple[Flight, Station] | None:
        """The first call in order whose best engine takes another one now, out of the queue.

        A call whose best engine is busy is passed over; it keeps its place.
        """
        if not any(station.free for station in stations):
            return None
        if len(stations) == 1:
            return self._take(0, stations[0])
        self._placement.review(stations)
        crowded = len(self._ready) + sum(s.calls for s in stations) > sum(s.engine.capacity.slots for s in stations)
        crowded = crowded or any(station.kv_full for station in stations)
        for i, flight in enumerate(self._ready[:LOOK_AHEAD]):
            if self._kv.forced:
                best = min(stations, key=lambda s: (s.sent.depth(flight.chain), s.calls))
            else:
                best = self._placement.best(flight, stations, crowded=crowded)
            if best.free:
                return self._take(i, best)
        return None

    def _take(self, position: int, station: Station) -> tuple[Flight, Station]:
        flight = self._ready.pop(position)
        self._forget(flight)
        return flight, station

    def _sync_stations(self) -> list[Station]:
        for engine in self._group.ready:
            station = self._stations.get(engine.name)
            if station is None or station.engine is not engine:
                capacity = engine.capacity.kv_tokens or UNKNOWN_KV_TOKENS
                chunks = int(capacity / CHUNK_TOKENS)
                self._stations[engine.name] = Station(engine, PrefixIndex(chunks), PrefixIndex(chunks))
        stations = [self._stations[engine.name] for engine in self._group.ready]
        if len(stations) < len(self._stations):
            self._pool.revive(self._group)  # what died without a call has nobody to report it
        for station in stations:
            station.stored = self._kv.stored_by(station.engine)
        return stations

    def _answer(self, flight: Flight) -> float:
        """Tokens that the call is expected to generate."""
        answer = self._answer_tokens.get(flight.call.origin.operator)
        if answer is None:
            answer = flight.known_answer if flight.known_answer is not None else DEFAULT_ANSWER_TOKENS
        limit = flight.call.body.get("max_completion_tokens") or flight.call.body.get("max_tokens")
        return min(answer, float(limit)) if limit else answer

    def _cost(self, flight: Flight, station: Station) -> float:
        return flight.uncached_units(station.sent_depth(flight.chain)) + flight.answer_units

    def _unshared_tokens(self, flight: Flight) -> float:
        return flight.uncached_units(len(flight.chain)) + flight.answer_units / self._decode_units

    def _place(self, flight: Flight, station: Station) -> None:
        """`station` is to serve `flight`; it is sent with the others that are placed now."""
        self._book(flight, station)
        station.placed.append(flight)

    def _book(self, flight: Flight, station: Station) -> None:
        flight.load_units = self._cost(flight, station)
        station.load_units += flight.load_units
        station.unshared_tokens += self._unshared_tokens(flight)
        station.sent.insert(flight.chain)
        _add(station.computing, flight.chain)

    def _unplace(self, flight: Flight, station: Station) -> None:
        _remove(station.computing, flight.chain)
        station.unshared_tokens -= self._unshared_tokens(flight)
        station.load_units -= flight.load_units

    def _begin(self, station: Station) -> None:
        """Send what was placed on `station`, but for calls that wait for a prefix that another engine computes.

        On one engine nobody has to wait: vLLM names a prompt's blocks when it schedules it, so that whoever is
        scheduled with the first holder of a prefix or behind it finds them. The engines' store has them only later.
        """
        placed, station.placed = station.placed, []
        for flight in placed:
            chosen = self._sent_to(flight, station)
            if chosen is not None:
                self._send(flight, chosen)

    def _sent_to(self, flight: Flight, station: Station) -> Station | None:
        """Where a call that was placed on `station` is sent now; None where it waits for a prefix first."""
        chain = flight.chain
        others = self._sharing_with(station) if chain else []
        if not others:
            return station
        held = station.held_depth(chain)
        for other in (station, *others):
            for leader in other.warming:
                if common_depth(leader, chain) - held < MIN_SHARED_CHUNKS:
                    continue
                if other is station:
                    return station  # whatever became of its blocks since: no second one in the place of the first
                self._hand_over(flight, station, other)  # computed once, whoever needs it
                other.warming[leader].append(flight)
                return None
        if self._pays(flight, others, held):
            idlest = min([station, *others], key=lambda s: (s.kv_full, len(s.warming), s.outlook))
            if len(idlest.warming) < len(station.warming):  # the store makes it known here as well
                self._hand_over(flight, station, idlest)
                station = idlest
            self._warm(flight, station)
        return station

    def _sharing_with(self, station: Station) -> list[Station]:
        """The other engines that take from the store what `station` puts there."""
        if station.stored is None:
            return []
        others = (self._stations[engine.name] for engine in self._group.ready if engine.name in self._stations)
        return [other for other in others if other.stored is station.stored and other is not station]

    def _hand_over(self, flight: Flight, station: Station, other: Station) -> None:
        """`other` has the call now."""
        self._unplace(flight, station)
        self._book(flight, other)

    def _pays(self, flight: Flight, others: Sequence[Station], held: int) -> bool:
        """Whether to say when the prompt is computed of which `held` chunks are there, so that `others` wait for it.

        A chunk that is computed once is saved for every other call that waits for an engine, or was given to one that
        lacks it.
        """
        chain = flight.chain
        if len(static_prefix(flight)) - held >= MIN_SHARED_CHUNKS:
            return True  # its followers may arrive only in a moment
        lacking = [(other.held.depth(chain), other.computing) for other in others]
        for depth in range(held + 1, len(chain) + 1):
            chunk = chain[depth - 1]
            followers = self._ready_chunks[chunk] + sum(calls[chunk] for own, calls in lacking if own < depth)
            if not followers:
                return False
            if followers * (depth - held) >= WORTH_WAITING:
                return True
        return False

    def _warm(self, flight: Flight, station: Station) -> None:
        # The warm-up is the call's own prompt with one token to generate: exactly its prefix, no template guess. It
        # goes ahead of the call, which finds its blocks; whoever waits elsewhere learns when the store has them.
        station.warming[flight.chain] = []
        self._spawn(self._warm_up(flight, station), station.engine)

    async def _warm_up(self, flight: Flight, station: Station) -> None:
        body = {k: v for k, v in flight.call.body.items() if k in _PROMPT_FIELDS}
        body |= {"max_tokens": 1, "temperature": 0}
        shares, origin = station.stored is not None, flight.call.origin
        model = station.engine.model
        call = LLMCall(model, body, origin=origin, share_tokens=-1 if shares else 0, share_loads=shares)
        try:
            completion = await station.engine.complete(call)
            if completion.blocks:
                self._learn_blocks(flight, station, completion)
            self.warmups += 1
            self.warmup_usage += completion.usage
        except HaloError as error:
            # The calls themselves will meet the same error and report it to their callers.
            logger.debug("warm-up on %s failed: %s", station.engine.name, error)
        finally:
            # Also after a failure: otherwise the same warm-up would be tried for ever.
            station.held.insert(flight.chain)
            self._kv.saved(flight, station, ALL)
            for waiting in station.warming.pop(flight.chain, ()):
                self._unplace(waiting, station)
                if not waiting.abandoned:
                    self.add(waiting)

    # -- sending -------------------------------------------------------------------------------------------------

    def _send(self, flight: Flight, station: Station) -> None:
        station.begin(flight)
        flight.on_engine = station.engine.name
        self._placement.sent(flight, station)
        flight.tries += 1
        task = flight.task = self._spawn(self._fly(flight, station), station.engine)
        # A task that is cancelled before its first step never runs, not even its `finally`.
        task.add_done_callback(lambda _: self._leave(flight, station) if flight in station.in_flight else None)

    async def _fly(self, flight: Flight, station: Station) -> None:
        engine = station.engine
        # Where the engine has priorities, its own queue keeps our order too.
        keep = self._kv.keep(flight, self._tight)
        call = replace(
            flight.call,
            model=engine.model,
            priority=flight.call.priority + flight.order[0],
            share_tokens=keep.tokens if station.stored is not None else 0,
            share_ends=keep.last,
            share_pin_s=keep.pin_s,
            share_loads=station.stored is not None,
        )
        completion: Completion | None = None
        error: BaseException | None = None
        begun_s = now_s()
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
            self._kv.saved(flight, station, keep)
            self._pool.answered(self._group, engine)
            self._learn(call, completion)
            if completion.blocks:
                self._learn_blocks(flight, station, completion)
                completion = replace(completion, blocks=())  # nobody else needs them, and answers are kept
            station.observe(completion.usage.generated_tokens, now_s() - begun_s)
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
        station.pace.finish(flight.load_units, not station.in_flight)
        self._unplace(flight, station)
        flight.task = None
        self._placement.touch()
        self._pump_soon()

    def _requeue(self, flight: Flight, station: Station, error: EngineDiedError) -> None:
        if station.engine.health.state != "ready":
            station.forget()
            self._pool.report_dead(self._group, station.engine)
        hopeless = self._pool.closed or self._pool.hopeless(self._group)
        if flight.chunks or flight.tries >= MAX_TRIES or hopeless:
            # A stream that has begun cannot be begun again without its reader noticing.
            self._land(flight, None, error)
            if hopeless:
                self.fail_all(error)
            return
        self.add(flight)

    def fail_all(self, error: BaseException) -> None:
        """No call that waits for an engine gets one: `land` is called for each with `error`."""
        ready, self._ready = self._ready, []
        for flight in ready:
            self._forget(flight)
            if not flight.abandoned:
                self._land(flight, None, error)

    async def _start(self) -> None:
        try:
            restarting = any(count < 0 for count in self._group.restarts.values())
            if restarting:
                return  # the restart's end calls `on_change`, which pumps
            await self._pool.start(self._group.model)
        except Exception as error:
            self.fail_all(error)
            return
        self._pump_soon()

    def _learn(self, call: LLMCall, completion: Completion) -> None:
        operator = call.origin.operator
        seen = float(completion.usage.generated_tokens)
        self._answer_tokens[operator] = smoothed(self._answer_tokens.get(operator), seen)

    def _tight(self) -> bool:
        """Whether what the engines were sent and what waits may be more KV than they hold for long."""
        stations = self._stations.values()
        known = sum(len(station.sent) * CHUNK_TOKENS + station.unshared_tokens for station in stations)
        room = sum(station.engine.capacity.kv_tokens for station in stations)
        return bool(room) and known + self.waiting_units > TIGHT * room

    def _learn_blocks(self, flight: Flight, station: Station, completion: Completion) -> None:
        """How the engines name the blocks of this prompt; who says so is listened to from now on."""
        self._kv.learn(flight, station, completion)
        if station.blocks is None:
            station.blocks = BlockIndex()
            self._spawn(self._kv.listen(station, station.blocks))

    def _spawn(self, coroutine: Any, engine: Engine | None = None) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if engine is not None:  # also a task that is cancelled before its first step has its end
            self._group.begin(engine)
            task.add_done_callback(lambda _: self._group.end(engine))
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
