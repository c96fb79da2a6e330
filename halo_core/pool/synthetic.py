"""Calls for measuring engines: prompts of plain words that share no block, answers of a fixed length."""

from __future__ import annotations

import random

from halo_core.pool.call import LLMCall

_WORDS = (
    "river",
    "stone",
    "seven",
    "quick",
    "amber",
    "ledger",
    "north",
    "pencil",
    "orbit",
    "copper",
    "winter",
    "harbor",
    "signal",
    "gentle",
    "matrix",
    "violet",
)


def text(seed: int | str, words: int) -> str:
    """A text that only this seed has; a longer one of the same seed begins with the shorter."""
    return " ".join(random.Random(seed).choices(_WORDS, k=words))


def synthetic(model: str, content: str, answer_tokens: int) -> LLMCall:
    """A call that is answered with exactly so many tokens."""
    messages = [{"role": "user", "content": content}]
    return LLMCall(model, {"messages": messages, "max_tokens": answer_tokens, "temperature": 0, "ignore_eos": True})
