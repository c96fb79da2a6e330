"""When two operators ask the same: a key for the call that an operator makes, up to the values of the state."""

from __future__ import annotations

from collections.abc import Hashable

from pydantic_core import to_json

from halo_core.plan import Effect, LLMOperator, Operator, ToolOperator

_OF_THE_CALL = {
    "llm": {"model", "prompt", "sampling", "tools", "response_format"},
    "tool": {"tool", "effect", "arguments", "reads"},
}


def call_of(operator: Operator) -> Hashable | None:
    """Equal for operators that make the same call when the keys they read hold the same values.

    None where no other operator's call may stand for it: it samples, may change the world, does not say what it reads,
    or is code that only running tells about.
    """
    if isinstance(operator, LLMOperator):
        mergeable = operator.sampling.deterministic
    else:
        mergeable = isinstance(operator, ToolOperator) and operator.effect is not Effect.WRITE
    if not mergeable or (isinstance(operator, ToolOperator) and operator.reads is None):
        return None
    content = operator.model_dump(mode="json", include=_OF_THE_CALL[operator.kind])
    return (operator.kind, operator.inputs, to_json(content))
