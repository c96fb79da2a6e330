"""A flight: one call on its way, shared by everybody who asked the same question."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from halo_core.kv import Keep
from halo_core.pool.call import Completion, LLMCall, Usage
from halo_core.runtime.prefix import CHUNK_TOKENS, Chain


class How(StrEnum):
    """How a call got its answer."""

    EXECUTED = "executed"
    """An engine computed it for this caller."""
    SHARED = "shared"
    """An equal call of the same batch, or of one with which that shares its calls, computed it."""
    REPLAYED = "replayed"
    """The journal of an earlier, interrupted run had it."""
    FAILED = "failed"
    CANCELLED = "cancelled"


MergeKey = tuple[str, int]
"""(fingerprint, n-th repetition within its row): equal keys in one batch, and those inside it, are one call."""

logger = logging.getLogger(__name__)

JournalKey = tuple[str, str, int]
"""(scope, fingerprint, n): scope is empty for calls that merge, else names the run and operator."""


class Waiter:
    """One caller of a flight. All callbacks run on the pool's loop."""

    __slots__ = ("asked_s", "call", "done", "flight", "how", "on_chunk", "on_done", "tally", "tools_s")

    def __init__(
        self,
        call: LLMCall,
        on_done: Callable[[Completion | None, BaseException | None], None],
        tally: Callable[[Waiter, How, Usage], None],
        on_chunk: Callable[[bytes], None] | None = None,
    ) -> None:
        self.call = call
        self.on_done = on_done
        self.on_chunk = on_chunk
        self.tally = tally
        self.how = How.EXECUTED
        self.asked_s = 0.0
        """When it reached the executor (the pool loop's time)."""
        self.tools_s: Mapping[str, float] = {}
        """Tool -> seconds that its run spent in that before it was asked."""
        self.done = False
        self.flight: Flight | None = None

    def finish(self, completion: Completion | None, error: BaseException | None) -> None:
        """Hand over the answer or the error, once."""
        if self.done:
            return
        self.done = True
        how = self.how if error is None else How.FAILED
        try:
            self.tally(self, how, completion.usage if completion is not None else Usage())
        finally:
            self.on_done(completion, error)


@dataclass(slots=True, eq=False)
class Flight:
    """One physical call and everybody who waits for it."""

    call: LLMCall
    key: MergeKey | None
    """None when the call must not be shared."""
    journal_key: JournalKey
    order: tuple[int, float, int]
    """(admission number of its run, minus its rank, arrival number): smaller is dispatched first, so that rows finish
    early, and in each row what the longest way is still to come behind."""
    chain: Chain = ()
    static_chunks: int = 0
    """Leading chunks that other rows of the batch are expected to share; 0 when there are no other rows."""
    prompt_units: float = 0.0
    """Estimated prompt tokens."""
    answer_units: float = 0.0
    """Expected cost of decoding the answer, in prompt-token equivalents."""
    known_answer: float | None = None
    """Tokens that its answer is expected to have by what the catalog knows; None where it knows nothing."""
    waiters: list[Waiter] = field(default_factory=list)
    chunks: list[bytes] = field(default_factory=list)
    """Of a streamed call: what has arrived, replayed to callers who join late."""
    task: asyncio.Task[None] | None = None
    tries: int = 0
    load_units: float = 0.0
    on_engine: str = ""
    home: str = ""
    """The engine of its row's last call; empty where there is none."""
    keep: Keep | None = None
    """What others will need of its KV, as the catalog knows; None where it does not know the app."""
    shown: Keep | None = None
    """The same, as far as the calls so far show it."""
    abandoned: bool = False

    def __lt__(self, other: Flight) -> bool:
        return (self.call.priority, self.order) < (other.call.priority, other.order)

    def uncached_units(self, chunks: int) -> float:
        """Estimated prompt tokens that are left to compute where `chunks` chunks of the prompt are cached."""
        return max(self.prompt_units - chunks * CHUNK_TOKENS, 1.0)

    def join(self, waiter: Waiter) -> None:
        """Add a caller; a late caller of a stream first gets what has already arrived."""
        self.waiters.append(waiter)
        if waiter.on_chunk is not None:
            for chunk in self.chunks:
                waiter.on_chunk(chunk)

    def chunk(self, data: bytes) -> None:
        """A piece of a streamed answer arrived."""
        self.chunks.append(data)
        for waiter in self.waiters:
            if waiter.on_chunk is not None:
                try:
                    waiter.on_chunk(data)
                except RuntimeError:  # its loop is closed: nobody listens there
                    waiter.on_chunk = None

    def finish(self, completion: Completion | None, error: BaseException | None) -> None:
        """Everybody gets the answer or the error."""
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            try:
                waiter.finish(completion, error)
            except Exception:  # its loop is closed, say: the others must hear
                logger.exception("handing over an answer of %s", waiter.call.origin.operator or waiter.call.model)

    def leave(self, waiter: Waiter) -> bool:
        """A caller gave up. Returns whether nobody waits any more, so that the call itself can be cancelled."""
        if waiter in self.waiters:
            self.waiters.remove(waiter)
            waiter.done = True
            waiter.tally(waiter, How.CANCELLED, Usage())
            # Whoever stays behind a cancelled first caller is now the one for whom the call is executed.
            if self.waiters and waiter.how is How.EXECUTED:
                self.waiters[0].how = How.EXECUTED
        return not self.waiters
