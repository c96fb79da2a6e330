"""The prefix lint: shared text that no cache can serve, because text that differs stands before it.

A prefix cache holds prompts from their beginning to the first difference. The lint names what differs first, and what
it costs; moving it changes the prompt, hence perhaps the answers, so only the author can do it. Halo never does.
Tokens are estimates throughout: characters / 4.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from halo_core.optimize.shared_text import SharedText, shared_text
from halo_core.plan import AdvisedCall, LLMOperator, Message, MessagesSlot, OpaqueStep, Plan, PromptTemplate, Slot

LEAST_TOKENS = 200
"""Shared tokens behind a difference below which nothing is reported."""
CHARS_PER_TOKEN = 4
ROWS_COMPARED = 8
"""Rows of which the prompts of one operator are compared; of two operators, half as many."""
SHOWN = 40
"""Characters of the first differing text that are shown."""
LONGEST_LABEL = 800
"""Characters before the shared text beyond which what differs is content of its own, no label in front of it."""

Kind = Literal["slot", "timestamp", "uuid", "counter", "name", "role prompt", "text"]
"""What the first differing text is; `slot` where only the template is known."""

_MONTH = r"(?:Jan|Feb|Mar|Apr|May|June?|July?|Aug|Sept?|Oct|Nov|Dec)(?:[a-z]{2,6})?"

_PATTERNS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("uuid", re.compile(r"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b")),
    ("timestamp", re.compile(r"\b\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)?")),
    ("timestamp", re.compile(r"\b\d{1,2}:\d\d(?::\d\d(?:\.\d+)?)?\b|\b1[5-9]\d{8}(?:\.\d+|\d{3})?\b")),
    ("timestamp", re.compile(r"\b\d{1,2}[./]\d{1,2}[./]\d{2,4}\b")),
    ("timestamp", re.compile(rf"\b(?:\d{{1,2}}\.? )?{_MONTH}\.?(?: \d{{1,2}})?(?:,? \d{{4}})?\b")),
    ("counter", re.compile(r"(?<![\w.])#?\d+(?![\w])")),
    ("name", re.compile(r"\b[A-Z][\w'-]+(?: [A-Z][\w'-]+)*\b")),
)


@dataclass(slots=True, frozen=True)
class Sample:
    """A prompt that an operator sent for a row, as one text; of several for one row the first counts."""

    operator: str
    row: int
    prompt: str


@dataclass(slots=True, frozen=True)
class Finding:
    """Shared text that stands behind text which differs."""

    operators: tuple[str, ...]
    """One operator whose rows share the text, or several that share it within a row."""
    shared_tokens: int
    """What could be computed once."""
    ahead_tokens: int
    """What stands before it from the first difference on; 0 where only the template is known."""
    kind: Kind
    differs: str
    """The first differing text, as it stands in one of the prompts, or the slot."""

    @property
    def within_row(self) -> bool:
        """Whether several operators share the text within a row; else one operator's rows share it."""
        return len(self.operators) > 1

    def __str__(self) -> str:
        shared = f"{self.shared_tokens:,} shared tokens"
        if self.kind == "slot":
            where = f"behind {self.differs}: computed again for every value of it. Move the slot behind the shared part"
            return f"{self.operators[0]}: {shared} sit {where}"
        role = self.kind == "role prompt"
        ahead = f"{_article(self.ahead_tokens)} {self.ahead_tokens:,}-token role prompt" if role else ""
        differ = "token that differs" if self.ahead_tokens == 1 else "tokens that differ"
        ahead = ahead or f"{self.ahead_tokens:,} {differ}"
        again = f"{len(self.operators)}x per row" if self.within_row else "in every row"
        what = f"first differing text ({self.differs!r})" if self.kind in ("role prompt", "text") else ""
        what = what or f"first differing text is a {self.kind} ({self.differs!r})"
        label = self.ahead_tokens <= LONGEST_LABEL // CHARS_PER_TOKEN
        advice = "Move it behind the shared part" if label else "Move the shared part before it"
        return f"{', '.join(self.operators)}: {shared} sit behind {ahead}: computed {again}; {what}. {advice}"


