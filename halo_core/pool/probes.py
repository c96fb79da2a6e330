"""Probes: small, known pieces of work that all engines of a group do at the same time, and how long they take."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from halo_core.errors import ConfigError
from halo_core.pool.call import Usage
from halo_core.pool.engine import Engine
from halo_core.pool.synthetic import synthetic, text
from halo_core.stats.curve import attention_pairs
from halo_core.stats.fit import Probe, ProbeKind, fit, relative_error

logger = logging.getLogger(__name__)

BUDGET_S = 45.0
"""Probes are repeated until then; larger batches are left out where the engines are too slow for them."""
_LONGEST_PREFILL_S = 2.5
_LONGEST_TOKENS = 2048
_SHORTEST_TOKENS = 128
_CONTEXTS_S = 12.0
"""What computing the contexts of a batch may take."""
_CONTEXTS = 8
"""Contexts at most."""
_DECODE_S = 0.5
_DECODE_STEPS = (6, 64)
_FIRST_DECODE_STEPS = 16
_BASE_ANSWER_TOKENS = 2
_CLOSE = 0.03
"""Relative error below which repeating a probe is not worth its time."""
_ATTEMPTS = 5
_SHORT_PROMPT_WORDS = 4


@dataclass(slots=True, frozen=True)
class Bench:
    """The engines under measurement, and the tokenizer as far as it has shown itself."""

    engines: Sequence[Engine]
    now: Callable[[], float]
    nonce: str
    template_tokens: float
    """Tokens of a prompt without words."""
    word_tokens: float
    """Tokens per word."""

    def text(self, name: str, tokens: float) -> str:
        """A text of its own whose prompt has about so many tokens."""
        return text(f"{self.nonce} {name}", self._words(tokens))

    def more(self, before: str, name: str, tokens: float) -> str:
        """`before` with about so many tokens more."""
        return f"{before} {text(f'{self.nonce} {name}', max(1, round(tokens / self.word_tokens)))}"

    def _words(self, tokens: float) -> int:
        return max(_SHORT_PROMPT_WORDS, round((tokens - self.template_tokens) / self.word_tokens))

    async def snug(self, name: str, tokens: float) -> str:
        """Such a text whose last KV block holds little, so that hardly anything is computed when it comes again."""
        engine = self.engines[0]
        size = engine.capacity.block_size
        whole = text(f"{self.nonce} {name}", self._words(tokens) + 2 * size).split(" ")
        best, least = " ".join(whole[: -2 * size]), size
        for words in range(len(whole) - 2 * size, len(whole) + 1):
            content = " ".join(whole[:words])
            count = await engine.count_tokens({"messages": [{"role": "user", "content": content}]})
            if count is None:
                break
            if (count - 1) % size < least:
                best, least = content, (count - 1) % size
            if not least:
                break
        return best

    async def run(self, contents: Sequence[str], answer_tokens: int) -> list[tuple[float, list[Usage]]]:
        """Send all texts to every engine at once; each engine's (seconds until its last answer, usages)."""
        return await asyncio.gather(*(self._burst(engine, contents, answer_tokens) for engine in self.engines))

    async def _burst(self, engine: Engine, contents: Sequence[str], tokens: int) -> tuple[float, list[Usage]]:
        began = self.now()
        answers = await asyncio.gather(
            *(engine.complete(synthetic(engine.model, content, tokens)) for content in contents)
        )
        return self.now() - began, [answer.usage for answer in answers]


@dataclass(slots=True, eq=False)
class Recipe(ABC):
    """One probe that can be repeated: what disturbs it only ever adds time, so its fastest result counts."""

    bench: Bench
    kind: ProbeKind
    attempts: int = field(default=0, kw_only=True)
    best: dict[str, Probe] = field(default_factory=dict, kw_only=True)
    """By engine."""

    @abstractmethod
    async def measure(self) -> None:
        """Do the work once more on all engines."""

    def _keep(self, engine: Engine, probe: Probe, size: float) -> None:
        """Keep the probe where it took less per `size` than the best one."""
        known = self.best.get(engine.name)
        if known is None or probe.seconds / size < known.seconds / _size(known):
            self.best[engine.name] = probe


def _size(probe: Probe) -> float:
    return max(probe.prefill_tokens, 1) if not probe.decode_steps else probe.decode_steps


