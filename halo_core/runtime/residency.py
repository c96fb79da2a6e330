"""Residency: which model is loaded on which place, and when a place changes hands.

A place follows its plan where it has one. Without, it keeps its model while calls wait for it or are under way, and is
given to the model with the most waiting work once it has been idle for a moment. Three prices bound what a wrong guess
costs, all in terms of a switch: a place that idles beside waiting calls is given to them after as long as the switch
takes (ski rental: never more than twice the best); a model that waits for places that are never idle gets one after
`STARVED` times that, and keeps it as long at least; a second copy of a model is loaded only for `WORTH` times that.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from halo_core.errors import ConfigError
from halo_core.optimize.switching import SwitchPlan
from halo_core.pool.loop import now_s
from halo_core.pool.places import Place, Places
from halo_core.runtime.course import Course

logger = logging.getLogger(__name__)

QUIET_S = 0.1
"""An idle place waits so long at least: the next calls of the rows that it has just answered are on their way."""
QUIET_SHARE = 1 / 50
"""And for this share of the seconds that a switch takes."""
LEAST_LOAD_S = 0.2
"""A switch is taken to cost so much at least, also where nothing was measured."""
STARVED = 5.0
WORTH = 3.0


class Queue(Protocol):
    """The calls that wait for one model, as `Dispatcher` knows them."""

    @property
    def backlog(self) -> int:
        """Calls that wait."""

    @property
    def waiting_units(self) -> float:
        """Their work in prompt-token equivalents."""

    @property
    def units_per_s(self) -> float:
        """How fast one engine gets on with such work; 0 while nothing is known."""

    @property
    def waiting(self) -> Mapping[str, int]:
        """Operator -> calls that wait."""


class Residency:
    """Decides what is loaded. Runs on the pool's loop only, but for `check`."""

    def __init__(
        self, places: Places, queues: Mapping[str, Queue], stalled: Callable[[], bool], crowd: Callable[[], float]
    ) -> None:
        """`queues`: model -> its calls; `stalled` tells whether all active runs wait for models that are not loaded;
        `crowd` how many times the active runs all runs are, with those that have not begun."""
        self.places = places
        self._queues = queues
        self._stalled = stalled
        self._crowd = crowd
        self._course: Course | None = None
        self._prices: Mapping[str, float] = {}
        self._lazy: set[int] = set()
        """Places that have left their plan, because what it waits for does not come."""
        self._idle_since: dict[int, float] = {}
        self._unserved_since: dict[str, float] = {}
        self._looking = False
        self._timer: asyncio.TimerHandle | None = None
        places.on_change = self.look_soon

    def check(self, plan: SwitchPlan) -> None:
        """Raises `ConfigError` where the pool cannot follow `plan`."""
        if len(plan.places) > len(self.places.all):
            raise ConfigError(f"the plan has {len(plan.places)} places, the pool {len(self.places.all)}")
        if unknown := sorted(model for model in plan.models if not self.places.serves(model)):
            raise ConfigError(f"the plan loads {', '.join(unknown)}, which the pool cannot load")

    def follow(self, plan: SwitchPlan | None) -> None:
        """Load models as `plan` says from now on, the first ones at once; None ends a plan before its time."""
        self._course = Course(plan) if plan is not None else None
        self._prices = plan.load_s if plan is not None else {}
        self._lazy.clear()
        self._idle_since.clear()
        self.look_soon()

    def answered(self, operator: str, engine: str) -> None:
        """A call of `operator` was answered by the engine of this name; empty: by none."""
        if self._course is not None:
            on = [place.index for place in self.places.all if place.engine is not None and place.engine.name == engine]
            self._course.answered(operator, on[0] if on else None)
        self.look_soon()

    @property
    def parked(self) -> int:
        """Calls that wait for a model that is not loaded."""
        return sum(queue.backlog for model, queue in self._placed() if not self._resident(model))

    # -- looking -------------------------------------------------------------------------------------------------

    def look_soon(self) -> None:
        """Something has changed: decide again, once for all changes of this turn of the loop."""
        if not self._looking:
            self._looking = True
            asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        self._looking = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._note_idle()
        if self._course is not None and self._course.over:
            self._course = None
        for place in self.places.all:
            self._follow_plan(place)
        self._serve_waiting()
        self._add_copy()
        if self._unserved():
            self._timer = asyncio.get_running_loop().call_later(QUIET_S, self.look_soon)

    def _note_idle(self) -> None:
        now = now_s()
        for place in self.places.all:
            if self._idle(place):
                self._idle_since.setdefault(place.index, now)
            else:
                self._idle_since.pop(place.index, None)
        unserved = self._unserved()
        self._unserved_since = {model: self._unserved_since.get(model, now) for model in unserved}
        for model in unserved:
            if (error := self.places.failure(model)) is not None:
                self.places.refuse(model, error)

    def _follow_plan(self, place: Place) -> None:
        if self._course is None or place.loading:
            return
        if place.index in self._lazy:
            if not self._quiet(place) or not self._course.skip_to(place.index, set(self._unserved())):
                return
            self._lazy.discard(place.index)
        phase = self._course.phase(place.index, self._waiting())
        if phase is None or self.places.failure(phase.model) is not None:
            return
        if self.places.standing(place) == phase.model:
            unserved = set(self._unserved())
            if unserved and self._late(place):
                if not self._course.skip_to(place.index, unserved):
                    self._lazy.add(place.index)
                    return
                logger.info("place %d: no more calls of its phase come; it goes on with its plan", place.index)
                phase = self._course.phase(place.index, self._waiting())
        if phase is not None and self.places.standing(place) != phase.model and self._changeable(place):
            self._switch(place, phase.model)

    def _serve_waiting(self) -> None:
        """Give idle places to models that wait, those with the most work first."""
        for model in sorted(self._unserved(), key=self._work, reverse=True):
            if self.places.failure(model) is not None or self.places.coming(model):
                continue
            planned = self._course is not None and self._course.to_come(model)
            place = self._free(model, planned=planned)
            if place is None and not planned:
                place = self._to_give_up(model)
            if place is not None:
                self._switch(place, model)

    def _free(self, model: str, *, planned: bool = False) -> Place | None:
        """An idle place without a plan: an empty one, else that which has been idle for longest.

        A model that has its phase on another place is loaded here only where the plan gets nowhere.
        """
        free = []
        for place in self.places.all:
            if self._planned(place) or not self._quiet(place):
                continue
            if not planned or self._nothing_comes(place):
                empty = not self.places.standing(place)
                free.append((not empty, self._idle_since[place.index], place.index))
        return self.places.all[min(free)[2]] if free else None

    def _to_give_up(self, model: str) -> Place | None:
        """A place that is never idle, for a model that has waited for too long."""
        now = now_s()
        waited_s = now - self._unserved_since.get(model, now)
        loaded = self._loaded()

        def patience_s(place: Place) -> float:
            return self._price(model) * (1.0 if loaded[self.places.standing(place)] > 1 else STARVED)

        places = [p for p in self.places.all if self._changeable(p) and min(waited_s, now - p.since_s) >= patience_s(p)]
        if not places:
            return None
        place = min(places, key=lambda place: self._work(self.places.standing(place)))
        if self._course is not None:
            self._lazy.add(place.index)
        return place

    def _add_copy(self) -> None:
        """Load a model once more on a place that has nothing to do, where its work outweighs that by far."""
        if self._course is not None or self._unserved():
            return
        loaded = self._loaded()
        for model, queue in self._placed():
            if not loaded[model] or not queue.backlog or not queue.units_per_s:
                continue
            seconds = self._crowd() * queue.waiting_units / queue.units_per_s / loaded[model]
            if seconds < WORTH * self._price(model):
                continue
            place = self._free(model)
            # A model that was in use a moment ago makes room for one that nobody has, not for a copy.
            if place is not None and (not self.places.standing(place) or self._late(place)):
                self._switch(place, model)
                return

    def _switch(self, place: Place, model: str) -> None:
        self._idle_since.pop(place.index, None)
        self.places.switch(place, model)

    # -- what is known -------------------------------------------------------------------------------------------

    def _placed(self) -> Iterable[tuple[str, Queue]]:
        return [(model, queue) for model, queue in self._queues.items() if self.places.serves(model)]

    def _unserved(self) -> list[str]:
        """Models that somebody waits for, and that are neither loaded nor coming."""
        waiting = [model for model, queue in self._placed() if queue.backlog]
        waiting += [model for model, count in self.places.wanted.items() if count and model not in waiting]
        return [model for model in waiting if not self.places.coming(model)]

    def _loaded(self) -> Counter[str]:
        """Model -> places that have it, or will."""
        return Counter(filter(None, (place.loading or self.places.standing(place) for place in self.places.all)))

    def _resident(self, model: str) -> bool:
        return any(self.places.standing(place) == model for place in self.places.all)

    def _waiting(self) -> Counter[str]:
        waiting: Counter[str] = Counter()
        for _, queue in self._placed():
            waiting.update(queue.waiting)
        return waiting

    def _work(self, model: str) -> float:
        queue = self._queues.get(model)
        return queue.waiting_units if queue is not None else 0.0

    def _idle(self, place: Place) -> bool:
        """No call is under way on the place, and none waits for its model."""
        if not self.places.idle(place):
            return False
        queue = self._queues.get(self.places.standing(place))
        return queue is None or not queue.backlog

    def _changeable(self, place: Place) -> bool:
        return not place.loading and (not self.places.standing(place) or bool(place.model))

    def _planned(self, place: Place) -> bool:
        if self._course is None or place.index in self._lazy:
            return False
        phase = self._course.phase(place.index, self._waiting())
        return phase is not None and self.places.failure(phase.model) is None

    def _quiet(self, place: Place) -> bool:
        """Whether a place is idle, and has been for a moment unless it is empty: no call is on its way to it."""
        since = self._idle_since.get(place.index)
        if since is None or not self._idle(place):
            return False
        model = self.places.standing(place)
        return not model or now_s() - since >= max(QUIET_S, QUIET_SHARE * self._price(model))

    def _late(self, place: Place) -> bool:
        """Whether an idle place need not wait for its own calls any more: none can come, or waiting costs too much."""
        since = self._idle_since.get(place.index)
        if since is None:
            return False
        return now_s() - since >= self._price(self.places.standing(place)) or self._nothing_comes(place)

    def _nothing_comes(self, place: Place) -> bool:
        """Whether every row waits for a model that is not loaded, and has for a moment."""
        return self._quiet(place) and not any(other.loading for other in self.places.all) and self._stalled()

    def _price(self, model: str) -> float:
        """Seconds of loading a model, as measured; the mean of all where this one was never loaded."""
        known = {**self._prices, **self.places.load_s}
        seconds = known.get(model, sum(known.values()) / len(known) if known else 0.0)
        return max(seconds, LEAST_LOAD_S)
