"""The plan of model switches with the fewest loads, for apps small enough to try all orders.

A load costs seconds to minutes, while calls of a loaded model cost the same wherever they run. So loads come first: a
uniform-cost search over what is done and what is loaded, in which everything that can run with the loaded models does
(no plan with fewer loads is lost by that: running more never hurts). Of plans with equally many loads, one that divides
them evenly, as places load side by side.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from itertools import count

from halo_core.optimize.switching import Phase, SwitchPlan
from halo_core.stats import Catalog, StepProfile

MOST_STATES = 20_000
"""States after which the search is given up: some tenths of a second."""

Loaded = tuple[str, ...]
"""The model of each place; empty for none."""
Load = tuple[int, str]
"""(place, model)."""


def fewest_loads(catalog: Catalog, rows: int, loaded: Sequence[str], load_s: Mapping[str, float]) -> SwitchPlan | None:
    """The plan for so many rows, beginning with the `loaded` models; None where there are too many orders to try."""
    models = sorted({step.model for step in catalog.steps})
    begin = tuple(loaded)
    done = _served(catalog, frozenset(), begin)
    serial = count()
    queue: list[tuple[int, int, int, frozenset[str], Loaded, tuple[Load, ...]]] = []
    heapq.heappush(queue, (0, 0, next(serial), done, begin, ()))
    seen: set[tuple[frozenset[str], Loaded]] = set()
    while queue and len(seen) < MOST_STATES:
        loads, _, _, done, now, path = heapq.heappop(queue)
        if len(done) == len(catalog.steps):
            return _plan(catalog, rows, begin, path, load_s)
        if (done, now) in seen:
            continue
        seen.add((done, now))
        for place in range(len(now)):
            for model in models:
                if model in now:
                    continue  # a second copy saves no load
                then = (*now[:place], model, *now[place + 1 :])
                way = (*path, (place, model))
                uneven = max(sum(at == p for at, _ in way) for p in range(len(now)))
                heapq.heappush(queue, (loads + 1, uneven, next(serial), _served(catalog, done, then), then, way))
    return None


def _served(catalog: Catalog, done: frozenset[str], loaded: Loaded) -> frozenset[str]:
    """What is done once all that can run with these models has run."""
    now = set(done)
    grown = True
    while grown:
        more = [s.name for s in catalog.steps if s.name not in now and s.model in loaded and now.issuperset(s.after)]
        now.update(more)
        grown = bool(more)
    return frozenset(now)


def _plan(catalog: Catalog, rows: int, begin: Loaded, path: Sequence[Load], load_s: Mapping[str, float]) -> SwitchPlan:
    phases: list[list[tuple[str, list[StepProfile]]]] = [[(model, [])] if model else [] for model in begin]
    now, done = begin, frozenset[str]()
    for load in (None, *path):
        if load is not None:
            place, model = load
            now = (*now[:place], model, *now[place + 1 :])
            phases[place].append((model, []))
        after = _served(catalog, done, now)
        for step in catalog.steps:
            if step.name in after - done:
                phases[now.index(step.model)][-1][1].append(step)
        done = after
    return SwitchPlan([[_phase(model, steps, rows) for model, steps in each if steps] for each in phases], load_s)


def _phase(model: str, steps: Sequence[StepProfile], rows: int) -> Phase:
    calls = round(sum(step.frequency * rows for step in steps))
    return Phase(model, frozenset(step.operator for step in steps), calls)