@dataclass(slots=True, eq=False)
class Prefill(Recipe):
    """Prompts that are answered with one token each."""

    again: Callable[[int], list[str]]
    """What to send at the n-th attempt: texts that no engine knows yet, or that all of them know."""
    first: list[str] | None = None
    """What to send at the first attempt instead."""
    step_tokens: int | None = None
    """Tokens that the engine computes in one step, where that is known."""

    async def measure(self) -> None:
        """Do the work once more on all engines."""
        contents = self.first if self.first and not self.attempts else self.again(self.attempts)
        self.attempts += 1
        for engine, (seconds, usages) in zip(
            self.bench.engines, await self.bench.run(contents, answer_tokens=1), strict=True
        ):
            computed = sum(usage.computed_tokens for usage in usages)
            steps = math.ceil(computed / self.step_tokens) if self.step_tokens else 1
            probe = Probe(
                self.kind,
                seconds,
                requests=len(usages),
                prefill_steps=steps,
                prefill_tokens=computed,
                attention_pairs=sum(attention_pairs(usage.computed_tokens, usage.cached_tokens) for usage in usages),
                engine=engine.name,
            )
            self._keep(engine, probe, _size(probe))


@dataclass(slots=True, eq=False)
class Decode(Recipe):
    """Cached prompts that are answered at length: what the same ones with short answers take is subtracted."""

    contents: Sequence[str]
    steps: int
    _short_s: dict[str, float] = field(default_factory=dict)
    _long_s: dict[str, float] = field(default_factory=dict)

    async def measure(self) -> None:
        """Do the work once more on all engines."""
        self.attempts += 1
        short = await self.bench.run(self.contents, _BASE_ANSWER_TOKENS)
        long = await self.bench.run(self.contents, _BASE_ANSWER_TOKENS + self.steps)
        for engine, (short_s, _), (long_s, usages) in zip(self.bench.engines, short, long, strict=True):
            self._short_s[engine.name] = min(short_s, self._short_s.get(engine.name, short_s))
            self._long_s[engine.name] = min(long_s, self._long_s.get(engine.name, long_s))
            answered = _BASE_ANSWER_TOKENS + self.steps / 2
            self.best[engine.name] = Probe(
                self.kind,
                max(self._long_s[engine.name] - self._short_s[engine.name], 0.0),
                decode_steps=self.steps,
                batch=len(usages),
                context_tokens=sum(usage.prompt_tokens + answered for usage in usages),
                engine=engine.name,
            )

    @property
    def step_s(self) -> float:
        """Seconds of one step, measured."""
        return max(probe.seconds for probe in self.best.values()) / self.steps


async def probe_engines(
    engines: Sequence[Engine],
    *,
    step_tokens: int | None = None,
    now: Callable[[], float] = time.monotonic,
    budget_s: float = BUDGET_S,
) -> list[Probe]:
    """Measure the engines of one group, all at the same time. They must be idle; their caches are used.

    `step_tokens` is what they compute in one step at most, where that is known. Raises what their calls raise, and
    `ConfigError` where they take no time.
    """
    began = now()
    bench, rate = await _meet(engines, now)
    capacity = engines[0].capacity
    longest = min(_LONGEST_TOKENS, max(_SHORTEST_TOKENS, rate * _LONGEST_PREFILL_S))
    if capacity.max_model_len:
        longest = min(longest, capacity.max_model_len / 2)
    # Each request of a batch has a context of its own: one that several read is read from memory only once.
    most = max(2, int(min(_CONTEXTS, capacity.slots, _CONTEXTS_S * rate / longest)))
    long = [await bench.snug(f"long {index}", longest) for index in range(most)]
    short = [await bench.snug(f"short {index}", bench.template_tokens) for index in range(2)]
    prefills = _prefills(bench, long[:2], longest, step_tokens)
    behind = _behind(bench, long[:2], longest, step_tokens)
    recipes: list[Recipe] = []
    for recipe in (*prefills, *behind):
        await recipe.measure()
        recipes.append(recipe)
    contexts, unknown = [short, long], [*long[2:], *short]
    if any(probe.prefill_tokens > longest / 2 for recipe in behind for probe in recipe.best.values()):
        logger.info("%s reports no cached tokens: long contexts are not measured", engines[0].name)
        recipes, contexts, unknown = [*prefills], [short], short
    for content in unknown:
        await bench.run([content], answer_tokens=1)
    for requests in dict.fromkeys((1, min(8, capacity.slots), capacity.slots)):
        burst = Prefill(bench, "request", again=_same([short[index % 2] for index in range(requests)]))
        await burst.measure()
        recipes.append(burst)
    step_s = 0.0
    for batch in _batches(capacity.slots):
        for prompts in contexts:
            if prompts is long and batch > len(long):
                continue
            steps = _steps(step_s, capacity.max_model_len)
            contents = [prompts[index % len(prompts)] for index in range(batch)]
            decode = Decode(bench, "decode", contents=contents, steps=steps)
            await decode.measure()
            recipes.append(decode)
            step_s = decode.step_s
        if now() - began > budget_s and batch < capacity.slots:
            logger.info("batches over %d are not measured: the engines are too slow for that", batch)
            break
    if now() == began:
        raise ConfigError(f"{engines[0].name} answers without taking any time: there is nothing to measure")
    await _repeat(recipes, now, began + budget_s)
    return _probes(recipes)


