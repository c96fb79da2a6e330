"""The benchmarks' ceiling: what one engine computes that forgets nothing."""

from __future__ import annotations

from benchmarks.trials import endless_cache_tokens
from halo_core.pool import Completion, Usage

A, B, C = (bytes([i]) * 32 for i in range(3))


def answered(prompt_tokens: int, *blocks: bytes) -> Completion:
    return Completion(b"{}", Usage(prompt_tokens=prompt_tokens), "e", blocks)


def test_only_what_no_earlier_call_had_is_computed() -> None:
    asked = [
        answered(40, A, B),
        answered(33, A),
        answered(70, A, B, C),  # goes on from the first one's answer: 64 of its 70 tokens are known
    ]
    assert endless_cache_tokens(asked, 32) == 40 + 1 + 6


def test_a_prompts_last_token_is_computed_in_any_case() -> None:
    assert endless_cache_tokens([answered(64, A, B), answered(64, A, B)], 32) == 64 + 32
