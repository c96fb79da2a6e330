"""Continuous batching in simulated time: the steps of one engine, as vLLM's scheduler makes them."""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from halo_core.pool.clock import Alarm, Clock
from halo_core.pool.prefix_cache import PrefixCache, SimulatedStore, block_hashes
from halo_core.pool.simulated_model import CHARS_PER_TOKEN, Answer, count_tokens
from halo_core.stats import attention_pairs

StepTime = Callable[[float, float, float, float], float]
"""(prompt tokens computed, (token, token) pairs that they attend to, requests that decode, their contexts' tokens) ->
seconds of the step, as of `EngineCurve.step_s`."""


@dataclass(slots=True, eq=False)
class Sequence:
    """One request inside the engine."""

    answered: Answer
    priority: int
    done: asyncio.Future[None]
    news: asyncio.Event | None = None
    """Set after every step that made tokens; only streamed requests have one."""
    arrival: int = 0
    prompt_tokens: int = 0
    target: int = 1
    """Tokens to generate."""
    width: int = 1
    """Choices that are decoded side by side."""
    hashes: list[bytes] = field(default_factory=list)
    """Of the prompt's whole blocks."""
    cached: int = -1
    """Prompt tokens found in the cache when it was first scheduled; -1 before."""
    todo: int = 0
    """Tokens still to be prefilled."""
    chunk: int = 0
    """Tokens prefilled in the step under way."""
    generated: int = 0
    held: int = 0
    """Leading blocks of `hashes` that it holds as known ones."""
    anonymous: int = 0
    """Further blocks that it has taken."""
    share_blocks: int = 0
    """Leading blocks that go to the shared store."""
    share_loads: bool = False
    saved: int = 0
    """Leading blocks that were put there."""
    moved: int = 0
    """Prompt tokens that came from the shared store when it was first scheduled."""
    loading: int = 0
    """Tokens that are copied from the store in the step under way."""
    gone: bool = False
    """Finished, cancelled, or lost with its engine."""

    @property
    def tokens(self) -> int:
        """Length so far."""
        return self.prompt_tokens + self.generated


