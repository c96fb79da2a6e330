"""What the prompts of an app share with each other, learnt by comparing those of a few rows.

Two prompts share exactly their common beginning, so all that matters is how long that is, for calls of the same row, of
any two rows, and of rows that are equal in a field. Common beginnings nest, which makes each prompt's a path of named
stretches in a radix tree.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, permutations
from math import gcd
from statistics import median_low

from halo_core.stats.catalog import SharedPart
from halo_core.stats.observed import Calls, ObservedRow

ROWS_COMPARED = 5
MIN_CHARS = 64
"""A stretch below this (a KV block is 16 tokens) is not worth a name."""
TRUSTED = (0.5, 1.5)
"""A cache's own figure is believed where it is between so many times the guess."""
ANSWER = "\x1eassistant\x1e"
"""Between a prompt and the answer to it, in a prompt that goes on from there."""


Row = tuple[ObservedRow, Calls]
"""A row and those of its calls whose prompts were kept."""
Pair = tuple[Row, Row]


@dataclass(slots=True, frozen=True)
class _Common:
    """A scope within which prompts begin alike, and with which step for how many characters."""

    scope: str
    chars: Mapping[str, int]


class Prompts:
    """The prompts of some rows, by step."""

    def __init__(self, rows: Sequence[Row]) -> None:
        read = [(row, calls) for row, calls in rows if calls]
        self._all = read
        self._rows = _chosen(read)
        cached = [call.cached_tokens for _, calls in read for call in calls.values() if call.cached_tokens]
        self._block_tokens = gcd(*cached) if cached else 1
        self._order = list(dict.fromkeys(name for _, calls in read for name in calls))
        chars = sum(len(call.prompt) for _, calls in read for call in calls.values())
        tokens = sum(call.prompt_tokens for _, calls in read for call in calls.values())
        self._chars_per_token = chars / tokens if chars and tokens else 4.0
        self._common = _CommonPrefixes(call.prompt for _, calls in self._rows for call in calls.values())
        pairs = [(a, b) for a, b in permutations(self._rows, 2) if a[0].content != b[0].content]
        self._pairs = {"app": pairs, **_by_field(pairs)}
        """Scope -> the pairs of different rows within it, the widest scope first."""

    def parts(self, step: str) -> tuple[SharedPart, ...]:
        """The beginning of the step's prompt that others have too."""
        known = [calls[step] for _, calls in self._rows if step in calls]
        if not known:
            return ()
        scopes = list(self._scopes(step))
        longest = min(len(call.prompt) for call in known)
        ends = sorted({min(chars, longest) for scope in scopes for chars in scope.chars.values()})
        parts: list[SharedPart] = []
        begun = 0
        for end in ends:
            if end - begun < MIN_CHARS:
                continue
            scope = next(scope for scope in scopes if max(scope.chars.values(), default=0) >= end)
            owner = next(name for name in self._order if scope.chars.get(name, -1) >= end)
            tokens = round(end / self._chars_per_token) - round(begun / self._chars_per_token)
            parts.append(SharedPart(scope=scope.scope, key=f"{owner}:{end}", tokens=tokens))
            begun = end
        return tuple(self._as_cached(step, parts))

    def _as_cached(self, step: str, parts: list[SharedPart]) -> list[SharedPart]:
        """The parts, their lengths corrected to what the engines' caches had of them.

        Characters tell tokens only on average; the blocks that were found in a cache tell them to within a block. Where
        a cache had far less, the prompts never met there, and where it had far more, it was not cold.
        """
        cached = [calls[step].cached_tokens for _, calls in self._all if step in calls and calls[step].cached_tokens]
        if not cached:
            return parts
        # What all rows share is hit by most calls; what some rows share, by the luckiest.
        everywhere = all(part.scope == "app" for part in parts)
        found = median_low(cached) if everywhere else max(cached)
        guessed = sum(part.tokens for part in parts)
        if not TRUSTED[0] <= found / max(guessed, 1) <= TRUSTED[1] or self.continues(step):
            return parts
        block = self._block_tokens
        if found <= guessed - block // 4 and guessed + block // 4 < found + block:
            return parts  # the guess gives as many blocks
        factor = (found + block / 2) / guessed
        return [part.model_copy(update={"tokens": round(part.tokens * factor)}) for part in parts]

    def system_tokens(self, step: str) -> int:
        """Length of the step's tools and leading system messages."""
        chars = [calls[step].system_chars for _, calls in self._rows if step in calls]
        return round(min(chars, default=0) / self._chars_per_token)

    def continues(self, step: str) -> str:
        """The step whose prompt and answer the step's own prompt begins with, the longest; empty for none."""
        rows = [calls for _, calls in self._rows if step in calls]
        found = ""
        for other in self._order:
            pairs = [(calls[other].prompt, calls[step].prompt) for calls in rows if other in calls]
            whole = other != step and len(pairs) == len(rows) > 0
            if whole and all(prompt.startswith(before + ANSWER) for before, prompt in pairs):
                longer = not found or all(len(calls[other].prompt) > len(calls[found].prompt) for calls in rows)
                found = other if longer else found
        return found

    # -- comparing -----------------------------------------------------------------------------------------------

    def _least(self, step: str, pairs: Iterable[tuple[Calls, Calls]], *, others_only: bool = False) -> dict[str, int]:
        """Step -> characters that `step`'s prompt begins with as its does, in every pair of rows that has both."""
        least: dict[str, int] = {}
        for one, other in pairs:
            if step not in one:
                continue
            prompt = one[step].prompt
            for name in self._order:
                if name in other and not (others_only and name == step):
                    common = self._common.of(prompt, other[name].prompt)
                    least[name] = min(least.get(name, common), common)
        return least

    def _scopes(self, step: str) -> Iterator[_Common]:
        """The scopes in which the step's prompt begins like others', the widest first."""
        for scope, pairs in self._pairs.items():
            common = self._least(step, ((a[1], b[1]) for a, b in pairs))
            if not pairs:  # equal rows only: what they share is what rows of one app share as a rule
                common = {step: min((calls[step].system_chars for _, calls in self._rows if step in calls), default=0)}
            yield _Common(scope, common)
        own = self._least(step, ((calls, calls) for _, calls in self._rows), others_only=True)
        yield _Common("row", {**own, step: max(own.values(), default=0)} if own else {})


