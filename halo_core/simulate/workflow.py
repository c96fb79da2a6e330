"""The rows of a simulation: what each asks, when, and with what prompt, drawn from the catalog."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from halo_core.pool import Completion, LLMCall
from halo_core.pool.prefix_cache import block_hashes
from halo_core.pool.simulated_model import CHARS_PER_TOKEN, count_tokens, render
from halo_core.runtime import Executor, Run
from halo_core.simulate.filler import filler, shared_filler, uniform
from halo_core.stats import Catalog, StepProfile, row_fields


def _template_tokens(*roles: str) -> int:
    """What the simulated chat template adds to messages of these roles."""
    return count_tokens(render({"messages": [{"role": role, "content": ""} for role in roles]}))


_BARE, _WITH_SYSTEM = _template_tokens("user"), _template_tokens("system", "user")


@dataclass(slots=True, frozen=True)
class RowSet:
    """The rows, as far as the calls depend on them."""

    contents: Sequence[str]
    """One per row, equal for equal rows."""
    fields: Sequence[Mapping[str, str]] = field(default=())
    """One per row, see `halo_core.stats.row_fields`; empty where rows have no parts."""

    @classmethod
    def of(cls, rows: Iterable[Any], content: Callable[[Any], str]) -> RowSet:
        """These rows; `content` gives equal texts for rows that the framework takes to be equal."""
        rows = list(rows)
        return cls([content(row) for row in rows], [row_fields(row) for row in rows])

    @classmethod
    def distinct(cls, count: int) -> RowSet:
        """So many rows, all different."""
        return cls([str(i) for i in range(count)])

    def __len__(self) -> int:
        return len(self.contents)

    def numbers(self) -> list[int]:
        """For each row, the number of its content in order of first appearance."""
        known: dict[str, int] = {}
        return [known.setdefault(content, len(known)) for content in self.contents]


@dataclass(slots=True)
class Asked:
    """One call of a simulated row."""

    step: StepProfile
    asked_s: float
    answered_s: float
    completion: Completion
    repeated_tokens: int
    """Prompt tokens, in whole blocks, that any call asked for before."""


class SeenBlocks:
    """Every prompt block that was asked for: what one engine with an endless cache would hold."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._seen: set[bytes] = set()

    def repeated_tokens(self, call: LLMCall) -> int:
        """Leading tokens of the call's prompt that were asked for before, in whole blocks; it has been, from now on."""
        prompt = render(call.body)
        hashes = block_hashes(prompt, self._block_size)
        whole = hashes[: (count_tokens(prompt) - 1) // self._block_size]
        known = next((i for i, block in enumerate(whole) if block not in self._seen), len(whole))
        self._seen.update(hashes)
        return known * self._block_size

    def answered(self, call: LLMCall, completion: Completion) -> None:
        """The answer's blocks are there too; of its last token none is, which was sampled but never fed back."""
        tokens = completion.usage.generated_tokens - 1
        whole = render(call.body) + content_of(completion)[: tokens * CHARS_PER_TOKEN]
        self._seen.update(block_hashes(whole, self._block_size))


@dataclass(slots=True)
class SimulatedRow:
    """One row under way."""

    catalog: Catalog
    index: int
    number: int
    """Of its content: equal rows have equal numbers."""
    fields: Mapping[str, str]
    seen: SeenBlocks
    asked: list[Asked] = field(default_factory=list)
    _messages: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    _answers: dict[str, Completion] = field(default_factory=dict)

    async def run(self, executor: Executor, run: Run) -> None:
        """Make the row's calls, each as soon as those that it waits for are answered and its tools are done."""
        tasks: dict[str, asyncio.Task[None]] = {}
        for step in self.catalog.steps:
            if uniform("frequency", step.operator, self.number) < step.frequency:
                before = [tasks[name] for name in step.after if name in tasks]
                tasks[step.name] = asyncio.create_task(self._make(executor, run, step, before))
        await asyncio.gather(*tasks.values())
        await asyncio.sleep(self.catalog.tail_s.mean)

    async def _make(self, executor: Executor, run: Run, step: StepProfile, before: list[asyncio.Task[None]]) -> None:
        if before:
            await asyncio.wait(before)
        await asyncio.sleep(step.lead_s.at(uniform("lead", step.name, self.number)))
        call = self._call(run, step)
        asked_s, repeated = asyncio.get_running_loop().time(), self.seen.repeated_tokens(call)
        completion = await executor.call(run, call)
        self._answers[step.name] = completion
        self.seen.answered(call, completion)
        self.asked.append(Asked(step, asked_s, asyncio.get_running_loop().time(), completion, repeated))

    # -- prompts -------------------------------------------------------------------------------------------------

    def _call(self, run: Run, step: StepProfile) -> LLMCall:
        messages = self._messages[step.name] = self._prompt(step)
        tokens = max(1, round(step.answer_tokens.at(uniform("answer", step.name, self.number))))
        body = {"messages": messages, "max_tokens": tokens, "temperature": 0}
        return LLMCall(step.model, body, origin=run.origin(step.operator))

    def _prompt(self, step: StepProfile) -> list[dict[str, Any]]:
        identity = self._identity(step)
        length = round(step.prompt_tokens.at(uniform("prompt", step.name, identity)))
        before = self._answers.get(step.continues)
        if before is not None:
            history = [*self._messages[step.continues], {"role": "assistant", "content": content_of(before)}]
            own = max(length - before.usage.prompt_tokens - before.usage.generated_tokens, 1)
            return [*history, {"role": "user", "content": filler(f"{step.name}/{identity}", own)}]
        text = "".join(
            shared_filler(f"{self._scope(part.scope, identity)}/{part.key}", part.tokens) for part in step.parts
        )
        template = _WITH_SYSTEM if step.system_tokens else _BARE
        own = max(length - template - len(text) // CHARS_PER_TOKEN, 1)
        text += filler(f"{step.name}/{identity}", own)
        system = step.system_tokens * CHARS_PER_TOKEN
        head = [{"role": "system", "content": text[:system]}] if system else []
        return [*head, {"role": "user", "content": text[system:]}]

    def _identity(self, step: StepProfile) -> str:
        """Equal for rows whose calls of this step are equal."""
        if step.distinct > 1:
            return f"row {self.index}"  # sampled calls: never one
        return f"group {int(self.number * step.distinct)}" if step.distinct < 1 else f"content {self.number}"

    def _scope(self, scope: str, identity: str) -> str:
        if scope == "app":
            return scope
        path = scope.removeprefix("field:")
        value = self.fields.get(path) if path != scope else None
        return f"{path}={value}" if value is not None else identity


def content_of(completion: Completion) -> str:
    """The answer's text."""
    return str(completion.parse()["choices"][0]["message"].get("content") or "")