def lint_plan(plan: Plan) -> list[Finding]:
    """Long literal text behind a slot, per operator, as far as the plan knows its prompts."""
    found: dict[Finding, None] = {}
    for operator in plan.operators:
        calls: Sequence[LLMOperator | AdvisedCall] = ()
        if isinstance(operator, LLMOperator):
            calls = (operator,)
        elif isinstance(operator, OpaqueStep):
            calls = operator.advised_calls
        for call in calls:
            if call.prompt is not None and (finding := _behind_slot(operator.name, call.prompt)):
                found[finding] = None
    return list(found)


def _behind_slot(operator: str, prompt: PromptTemplate) -> Finding | None:
    first: Slot | MessagesSlot | None = None
    chars = 0
    for part in prompt.parts:
        for segment in part.segments if isinstance(part, Message) else (part,):
            if isinstance(segment, Slot | MessagesSlot):
                first = first or segment
            elif first is not None and len(segment.text) >= LEAST_TOKENS * CHARS_PER_TOKEN:
                chars += len(segment.text)
    return Finding((operator,), chars // CHARS_PER_TOKEN, 0, "slot", str(first)) if chars else None


def lint_samples(samples: Sequence[Sample]) -> list[Finding]:
    """What prompts that were really sent share behind their first difference: per operator over its rows, and over
    the operators of a row. A handful of rows is enough; more are not looked at.
    """
    by_operator: dict[str, dict[int, str]] = {}
    for sample in samples:
        by_operator.setdefault(sample.operator, {}).setdefault(sample.row, sample.prompt)
    found = []
    for operator, rows in by_operator.items():
        prompts = [rows[row] for row in sorted(rows)][:ROWS_COMPARED]
        if finding := _finding((operator,), prompts):
            found.append(finding)
    return found + list(_over_operators(by_operator))


def _over_operators(by_operator: dict[str, dict[int, str]]) -> Iterator[Finding]:
    """One finding for each set of operators that share text within rows, from the row where it is the most."""
    best: dict[tuple[str, ...], Finding] = {}
    rows = sorted({row for prompts in by_operator.values() for row in prompts})[: ROWS_COMPARED // 2]
    for row in rows:
        pending = {operator: prompts[row] for operator, prompts in by_operator.items() if row in prompts}
        while pending:
            leader, *others = pending
            group = [
                leader,
                *(other for other in others if _finding((leader, other), [pending[leader], pending[other]])),
            ]
            finding = _finding(tuple(group), [pending[name] for name in group])
            if finding and (tuple(group) not in best or best[tuple(group)].shared_tokens < finding.shared_tokens):
                best[tuple(group)] = finding
            for name in group:
                del pending[name]
    yield from best.values()


def _finding(operators: tuple[str, ...], prompts: Sequence[str]) -> Finding | None:
    different = list(dict.fromkeys(prompts))
    shared = shared_text(different, LEAST_TOKENS * CHARS_PER_TOKEN)
    if shared is None:
        return None
    kind, differs = _classify(different, shared, several=len(operators) > 1)
    ahead = max(1, (shared.begins - shared.difference) // CHARS_PER_TOKEN)
    if kind == "role prompt":
        ahead = shared.begins // CHARS_PER_TOKEN
    return Finding(operators, shared.chars // CHARS_PER_TOKEN, ahead, kind, differs)


def _classify(prompts: Sequence[str], shared: SharedText, several: bool) -> tuple[Kind, str]:
    """What the text at the first difference is in all of the prompts, and how it reads in the first."""
    at = shared.difference
    for kind, pattern in _PATTERNS:
        if kind == "name" and (several or shared.begins - at > LONGEST_LABEL):
            break
        texts = [_around(pattern, prompt, at) for prompt in prompts]
        if texts[0] and None not in texts and len(set(texts)) > 1:
            return kind, texts[0]
    first = prompts[0]
    begins = max(first.rfind(" ", 0, at), first.rfind("\n", 0, at)) + 1
    text = first[begins : max(shared.begins, at + 1)][:SHOWN].strip()
    return "role prompt" if several else "text", text


def _around(pattern: re.Pattern[str], prompt: str, at: int) -> str | None:
    """The match that the position lies in, or that it ends."""
    for match in pattern.finditer(prompt, max(0, at - 64), at + 64):
        if match.start() <= at <= match.end():
            return match.group()
    return None


def _article(number: int) -> str:
    return "an" if str(number).startswith("8") or str(number) in ("11", "18") else "a"
