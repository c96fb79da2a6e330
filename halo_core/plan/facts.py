"""Facts that the optimiser found about a plan: what is equal, constant, unread or shared. They change nothing by
themselves; each says in its text what becomes of it when the plan runs.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from halo_core.plan.frozen import Frozen


class EqualCalls(Frozen):
    """Operators of one plan that make the same call with the same arguments in every row."""

    kind: Literal["equal calls"] = "equal calls"
    operators: tuple[str, ...] = Field(min_length=2)
    of: Literal["tool", "model"]
    name: str
    """The tool or model that they call."""

    def __str__(self) -> str:
        same = f"{', '.join(self.operators)}: the same call of {self.of} {self.name}"
        if self.of == "tool":
            return f"{same}; the batch makes equal calls once (reads again after a write)"
        return f"{same}; made for each of them (within a row a repeated call is a new one)"


class Constant(Frozen):
    """An operator that reads nothing and changes nothing, so that one result serves the batch."""

    kind: Literal["constant"] = "constant"
    operator: str
    tool: str = ""
    """The tool that the operator calls; empty for a step of the user's code."""

    @property
    def operators(self) -> tuple[str, ...]:
        """The operators that the fact is about."""
        return (self.operator,)

    def __str__(self) -> str:
        if self.tool:
            return f"{self.operator}: tool {self.tool} with the same arguments in every row; called once for the batch"
        return f"{self.operator}: the same in every row; its code runs for each row, equal calls in it are made once"


class Unread(Frozen):
    """An operator without effects whose result nobody reads: no operator that is read itself, nor the caller."""

    kind: Literal["unread"] = "unread"
    operator: str

    @property
    def operators(self) -> tuple[str, ...]:
        """The operators that the fact is about."""
        return (self.operator,)

    def __str__(self) -> str:
        return f"{self.operator}: nobody reads its result; it is run all the same"


class SharedPrefix(Frozen):
    """Text that begins the prompts of one or several operators in every row."""

    kind: Literal["shared prefix"] = "shared prefix"
    operators: tuple[str, ...] = Field(min_length=1)
    model: str
    tokens: int = Field(ge=0)
    """Estimate: characters / 4. Tools that the model is told of come on top."""
    digest: str
    """Hex digest of the text; equal for equal texts."""
    opening: str = ""
    """How the text begins, for the eye."""

    def __str__(self) -> str:
        begins = f"about {self.tokens:,} tokens ({self.opening}) begin every prompt of {', '.join(self.operators)}"
        return f"{begins}; an engine computes them once while its cache holds them"


Fact = Annotated[EqualCalls | Constant | Unread | SharedPrefix, Field(discriminator="kind")]
