"""How far the places have come with a switch plan: which calls of which phase have been answered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from halo_core.optimize.switching import Phase, SwitchPlan


class Course:
    """The phases of a plan that are not over. Used on the pool's loop only."""

    def __init__(self, plan: SwitchPlan) -> None:
        self._phases = [list(phases) for phases in plan.places]
        self._left = [[phase.calls for phase in phases] for phases in plan.places]
        self._at = [0] * len(self._phases)

    def phase(self, place: int, waiting: Mapping[str, int]) -> Phase | None:
        """What a place is to serve now; None where its plan is over. `waiting`: operator -> calls that wait.

        A phase ends with its last expected call, but while more of its calls wait than all other phases expect (the
        plan expected too few) it goes on: to load the model once more for them would cost more.
        """
        if place >= len(self._phases):
            return None
        while self._at[place] < len(self._phases[place]):
            phase = self._phases[place][self._at[place]]
            if self._left[place][self._at[place]] > 0 or self._surplus(place, phase, waiting):
                return phase
            self._at[place] += 1
        return None

    def answered(self, operator: str, place: int | None) -> None:
        """A call of `operator` was answered: on `place`, or (None) by no engine."""
        current = [
            (i, self._at[i]) for i in range(len(self._phases)) if self._expects(i, self._at[i], operator) and i != place
        ]
        if place is not None and place < len(self._at) and self._expects(place, self._at[place], operator):
            current.insert(0, (place, self._at[place]))
        for i, at in current or self._later(operator):
            self._left[i][at] -= 1
            return

    def skip_to(self, place: int, models: set[str]) -> bool:
        """Give up the phases of a place before the next one of one of `models`; whether there is one."""
        if place >= len(self._phases):
            return False
        for at in range(self._at[place], len(self._phases[place])):
            if self._phases[place][at].model in models and self._left[place][at] > 0:
                self._at[place] = at
                return True
        return False

    def to_come(self, model: str) -> bool:
        """Whether `model` still has a phase."""
        return any(phase.model == model and left > 0 for _, phase, left in self._open())

    @property
    def over(self) -> bool:
        """Whether nothing is expected any more."""
        return not any(left > 0 for _, _, left in self._open())

    def _open(self) -> Iterator[tuple[int, Phase, int]]:
        for place, phases in enumerate(self._phases):
            for at in range(self._at[place], len(phases)):
                yield place, phases[at], self._left[place][at]

    def _expects(self, place: int, at: int, operator: str) -> bool:
        phases = self._phases[place]
        return at < len(phases) and operator in phases[at].operators and self._left[place][at] > 0

    def _later(self, operator: str) -> Iterator[tuple[int, int]]:
        """Phases that expect `operator` but have not begun, soonest first."""
        for ahead in range(max(map(len, self._phases), default=0)):
            for place in range(len(self._phases)):
                if self._expects(place, self._at[place] + ahead, operator):
                    yield place, self._at[place] + ahead

    def _surplus(self, place: int, phase: Phase, waiting: Mapping[str, int]) -> bool:
        here = sum(waiting.get(operator, 0) for operator in phase.operators)
        expected = sum(
            left
            for _, other, left in self._open()
            if left > 0 and other is not phase and other.operators & phase.operators
        )
        return here > expected
