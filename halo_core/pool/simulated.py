"""The simulated engine: answers are a hash of the request, time is real, virtual or none, the prefix cache is exact."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

from halo_core.errors import ConfigError, EngineDiedError, EngineError, EngineStartError, PromptTooLongError
from halo_core.pool import simulated_model
from halo_core.pool.call import Completion, LLMCall, Usage
from halo_core.pool.clock import Clock, RealClock
from halo_core.pool.engine import CacheEvent, Capacity, EngineCounters, Health, Sharing
from halo_core.pool.prefix_cache import PrefixCache, SimulatedStore, block_hashes
from halo_core.pool.simulated_steps import Sequence, StepLoop, StepTime
from halo_core.stats import EngineCurve

STEP_TOKENS = 2048
"""Tokens that a step takes at most: the least default of vLLM's `max_num_batched_tokens`."""
_DEFAULT_KV_TOKENS = 1 << 20


def default_decode_step_s(batch: int) -> float:
    """Seconds of a decode step at a batch size; for tests, calibrated of nothing."""
    return 0.02 + 0.0005 * batch


def _step_time(prefill_tokens_per_s: float, decode_step_s: Callable[[int], float]) -> StepTime:
    """The time of a step whose contexts cost nothing."""

    def step_s(prefill_tokens: float, attention_pairs: float, batch: float, context_tokens: float) -> float:
        return prefill_tokens / prefill_tokens_per_s + (decode_step_s(int(batch)) if batch else 0.0)

    return step_s


