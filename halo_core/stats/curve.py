"""How long an engine takes for a step, as fitted to what it was measured to do. No constant in here is set by hand."""

from __future__ import annotations

from bisect import bisect_left
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class DecodePoint(BaseModel):
    """Seconds of a step that decodes one token for each of `batch` requests, their contexts not counted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch: int = Field(gt=0)
    step_s: Seconds


class EngineCurve(BaseModel):
    """One engine's speed: what a scheduler's step costs by what is in it, and what happens around steps.

    A step that computes `p` prompt tokens, which attend to `a` (token, token) pairs, and decodes for `b` requests whose
    contexts hold `c` tokens in all, takes `prefill_step_s [p > 0] + p prefill_token_s + a attention_pair_s +
    decode_step_s(b) + c decode_context_token_s` seconds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prefill_step_s: Seconds
    """What a step costs once for computing any prompt token."""
    prefill_token_s: Seconds
    attention_pair_s: Seconds
    """Per pair of a prompt token that is computed and one that it attends to."""
    decode: tuple[DecodePoint, ...] = Field(min_length=1)
    """Ascending in batch; between points and beyond the last one a step's time is taken to be linear."""
    decode_context_token_s: Seconds = 0.0
    """Per token of context that a decoded token attends to."""
    request_s: Seconds = 0.0
    """What a request costs the engine outside its steps (its server, its tokenizer)."""
    load_s: Seconds = 0.0
    """From the start of the engine's program until it takes calls: what a model switch by restart costs."""
    kv_copy_bytes_per_s: Seconds = 0.0
    """Bandwidth at which KV can be copied through the host's shared memory; 0 where it was not measured."""
    kv_bytes_per_token: int = Field(default=0, ge=0)
    """2 x layers x KV heads x head size x bytes of the data type; 0 where the model's configuration is unknown."""

    def decode_step_s(self, batch: float) -> float:
        """Seconds of a step that decodes one token for each of `batch` requests with empty contexts; 0 for none."""
        if batch <= 0:
            return 0.0
        points = self.decode
        if len(points) == 1:
            return points[0].step_s
        i = min(max(bisect_left(points, batch, key=lambda point: point.batch), 1), len(points) - 1)
        left, right = points[i - 1], points[i]
        slope = (right.step_s - left.step_s) / (right.batch - left.batch)
        return max(left.step_s + slope * (batch - left.batch), 0.0)

    def step_s(self, prefill_tokens: float, attention_pairs: float, batch: float, context_tokens: float) -> float:
        """Seconds of one step, see the class."""
        seconds = self.decode_step_s(batch) + context_tokens * self.decode_context_token_s
        if prefill_tokens > 0:
            seconds += self.prefill_step_s + prefill_tokens * self.prefill_token_s
            seconds += attention_pairs * self.attention_pair_s
        return seconds

    def prefill_s(self, tokens: float, context_tokens: float = 0.0) -> float:
        """Seconds to compute `tokens` prompt tokens behind `context_tokens` cached ones, in a step of their own."""
        return self.step_s(tokens, attention_pairs(tokens, context_tokens), 0, 0) if tokens > 0 else 0.0

    def decode_s(self, tokens: float, batch: float, context_tokens: float = 0.0) -> float:
        """Seconds until each of `batch` requests has `tokens` more tokens; `context_tokens` is one request's, mean."""
        return tokens * self.step_s(0, 0, batch, batch * context_tokens)

    def kv_copy_s(self, tokens: float) -> float | None:
        """Seconds to copy the KV of so many tokens; None where no bandwidth is known."""
        if not self.kv_copy_bytes_per_s or not self.kv_bytes_per_token:
            return None
        return tokens * self.kv_bytes_per_token / self.kv_copy_bytes_per_s

    def scaled(self, factor: float) -> EngineCurve:
        """The curve of an engine that takes `factor` times as long for its steps and requests."""
        return self.model_copy(
            update={
                "prefill_step_s": self.prefill_step_s * factor,
                "prefill_token_s": self.prefill_token_s * factor,
                "attention_pair_s": self.attention_pair_s * factor,
                "decode": tuple(DecodePoint(batch=p.batch, step_s=p.step_s * factor) for p in self.decode),
                "decode_context_token_s": self.decode_context_token_s * factor,
                "request_s": self.request_s * factor,
            }
        )


def attention_pairs(tokens: float, context_tokens: float = 0.0) -> float:
    """Pairs that causal attention computes for `tokens` tokens behind `context_tokens` others."""
    return tokens * (context_tokens + (tokens + 1) / 2)