def _prefills(bench: Bench, long: Sequence[str], longest: float, step_tokens: int | None) -> list[Prefill]:
    """Prompts of their own: of the full length, which stay cached as the contexts of what follows, and shorter ones."""
    recipes = []
    for index, content in enumerate(long):
        again = _fresh(bench, f"long again {index}", longest)
        recipes.append(Prefill(bench, "prefill", first=[content], again=again, step_tokens=step_tokens))
    for power in range(1, 5):
        tokens = max(longest / 2**power, bench.template_tokens + _SHORT_PROMPT_WORDS)
        again = _fresh(bench, f"prefill {power}", tokens)
        recipes.append(Prefill(bench, "prefill", again=again, step_tokens=step_tokens))
    return recipes


def _behind(bench: Bench, long: Sequence[str], longest: float, step_tokens: int | None) -> list[Prefill]:
    """The cached contexts with something new behind them."""

    def more(context: str, tokens: float) -> Callable[[int], list[str]]:
        return lambda attempt: [bench.more(context, f"behind {tokens} {attempt}", tokens)]

    return [
        Prefill(bench, "cached", again=more(context, longest / share), step_tokens=step_tokens)
        for context, share in zip(long, (16, 4), strict=True)
    ]


def _fresh(bench: Bench, name: str, tokens: float) -> Callable[[int], list[str]]:
    return lambda attempt: [bench.text(f"{name} {attempt}", tokens)]


def _same(contents: list[str]) -> Callable[[int], list[str]]:
    return lambda attempt: contents


def _steps(step_s: float, max_model_len: int) -> int:
    """Decode steps that are enough to be timed, given what one takes (0 where that is not known yet)."""
    fewest, most = _DECODE_STEPS
    steps = max(fewest, round(_DECODE_S / step_s)) if step_s else _FIRST_DECODE_STEPS
    return min(steps, most, max(max_model_len // 4, 1) if max_model_len else most)


async def _meet(engines: Sequence[Engine], now: Callable[[], float]) -> tuple[Bench, float]:
    """Warm the engines up; how many tokens a word has, and about how many tokens a second they prefill."""
    nonce = secrets.token_hex(8)  # a server that was measured before knows the prompts of that time
    raw = Bench(engines, now, nonce, 0.0, 1.0)
    few, many = 16, 80
    before = (await raw.run([text(f"{nonce} few", few)], 1))[0][1][0].prompt_tokens
    counted = await raw.run([text(f"{nonce} many", many)], 1)
    after = counted[0][1][0].prompt_tokens
    word_tokens = max((after - before) / (many - few), 0.1)
    rate = min(usages[0].computed_tokens / seconds if seconds else math.inf for seconds, usages in counted)
    return Bench(engines, now, nonce, max(before - few * word_tokens, 0.0), word_tokens), rate


def _batches(slots: int) -> list[int]:
    return sorted({*(2**power for power in range(slots.bit_length()) if 2**power <= slots), slots})


def _probes(recipes: Sequence[Recipe]) -> list[Probe]:
    """The best of each recipe.

    What is sent together need not be scheduled together: in most engines the first request finds them idle and has a
    step of its own. Which of the two it is here, the probes themselves say.
    """
    together = [probe for recipe in recipes for probe in recipe.best.values()]
    apart = [
        replace(probe, prefill_steps=probe.prefill_steps + 1) if probe.requests > 1 else probe for probe in together
    ]
    return min(apart, together, key=_misfit)


def _misfit(probes: Sequence[Probe]) -> float:
    """How far the bursts of requests are from the curve that is fitted to all probes."""
    curve = fit(probes)
    return sum(abs(relative_error(curve, probe)) for probe in probes if probe.kind == "request")


async def _repeat(recipes: Sequence[Recipe], now: Callable[[], float], until: float) -> None:
    """Do everything twice, then repeat what took longer than the curve says: others may have used the machine."""
    while now() < until:
        curve = fit(_probes(recipes))
        late = {recipe: max(-relative_error(curve, probe) for probe in recipe.best.values()) for recipe in recipes}
        once = [recipe for recipe in recipes if recipe.attempts == 1]
        often = [recipe for recipe in recipes if recipe.attempts < _ATTEMPTS and late[recipe] > _CLOSE]
        worst = max(once or often, key=late.__getitem__, default=None)
        if worst is None:
            return
        await worst.measure()
