"""How much of an agent's own answer its next turn finds in the caches."""

from __future__ import annotations

import pytest

from halo_core.stats import ObservedCall, ObservedRow, decoded_reuse


def call(operator: str, prompt: int, cached: int, answer: int, *, executed: bool = True) -> ObservedCall:
    return ObservedCall(operator, "m", 0.0, 1.0, executed, prompt, cached, answer)


def row(*calls: ObservedCall) -> tuple[ObservedRow, dict[str, ObservedCall]]:
    return ObservedRow("r", 0.0, calls=list(calls)), {one.operator: one for one in calls}


@pytest.mark.parametrize(
    ("cached", "found", "prevented"),
    [(290, 90, False), (224, 24, False), (192, 0, True), (320, 100, False)],
)
def test_what_lies_behind_the_earlier_prompt_is_its_answer(cached: int, found: int, prevented: bool) -> None:
    rows = [row(call("draft", 200, 0, 100), call("final", 400, cached, 50)) for _ in range(3)]
    (reuse,) = decoded_reuse(rows, {"final": "draft"}, 32)
    assert (reuse.rows, reuse.answer_tokens, reuse.found_tokens) == (3, 100, found)
    assert reuse.prevented is prevented
    assert ("chat template" in str(reuse)) is prevented


def test_short_answers_say_nothing_of_the_template() -> None:
    (reuse,) = decoded_reuse([row(call("draft", 200, 0, 40), call("final", 300, 192, 5))], {"final": "draft"}, 32)
    assert reuse.found_tokens == 0
    assert not reuse.prevented


def test_only_computed_calls_that_met_a_cache_count() -> None:
    rows = [
        row(call("draft", 200, 0, 100, executed=False), call("final", 400, 290, 50)),
        row(call("draft", 200, 0, 100), call("final", 400, 0, 50)),  # another engine, which had nothing
        row(call("draft", 200, 0, 100)),
    ]
    assert decoded_reuse(rows, {"final": "draft"}, 32) == []
