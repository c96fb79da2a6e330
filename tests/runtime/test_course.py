"""How far a plan of switches has come."""

from __future__ import annotations

from halo_core.optimize.switching import Phase, SwitchPlan
from halo_core.runtime.course import Course


def phase(model: str, operators: str, calls: int) -> Phase:
    return Phase(model, frozenset(operators), calls)


def test_a_phase_ends_with_its_last_call() -> None:
    first, second = phase("A", "a", 2), phase("B", "b", 1)
    course = Course(SwitchPlan([[first, second]]))
    assert course.phase(0, {}) is first and course.to_come("B")
    course.answered("a", 0)
    assert course.phase(0, {}) is first
    course.answered("a", None)  # shared or replayed
    assert course.phase(0, {}) is second and not course.to_come("A")
    course.answered("b", 0)
    assert course.phase(0, {}) is None and course.over
    assert course.phase(1, {}) is None  # a place without a plan


def test_more_calls_than_expected_prolong_a_phase() -> None:
    first = phase("A", "a", 1)
    course = Course(SwitchPlan([[first, phase("B", "b", 1)]]))
    course.answered("a", 0)
    assert course.phase(0, {"a": 1}) is first


def test_calls_that_a_later_phase_expects_do_not() -> None:
    course = Course(SwitchPlan([[phase("A", "a", 1), phase("B", "b", 1), phase("A", "a", 3)]]))
    course.answered("a", 0)
    now = course.phase(0, {"a": 3})
    assert now is not None and now.model == "B"


def test_calls_count_for_the_place_that_served_them_then_for_others_then_for_later_phases() -> None:
    course = Course(SwitchPlan([[phase("A", "a", 1), phase("B", "b", 1)], [phase("A", "a", 1), phase("A", "a", 1)]]))
    course.answered("a", 1)
    assert course.phase(0, {}) == phase("A", "a", 1)
    course.answered("a", 1)  # more than its phase expects: placement found it better there
    assert course.phase(0, {}) == phase("B", "b", 1) and course.to_come("A")
    course.answered("a", 0)
    course.answered("a", 1)  # nobody expects it
    assert course.phase(1, {}) is None and not course.to_come("A") and not course.over


def test_a_phase_whose_calls_came_early_is_passed_over() -> None:
    course = Course(SwitchPlan([[phase("B", "b", 1), phase("A", "a", 1), phase("C", "c", 1)]]))
    course.answered("a", None)
    course.answered("b", 0)
    assert course.phase(0, {}) == phase("C", "c", 1)


def test_giving_a_phase_up() -> None:
    course = Course(SwitchPlan([[phase("A", "a", 9), phase("B", "b", 1), phase("C", "c", 1)]]))
    assert not course.skip_to(0, {"Z"}) and course.phase(0, {}) == phase("A", "a", 9)
    assert course.skip_to(0, {"C"}) and course.phase(0, {}) == phase("C", "c", 1)
    assert not course.to_come("A") and not course.skip_to(1, {"C"})
