"""The limit: all calls known in advance, merged, in the best order, straight into the same engines.

The calls are those of a recorded run, with the answers that its dependent prompts were made of, so nothing waits for
anything. Two divisions of the calls among the engines are tried once each, the faster is used.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

from halo_core.pool import Completion, Engine, EnginePool, LLMCall
from halo_core.runtime.prefix import Prompt

Division = Callable[[Sequence[LLMCall], int], list[list[LLMCall]]]


def cost(call: LLMCall, shared_chars: int = 0) -> float:
    """Rough work of a call in prompt tokens."""
    prompt = Prompt.of(call.body)
    limit = call.body.get("max_completion_tokens") or call.body.get("max_tokens") or 64
    return (prompt.chars - shared_chars) / 4 + 2.0 * float(limit)


def _by_prefix(calls: Sequence[LLMCall]) -> list[list[LLMCall]]:
    groups: dict[bytes, list[LLMCall]] = defaultdict(list)
    for call in calls:
        prompt = Prompt.of(call.body)
        depth = max(min(prompt.static_chunks, len(prompt.chain)), 1)
        groups[prompt.chain[depth - 1] if prompt.chain else b""].append(call)
    return list(groups.values())


def _by_conversation(calls: Sequence[LLMCall]) -> list[list[LLMCall]]:
    """The calls of one prefix group by what was said first: an agent's later turns continue its earlier prompts."""
    conversations: dict[str, list[LLMCall]] = defaultdict(list)
    for call in calls:
        first = next((m for m in call.body["messages"] if m["role"] not in ("system", "developer")), None)
        conversations[json.dumps(first, sort_keys=True)].append(call)
    return list(conversations.values())


def spread(calls: Sequence[LLMCall], engines: int) -> list[list[LLMCall]]:
    """Every engine gets its share of every prefix group: perfectly even, each prefix computed on each engine."""
    lists: list[list[LLMCall]] = [[] for _ in range(engines)]
    for group in _by_prefix(calls):
        for i, conversation in enumerate(_by_conversation(group)):
            lists[i % engines] += conversation
    return lists


def packed(calls: Sequence[LLMCall], engines: int) -> list[list[LLMCall]]:
    """Whole prefix groups to the least loaded engine, the last group split evenly: fewest prefixes computed twice."""
    lists: list[list[LLMCall]] = [[] for _ in range(engines)]
    loads = [0.0] * engines
    groups = sorted(_by_prefix(calls), key=lambda group: -sum(map(cost, group)))
    for group in groups[: len(groups) - len(groups) % engines] if engines > 1 else groups:
        i = loads.index(min(loads))
        lists[i] += group
        loads[i] += sum(map(cost, group))
    for group in groups[len(groups) - len(groups) % engines :] if engines > 1 else ():
        for conversation in _by_conversation(group):
            i = loads.index(min(loads))
            lists[i] += conversation
            loads[i] += sum(map(cost, conversation))
    return lists


async def _drain(engine: Engine, calls: Sequence[LLMCall]) -> list[Completion]:
    warm: list[LLMCall] = []
    for group in _by_prefix(calls):
        if len(group) > 1:
            fields = {k: v for k, v in group[0].body.items() if k in ("messages", "tools")}
            warm.append(LLMCall(engine.model, {**fields, "max_tokens": 1, "temperature": 0}))
    done: list[Completion] = []
    for call in warm:  # each prefix once, then everything at once: the engine's own batching does the rest
        await engine.complete(call)
    slots = asyncio.Semaphore(engine.capacity.slots * 2)

    async def one(call: LLMCall) -> None:
        async with slots:
            done.append(await engine.complete(replace(call, model=engine.model)))

    await asyncio.gather(*(one(call) for call in calls))
    return done


def run(pool: EnginePool, model: str, calls: Sequence[LLMCall], divide: Division) -> int:
    """Send all calls; returns how many were answered."""
    engines = pool.group(model).engines

    async def main() -> int:
        lists = divide(calls, len(engines))
        answers = await asyncio.gather(*(_drain(e, part) for e, part in zip(engines, lists, strict=True)))
        return sum(map(len, answers))

    return pool.thread.run(main())
