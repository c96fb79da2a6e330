"""Operators: the nodes of a plan, and the facts about each that decide what may be merged."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from halo_core.plan.frozen import Frozen
from halo_core.plan.prompt import PromptTemplate

Keys = tuple[str, ...]


class Effect(StrEnum):
    """What running an operator does to the world outside the state."""

    PURE = "pure"
    """Nothing: equal inputs give equal outputs."""
    READ = "read"
    """Looks at the world without changing it; one look may serve the batch unless the batch wrote before."""
    WRITE = "write"
    """May change the world: never merged, reordered across its dependants or retried."""


class Source(Frozen):
    """Where an operator comes from, and what its framework promises about it."""

    framework: str = ""
    node: str = ""
    """The framework's own name of the node or agent, where it differs from the operator's."""
    code: str = ""
    """Import path or `file:line` of the code behind it."""
    retries: int | None = None
    """Most attempts that the framework makes; None = one."""
    cached: bool = False
    """The framework itself caches the node's results."""
    timeout_s: float | None = None
    """Seconds after which the framework gives the node up."""
    deferred: bool = False
    """The framework runs the node only once nothing else is left to run."""
    error_handler: str = ""
    hints: dict[str, JsonValue] = Field(default_factory=dict)
    """What the user wrote in the node's `metadata["halo"]`."""


class Sampling(Frozen):
    """Sampling parameters; None = the engine's default."""

    temperature: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    top_p: float | None = Field(default=None, ge=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    n: int = Field(default=1, ge=1)
    extra: dict[str, JsonValue] = Field(default_factory=dict)
    """Further request fields, in the wire's names."""

    @property
    def deterministic(self) -> bool:
        """Whether equal calls give equal answers: temperature exactly 0, or a seed."""
        return self.temperature == 0 or self.seed is not None

    def __str__(self) -> str:
        fields = {"temperature": self.temperature, "top_p": self.top_p, "max_tokens": self.max_tokens}
        shown = [f"{name}={value:g}" for name, value in fields.items() if value is not None]
        shown += [f"seed={self.seed}"] if self.seed is not None else []
        shown += [f"stop={list(self.stop)!r}"] if self.stop else []
        shown += [f"n={self.n}"] if self.n != 1 else []
        return ", ".join(shown + [f"{name}={value!r}" for name, value in self.extra.items()])


class ToolSchema(Frozen):
    """A tool as a model is told of it."""

    name: str = Field(min_length=1)
    description: str = ""
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    """JSON schema of the arguments."""


class AdvisedCall(Frozen):
    """A model call that a static scan expects inside an opaque step; only running code knows."""

    model: str
    prompt: PromptTemplate | None = None
    """What the scan could tell of the prompt; None = nothing."""
    sampling: Sampling = Sampling()
    tools: tuple[ToolSchema, ...] = ()
    found_in: str = ""
    """How the scan found the model (`closure 'llm'`, `global 'chain'`)."""


class AdvisedTool(Frozen):
    """A tool that a static scan expects inside an opaque step; only running code knows."""

    name: str
    effect: Effect | None = None
    """What it does to the world; None = every call tells by itself (SQL by its text, HTTP by its method)."""
    found_in: str = ""
    """How the scan found it."""


class _Operator(Frozen):
    name: str = Field(min_length=1)
    """Unique in the plan."""
    reads: Keys | None = None
    """State keys that it may read; None = unknown, so all of them and all of the row."""
    writes: Keys | None = None
    """State keys that it may write; None = unknown, so all of them."""
    source: Source = Source()

    @property
    def inputs(self) -> Keys | None:
        """State keys that decide what the operator does; None = everything."""
        return self.reads

    @property
    def certain_writes(self) -> Keys:
        """State keys that it writes whenever it runs."""
        return ()


class LLMOperator(_Operator):
    """One model call whose prompt is fully known but for its slots."""

    kind: Literal["llm"] = "llm"
    model: str = Field(min_length=1)
    prompt: PromptTemplate
    sampling: Sampling = Sampling()
    tools: tuple[ToolSchema, ...] = ()
    response_format: dict[str, JsonValue] | None = None

    @property
    def inputs(self) -> Keys:
        """The keys of the prompt's slots, and those declared besides."""
        return tuple(dict.fromkeys((*self.prompt.state_keys(), *(self.reads or ()))))

    @property
    def certain_writes(self) -> Keys:
        """State keys that it writes whenever it runs."""
        return self.writes or ()


class ToolOperator(_Operator):
    """One call of a tool with arguments taken from the state."""

    kind: Literal["tool"] = "tool"
    tool: str = Field(min_length=1)
    effect: Effect = Effect.WRITE
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
    """Arguments that are the same in every row."""

    @property
    def certain_writes(self) -> Keys:
        """State keys that it writes whenever it runs."""
        return self.writes or ()


class OpaqueStep(_Operator):
    """Code that only running it can tell about; its model calls are intercepted."""

    kind: Literal["opaque"] = "opaque"
    effect: Effect = Effect.WRITE
    doubt: str = ""
    """What may change the world outside, where nobody declared the effect."""
    advised_calls: tuple[AdvisedCall, ...] = ()
    advised_tools: tuple[AdvisedTool, ...] = ()


class Route(_Operator):
    """A decision which of its guarded edges are taken; does not write the state."""

    kind: Literal["route"] = "route"
    writes: Keys | None = ()
    labels: tuple[str, ...] | None = None
    """The answers it can give; None = unknown."""
    deterministic: bool = False
    """Whether equal inputs give equal answers, as far as the lift can tell."""


class Join(_Operator):
    """Waits for all operators that have an edge into it."""

    kind: Literal["join"] = "join"
    reads: Keys | None = ()
    writes: Keys | None = ()


class Loop(_Operator):
    """A region of operators that may run several times; it has no edges of its own."""

    kind: Literal["loop"] = "loop"
    reads: Keys | None = ()
    writes: Keys | None = ()
    body: tuple[str, ...] = Field(min_length=1)
    bound: int | None = Field(default=None, ge=1)
    """Most turns; None = unknown."""


Operator = Annotated[LLMOperator | ToolOperator | OpaqueStep | Route | Join | Loop, Field(discriminator="kind")]


def effect_of(operator: Operator) -> Effect:
    """What running the operator does to the world outside the state."""
    if isinstance(operator, ToolOperator | OpaqueStep):
        return operator.effect
    return Effect.PURE