class StepLoop:
    """The steps of one engine. Callbacks on the clock, no tasks: an idle engine costs nothing.

    Each step prefills up to a token budget and decodes one token of every request that is past its prefill. Steps in
    which nothing can change but the number of tokens are taken in one go. Prompt blocks become known when they are
    scheduled: a request of the same step as the first holder of a prefix hits. The shared store has them at the step's
    end. Decoded tokens become known when their request ends. Blocks run out: the request that came last is preempted
    and recomputed.
    """

    def __init__(
        self,
        clock: Clock,
        cache: PrefixCache,
        *,
        slots: int,
        step_s: StepTime,
        request_s: float = 0.0,
        max_batched_tokens: int,
        share_prefixes: bool = True,
        store: SimulatedStore | None = None,
        copy_token_s: float = 0.0,
    ) -> None:
        """`request_s`: what a step takes longer for each request that is new in it; `copy_token_s`: for each token that
        is copied from the shared store."""
        self._store = store
        self._copy_token_s = copy_token_s
        self._share_prefixes = share_prefixes
        self._clock = clock
        self._cache = cache
        self._slots = slots
        self._step_time = step_s
        self._request_s = request_s
        self._max_batched_tokens = max_batched_tokens
        self._arrivals = 0
        self._waiting: list[tuple[int, int, Sequence]] = []
        self._running: list[Sequence] = []
        self._decoding: list[Sequence] = []
        self._alarm: Alarm | None = None
        self._started_at = 0.0
        self._step_s = 0.0
        self._steps = 0
        self.busy_s = 0.0
        """Simulated seconds spent in steps."""
        self.steps = 0
        self.preemptions = 0

    @property
    def unfinished(self) -> int:
        """Requests waiting or running."""
        return len(self._waiting) + len(self._running)

    def add(self, sequence: Sequence) -> None:
        """Queue a request; it is scheduled at the next step's start."""
        self._arrivals += 1
        sequence.arrival = self._arrivals
        sequence.prompt_tokens = count_tokens(sequence.answered.prompt)
        sequence.target = sequence.answered.steps
        sequence.width = len(sequence.answered.choices)
        if self._share_prefixes:
            sequence.hashes = block_hashes(sequence.answered.prompt, self._cache.block_size)
        heapq.heappush(self._waiting, (sequence.priority, sequence.arrival, sequence))
        if self._alarm is None:
            # Not at once: requests that arrive together are scheduled together.
            self._alarm = self._clock.call_at(self._clock.now(), self._begin)
        elif self._steps > 1 and len(self._running) < self._slots:
            self._cut_short()

    def drop(self, sequence: Sequence) -> None:
        """Forget a request (cancelled by its caller)."""
        if sequence.gone:
            return
        sequence.gone = True
        if sequence in self._running:
            self._running.remove(sequence)
            self._give_back(sequence)
        else:
            self._waiting = [entry for entry in self._waiting if entry[2] is not sequence]
            heapq.heapify(self._waiting)

    def stop(self, error: Exception) -> None:
        """End all requests with an error."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        self._steps = 0
        sequences = [*self._running, *(entry[2] for entry in self._waiting)]
        self._running, self._decoding, self._waiting = [], [], []
        for sequence in sequences:
            sequence.gone = True
            self._give_back(sequence)
            if not sequence.done.done():
                sequence.done.set_exception(error)
            if sequence.news is not None:
                sequence.news.set()

    # -- a step --------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Schedule the next step: decodes first, then prefills under way, then new requests while there is room."""
        self._alarm = None
        self._decoding = [sequence for sequence in self._running if sequence.todo == 0]
        preemptions = self.preemptions
        steps = self._grow()
        scarce = self.preemptions > preemptions
        budget = self._max_batched_tokens - len(self._decoding)
        before = budget
        for sequence in self._running:
            budget -= self._prefill(sequence, budget)
        admitted = copied = 0
        while self._waiting and len(self._running) < self._slots and budget > 0 and not scarce:
            sequence = self._waiting[0][2]
            if not self._admit(sequence):
                break
            heapq.heappop(self._waiting)
            self._running.append(sequence)
            budget -= self._prefill(sequence, budget)
            admitted += 1
            copied += sequence.loading
        if not self._running:
            self._steps = 0
            return  # idle until the next `add`
        prefilled = before - budget
        self._steps = 1 if prefilled else steps
        self._step_s = self._time_of_step(prefilled) + admitted * self._request_s + copied * self._copy_token_s
        self._started_at = self._clock.now()
        self._alarm = self._clock.call_at(self._started_at + self._steps * self._step_s, self._end)

    def _time_of_step(self, prefilled: int) -> float:
        """Seconds of the step that is about to begin; of one step in their middle, where it is many."""
        computing = (s for s in self._running if s.chunk) if prefilled else ()
        pairs = sum(attention_pairs(s.chunk, s.tokens - s.todo) for s in computing)
        batch = sum(sequence.width for sequence in self._decoding)
        context = sum(sequence.width * sequence.tokens for sequence in self._decoding)
        return self._step_time(prefilled, pairs, batch, context + batch * self._steps / 2)

    def _grow(self) -> int:
        """Take the blocks that decoding needs, preempting if need be; gives the number of steps they suffice for."""
        cache, size = self._cache, self._cache.block_size
        if not self._decoding:
            return 1
        steps = min(sequence.target - sequence.generated for sequence in self._decoding)
        if any(sequence.news is not None for sequence in self._decoding):
            steps = 1  # who reads along sees every token in its own time
        needed = sum(self._missing(sequence, steps, size) for sequence in self._decoding)
        if needed > cache.available:
            steps = 1
        for sequence in list(self._decoding):
            if sequence not in self._decoding:
                continue  # preempted for the sake of an earlier one
            missing = self._missing(sequence, steps, size)
            if not missing:
                continue
            while not cache.take(missing):
                last = max(self._running, key=lambda other: (other.priority, other.arrival))
                self._preempt(last)
                if last is sequence:
                    break
            else:
                sequence.anonymous += missing
        return steps

    @staticmethod
    def _missing(sequence: Sequence, steps: int, size: int) -> int:
        return max(0, -(-(sequence.tokens + steps) // size) - sequence.held - sequence.anonymous)

    def _preempt(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        if sequence in self._decoding:
            self._decoding.remove(sequence)
        self._give_back(sequence)
        heapq.heappush(self._waiting, (sequence.priority, sequence.arrival, sequence))
        self.preemptions += 1

    def _admit(self, sequence: Sequence) -> bool:
        """Give a waiting request its blocks; False while there are too few."""
        cache = self._cache
        # The last prompt token is always computed: its logits are the first answer token.
        hits = cache.match(sequence.hashes[: (sequence.prompt_tokens - 1) // cache.block_size])
        cache.hold(sequence.hashes[:hits])
        blocks = -(-(sequence.tokens + 1) // cache.block_size) - hits
        if not cache.take(blocks):
            cache.release(sequence.hashes[:hits], 0)
            return False
        sequence.held, sequence.anonymous = hits, blocks
        known = hits
        if self._store is not None and sequence.share_loads:
            known += self._store.depth(sequence.hashes[hits : (sequence.prompt_tokens - 1) // cache.block_size])
        sequence.loading = (known - hits) * cache.block_size
        sequence.todo = sequence.tokens - known * cache.block_size
        if sequence.cached < 0:
            sequence.cached = known * cache.block_size
            sequence.moved = sequence.loading
        return True

    def _cut_short(self) -> None:
        """A request has arrived during a run of steps: the run ends with the step under way."""
        now = self._clock.now()
        steps = max(1, math.ceil((now - self._started_at) / self._step_s - 1e-9)) if self._step_s else self._steps
        if steps < self._steps and self._alarm is not None:
            self._alarm.cancel()
            self._steps = steps
            self._alarm = self._clock.call_at(self._started_at + steps * self._step_s, self._end)

    def _end(self) -> None:
        """Book what the step (or the run of steps) has done, then begin the next one."""
        steps = self._steps
        self.steps += steps
        self.busy_s += steps * self._step_s
        for sequence in self._decoding:
            sequence.generated += steps
        for sequence in self._running:
            if sequence.chunk:
                sequence.todo -= sequence.chunk
                sequence.chunk = 0
                self._save(sequence)
                if sequence.todo == 0:
                    sequence.generated += 1
        finished = [sequence for sequence in self._running if sequence.generated >= sequence.target]
        if finished:
            self._running = [sequence for sequence in self._running if sequence.generated < sequence.target]
        for sequence in finished:
            self._finish(sequence)
        for sequence in self._running:
            if sequence.news is not None:
                sequence.news.set()
        self._begin()

    def _prefill(self, sequence: Sequence, budget: int) -> int:
        """Schedule what fits of the prompt, and make the blocks known that it fills; gives the number of tokens."""
        sequence.chunk = min(sequence.todo, budget)
        size = self._cache.block_size
        whole = min((sequence.tokens - sequence.todo + sequence.chunk) // size, len(sequence.hashes))
        if whole > sequence.held:
            text = sequence.answered.prompt[sequence.held * size * CHARS_PER_TOKEN :]
            self._publish(sequence, sequence.hashes[sequence.held : whole], text)
        return sequence.chunk

    def _publish(self, sequence: Sequence, hashes: list[bytes], text: str) -> None:
        parent = sequence.hashes[sequence.held - 1] if sequence.held else None
        self._cache.publish(hashes, parent, text)
        sequence.held += len(hashes)
        sequence.anonymous -= len(hashes)

    def _save(self, sequence: Sequence) -> None:
        """Put the blocks into the shared store that are computed by now."""
        computed = min(sequence.held, (sequence.tokens - sequence.todo) // self._cache.block_size)
        last = min(computed, sequence.share_blocks)
        if self._store is not None and last > sequence.saved:
            self._store.save(sequence.hashes[sequence.saved : last])
            sequence.saved = last

    def _finish(self, sequence: Sequence) -> None:
        """Give the blocks back, the answer's as known ones: the next turn of a conversation starts with them."""
        choice = sequence.answered.choices[0]
        if self._share_prefixes and not choice.tool and sequence.held == len(sequence.hashes):
            start = sequence.held * self._cache.block_size * CHARS_PER_TOKEN
            # The last token was sampled but never fed back: it has no KV.
            text = sequence.answered.prompt[start:] + choice.text[: (sequence.target - 1) * CHARS_PER_TOKEN]
            hashes = block_hashes(text, self._cache.block_size, sequence.hashes[-1] if sequence.hashes else b"")
            hashes = hashes[: sequence.anonymous]
            sequence.hashes.extend(hashes)
            self._publish(sequence, hashes, text)
            self._save(sequence)
        sequence.gone = True
        self._give_back(sequence)
        if not sequence.done.done():
            sequence.done.set_result(None)
        if sequence.news is not None:
            sequence.news.set()

    def _give_back(self, sequence: Sequence) -> None:
        self._cache.release(sequence.hashes[: sequence.held], sequence.anonymous)
        sequence.held = sequence.anonymous = sequence.chunk = 0