def _by_field(pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    """Scope of a field -> the pairs of rows that are equal in it, where that is some of them."""
    found: dict[str, list[Pair]] = {}
    for path in sorted({path for (row, _), _ in pairs for path in row.fields}):
        equal = [(a, b) for a, b in pairs if path in a[0].fields and a[0].fields[path] == b[0].fields.get(path)]
        if equal and len(equal) < len(pairs):
            found[f"field:{path}"] = equal
    return found


def _chosen(rows: Sequence[Row]) -> list[Row]:
    """A few rows to compare: different ones first, the first and the last among them."""
    different = list({row.content: (row, calls) for row, calls in reversed(rows)}.values())[::-1]
    if len(different) <= ROWS_COMPARED:
        return different
    return [*different[: ROWS_COMPARED - 1], different[-1]]


class _CommonPrefixes:
    """How long any two of some texts are equal from their beginning: the least of what neighbours share when sorted."""

    def __init__(self, texts: Iterable[str]) -> None:
        ordered = sorted(set(texts))
        self._place = {text: i for i, text in enumerate(ordered)}
        neighbours = [common_chars(a, b) for a, b in pairwise(ordered)]
        self._common: list[list[int]] = []
        """For each text, what it shares with each one behind it."""
        for i in range(len(ordered)):
            self._common.append(list(accumulate(neighbours[i:], min)))

    def of(self, one: str, other: str) -> int:
        """In characters."""
        first, last = sorted((self._place[one], self._place[other]))
        return len(one) if first == last else self._common[first][last - first - 1]


def common_chars(one: str, other: str, at: int = 0, place: int = 0) -> int:
    """Characters that are equal in two texts from the place `at` in one and `place` in the other on."""
    low, high = 0, min(len(one) - at, len(other) - place)
    while low < high:
        middle = (low + high + 1) // 2
        if one[at + low : at + middle] == other[place + low : place + middle]:
            low = middle
        else:
            high = middle - 1
    return low
