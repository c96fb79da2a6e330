"""Text that several texts share behind their first difference, found by anchors: blocks of one text that occur in
another, stretched to both sides. Linear in the lengths, as rsync does it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from halo_core.stats.prompts import common_chars

ANCHOR = 32
"""Characters of a block; shared text of at least twice as many is found."""
MOST_PLACES = 4
"""Places of a block that are tried, where it occurs often."""

Interval = tuple[int, int]


@dataclass(slots=True, frozen=True)
class SharedText:
    """What texts share behind their first difference, in characters of the first text."""

    difference: int
    """Where the texts first differ."""
    begins: int
    """Where the first shared text behind it begins."""
    chars: int
    """Characters that are shared behind it, in all."""


def shared_text(texts: Sequence[str], least: int) -> SharedText | None:
    """What all of the texts share behind the place where they first differ, in pieces of at least `least` characters.

    None where there is no such piece, or fewer than two texts.
    """
    if len(texts) < 2:
        return None
    first, *others = texts
    difference = min(common_chars(first, other) for other in others)
    pieces = [(difference, len(first))]
    for other in others:
        pieces = list(_both(pieces, list(_matches(first, other, difference, least)), least))
        if not pieces:
            return None
    return SharedText(difference, pieces[0][0], sum(end - start for start, end in pieces))


def _matches(one: str, other: str, start: int, least: int) -> Iterator[Interval]:
    """Pieces of `one` from `start` on, in order and apart, that stand anywhere behind `start` in `other`."""
    places: dict[str, list[int]] = {}
    for at in range(start, len(other) - ANCHOR + 1, ANCHOR):
        found = places.setdefault(other[at : at + ANCHOR], [])
        if len(found) < MOST_PLACES:
            found.append(at)
    at = free = start
    while at + ANCHOR <= len(one):
        longest = (at, at)
        for place in places.get(one[at : at + ANCHOR], ()):
            back = _alike_before(one, at, other, place, min(at - free, place - start))
            piece = (at - back, at + common_chars(one, other, at, place))
            longest = max(longest, piece, key=_length)
        if _length(longest) >= least:
            yield longest
            at = free = longest[1]
        else:
            at += 1


def _both(some: Sequence[Interval], others: Sequence[Interval], least: int) -> Iterator[Interval]:
    for start, end in some:
        for begin, finish in others:
            piece = (max(start, begin), min(end, finish))
            if _length(piece) >= least:
                yield piece


def _length(piece: Interval) -> int:
    return piece[1] - piece[0]


def _alike_before(one: str, at: int, other: str, place: int, most: int) -> int:
    """Characters, at most `most`, that are equal just before the two places."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if one[at - middle : at - low] == other[place - middle : place - low]:
            low = middle
        else:
            high = middle - 1
    return low