class SimulatedEngine:
    """An engine without a model, for tests, dry runs, and measuring Halo's own cost.

    `clock` is "real", "zero" (answers at once, costs almost nothing), or a clock that the engines and tools of one
    simulation share, such as `VirtualClock`.
    """

    def __init__(
        self,
        name: str,
        model: str,
        *,
        slots: int = 64,
        kv_tokens: int | None = None,
        block_size: int = 16,
        max_model_len: int = 0,
        prefill_tokens_per_s: float = 8000.0,
        decode_step_s: Callable[[int], float] = default_decode_step_s,
        max_batched_tokens: int = STEP_TOKENS,
        answer_tokens: int | Callable[[LLMCall], int] | None = None,
        clock: Clock | Literal["real", "zero"] = "real",
        curve: EngineCurve | None = None,
        store: SimulatedStore | None = None,
        fail_after: int | None = None,
        fault: Callable[[LLMCall], Exception | None] | None = None,
    ) -> None:
        """`decode_step_s` gives the seconds of a step that decodes one token of each of so many answers; a `curve`
        stands for it and for `prefill_tokens_per_s`.

        Engines that are given the same `store` share KV through it, at the curve's copying speed.

        `kv_tokens` 0 switches the prefix cache off (with clock "zero" the default). `answer_tokens` is the natural
        length of plain answers: 8 to 32 tokens, by the hash, where None. `fail_after` lets the engine die once it has
        answered so many calls; `fault` may fail a single call. Raises `ConfigError`.
        """
        if kv_tokens is None:
            kv_tokens = 0 if clock == "zero" else _DEFAULT_KV_TOKENS
        if min(slots, block_size, prefill_tokens_per_s, max_batched_tokens) <= 0 or kv_tokens < 0 or max_model_len < 0:
            raise ConfigError(f"simulated engine {name!r}: slots, sizes and speeds must be positive")
        if 0 < kv_tokens < block_size:
            raise ConfigError(f"simulated engine {name!r}: kv_tokens={kv_tokens} is less than one block ({block_size})")
        kv_tokens -= kv_tokens % block_size
        if kv_tokens:  # a request that can never fit would wait for ever
            max_model_len = min(max_model_len or kv_tokens, kv_tokens)
        self.name = name
        self.model = model
        self.counters = EngineCounters()
        self.fail_after = fail_after
        self.fault = fault
        self._capacity = Capacity(slots, kv_tokens, block_size, max_model_len)
        self._health = Health("new")
        self._clock: Clock | None = None if clock == "zero" else RealClock() if clock == "real" else clock
        self._step_s = curve.step_s if curve is not None else _step_time(prefill_tokens_per_s, decode_step_s)
        self._request_s = curve.request_s if curve is not None else 0.0
        self._max_batched_tokens = max(max_batched_tokens, slots)
        self._answer_tokens = answer_tokens
        self._store = store
        self._copy_token_s = (curve.kv_copy_s(1) or 0.0) if curve is not None else 0.0
        self._feeds: list[asyncio.Queue[CacheEvent | None]] = []
        self._boot()

    def _boot(self) -> None:
        """A cold cache and an empty batch."""
        capacity = self._capacity
        # Without a cache, blocks never run out; nothing is published, so nothing is known.
        self._cache = PrefixCache(capacity.kv_tokens // capacity.block_size or 1 << 60, capacity.block_size)
        self._cache.on_event = self._emit if self._feeds else None
        self._steps: StepLoop | None = None
        if self._clock is not None:
            self._steps = StepLoop(
                self._clock,
                self._cache,
                slots=capacity.slots,
                step_s=self._step_s,
                request_s=self._request_s,
                max_batched_tokens=self._max_batched_tokens,
                share_prefixes=capacity.kv_tokens > 0,
                store=self._store,
                copy_token_s=self._copy_token_s,
            )

    def __repr__(self) -> str:
        return f"SimulatedEngine({self.name!r}, {self.model!r})"

    @property
    def capacity(self) -> Capacity:
        """As given."""
        return self._capacity

    @property
    def health(self) -> Health:
        """The state now."""
        return self._health

    @property
    def sharing(self) -> Sharing | None:
        """The store that it was given."""
        return self._store

    # -- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Come up, after `die` with a cold cache. Raises `EngineStartError` once closed."""
        if self._health.state == "closed":
            raise EngineStartError(f"simulated engine {self.name!r} was closed; make a new one")
        if self._health.state == "dead":
            self._boot()
        self._health = Health("ready")

    def die(self, reason: str = "killed by a test") -> None:
        """Lose all calls under way and the cache; `start` brings the engine back. `fail_after` is spent."""
        if self._health.state in ("dead", "closed"):
            return
        self._health = Health("dead", reason)
        self.fail_after = None
        self._end(f"simulated engine {self.name!r} died: {reason}")

    async def count_tokens(self, body: Mapping[str, Any]) -> int | None:
        """Tokens of the stand-in tokenizer."""
        return simulated_model.count_tokens(simulated_model.render(body))

    async def check(self) -> Health:
        """The state now."""
        return self._health

    async def reset_cache(self) -> None:
        """Forget all cached prefixes. Raises `EngineError` while calls run, as vLLM does."""
        if not self._cache.clear():
            raise EngineError(f"simulated engine {self.name!r} did not reset its cache: calls still run")
        if self._store is not None:
            self._store.clear()

    async def close(self) -> None:
        """Stop; calls under way get `EngineDiedError`."""
        if self._health.state == "closed":
            return
        self._health = Health("closed")
        self._end(f"simulated engine {self.name!r} was closed")
        for feed in self._feeds:
            feed.put_nowait(None)

    def _end(self, message: str) -> None:
        if self._steps is not None:
            self._steps.stop(EngineDiedError(message))
            self._book_steps(self._steps)
        self._cache.clear()

    # -- cache events --------------------------------------------------------------------------------------------

    def cache_events(self) -> AsyncIterator[CacheEvent]:
        """Changes of the prefix cache from now on, until the engine is closed."""
        feed: asyncio.Queue[CacheEvent | None] = asyncio.Queue()
        if self._health.state == "closed":
            feed.put_nowait(None)
        self._feeds.append(feed)
        self._cache.on_event = self._emit
        return self._drain(feed)

    async def _drain(self, feed: asyncio.Queue[CacheEvent | None]) -> AsyncIterator[CacheEvent]:
        try:
            while (event := await feed.get()) is not None:
                yield event
        finally:
            self._feeds.remove(feed)
            self._cache.on_event = self._emit if self._feeds else None

    def _emit(self, event: CacheEvent) -> None:
        for feed in self._feeds:
            feed.put_nowait(event)

    # -- calls ---------------------------------------------------------------------------------------------------

    async def complete(self, call: LLMCall) -> Completion:
        """Answer `call`. Raises `EngineDiedError`, `PromptTooLongError`, `EngineError`."""
        answered = self._answer(call)
        if self._steps is None:
            usage = self._count(answered, self._cached_now(answered))
        else:
            sequence = await self._run(self._steps, answered, call)
            usage = self._count(answered, sequence.cached, sequence.moved)
        return Completion(simulated_model.completion_json(answered, self.model, usage), usage, self.name)

    async def stream(self, call: LLMCall) -> AsyncIterator[bytes]:
        """Answer `call` chunk by chunk; the chunks' contents add up to what `complete` answers."""
        answered = self._answer(call)
        writer = simulated_model.ChunkWriter(answered, self.model)
        if self._steps is None:
            usage = self._count(answered, self._cached_now(answered))
            for chunk in writer.opening():
                yield chunk
            for start, stop in itertools.pairwise(simulated_model.chunk_bounds(answered.steps)):
                for chunk in writer.tokens(start, stop):
                    yield chunk
        else:
            steps, news = self._steps, asyncio.Event()
            sequence = self._submit(steps, answered, call, news)
            sent = 0
            try:
                while sent < sequence.target:
                    if sequence.generated <= sent:
                        if sequence.done.done():
                            sequence.done.result()  # the engine died
                        await news.wait()
                        news.clear()
                        continue
                    if not sent:
                        for chunk in writer.opening():
                            yield chunk
                    sent, start = sequence.generated, sent
                    for chunk in writer.tokens(start, sent):
                        yield chunk
            finally:
                self._leave(steps, sequence)
            usage = self._count(answered, sequence.cached, sequence.moved)
        for chunk in writer.closing(usage):
            yield chunk

    def _answer(self, call: LLMCall) -> simulated_model.Answer:
        """What the call will be answered, as soon as the engine has worked for it."""
        if self._health.state != "ready":
            if self._health.state != "new":
                raise EngineDiedError(f"simulated engine {self.name!r} is {self._health.state}: {self._health.detail}")
            self._health = Health("ready")
        if self.fault is not None and (error := self.fault(call)) is not None:
            raise error
        tokens = self._answer_tokens(call) if callable(self._answer_tokens) else self._answer_tokens
        answered = simulated_model.answer(self.model, call.body, tokens=tokens)
        if limit := self._capacity.max_model_len:
            room = limit - simulated_model.count_tokens(answered.prompt)
            if room <= 0:
                raise self._too_long(limit - room, limit)
            if answered.steps > room:
                answered = simulated_model.answer(self.model, call.body, tokens=tokens, room=room)
        return answered

    def _too_long(self, prompt_tokens: int, limit: int) -> PromptTooLongError:
        text = f"This model's maximum context length is {limit} tokens. However, your prompt contains {prompt_tokens}"
        document = {"error": {"message": text, "type": "BadRequestError", "param": "input_tokens", "code": 400}}
        return PromptTooLongError(
            f"simulated engine {self.name!r} (model {self.model!r}): the prompt has {prompt_tokens} tokens, the "
            f"context {limit}. Shorten the prompt, or raise max_model_len",
            status=400,
            body=json.dumps(document).encode(),
        )

    def _cached_now(self, answered: simulated_model.Answer) -> int:
        """Prompt tokens found in the cache, without a step: the prompt's blocks are known at once."""
        if not self._capacity.kv_tokens:
            return 0
        cache = self._cache
        hashes = block_hashes(answered.prompt, cache.block_size)
        last_whole = (simulated_model.count_tokens(answered.prompt) - 1) // cache.block_size
        hits = cache.match(hashes[:last_whole])
        cache.hold(hashes[:hits])
        missing = hashes[hits:]
        if cache.take(len(missing)):
            text = answered.prompt[hits * cache.block_size * simulated_model.CHARS_PER_TOKEN :]
            cache.publish(missing, hashes[hits - 1] if hits else None, text)
            cache.release(hashes, 0)
        else:
            cache.release(hashes[:hits], 0)
        return hits * cache.block_size

    def _submit(
        self, steps: StepLoop, answered: simulated_model.Answer, call: LLMCall, news: asyncio.Event | None = None
    ) -> Sequence:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        sequence = Sequence(answered, call.priority, done, news)
        if self._store is not None:
            size = self._capacity.block_size
            sequence.share_blocks = 1 << 60 if call.share_tokens < 0 else call.share_tokens // size
            sequence.share_loads = call.share_loads
        steps.add(sequence)
        return sequence

    async def _run(self, steps: StepLoop, answered: simulated_model.Answer, call: LLMCall) -> Sequence:
        sequence = self._submit(steps, answered, call)
        try:
            await sequence.done
        finally:
            self._leave(steps, sequence)
        return sequence

    def _leave(self, steps: StepLoop, sequence: Sequence) -> None:
        """The caller has gone, with its answer or without."""
        steps.drop(sequence)
        if sequence.done.done() and not sequence.done.cancelled():
            sequence.done.exception()  # a caller that left early never looks at it
        self._book_steps(steps)

    def _book_steps(self, steps: StepLoop) -> None:
        self.counters.extra |= {"busy_s": steps.busy_s, "steps": steps.steps, "preemptions": steps.preemptions}

    def _count(self, answered: simulated_model.Answer, cached: int, moved: int = 0) -> Usage:
        usage = replace(answered.usage(simulated_model.count_tokens(answered.prompt), cached), moved_tokens=moved)
        self.counters.count(usage)
        if self.fail_after is not None and self.counters.calls >= self.fail_after:
            self.die(f"after {self.counters.calls} calls, as it was told")
        return usage
