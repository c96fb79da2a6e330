"""The executor: takes calls from any thread, merges equal ones, journals, dispatches, and hands answers back."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from functools import partial
from typing import Any

from pydantic_core import to_json

from halo_core.errors import ConfigError, EngineDiedError, HaloError
from halo_core.kv import keeps
from halo_core.optimize.switching import SwitchPlan
from halo_core.pool.call import Completion, LLMCall, Usage
from halo_core.pool.loop import mailbox_of, now_s
from halo_core.pool.pool import EnginePool, get_pool
from halo_core.runtime.admission import Admission
from halo_core.runtime.asking import OnDone, answer, answer_blocking, chunks, chunks_blocking
from halo_core.runtime.batch import Batch, RowKeys, Run
from halo_core.runtime.catalogs import remember
from halo_core.runtime.current import not_ahead
from halo_core.runtime.dispatch import Dispatcher
from halo_core.runtime.flight import Flight, How, JournalKey, MergeKey, Waiter
from halo_core.runtime.foresight import ranks, switch_plan
from halo_core.runtime.journal import Journal
from halo_core.runtime.prefix import CHARS_PER_TOKEN, Prompt
from halo_core.runtime.residency import Residency
from halo_core.runtime.watch import Watch
from halo_core.stats import Catalog

DEFAULT_TARGET = 64
"""Calls to keep under way before any engine has told its capacity."""

CLOSED = "the pool was closed before the call was answered"
LEARN_WITHIN_S = 5.0
"""A pool that is being closed may never answer."""

logger = logging.getLogger(__name__)


class Executor:
    """One per pool. Everything that changes happens on the pool's loop; the public methods work from any thread."""

    def __init__(self, pool: EnginePool) -> None:
        self.pool = pool
        self._mail = pool.thread.mailbox
        self._dispatchers: dict[str, Dispatcher] = {}
        self._arrivals = itertools.count()
        self._owners: dict[Flight, Batch] = {}
        self._journals: dict[int, Journal] = {}
        self._shared_journal: Journal | None = None
        self._shared_keys: RowKeys | None = None
        self._opened: list[Batch] | None = None
        self._ambient: Batch | None = None
        self._ambient_runs = 0
        self._ambient_pinned = False
        self._ambient_lock = threading.Lock()
        self.last_batch: Batch | None = None
        self.residency: Residency | None = None
        """Decides which models are loaded, where the pool's models take turns."""
        if pool.places is not None:
            self.residency = Residency(pool.places, self._dispatchers, self._stalled, lambda: self.admission.crowd)
        self.admission = Admission(self._target, self._busy, self._parked)
        pool.on_close.append(self._pool_closed)

    # -- batches and runs ----------------------------------------------------------------------------------------

    def open_batch(
        self,
        name: str,
        *,
        journal: Journal | None = None,
        merge: bool = True,
        on_change: Callable[[Batch], None] | None = None,
        keep_reads: bool = True,
        app: str = "",
        known: Catalog | None = None,
        within: Run | None = None,
    ) -> Batch:
        """A new set of runs that share calls with each other.

        Without `keep_reads`, a tool's read serves only those who ask while it is under way. `app` is the fingerprint
        under which the catalog keeps what the first rows teach; `known` stands for what it keeps now.
        One that the code of another batch's row runs is `within` that row: it writes the same journal, and shares its
        calls with that batch and with all others inside it. With a journal of its own it shares model calls with none.
        """
        batch = Batch(
            name,
            merge=merge,
            on_change=on_change,
            keys=self._shared_keys,
            keep_reads=keep_reads,
            app=app,
            known=known,
            within=within,
        )
        batch.ranks = ranks(batch.known, self.pool)
        batch.keeps = keeps(batch.known)
        if batch.known is not None:
            batch.answer_lengths = batch.known.answer_lengths()
        journal = journal or self._shared_journal
        outer_journal = self._journals.get(within.batch.number) if within is not None else None
        journal = journal or outer_journal
        if within is not None and batch.merge and journal is outer_journal:
            batch.join(within)
        if journal is not None:
            self._journals[batch.number] = journal
            batch.desk.journal = journal
        self.last_batch = batch
        if self._opened is not None:
            self._opened.append(batch)
        return batch

    def share(self, journal: Journal | None) -> list[Batch]:
        """From now on all batches write `journal` and number equal rows together; returns the list of those opened.

        For a script that runs as one job (`halo exec`), however many batches it opens by itself.
        """
        self._shared_journal = journal
        self._shared_keys = RowKeys()
        self._opened = []
        return self._opened

    def close_batch(self, batch: Batch) -> None:
        """All runs of the batch have ended."""
        batch.stats.wall_s = time.monotonic() - batch.started_s
        journal = self._journals.pop(batch.number, None)
        if journal is not None and journal.failed is not None:
            batch.errors.append(str(journal.failed))
        batch.desk.close()
        if batch.planned:
            self.follow(None)
        if not batch.joined:
            self._mail.post(batch.memo.clear)
        if batch.watch is not None:
            self._remember(batch, batch.watch)

    def _remember(self, batch: Batch, watch: Watch) -> None:
        """Add what the batch has seen to the catalog; whatever goes wrong with that, the batch has its results."""
        try:
            if not self.pool.thread.is_current:
                seen: concurrent.futures.Future[None] = concurrent.futures.Future()
                self._mail.post(seen.set_result, None)  # behind all that the batch's runs have posted
                seen.result(timeout=LEARN_WITHIN_S)
            remember(batch, watch.observed(batch.stats))
        except (TimeoutError, RuntimeError):
            logger.debug("the pool was closed before batch %r could be learnt from", batch.name)
        except Exception:
            logger.exception("nothing was learnt of batch %r; its results are not affected", batch.name)

    def ambient(self, *, pin: bool = False) -> Batch:
        """The batch of runs that apps start by themselves; it lives while any of them is active.

        With `pin` it lives until `close_batch` (`halo exec`: the whole script is one batch).
        """
        with self._ambient_lock:
            if self._ambient is None:
                self._ambient = self.open_batch("ambient", keep_reads=pin)  # apps may start runs for days
            self._ambient_pinned = self._ambient_pinned or pin
            return self._ambient

    def begin(self, batch: Batch, content: str, key: str | None = None) -> Run:
        """A run of `batch` for a row with this canonical content, without waiting for admission.

        `key` identifies the row across restarts; by default it is made of the content and its n-th occurrence.
        """
        run = Run(batch, batch.row_key(content, key), 0)
        run.noted = batch.watch.note(run.key) if batch.watch is not None else None
        batch.stats.rows += 1
        with self._ambient_lock:
            self._ambient_runs += batch is self._ambient
        return run

    def end(self, run: Run, *, failed: bool = False) -> None:
        """The run is over; lets the next one in."""
        stats = run.batch.stats
        if failed:
            stats.rows_failed += 1
        else:
            stats.rows_done += 1
        self._mail.post(self.admission.leave, run)
        if run.batch.watch is not None:
            self._mail.post(run.batch.watch.ended, run, failed)
        run.batch.changed()
        with self._ambient_lock:
            if run.batch is self._ambient:
                self._ambient_runs -= 1
                if self._ambient_runs == 0 and not self._ambient_pinned:
                    ambient, self._ambient = self._ambient, None
                    self.close_batch(ambient)

    async def admitted(self, run: Run, limit: int | None = None) -> None:
        """Wait (on the caller's loop) until `run` may begin; cancellation gives the place back."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        mailbox = mailbox_of(loop)

        def open_gate() -> None:
            if not future.done():
                future.set_result(None)

        self._mail.post(self.admission.enter, run, lambda: mailbox.post(open_gate), limit)
        try:
            await future
        except asyncio.CancelledError:
            self._mail.post(self.admission.leave, run)
            raise

    def wait_admitted(self, run: Run, limit: int | None = None) -> None:
        """Block the calling thread until `run` may begin; an interrupt gives the place back."""
        gate = threading.Event()
        self._mail.post(self.admission.enter, run, gate.set, limit)
        try:
            gate.wait()
        except BaseException:
            self._mail.post(self.admission.leave, run)
            raise

    # -- calls ---------------------------------------------------------------------------------------------------

    async def call(
        self,
        run: Run,
        call: LLMCall,
        *,
        link: Callable[[asyncio.Future[Any]], object] | None = None,
        told: Callable[[How], None] | None = None,
    ) -> Completion:
        """Answer `call` for `run`, from the caller's own loop. Raises what the engine raised.

        `link` gets a future whose cancellation gives the call up (other callers of an equal one stay); `told` hears how
        the answer was got.
        """
        return await answer(partial(self._submit, run, call), self._give_up, link, told)

    def call_blocking(self, run: Run, call: LLMCall) -> Completion:
        """Answer `call` for `run`, blocking the calling thread (never the pool's own)."""
        return answer_blocking(partial(self._submit, run, call), self._give_up)

    def stream(
        self,
        run: Run,
        call: LLMCall,
        *,
        link: Callable[[asyncio.Future[Any]], object] | None = None,
        told: Callable[[How], None] | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """The chunks of a streamed call as raw JSON objects, on the caller's own loop; arguments as of `call`."""
        return chunks(partial(self._submit, run, call), self._give_up, link, told)

    def stream_blocking(self, run: Run, call: LLMCall) -> Iterator[bytes]:
        """The chunks of a streamed call as raw JSON objects, blocking the calling thread."""
        return chunks_blocking(partial(self._submit, run, call), self._give_up)

    def _give_up(self, waiter: Waiter) -> None:
        self._mail.post(self._leave, waiter)

    # -- on the pool's loop --------------------------------------------------------------------------------------

    def _submit(
        self,
        run: Run,
        call: LLMCall,
        on_done: OnDone,
        on_chunk: Callable[[bytes], None] | None = None,
    ) -> Waiter:
        not_ahead()
        # Hashing and prompt text are done on the caller's thread: the pool's loop only moves things.
        waiter = Waiter(call, on_done, lambda w, how, usage: self._tally(run, w, how, usage), on_chunk)
        if run.noted is not None:
            waiter.tools_s = run.tools_so_far()
        prompt = Prompt.of(call.body)
        self._mail.post(self._arrive, run, waiter, call.fingerprint(), prompt)
        return waiter

    def _arrive(self, run: Run, waiter: Waiter, fingerprint: str, prompt: Prompt) -> None:
        try:
            waiter.asked_s = now_s()
            self._begin_call(run, waiter, fingerprint, prompt)
        except Exception as error:  # whatever it is, the caller must not wait for ever
            if waiter.flight is not None and waiter.how is How.EXECUTED:  # not one that others began
                self._land(waiter.flight, None, error)
            else:
                waiter.finish(None, error)

    def _begin_call(self, run: Run, waiter: Waiter, fingerprint: str, prompt: Prompt) -> None:
        batch, call = run.batch, waiter.call
        mergeable = batch.merge and call.deterministic and call.origin.attempt == 1
        key: MergeKey | None = None
        if mergeable:
            key = batch.merge_key(run, fingerprint)
            journal_key: JournalKey = ("", *key)
            if (known := batch.memo.get(key)) is not None:
                waiter.how = How.SHARED
                run.following += 1
                _replay(waiter, known)
                return
            if (flight := batch.flights.get(key)) is not None and not flight.abandoned:
                waiter.how = How.SHARED
                run.following += 1
                waiter.flight = flight
                flight.join(waiter)
                return
        else:
            scope = f"{run.key}/{call.origin.operator}"
            journal_key = (scope, fingerprint, run.repetition(scope, fingerprint))
        run.calling += 1
        journal = self._journals.get(batch.number)
        if journal is not None and (replayed := journal.call(journal_key)) is not None:
            waiter.how = How.REPLAYED
            if key is not None:
                batch.memo.put(key, replayed)
            _replay(waiter, replayed)
            return
        self._take_off(run, waiter, key, journal_key, prompt)

    def _take_off(
        self, run: Run, waiter: Waiter, key: MergeKey | None, journal_key: JournalKey, prompt: Prompt
    ) -> None:
        call = waiter.call
        flight = Flight(
            call,
            key,
            journal_key,
            (run.order, -run.batch.ranks.get(call.origin.operator, 0.0), next(self._arrivals)),
            prompt.chain,
            prompt.static_chunks if run.batch.stats.rows_active > 1 else 0,
            prompt.chars / CHARS_PER_TOKEN,
            waiters=[waiter],
            keep=run.batch.keeps.get(call.origin.operator),
            known_answer=run.batch.answer_lengths.get(call.origin.operator),
        )
        waiter.flight = flight
        self._owners[flight] = run.batch
        if key is not None:
            run.batch.flights[key] = flight
        try:
            if self.pool.closed:
                raise EngineDiedError(CLOSED)
            dispatcher = self._dispatcher(call.model)
        except HaloError as error:
            self._land(flight, None, error)
            return
        if run.batch.watch is not None and not dispatcher.slots:
            run.batch.watch.waited_for_engines = True
        dispatcher.add(flight)

    def _dispatcher(self, model: str) -> Dispatcher:
        dispatcher = self._dispatchers.get(model)
        if dispatcher is None:
            on_parked = self.residency.look_soon if self.residency and self.residency.places.serves(model) else None
            dispatcher = Dispatcher(self.pool, self.pool.group(model), self._land, on_parked)
            self._dispatchers[model] = dispatcher
        return dispatcher

    def _land(self, flight: Flight, completion: Completion | None, error: BaseException | None) -> None:
        batch = self._owners.get(flight)
        journal = self._journals.get(batch.number) if batch is not None else None
        if completion is None or journal is None:
            self._deliver(flight, completion, error)
            return

        def committed(trouble: BaseException | None) -> None:
            self._mail.post(self._deliver, flight, completion, None)

        journal.put_call(flight.journal_key, completion, committed)

    def _deliver(self, flight: Flight, completion: Completion | None, error: BaseException | None) -> None:
        batch = self._owners.pop(flight, None)
        if batch is not None and flight.key is not None:
            batch.flights.pop(flight.key, None)
            if completion is not None:
                batch.memo.put(flight.key, completion)
        flight.finish(completion, error)

    def _tally(self, run: Run, waiter: Waiter, how: How, usage: Usage) -> None:
        if waiter.how is How.SHARED:
            run.following = max(run.following - 1, 0)
        else:
            run.calling = max(run.calling - 1, 0)
        run.idle_since = answered_s = now_s()
        if self.residency is not None:
            self.residency.answered(waiter.call.origin.operator, waiter.flight.on_engine if waiter.flight else "")
        run.stats.count(how, usage)
        if run.noted is not None and run.batch.watch is not None:
            run.batch.watch.answered(run.noted, waiter, how, usage, answered_s)
        run.batch.stats.count(waiter.call.origin.operator, how, usage)
        if how is How.EXECUTED:
            since_s = run.batch.started_s
            run.batch.stats.span(waiter.call.origin.operator).add(waiter.asked_s - since_s, answered_s - since_s)
        run.batch.changed()

    def _leave(self, waiter: Waiter) -> None:
        flight = waiter.flight
        if flight is None or waiter.done or not flight.leave(waiter):
            return
        batch = self._owners.pop(flight, None)
        if batch is not None and flight.key is not None:
            batch.flights.pop(flight.key, None)
        if batch is not None:
            self._dispatcher(flight.call.model).cancel(flight)

    def _pool_closed(self) -> None:
        """Nothing is answered any more: whoever waits is told."""
        for dispatcher in self._dispatchers.values():
            dispatcher.fail_all(EngineDiedError(CLOSED))
        self.admission.close()

    # -- load ----------------------------------------------------------------------------------------------------

    def _target(self) -> int:
        slots = sum(dispatcher.slots for dispatcher in self._dispatchers.values())
        return slots or DEFAULT_TARGET

    def _busy(self) -> bool:
        return any(d.in_flight or d.backlog for d in self._dispatchers.values())

    def foresee(self, batch: Batch, rows: int, distinct: Callable[[], int]) -> None:
        """Plan for a batch of so many rows what its catalog lets plan: which models to load when they take turns.

        `distinct` counts the different ones. Called before the first row begins, from any thread.
        """
        try:
            plan = switch_plan(batch.known, self.pool, rows, distinct)
            if plan is not None:
                self.follow(plan)
                batch.planned = True
        except HaloError as error:
            logger.warning("which models to load when is not planned for batch %r: %s", batch.name, error)

    def follow(self, plan: SwitchPlan | None) -> None:
        """Load the pool's models as `plan` says, from now on; None ends the plan. Works from any thread.

        Raises `ConfigError` where the pool has no places, or not those of the plan.
        """
        if self.residency is None:
            raise ConfigError("the pool's models do not take turns: a plan of switches needs `places` in halo.toml")
        if plan is not None:
            self.residency.check(plan)
        self._mail.post(self.residency.follow, plan)

    def _parked(self) -> int:
        return self.residency.parked if self.residency is not None else 0

    def _stalled(self) -> bool:
        """Whether every active run waits for calls of models that are not loaded, so that nothing else can come."""
        waiting = sum(dispatcher.backlog for dispatcher in self._dispatchers.values())
        if any(dispatcher.in_flight for dispatcher in self._dispatchers.values()) or waiting > self._parked():
            return False
        runs = {waiter.call.origin.run or id(waiter) for flight in self._owners for waiter in flight.waiters}
        active = sum(batch.stats.rows_active for batch in set(self._owners.values()))
        return active - self.admission.waiting <= len(runs)

    def reset_caches(self) -> None:
        """Make all engines forget all prefixes (benchmarks start cold); blocks the calling thread."""

        async def reset() -> None:
            await self.pool.reset_caches()
            for dispatcher in self._dispatchers.values():
                dispatcher.forget_prefixes()

        self.pool.thread.run(reset())

    def warmups(self) -> tuple[int, Usage]:
        """How many prefixes were warmed, and the tokens that this took, since the executor was made."""
        every = self._dispatchers.values()
        return sum(one.warmups for one in every), sum((one.warmup_usage for one in every), Usage())


def _replay(waiter: Waiter, completion: Completion) -> None:
    """Answer a caller from a finished call, chunk by chunk where it was streamed."""
    if waiter.on_chunk is not None:
        for chunk in completion.parse():
            waiter.on_chunk(to_json(chunk))
    waiter.finish(completion, None)


_executor: Executor | None = None
_executor_lock = threading.Lock()


def get_executor() -> Executor:
    """The executor of the process's pool."""
    global _executor
    pool = get_pool()
    with _executor_lock:
        if _executor is None or _executor.pool is not pool:
            _executor = Executor(pool)
        return _executor
